"""Conditionals in affine Gaussian form, and the rules that bring a model into it.

Every Gaussian engine is one filter over ``y = A x + b + noise``; the engines differ only in how
they find ``A``, ``b`` and the noise: read off (Kalman), Taylor (extended), sigma points
(unscented).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ssmkit.linalg import cholesky_psd, solve_psd, triangularise
from ssmkit.models.distributions import covariance_of, moments
from ssmkit.typing import Array, Float, Law

Conditional = Callable[[Array], Law]


class AffineGaussian(NamedTuple):
    """The law ``N(matrix @ x + offset, noise)``.

    Attributes:
        matrix: ``(n, D)``.
        offset: ``(n,)``.
        factor: factor of the noise covariance: ``(n,)`` standard deviations when independent,
            else ``(n, k)``.
    """

    matrix: Float[Array, "n D"]
    offset: Float[Array, " n"]
    factor: Array

    @property
    def covariance(self) -> Array:
        """Noise covariance ``(n, n)``."""
        return covariance_of(self.factor)


class Linearisation(Protocol):
    """A rule that approximates a conditional law around a Gaussian belief."""

    is_exact: bool
    iterations: int

    def __call__(self, conditional: Conditional, mean: Array, factor: Array) -> AffineGaussian:
        """Return the affine form around ``N(mean, factor factor^T)``."""
        ...


class _AtPoint:
    """First-order Taylor expansion; exact for affine means."""

    def __init__(self, is_exact: bool, iterations: int = 1) -> None:
        self.is_exact = is_exact
        self.iterations = iterations

    def __call__(self, conditional: Conditional, mean: Array, factor: Array) -> AffineGaussian:
        def location(x: Array) -> Array:
            return moments(conditional(x))[0]

        point = jnp.zeros_like(mean) if self.is_exact else mean
        value, noise = moments(conditional(point))
        matrix = jax.jacfwd(location)(point)
        return AffineGaussian(matrix, value - matrix @ point, noise)


def exact() -> Linearisation:
    """Read matrices off a model that is linear and Gaussian."""
    return _AtPoint(is_exact=True)


def taylor(iterations: int) -> Linearisation:
    """Expand to first order at the mean; ``iterations`` times in the update."""
    return _AtPoint(is_exact=False, iterations=iterations)


class sigma_points:  # noqa: N801 - used as a function
    r"""Statistical linear regression on sigma points (the unscented transform).

    \(A = C_{fx} P^{-1}\), \(b = \mu - A m\), and the noise has the covariance
    \(\mathrm{E}[R(x)] + \mathrm{Var}[f] - A P A^\top\).
    """

    is_exact = False
    iterations = 1

    def __init__(self, alpha: float, beta: float, kappa: float) -> None:
        self.alpha, self.beta, self.kappa = alpha, beta, kappa

    def __call__(self, conditional: Conditional, mean: Array, factor: Array) -> AffineGaussian:
        """Regress the conditional on the points."""
        size = mean.shape[0]
        # the points depend on which factor is used: one for all forms
        factor = triangularise(factor)
        spread = self.alpha**2 * (size + self.kappa)
        offsets = jnp.sqrt(spread) * jnp.concatenate([factor.T, -factor.T])
        points = jnp.concatenate([mean[None], mean + offsets])
        weights = jnp.full(2 * size + 1, 0.5 / spread).at[0].set(1 - size / spread)
        central = weights.at[0].add(1 - self.alpha**2 + self.beta)

        def values(x: Array) -> tuple[Array, Array]:
            location, noise = moments(conditional(x))
            return location, covariance_of(noise)

        locations, noises = jax.vmap(values)(points)
        average = weights @ locations
        deviations = locations - average
        cross = jnp.einsum("s,si,sj->ij", weights[1:], deviations[1:], offsets)
        matrix = solve_psd(factor, cross.T).T
        scatter = jnp.einsum("s,si,sj->ij", central, deviations, deviations)
        carried = matrix @ factor
        noise = jnp.einsum("s,sij->ij", weights, noises) + scatter - carried @ carried.T
        size_of = jnp.diagonal(scatter) + jnp.diagonal(carried @ carried.T)
        return AffineGaussian(
            matrix, average - matrix @ mean, cholesky_psd(noise, jnp.maximum(size_of, 0.0))
        )
