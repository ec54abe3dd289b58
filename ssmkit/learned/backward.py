r"""Filters and backward kernels of online variational inference.

The family is \(q_t(x_t) \prod_{k \le t} q_k(x_{k-1} \mid x_k)\): a Gaussian filter, and kernels
that look one step back. The best kernel does not depend on later data: it may be fitted once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from ssmkit.linalg import SMALL, solve_lower
from ssmkit.models.distributions import covariance_of
from ssmkit.typing import Array, Float, Key, Scalar

LOG_ROOT = 0.5 * math.log(2 * math.pi)


def spread(factor: Array, noise: Float[Array, " D"]) -> Float[Array, " D"]:
    """A factor, or standard deviations, times noise."""
    return factor * noise if factor.ndim == 1 else factor @ noise


def unspread(factor: Array, gap: Float[Array, " D"]) -> Float[Array, " D"]:
    """The noise that `spread` made a gap of; factors are lower triangular."""
    if factor.ndim == 1:
        return gap / factor
    if gap.shape[0] > SMALL:
        return solve_triangular(factor, gap, lower=True)
    return solve_lower(factor, gap[:, None])[:, 0]


def log_normal(factor: Array, gap: Float[Array, " D"]) -> Scalar:
    """Log density in nats of a gap to the mean."""
    white = unspread(factor, gap)
    scales = factor if factor.ndim == 1 else jnp.diagonal(factor)
    return -0.5 * (white @ white) - jnp.sum(jnp.log(scales)) - gap.shape[0] * LOG_ROOT


class Filter(eqx.Module):
    """A Gaussian belief about the present state.

    Attributes:
        mean: ``(D,)``.
        factor: lower triangular ``(D, D)``, or standard deviations ``(D,)``.
    """

    mean: Float[Array, " D"]
    factor: Array

    @property
    def covariance(self) -> Float[Array, "D D"]:
        """Covariance of the states."""
        return covariance_of(self.factor)

    def draw(self, noise: Float[Array, " D"]) -> Float[Array, " D"]:
        """The state that belongs to standard normal noise."""
        return self.mean + spread(self.factor, noise)

    def white(self, x: Float[Array, " D"]) -> Float[Array, " D"]:
        """The noise that belongs to a state."""
        return unspread(self.factor, x - self.mean)

    def log_density(self, x: Float[Array, " D"]) -> Scalar:
        """Log density of a state, in nats."""
        return log_normal(self.factor, x - self.mean)


class Residual(eqx.Module):
    """A network with one hidden layer; from zero it moves nothing."""

    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __call__(self, x: Array) -> Array:
        """Apply it."""
        return self.outer(jax.nn.tanh(self.inner(x)))


def residual(key: Key, size: int, width: int, dtype: Any) -> Residual:
    """A network whose last layer is zero."""
    inner, outer = (
        eqx.nn.Linear(*sizes, dtype=dtype, key=k)
        for k, sizes in zip(jax.random.split(key), ((size, width), (width, size)), strict=True)
    )
    weights = lambda layer: (layer.weight, layer.bias)  # noqa: E731 - one line
    zeros = tuple(jnp.zeros_like(a) for a in weights(outer))
    return Residual(inner, eqx.tree_at(weights, outer, zeros))


class Kernel(eqx.Module):
    r"""The backward kernel \(q_t(x_{t-1} \mid x_t)\), Gaussian with independent or full noise.

    \[\mathrm{E}[x_{t-1} \mid x_t] = a + J (x_t - c) + F_0\, g(U^{-1}(x_t - c))\]

    Attributes:
        centre: ``c``.
        offset: ``a``.
        matrix: ``J``.
        factor: of the noise: lower triangular, or standard deviations.
        unit: inverse of ``U``, the scale on which the network sees the state.
        size: ``F_0``, the scale on which it moves the mean.
        network: ``g``, or None for a kernel that is linear.
    """

    centre: Float[Array, " D"]
    offset: Float[Array, " D"]
    matrix: Float[Array, "D D"]
    factor: Array
    unit: Array
    size: Array
    network: Residual | None

    def mean(self, x: Float[Array, " D"]) -> Float[Array, " D"]:
        """Mean of the state before."""
        gap = x - self.centre
        straight = self.offset + self.matrix @ gap
        if self.network is None:
            return straight
        return straight + spread(self.size, self.network(spread(self.unit, gap)))

    def draw(self, x: Float[Array, " D"], noise: Float[Array, " D"]) -> Float[Array, " D"]:
        """The state before that belongs to standard normal noise."""
        return self.mean(x) + spread(self.factor, noise)

    def log_density(self, before: Float[Array, " D"], x: Float[Array, " D"]) -> Scalar:
        """Log density of the state before, in nats."""
        return log_normal(self.factor, before - self.mean(x))


class Moves(NamedTuple):
    """What is optimised: how far filter and kernel stand from their start, in its units.

    Attributes:
        shift: of the filter's mean, in standard deviations ``(D,)``.
        scale: log of the filter's scales, in units; below the diagonal, a full factor's rest.
        kernel_shift: as ``shift``.
        kernel_matrix: of the kernel's matrix ``(D, D)``.
        kernel_scale: as ``scale``.
        network: of the kernel.
    """

    shift: Float[Array, " D"]
    scale: Array
    kernel_shift: Float[Array, " D"]
    kernel_matrix: Float[Array, "D D"]
    kernel_scale: Array
    network: Residual | None


def still(filter: Filter, network: Residual | None) -> Moves:
    """The moves that move nothing."""
    shift, scale = jnp.zeros_like(filter.mean), jnp.zeros_like(filter.factor)
    matrix = jnp.zeros((shift.shape[0],) * 2, shift.dtype)
    return Moves(shift, scale, shift, matrix, scale, network)


def at_rest(moves: Moves) -> Moves:
    """The same moves of the filter, and none of the kernel."""
    nothing = jnp.zeros_like
    return moves._replace(
        kernel_shift=nothing(moves.kernel_shift),
        kernel_matrix=nothing(moves.kernel_matrix),
        kernel_scale=nothing(moves.kernel_scale),
    )


def independent(last: Filter) -> Kernel:
    """The kernel that looks at nothing: the filter of the time before."""
    zeros, unit = jnp.zeros_like(last.mean), inverse(last.factor)
    flat = jnp.zeros((zeros.shape[0],) * 2, zeros.dtype)
    return Kernel(zeros, last.mean, flat, last.factor, unit, last.factor, None)


def no_kernel(filter: Filter, network: Residual | None) -> Kernel:
    """Zeros of the shape of a kernel, for the first time, which has none."""
    flat = jnp.zeros((filter.mean.shape[0],) * 2, filter.mean.dtype)
    mean, factor = jnp.zeros_like(filter.mean), jnp.zeros_like(filter.factor)
    return Kernel(mean, mean, flat, factor, factor, factor, network)


def moved(start: tuple[Filter, Kernel | None], moves: Moves) -> tuple[Filter, Kernel | None]:
    """Filter and kernel that stand at given moves from a start."""
    filter, kernel = start
    here = Filter(filter.draw(moves.shift), rescaled(filter.factor, moves.scale))
    if kernel is None:
        return here, None
    turned = scaled(kernel.factor, scaled(kernel.unit.T, moves.kernel_matrix.T).T)
    return here, Kernel(
        kernel.centre,
        kernel.offset + spread(kernel.factor, moves.kernel_shift),
        kernel.matrix + turned,
        rescaled(kernel.factor, moves.kernel_scale),
        kernel.unit,
        kernel.size,
        moves.network,
    )


def scaled(factor: Array, matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """A factor, or standard deviations, times a matrix."""
    return factor[:, None] * matrix if factor.ndim == 1 else factor @ matrix


def inverse(factor: Array) -> Array:
    """Inverse of a lower-triangular factor, or of standard deviations."""
    if factor.ndim == 1:
        return 1 / factor
    return solve_lower(factor, jnp.eye(factor.shape[0], dtype=factor.dtype))


def rescaled(factor: Array, scale: Array) -> Array:
    """A factor times a lower-triangular one near the identity, given with its log diagonal."""
    if factor.ndim == 1:
        return factor * jnp.exp(scale)
    return factor @ (jnp.tril(scale, -1) + jnp.diag(jnp.exp(jnp.diagonal(scale))))
