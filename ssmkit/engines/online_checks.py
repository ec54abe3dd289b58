"""What online variational inference refuses, before anything is compiled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.engines.online_learning import Adaptive, StochasticAscent
from ssmkit.engines.online_points import refuse_batch
from ssmkit.engines.options import check_counts
from ssmkit.engines.smc_checks import require_density
from ssmkit.engines.state_checks import require_real_states
from ssmkit.errors import EngineError, OptionError
from ssmkit.learned.recursive import RecursiveMonteCarlo
from ssmkit.models.base import StateSpaceModel, abstract_law, input_at
from ssmkit.models.distributions import moments
from ssmkit.typing import Inputs

PART_COUNTS = {"num_points": 2, "num_steps": 1, "batch_size": 1, "width": 1, "depth": 1}
COUNTS = {"num_steps": 0, "num_samples": 1, "width": 1, "num_paths": 2, "window": 1}


def check_options(engine: Any) -> None:
    """Refuse options that cannot be.

    Raises:
        OptionError: says which, and what would be possible.
    """
    check_counts(engine, COUNTS)
    for name, known in (
        ("filter", ("full", "diagonal")),
        ("kernel", ("linear", "network", "independent")),
    ):
        if getattr(engine, name) not in known:
            raise OptionError(
                f"sk.OnlineVariational: unknown {name}.",
                got=repr(getattr(engine, name)),
                expected=list(known),
            )
    if engine.ascent is not None:
        check_ascent(engine, "sk.StochasticAscent(), or None to hold them")
    for name in ("value", "score"):
        part = getattr(engine, name)
        if part is not None and not hasattr(part, "fit"):
            raise OptionError(
                f"sk.OnlineVariational: {name} must be a regression, or recursive Monte Carlo.",
                got=repr(part),
                expected="sk.learned.KernelRidge(), sk.learned.Polynomial(), "
                "sk.learned.NetworkRegression(), sk.learned.RecursiveMonteCarlo(), or None",
            )
        if part is not None:
            _check_part(part)
    if engine.amortised is not None and not hasattr(engine.amortised, "build"):
        raise OptionError(
            "sk.OnlineVariational: amortised must say how a network is built.",
            got=repr(engine.amortised),
            expected="sk.learned.Amortised(), or None",
        )
    if engine.window > 1:
        _check_window(engine)
    if engine.filter == "full" and not getattr(engine.start, "serves_full", False):
        raise OptionError(
            f"sk.OnlineVariational: {engine.start!r} is for independent coordinates.",
            got='filter="full"',
            fix='filter="diagonal", or start=sk.learned.LinearisedStart()',
        )


def _check_window(engine: Any) -> None:
    parts = (engine.value, engine.score)
    possible = {
        "value and score": (
            not any(isinstance(part, RecursiveMonteCarlo) for part in parts),
            parts,
        ),
        "kernel": (engine.kernel != "independent", engine.kernel),
        "amortised": (engine.amortised is None, engine.amortised),
    }
    expected = ("regressions, or None", '"linear" or "network"', "None")
    for (name, (is_possible, got)), wanted in zip(possible.items(), expected, strict=True):
        if not is_possible:
            raise OptionError(
                f"sk.OnlineVariational: {name} cannot be refitted over a window.",
                got=f"{got!r}, window={engine.window}",
                expected=wanted,
                fix="window=1",
            )


def _check_part(part: Any) -> None:
    check_counts(part, {name: low for name, low in PART_COUNTS.items() if hasattr(part, name)})
    possible = {
        "degree": (getattr(part, "degree", 1) in (0, 1, 2), "0, 1 or 2"),
        "ridge": (getattr(part, "ridge", 0) >= 0, "a number from 0"),
        "rate": (getattr(part, "rate", 1) > 0, "a number above 0"),
        "held_out": (0 <= getattr(part, "held_out", 0) <= 0.5, "a number from 0 to 0.5"),
    }
    _check_possible(part, possible)


def check_ascent(engine: Any, expected: str) -> None:
    """Refuse an ascent that cannot be; ``expected`` says what can.

    Raises:
        OptionError: says which of its options.
    """
    ascent = engine.ascent
    if not isinstance(ascent, StochasticAscent):
        raise OptionError(
            f"sk.{type(engine).__name__}: ascent says how parameters are learned.",
            got=repr(ascent),
            expected=expected,
        )
    averaged = {} if ascent.averaging_from is None else {"averaging_from": 0}
    check_counts(ascent, {"burn_in": 0} | averaged)
    possible = {
        "rate": (ascent.rate > 0, "a number above 0"),
        "power": (ascent.power == 0 or 0.5 <= ascent.power <= 1, "0, or from 0.5 to 1"),
        "clip": (ascent.clip > 0, "a number above 0"),
    }
    _check_possible(ascent, possible)


def _check_possible(part: Any, possible: dict[str, tuple[bool, str]]) -> None:
    for name, (is_possible, expected) in possible.items():
        if not is_possible:
            raise OptionError(
                f"sk.{type(part).__name__}: {name} cannot be.",
                got=getattr(part, name),
                expected=expected,
            )


def check_learning(engine: Any, model: StateSpaceModel, options: Any) -> None:
    """Refuse what cannot be learned together.

    Raises:
        EngineError: parameters from a batch, or beside a network that belongs to fixed ones.
        OptionError: something learned, for an engine without a network.
    """
    if engine.amortised is None and options.learned is not None:
        raise OptionError(
            f"{engine!r} does not learn ahead.",
            got="learned=...",
            expected="None",
            fix="drop learned=, or amortised=sk.learned.Amortised()",
        )
    if not isinstance(model, Adaptive):
        return
    if engine.amortised is not None:
        raise EngineError(
            "an amortised network belongs to one model, and here parameters move.",
            got=f"{model.program!r} with free sites",
            expected="a model, or amortised=None",
            fix="amortised=None; or fit the parameters first, and hand over posterior.model",
        )
    refuse_batch(options)


def check_model(engine: Any, model: StateSpaceModel, us: Inputs) -> None:
    """Refuse models that a Gaussian filter and backward kernel cannot follow.

    Raises:
        ImproperStartError: the model starts diffuse.
        ModelError: the state is not a real vector, or has no mean and variance.
        SingularTransitionError: the transition has no density.
    """
    require_real_states(engine, model, us)
    u, here = input_at(us, 0), model.at(0)
    x = jnp.zeros(abstract_law(lambda: here.initial(u)).event_shape)
    jax.eval_shape(lambda: (moments(here.initial(u)), moments(here.transition(x, u))))
    require_density(repr(engine), model, us)
