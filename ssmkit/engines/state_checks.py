"""What engines refuse that move states about: starts without a law, states that are not free."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.errors import ImproperStartError, ModelError
from ssmkit.models.base import StateSpaceModel, abstract_law, input_at
from ssmkit.models.distributions import Diffuse, base_distribution, is_a
from ssmkit.typing import Inputs

REAL = (dist.constraints.real, dist.constraints.real_vector)


def require_real_states(engine: Any, model: StateSpaceModel, us: Inputs) -> None:
    """Refuse models whose states start anywhere, or may not be any real numbers.

    Args:
        engine: who asks.
        model: the model.
        us: inputs with leading axis ``T``, or None.

    Raises:
        ImproperStartError: the model starts diffuse.
        ModelError: a state on something else than the real numbers.
    """
    u, here = input_at(us, 0), model.at(0)
    start = abstract_law(lambda: here.initial(u))
    if is_a(start, Diffuse):
        raise ImproperStartError(
            f"{engine!r} cannot begin at a diffuse start.",
            got="initial(u) returned sk.Diffuse",
            expected="a proper initial law",
            fix="sk.Kalman(), or give the model a proper initial law",
        )
    x = jnp.zeros(start.event_shape)
    after = abstract_law(lambda: here.transition(x, u))
    for name, law in (("initial", start), ("transition", after)):
        support: Any = law.support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if support not in REAL:
            raise ModelError(
                f"{engine!r} needs states that may be any real numbers.",
                got=f"{name} {type(base_distribution(law)).__name__} on {support}",
                expected="a law on the real numbers, such as Normal",
                fix="the logarithm as state where it is positive; sk.ForwardBackward() for finite "
                "states, sk.SMC() or sk.SIXO() for others",
            )
