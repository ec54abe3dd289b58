r"""Nonlinear functions with additive Gaussian noise.

\[x_0 \sim N(m, P), \qquad x_t = f(x_{t-1}, u_t) + N(0, Q), \qquad y_t = g(x_t, u_t) + N(0, R)\]

Source: S. Särkkä and L. Svensson (2023), Bayesian Filtering and Smoothing, 2nd ed., ch. 5.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.errors import ParameterError, ShapeError
from ssmkit.linalg import psd_factor
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import as_float, is_singular, is_zero, require_no_negative
from ssmkit.models.distributions import SingularNormal
from ssmkit.models.laws import multivariate_normal, normal
from ssmkit.typing import Array, Float, PyTree

NOISES = ("transition_noise", "emission_noise", "initial_noise")


class AdditiveGaussian(StateSpaceModel):
    r"""Any transition and emission functions, also networks, with additive Gaussian noise.

    \(x_t = f(x_{t-1}, u_t) + N(0, Q)\), \(y_t = g(x_t, u_t) + N(0, R)\)

    States and observations are scalars or vectors. A noise is a *standard deviation* when it is a
    scalar or a vector (one for each coordinate), and a *covariance* when it is a matrix.

    Args:
        transition: \(f\), a function ``(x, u)`` or ``(x)`` to an array like ``x``: a
            module-level function, or an `equinox.Module` such as a network, whose arrays are
            then parameters.
        emission: \(g\), a function ``(x, u)`` or ``(x)`` to an array ``()`` or ``(M,)``.
        transition_noise: ``()``, ``(D,)`` standard deviations, or covariance ``(D, D)``; with
            zeros or a singular matrix the transition has no density.
        emission_noise: ``()``, ``(M,)`` standard deviations, or covariance ``(M, M)``.
        initial_mean: \(m\), ``()`` or ``(D,)``; its shape is that of the state.
        initial_noise: ``()``, ``(D,)`` standard deviations, or covariance ``(D, D)``.

    Raises:
        ShapeError: a noise that does not fit the state, or the value of a function.
        ParameterError: a matrix that is not a covariance, or a negative standard deviation.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> def decay(x): return 0.9 * jnp.sin(x)
        >>> def see(x, u): return x**2 + u
        >>> model = sk.models.AdditiveGaussian(decay, see, 0.1, 0.5, 0.0, 1.0)
        >>> float(model.emission(jnp.array(2.0), 1.0).mean)
        5.0

    Source: S. Särkkä and L. Svensson (2023), ch. 5.
    """

    transition_function: Callable[..., Array]
    emission_function: Callable[..., Array]
    transition_noise: Array
    emission_noise: Array
    initial_mean: Float[Array, "*D"]
    initial_noise: Array
    singular: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        transition: Callable[..., Array],
        emission: Callable[..., Array],
        transition_noise: Any,
        emission_noise: Any,
        initial_mean: Any,
        initial_noise: Any,
    ) -> None:
        noises = (transition_noise, emission_noise, initial_noise)
        self.transition_function, self.emission_function = transition, emission
        self.initial_mean = as_float(initial_mean)
        self.transition_noise, self.emission_noise, self.initial_noise = map(as_float, noises)
        if self.initial_mean.ndim > 1:
            raise ShapeError(
                "AdditiveGaussian: the state must be a scalar or a vector.",
                got=f"initial_mean of shape {self.initial_mean.shape}",
                expected="shape () or (D,)",
                fix="jnp.ravel(initial_mean)",
            )
        for name in ("transition_noise", "initial_noise"):
            _check_noise(name, getattr(self, name), self.initial_mean.shape)
        pairs = zip(NOISES, noises, strict=True)
        self.singular = tuple(n for n, given in pairs if _is_singular(self, n, given))

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_0``."""
        return self._around(self.initial_mean, "initial_noise")

    def transition(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_t`` around ``f(x, u)``."""
        mean = _call(self.transition_function, x, u)
        if mean.shape != self.initial_mean.shape:
            raise ShapeError(
                "AdditiveGaussian: transition must return an array like the state.",
                got=f"shape {mean.shape}",
                expected=f"shape {self.initial_mean.shape}, that of initial_mean",
                fix="jnp.reshape in the function, or another initial_mean",
            )
        return self._around(mean, "transition_noise")

    def emission(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``y_t`` around ``g(x, u)``."""
        mean = _call(self.emission_function, x, u)
        _check_noise("emission_noise", self.emission_noise, mean.shape)
        return self._around(mean, "emission_noise")

    def _around(self, mean: Array, name: str) -> dist.Distribution:
        noise = getattr(self, name)
        is_singular = name in self.singular and name != "emission_noise"
        if noise.ndim == 2:
            return multivariate_normal(mean, psd_factor(noise), is_singular=is_singular)
        if is_singular:
            return SingularNormal(mean, jnp.diag(jnp.broadcast_to(noise, mean.shape)))
        return normal(mean, noise)


def takes_input(function: Callable[..., Any]) -> bool:
    """Whether a function is written ``(x, u)`` and not ``(x)``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = positional[1] if len(positional) > 1 else None
    return second is not None and (second.default is second.empty or second.name == "u")


def _call(function: Callable[..., Any], x: Array, u: PyTree) -> Array:
    return jnp.asarray(function(x, u) if takes_input(function) else function(x))


def _check_noise(name: str, noise: Array, shape: tuple[int, ...]) -> None:
    if noise.shape not in ((), shape, shape * 2):
        raise ShapeError(
            f"AdditiveGaussian: {name} does not fit.",
            got=f"shape {noise.shape}",
            expected=f"() or {shape} standard deviations"
            + (f", or a covariance {shape * 2}" if shape else ""),
            fix=f"{name}=0.1, the same standard deviation for every coordinate",
        )


def _is_singular(model: AdditiveGaussian, name: str, given: Any) -> bool:
    if jnp.ndim(given) == 2:
        return is_singular(model, name, given)
    require_no_negative(model, name, given)
    if is_zero(given) and model.initial_mean.ndim == 0 and name != "emission_noise":
        raise ParameterError(
            f"AdditiveGaussian: {name} is zero for a scalar state.",
            got=given,
            expected="a standard deviation > 0",
            fix="a state of shape (1,), which may be singular",
        )
    return is_zero(given)
