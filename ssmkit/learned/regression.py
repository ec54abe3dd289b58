"""Functions that are carried from step to step: fitted to draws, evaluated at the next ones.

Each says by ``needs_slopes`` whether slopes are fitted beside the value of the bound. ``fit`` gets
a key, draws in units of the filter, values there, and the fit of the step before (None at the
first); what it returns says by ``past(filter)`` how the next step sees it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.learned.backward import Filter
from ssmkit.learned.past import Past
from ssmkit.linalg import solve_regular
from ssmkit.reprs import call_repr
from ssmkit.typing import Array, Float, Key


class Fitted(eqx.Module):
    """A regression on features of a state in standard units.

    Attributes:
        points: of a kernel, ``(N, D)``; no rows where there is none.
        weights: of the kernel, ``(N, k)``.
        bandwidth: of the kernel.
        trend: coefficients of the polynomial features ``(P, k)``.
        level: constant part ``(k,)``.
    """

    points: Float[Array, "N D"]
    weights: Float[Array, "N k"]
    bandwidth: Array
    trend: Float[Array, "P k"]
    level: Float[Array, " k"]
    degree: int = eqx.field(static=True)

    def __call__(self, z: Float[Array, " D"]) -> Float[Array, " k"]:
        """The values at one state."""
        value = self.level + powers(z, self.degree) @ self.trend
        if self.points.shape[0] == 0:
            return value
        square = jnp.sum((z - self.points) ** 2, axis=1)
        return value + jnp.exp(-0.5 * square / self.bandwidth**2) @ self.weights

    def past(self, filter: Filter) -> Past:
        """As the next step sees it."""
        return Past(filter, lambda x: self(filter.white(x)))


def powers(z: Float[Array, " D"], degree: int) -> Float[Array, " P"]:
    """Features: coordinates, then their squares and products."""
    if degree == 0:
        return jnp.zeros((0,), z.dtype)
    if degree == 1:
        return z
    rows, columns = jnp.triu_indices(z.shape[0])
    return jnp.concatenate([z, z[rows] * z[columns]])


@dataclasses.dataclass(frozen=True, repr=False)
class Polynomial:
    r"""Least squares on the coordinates (and their products): exact for linear Gaussian models.

    Args:
        degree: 1 or 2.
        ridge: penalty on the coefficients, relative to the number of draws.
        num_points: draws.
        held_out: share of the draws that judge, as in `KernelRidge`; needed where the state has
            many coordinates, or where what is carried is far from a quadratic.

    Example:
        >>> import ssmkit as sk
        >>> sk.OnlineVariational(value=sk.learned.Polynomial(degree=1)).value
        Polynomial(degree=1)
    """

    degree: int = 2
    ridge: float = 1e-6
    num_points: int = 256
    held_out: float = 0.0

    needs_slopes = True

    __repr__ = call_repr

    def fit(
        self, key: Key, z: Float[Array, "N D"], targets: Float[Array, "N k"], last: Any
    ) -> Fitted:
        """Fit values at draws in standard units."""
        return judged(self._fitted, z, targets, self.held_out)

    def _fitted(self, z: Float[Array, "N D"], targets: Float[Array, "N k"]) -> Fitted:
        trend, level, _ = _fit_powers(z, targets, self.degree, self.ridge)
        empty = jnp.zeros((0, z.shape[1]), z.dtype)
        nothing = jnp.zeros((0, targets.shape[1]), z.dtype)
        return Fitted(empty, nothing, jnp.ones((), z.dtype), trend, level, self.degree)


@dataclasses.dataclass(frozen=True, repr=False)
class KernelRidge:
    r"""Kernel ridge regression on what a polynomial leaves over.

    \[\hat f(z) = \hat p(z) + \sum_i \alpha_i e^{-|z - z_i|^2 / 2 s^2}, \qquad
    (K + \lambda I)\alpha = f - \hat p\]

    with the median distance between draws as the width ``s``; far from the draws the polynomial is
    what remains. Draws that are held out say how much of it holds: each value is pulled towards its
    mean until it predicts them best. Where the state has as many coordinates as there are draws,
    little is left, and what is carried cannot run away.

    Args:
        num_points: draws; one Cholesky factor of as many rows a step as are not held out.
        ridge: penalty.
        degree: of the polynomial: 0, 1 or 2.
        held_out: share of the draws that judge; 0 for none.

    Example:
        >>> import ssmkit as sk
        >>> sk.OnlineVariational(value=sk.learned.KernelRidge(num_points=100)).value
        KernelRidge(num_points=100)

    Source: A. Campbell, Y. Shi, T. Rainforth and A. Doucet (2021), section 3.2 (with degree 0, and
    nothing held out).
    """

    num_points: int = 256
    ridge: float = 1e-2
    degree: int = 1
    held_out: float = 0.25

    needs_slopes = True

    __repr__ = call_repr

    def fit(
        self, key: Key, z: Float[Array, "N D"], targets: Float[Array, "N k"], last: Any
    ) -> Fitted:
        """Fit values at draws in standard units."""
        return judged(self._fitted, z, targets, self.held_out)

    def _fitted(self, z: Float[Array, "N D"], targets: Float[Array, "N k"]) -> Fitted:
        trend, level, rest = _fit_powers(z, targets, self.degree, 1e-6)
        square = jnp.sum((z[:, None] - z) ** 2, axis=-1)
        # half of the draws against the other half: independent pairs, and few to sort
        bandwidth = jnp.sqrt(jnp.median(jnp.diagonal(square, z.shape[0] // 3)))
        gram = jnp.exp(-0.5 * square / bandwidth**2)
        penalised = gram + self.ridge * jnp.eye(z.shape[0], dtype=z.dtype)
        weights = solve_regular(penalised, rest)
        return Fitted(z, weights, bandwidth, trend, level, self.degree)


def judged(
    fit: Callable[[Array, Array], Fitted],
    z: Float[Array, "N D"],
    targets: Float[Array, "N k"],
    share: float,
) -> Fitted:
    """A fit pulled towards the mean of each value, as far as draws that are held out ask for."""
    # draws come in halves of opposite sign: both of a pair judge, or none
    pair = np.arange(z.shape[0]) % ((z.shape[0] + 1) // 2)
    judges = np.floor((pair + 1) * share) > np.floor(pair * share)
    found = fit(z[~judges], targets[~judges])
    if not judges.any():
        return found
    mean = jnp.mean(targets, axis=0)
    gap = jax.vmap(found)(z[judges]) - mean
    size = jnp.sum(gap * gap, axis=0)
    along = jnp.sum(gap * (targets[judges] - mean), axis=0)
    kept = jnp.clip(along / jnp.where(size > 0, size, 1.0), 0.0, 1.0)
    level = mean + kept * (found.level - mean)
    weights, trend = kept * found.weights, kept * found.trend
    return Fitted(found.points, weights, found.bandwidth, trend, level, found.degree)


@dataclasses.dataclass(frozen=True, repr=False)
class Nothing:
    """Nothing is carried: what remains is the bound of one step (AELBO-2).

    Args:
        num_points: draws that the bound is reported from.
    """

    num_points: int = 256

    needs_slopes = False

    __repr__ = call_repr

    def fit(
        self, key: Key, z: Float[Array, "N D"], targets: Float[Array, "N k"], last: Any
    ) -> Fitted:
        """Zero, whatever the values."""
        size, count = z.shape[1], targets.shape[1]
        empty, none = jnp.zeros((0, size), z.dtype), jnp.zeros((0, count), z.dtype)
        return Fitted(empty, none, jnp.ones((), z.dtype), none, jnp.zeros(count, z.dtype), 0)


def _fit_powers(z: Array, targets: Array, degree: int, ridge: float) -> tuple[Array, Array, Any]:
    """Coefficients, constant part, and what is left over."""
    level = jnp.mean(targets, axis=0)
    features = jax.vmap(lambda one: powers(one, degree))(z)
    if features.shape[1] == 0:
        return jnp.zeros((0, targets.shape[1]), z.dtype), level, targets - level
    centre = jnp.mean(features, axis=0)
    wide = features - centre
    count = z.shape[0]
    gram = wide.T @ wide + count * ridge * jnp.eye(wide.shape[1], dtype=z.dtype)
    trend = solve_regular(gram, wide.T @ (targets - level))
    level = level - centre @ trend
    return trend, level, targets - level - features @ trend
