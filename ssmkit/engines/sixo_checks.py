"""What SIXO refuses, before compilation."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.engines.options import RunOptions
from ssmkit.engines.smc_checks import check_cloud_options, check_model, require_density
from ssmkit.errors import DataError, OptionError
from ssmkit.learned.pieces import Learned
from ssmkit.learned.proposals import Induced
from ssmkit.models.base import StateSpaceModel, abstract_law, input_at
from ssmkit.models.distributions import base_distribution, is_a
from ssmkit.posterior import Data
from ssmkit.smc.proposals import own_law, require_gaussian
from ssmkit.smc.recipes import Step
from ssmkit.typing import Inputs

NEEDS = {
    "objective": ("loss", "check", "uses_twist", "batch_size", "steps", "optimizer"),
    "twist_learning": ("loss", "steps", "optimizer"),
}


def check_model_and_options(engine: Any, model: StateSpaceModel, us: Inputs) -> None:
    """Refuse impossible options, and models that cannot be simulated or scored.

    Raises:
        OptionError: names the option.
        ModelError: the model cannot be simulated without data.
        SingularTransitionError: a density is needed where there is none.
    """
    check_cloud_options(engine)
    _check_builders(engine)
    engine.objective.check()
    check_model(engine, model, us)
    if isinstance(engine.proposal, Induced):
        _check_induced(model, us)
    if getattr(engine.twist_learning, "window", None) is not None and model.time_varying:
        raise OptionError(
            "a window cuts series out of their time, and this model changes with it.",
            got=f"window={engine.twist_learning.window}, a time-varying {type(model).__name__}",
            expected="window=None",
        )
    for part in (engine.proposal, engine.objective):
        if getattr(part, "needs_density", False):
            require_density(f"{type(part).__name__}()", model, us)


def _check_induced(model: StateSpaceModel, us: Inputs) -> None:
    """Refuse states that are neither finite nor moved by a Gaussian transition."""
    u = input_at(us, 0)
    law = abstract_law(lambda: model.at(0).initial(u))
    if is_a(base_distribution(law), dist.CategoricalProbs | dist.CategoricalLogits):
        return
    x = jnp.zeros(law.event_shape)
    for before in (None, x):
        require_gaussian(lambda x=before: own_law(model, x, Step(0, None, u, None)))


def _check_builders(engine: Any) -> None:
    for name in ("twist", "proposal"):
        part = getattr(engine, name)
        if part is not None and (isinstance(part, type) or not hasattr(part, "build")):
            raise OptionError(
                f"sk.SIXO: {name} is no builder.",
                got=repr(part),
                expected="an object with build(key, setting), such as sk.learned.Twist(), or None",
            )
    for name, needs in NEEDS.items():
        part = getattr(engine, name)
        missing = [n for n in needs if not hasattr(part, n)]
        is_free = name == "twist_learning" and part is None
        if not is_free and (isinstance(part, type) or missing):
            raise OptionError(
                f"sk.SIXO: {name} is no objective.",
                got=repr(part) + (f" without {', '.join(missing)}" if missing else ", a class"),
                expected=f"an object with {', '.join(needs)}",
                fix=f"{name}=sk.objectives.{'SIXO' if name == 'objective' else 'DensityRatio'}()",
            )
    if engine.rounds < 1:
        raise OptionError("sk.SIXO: rounds is too small.", got=engine.rounds, expected="≥ 1")


def check_series(engine: Any, data: Data, options: RunOptions) -> None:
    """Refuse series from which these pieces cannot be learned.

    Raises:
        DataError: one step has no future.
        OptionError: numbers for each step, and several series.
    """
    length = data.ys.shape[1 if options.batched else 0]
    if engine.twist is not None and engine.objective.uses_twist and length < 2:
        raise DataError(
            "the series is too short for a twist.",
            got="1 step",
            expected="at least 2: a twist reads the observations to come",
            fix="sk.SIXO(twist=None), or sk.SMC()",
        )
    window = getattr(engine.twist_learning, "window", None)
    fixed = [p for p in (engine.twist, engine.proposal) if p is not None and not p.amortised]
    if fixed and (options.batched or window is not None):
        raise OptionError(
            "what is learned for each step belongs to one whole series.",
            got=f"{fixed[0]!r} with " + ("several series" if options.batched else "a window"),
            expected="an encoder that reads the series",
            fix="learned.Recurrent() or learned.Windowed()",
        )


def check_learned(engine: Any, learned: Any, sites: dict[str, Any]) -> Learned:
    """Refuse pieces that are not of this engine, of this program, or of any other series.

    Raises:
        OptionError: says which.
    """
    if not isinstance(learned, Learned):
        raise OptionError(
            "learned is not of this engine.",
            got=type(learned).__name__,
            expected="posterior.learned of a run by sk.SIXO",
        )
    for name in ("twist", "proposal"):
        was, now = getattr(learned, f"{name}_builder"), getattr(engine, name)
        if was != now:
            raise OptionError(
                f"learned holds another {name}.", got=repr(was), expected=repr(now),
                fix=f"sk.SIXO({name}={was!r})",
            )  # fmt: skip
        if now is not None and not now.amortised:
            raise OptionError(
                f"the {name} was learned for each step of one series, and serves no other.",
                got=repr(now),
                expected="an encoder that reads the series",
                fix="learned.Recurrent() or learned.Windowed(); or learn again: drop learned=",
            )
    if set(learned.params) != set(sites):
        raise OptionError(
            "learned does not fit the program.",
            got=f"values for {sorted(learned.params)}",
            expected=f"values for {sorted(sites)}",
        )
    return learned
