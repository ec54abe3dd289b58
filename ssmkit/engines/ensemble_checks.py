"""What the ensemble Kalman filter refuses, before anything is compiled."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ssmkit.engines.options import check_counts
from ssmkit.errors import EngineError, ImproperStartError, ModelError, OptionError
from ssmkit.kalman.checks import depends_on_argument
from ssmkit.models.base import StateSpaceModel, abstract_law, input_at
from ssmkit.models.distributions import Diffuse, base_distribution, is_a, moments
from ssmkit.models.observation import is_concrete
from ssmkit.typing import Array, Inputs, PyTree

UPDATES = ("square_root", "stochastic")
SMOOTHERS = ("ensemble", "fixed_lag")
REAL = (dist.constraints.real, dist.constraints.real_vector)


def check_options(engine: Any) -> None:
    """Refuse impossible options.

    Raises:
        OptionError: names the option, what it was and what it can be.
    """
    check_counts(engine, {"num_particles": 2, "lag": 0})
    for name, known in (("update", UPDATES), ("smoother", (*SMOOTHERS, None))):
        if getattr(engine, name) not in known:
            raise OptionError(
                f"sk.EnsembleKalman: unknown {name}.",
                got=repr(getattr(engine, name)),
                expected=list(known),
            )
    inflation = engine.inflation
    is_number = isinstance(inflation, int | float) and not isinstance(inflation, bool)
    if not is_number or not 1 <= inflation < math.inf:
        raise OptionError(
            "sk.EnsembleKalman: inflation is what anomalies are multiplied by.",
            got=repr(inflation),
            expected="a number ≥ 1; 1 for none",
            fix="inflation=1.02",
        )


def check_model(engine: Any, model: StateSpaceModel, us: Inputs) -> None:
    """Refuse models that members cannot follow, or learn nothing of.

    Raises:
        EngineError: the mean of the emission does not move with the state.
        ImproperStartError: the model starts diffuse.
        ModelError: a state that cannot be any real number, or an emission without mean and
            variance.
    """
    u, here = input_at(us, 0), model.at(0)
    start = abstract_law(lambda: here.initial(u))
    if is_a(start, Diffuse):
        raise ImproperStartError(
            f"{engine!r} cannot draw from a diffuse start.",
            got="initial(u) returned sk.Diffuse",
            expected="a proper initial law",
            fix="sk.Kalman(), or give the model a proper initial law",
        )
    _check_support(engine, "initial", start)
    x = jnp.zeros(start.event_shape)
    _check_support(engine, "transition", abstract_law(lambda: here.transition(x, u)))
    _check_moments(engine, here, u)
    if not depends_on_argument(lambda z: here.emission(z, u).mean, x):
        raise EngineError(
            f"{engine!r} would learn nothing: the mean of the emission does not move with the "
            "state.",
            got=f"{type(model).__name__}.emission",
            expected="an emission whose mean depends on x",
            fix="sk.SMC()",
        )


def _check_support(engine: Any, name: str, law: Any) -> None:
    support = law.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support not in REAL:
        raise ModelError(
            f"{engine!r} moves states along straight lines, so they may be any real numbers.",
            got=f"{name} {type(base_distribution(law)).__name__} on {support}",
            expected="a law on the real numbers, such as Normal",
            fix="the logarithm as state where it is positive; sk.ForwardBackward() for finite "
            "states, sk.SMC() for others",
        )


def _check_moments(engine: Any, here: StateSpaceModel, u: PyTree) -> None:
    """Emissions are asked at the mean of the first state: some say nan of themselves."""
    kinds: list[str] = []

    def ask() -> tuple[Array, Array]:
        law = here.emission(here.initial(u).mean, u)
        kinds.append(type(base_distribution(law)).__name__)
        return moments(law)

    try:
        found = ask()
    except NotImplementedError as error:
        raise _no_moments(engine, kinds[-1] if kinds else "or a start") from error
    if is_concrete(*found) and not all(np.isfinite(np.asarray(a)).all() for a in found):
        raise _no_moments(engine, kinds[-1])


def _no_moments(engine: Any, kind: str) -> ModelError:
    return ModelError(
        f"{engine!r} sees an emission by its mean and variance.",
        got=f"an emission {kind} without them",
        expected="a numpyro distribution with finite .mean and .variance",
        fix="another emission, or sk.SMC()",
    )
