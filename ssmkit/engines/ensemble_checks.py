"""What the ensemble Kalman filter refuses, before anything is compiled."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ssmkit.engines.options import check_counts
from ssmkit.engines.state_checks import require_real_states
from ssmkit.errors import EngineError, ModelError, OptionError
from ssmkit.kalman.checks import depends_on_argument
from ssmkit.models.base import StateSpaceModel, abstract_law, input_at
from ssmkit.models.distributions import base_distribution, moments
from ssmkit.models.observation import is_concrete
from ssmkit.typing import Array, Inputs, PyTree

UPDATES = ("square_root", "stochastic")
SMOOTHERS = ("ensemble", "fixed_lag")


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
    require_real_states(engine, model, us)
    u, here = input_at(us, 0), model.at(0)
    x = jnp.zeros(abstract_law(lambda: here.initial(u)).event_shape)
    _check_moments(engine, here, u)
    if not depends_on_argument(lambda z: here.emission(z, u).mean, x):
        raise EngineError(
            f"{engine!r} would learn nothing: the mean of the emission does not move with the "
            "state.",
            got=f"{type(model).__name__}.emission",
            expected="an emission whose mean depends on x",
            fix="sk.SMC()",
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
