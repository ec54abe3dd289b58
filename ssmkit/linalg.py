"""Small-matrix kernels in closed form, for use inside scans.

LAPACK calls inside a scan body dominate its cost on CPU, up to about ``SMALL`` rows. The loops here
are plain arithmetic: unrolled up to ``UNROLLED`` rows, beyond it a ``fori_loop``, which runs as
fast and compiles in half the time. All of them accept positive *semi*-definite input: a pivot that
vanishes to rounding is an exact zero, and its column is dropped, so that values and gradients stay
finite for singular covariances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from ssmkit.typing import Array, Float

SMALL = 12
UNROLLED = 4


def _loop(size: int, body: Callable, carry: Any) -> Any:
    if size <= UNROLLED:
        for i in range(size):
            carry = body(i, carry)
        return carry
    return jax.lax.fori_loop(0, size, body, carry)


def _tolerance(scale: Array, size: int) -> Array:
    return 8 * size * jnp.finfo(scale.dtype).eps * jnp.abs(scale)


def cholesky_psd(
    a: Float[Array, "... n n"], scale: Float[Array, "... n"] | None = None
) -> Float[Array, "... n n"]:
    r"""Lower factor of a positive semi-definite matrix, \(A = L L^\top\).

    Columns with a vanishing pivot are zero; see `psd_factor` for input that must be checked.

    Args:
        a: symmetric matrices ``(..., n, n)``.
        scale: variances ``(..., n)`` against which a pivot counts as vanished; the diagonal of
            ``a`` when not given. Needed where ``a`` is a small difference of large matrices.

    Returns:
        Lower-triangular factors ``(..., n, n)``.

    Example:
        >>> import jax.numpy as jnp
        >>> cholesky_psd(jnp.ones((2, 2))).tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """
    n = a.shape[-1]
    scale = jnp.diagonal(a, axis1=-2, axis2=-1) if scale is None else scale
    tolerance = _tolerance(scale, n)
    rows = jnp.arange(n)

    def column(j: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        remainder, factor = carry
        pivot = remainder[..., j, j]
        keep = pivot > tolerance[..., j]
        # double where: the gradient of the branch not taken must not be nan
        root = jnp.sqrt(jnp.where(keep, pivot, 1.0))
        below = jnp.where(rows >= j, remainder[..., :, j], 0.0)
        col = jnp.where(keep[..., None], below / root[..., None], 0.0)
        remainder = remainder - col[..., :, None] * col[..., None, :]
        return remainder, factor.at[..., :, j].set(col)

    return _loop(n, column, (a, jnp.zeros_like(a)))[1]


def psd_factor(a: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """`cholesky_psd` for a user's covariance: nan when the matrix is clearly indefinite.

    Under jit nothing can be raised; the verbs find the nan and raise a named error.
    """
    factor = cholesky_psd(a)
    size = jnp.sqrt(jnp.abs(jnp.diagonal(a, axis1=-2, axis2=-1)))
    bound = 1e-3 * size[..., :, None] * size[..., None, :]
    gap = jnp.abs(factor @ jnp.swapaxes(factor, -1, -2) - a)
    valid = jnp.all(gap <= bound, axis=(-2, -1), keepdims=True)
    return jnp.where(valid, factor, jnp.nan)


def solve_lower(
    factor: Float[Array, "... n n"], b: Float[Array, "... n k"]
) -> Float[Array, "... n k"]:
    """Solve ``L x = b`` by forward substitution; rows with a zero pivot give zero."""
    pivots = jnp.diagonal(factor, axis1=-2, axis2=-1)
    inverse = jnp.where(pivots != 0, 1 / jnp.where(pivots != 0, pivots, 1.0), 0.0)

    def row(i: int, x: Array) -> Array:
        rest = jnp.einsum("...j,...jk->...k", factor[..., i, :], x)
        return x.at[..., i, :].set((b[..., i, :] - rest) * inverse[..., i, None])

    shape = jnp.broadcast_shapes(factor.shape[:-2], b.shape[:-2]) + b.shape[-2:]
    return _loop(factor.shape[-1], row, jnp.zeros(shape, jnp.result_type(factor, b)))


def solve_lower_transposed(
    factor: Float[Array, "... n n"], b: Float[Array, "... n k"]
) -> Float[Array, "... n k"]:
    """Solve ``L^T x = b`` by backward substitution; rows with a zero pivot give zero."""
    reverse = (..., slice(None, None, -1), slice(None, None, -1))
    flipped = jnp.swapaxes(factor, -1, -2)[reverse]
    return solve_lower(flipped, b[..., ::-1, :])[..., ::-1, :]


def solve_psd(factor: Float[Array, "... n n"], b: Float[Array, "... n k"]) -> Array:
    """Solve ``L L^T x = b``; for a singular matrix a generalised inverse is applied."""
    return solve_lower_transposed(factor, solve_lower(factor, b))


def solve_regular(a: Float[Array, "n n"], b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Solve ``A x = b`` with a positive definite matrix; a large one goes to LAPACK."""
    if a.shape[0] <= SMALL:
        return solve_psd(cholesky_psd(a), b)
    return cho_solve(cho_factor(a, lower=True), b)


def triangularise(a: Float[Array, "n k"]) -> Float[Array, "n n"]:
    r"""Lower-triangular \(L\) with \(L L^\top = A A^\top\), by modified Gram–Schmidt.

    Never forms \(A A^\top\), so that half the digits are not lost (float32 filters), and is
    differentiable for rank-deficient input, where a QR derivative is nan.
    """
    n = a.shape[0]
    scale = jnp.sum(a * a, axis=1)
    tolerance = _tolerance(scale, n) * jnp.finfo(a.dtype).eps

    def row(i: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, factor = carry
        square = jnp.sum(rest[i] * rest[i])
        keep = square > tolerance[i]
        length = jnp.sqrt(jnp.where(keep, square, 1.0))
        unit = jnp.where(keep, rest[i] / length, 0.0)
        column = jnp.where(jnp.arange(n) >= i, rest @ unit, 0.0)
        return rest - column[:, None] * unit[None, :], factor.at[:, i].set(column)

    return _loop(n, row, (a, jnp.zeros((n, n), a.dtype)))[1]


def compensated_add(total: tuple[Any, Any], increment: Any) -> tuple[Any, Any]:
    """Kahan addition of pytrees: a long sum in float32 keeps its digits.

    Args:
        total: the sum so far, and the rounding error it owes.
        increment: what to add.
    """
    value, owed = total
    increment = jax.tree.map(jnp.subtract, increment, owed)
    new = jax.tree.map(jnp.add, value, increment)
    # rounding has no derivative; without the stop, the gradient would carry it through the scan
    fixed = jax.lax.stop_gradient((new, value, increment))
    return new, jax.tree.map(lambda n, v, i: jnp.where(jnp.isfinite(n), (n - v) - i, 0.0), *fixed)
