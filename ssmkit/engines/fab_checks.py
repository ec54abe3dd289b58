"""What is refused before a flow is trained."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.engines.objective import refuse_params, require_evidence, require_sites
from ssmkit.engines.options import RunOptions, check_counts
from ssmkit.engines.pseudo_marginal import refuse_discrete
from ssmkit.errors import EngineError, OptionError
from ssmkit.learned.replay_buffer import ReplayBuffer
from ssmkit.models.density import Density
from ssmkit.models.programs import Program, free_sites
from ssmkit.models.whitening import refuse_improper

LEAST = {
    "num_iterations": 1,
    "batch_size": 2,
    "num_temperatures": 0,
    "num_leapfrog": 1,
    "num_moves": 1,
    "num_draws": 25,  # k-hat needs a tail
    "num_check": 0,
    "num_state_draws": 2,
}


def check_options(engine: Any) -> None:
    """Refuse impossible options.

    Raises:
        OptionError: names the option.
    """
    check_counts(engine, LEAST)
    shares = {"threshold": engine.threshold, "defence": engine.defence}
    for name, value in shares.items():
        if not 0 <= value < 1:
            _refuse(name, value, "a share, from 0 to below 1")
    positive = {"alpha": engine.alpha, "learning_rate": engine.learning_rate}
    for name, value in positive.items():
        if not value > 0:
            _refuse(name, value, "a positive number")
    if engine.bound is not None and not engine.bound > 0:
        _refuse("bound", engine.bound, "a positive number, or None")
    if engine.moves not in (None, "hamiltonian", "walk"):
        _refuse("moves", engine.moves, '"hamiltonian", "walk", or None')
    if engine.buffer is not None and not isinstance(engine.buffer, ReplayBuffer):
        _refuse("buffer", engine.buffer, "sk.learned.ReplayBuffer(...), or None")
    if not hasattr(engine.flow, "build"):
        _refuse("flow", engine.flow, "a builder, such as sk.learned.CouplingFlow()")


def _refuse(name: str, value: Any, expected: str) -> None:
    raise OptionError(f"sk.FAB: {name} cannot be used.", got=repr(value), expected=expected)


def check_target(engine: Any, target: Any, options: RunOptions) -> None:
    """Refuse targets that no flow can learn.

    Raises:
        EngineError: an evidence that is missing, superfluous or without a slope, or no sites.
        ParameterError: points, discrete sites, improper priors.
        ModelError: a density that fails on a vector of its size.
    """
    if isinstance(target, Density):
        if engine.evidence is not None:
            raise EngineError(
                "a density has no series whose evidence could be scored.",
                got=f"evidence={engine.evidence!r}",
                expected="sk.FAB() for a Density",
            )
        target.check()
        return
    if engine.evidence is None and options.batched:
        raise EngineError(
            "sk.FAB() learns parameters and states of one series jointly.",
            got="several series",
            fix="sk.FAB(evidence=...) for parameters that the series share",
        )
    sites = free_sites(target) if isinstance(target, Program) else {}
    if engine.evidence is not None:
        require_sites(engine, target, sites)
        require_evidence(engine, gradient=not engine.walks)
    refuse_params(engine, sites)
    refuse_discrete(engine, sites)
    refuse_improper(sites, "sk.FAB")


def check_learned(engine: Any, learned: Any, like: Any) -> None:
    """Refuse a flow that is not of the shape that this engine builds.

    Raises:
        OptionError: another flow, or another number of coordinates.
    """

    def shapes(tree: Any) -> list[Any]:
        return [jnp.shape(a) for a in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]

    same = jax.tree.structure(learned) == jax.tree.structure(like)
    if not same or shapes(learned) != shapes(like):
        raise OptionError(
            "learned= is a flow of another shape.",
            got=type(learned).__name__,
            expected=f"what {engine.flow!r} builds for this target",
            fix="posterior.learned of a run with the same flow= on a program with the same sites",
        )
