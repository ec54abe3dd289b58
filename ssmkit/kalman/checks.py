"""What a Gaussian engine needs of a model, checked on the host before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.errors import EngineError, ImproperStartError
from ssmkit.kalman.affine import Linearisation
from ssmkit.models.base import StateSpaceModel, abstract_law, input_at
from ssmkit.models.distributions import Diffuse, base_distribution, is_gaussian, moments
from ssmkit.typing import Array, Inputs, Law


def depends_on_argument(fn: Callable[[Array], Any], x: Array) -> bool:
    """Whether the value of ``fn`` can change with ``x``, by following it through the jaxpr.

    Conservative: True when it cannot be excluded. Used on Jacobians, False proves linearity.
    """
    jaxpr = jax.make_jaxpr(fn)(x).jaxpr
    return any(_reached(jaxpr, [True] * len(jaxpr.invars)))


def _reached(jaxpr: Any, from_inputs: list[bool]) -> list[bool]:
    touched = {v for v, hit in zip(jaxpr.invars, from_inputs, strict=True) if hit}
    for equation in jaxpr.eqns:
        hits = [_is_in(v, touched) for v in equation.invars]
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("pjit", "jit") else None
        if inner is not None:
            outputs = _reached(inner.jaxpr, hits)
        else:
            outputs = [any(hits)] * len(equation.outvars)
        touched |= {v for v, hit in zip(equation.outvars, outputs, strict=True) if hit}
    return [_is_in(v, touched) for v in jaxpr.outvars]


def _is_in(variable: Any, touched: set) -> bool:
    return not hasattr(variable, "val") and variable in touched


def check_gaussian(name: str, rule: Linearisation, model: StateSpaceModel, us: Inputs) -> None:
    """Refuse models that a Gaussian engine would get silently wrong.

    Raises:
        EngineError: a finite state; for the exact rule, a law that is not normal, not linear or
            with noise that depends on the state; for the others, an emission whose mean does not
            move with the state, from which they would learn nothing.
        ImproperStartError: a diffuse start under a rule that is not exact.
    """
    u, later = input_at(us, 0), model.at(0)
    start = abstract_law(lambda: later.initial(u))
    if getattr(start.support, "is_discrete", False):
        raise EngineError(
            f"{name} needs a real-valued state.",
            got=f"initial law {type(start).__name__}",
            fix="sk.ForwardBackward()",
        )
    if isinstance(start, Diffuse) and not rule.is_exact:
        raise ImproperStartError(
            f"{name} needs a proper start.",
            got="initial(u) returned sk.Diffuse",
            expected="a proper initial distribution",
            fix="sk.Kalman() for linear models, or a proper initial law",
        )
    x = jnp.zeros(start.event_shape, jnp.result_type(float))
    for method in ("transition", "emission"):
        law = getattr(later, method)
        if rule.is_exact:
            _check_linear(name, method, lambda z, law=law: law(z, u), x, model)
        elif method == "emission" and not depends_on_argument(lambda z, law=law: law(z, u).mean, x):
            raise EngineError(
                f"{name} would learn nothing: the mean of the emission does not move with the "
                "state.",
                got=f"{type(model).__name__}.emission",
                expected="an emission whose mean depends on x",
                fix="a particle engine",
            )
    if rule.is_exact and not (isinstance(start, Diffuse) or is_gaussian(start)):
        raise _not_exact(name, model, f"initial law {type(base_distribution(start)).__name__}")


def _check_linear(
    name: str,
    method: str,
    law: Callable[[Array], Law],
    x: Array,
    model: StateSpaceModel,
) -> None:
    found = abstract_law(lambda: law(x))
    if not is_gaussian(found):
        kind = type(base_distribution(found)).__name__
        raise _not_exact(name, model, f"{method} returned {kind}")
    if depends_on_argument(jax.jacfwd(lambda z: moments(law(z))[0]), x):
        raise _not_exact(name, model, f"{method} has a mean that is not provably linear in x")
    if depends_on_argument(lambda z: moments(law(z))[1], x):
        raise _not_exact(name, model, f"{method} has noise that depends on x")


def _not_exact(name: str, model: StateSpaceModel, why: str) -> EngineError:
    return EngineError(
        f"{name} is exact, and {type(model).__name__} is not linear and Gaussian.",
        got=why,
        expected="normal laws with means affine in x and noise that does not depend on x",
        fix="sk.ExtendedKalman() or sk.UnscentedKalman() (approximate), or a particle engine",
    )
