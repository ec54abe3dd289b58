r"""Exact diffuse starts by regression on the flat directions (de Jong, 1991).

With \(x_0 = m + F\epsilon + A\delta\), everything in a linear filter is affine in \(\delta\): the
filter carries a mean *matrix* with one column for the constant and one per direction, one
covariance, and the Gram matrix of the scaled innovations. Given the data, \(\delta\) has a normal
law; where its information matrix is singular, the flat directions are not yet identified and the
affected coordinates have infinite variance.

The diffuse log-likelihood is \(\lim_{\kappa\to\infty} \log p_\kappa(y) + (r/2)\log\kappa\), with
``r`` the number of identified directions: the convention of Durbin and Koopman (2012, 7.2), and
of the exact diffuse initialisation of statsmodels. All observations count for the constant.

Source: P. de Jong (1991), The diffuse Kalman filter, Annals of Statistics 19.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.linalg import cholesky_psd, solve_lower, solve_psd, triangularise
from ssmkit.typing import Array, Float, Scalar


class FlatPosterior(NamedTuple):
    """The law of the flat coefficients given data: mean, factor, and what stays flat."""

    mean: Float[Array, " q"]
    factor: Float[Array, "q q"]
    unidentified: Float[Array, "q q"]
    log_det: Scalar
    quadratic: Scalar


def flat_posterior(gram: Float[Array, "p p"]) -> FlatPosterior:
    """Solve the regression on the flat directions; ``p = 1 + q``, ``q = 0`` is trivial.

    Args:
        gram: sum of the outer products of scaled innovation rows ``[e, -h A]``.

    Returns:
        Mean and factor of the identified part, an orthonormal basis of the unidentified part
        (zero columns elsewhere), the pseudo log determinant of the information and the
        minimised quadratic form.
    """
    size = gram.shape[0] - 1
    if size == 0:
        empty, zero = jnp.zeros((0, 0), gram.dtype), jnp.zeros((), gram.dtype)
        return FlatPosterior(jnp.zeros(0, gram.dtype), empty, empty, zero, gram[0, 0])
    information, cross = gram[1:, 1:], gram[1:, 0]
    basis = _null_basis(jax.lax.stop_gradient(information))
    # adding the null space makes the matrix regular without touching its identified part
    regular = cholesky_psd(information + basis @ basis.T)
    mean = -solve_psd(regular, cross[:, None])[:, 0]
    inverse = solve_lower(regular, jnp.eye(size, dtype=gram.dtype))
    project = jnp.eye(size, dtype=gram.dtype) - basis @ basis.T
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(regular)))
    return FlatPosterior(
        project @ mean, project @ inverse.T, basis, log_det, gram[0, 0] + cross @ mean
    )


def _null_basis(information: Array) -> Array:
    """Orthonormal basis of the null space, found after scaling the diagonal to one."""
    size = information.shape[0]
    diagonal = jnp.diagonal(information)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 1.0)
    values, vectors = jnp.linalg.eigh(information * scale[:, None] * scale[None, :])
    flat = values < 32 * size * jnp.finfo(information.dtype).eps
    directions = scale[:, None] * jnp.where(flat, vectors, 0.0)
    return _orthonormal(directions)


def _orthonormal(directions: Array) -> Array:
    lower = triangularise(directions.T)
    return solve_lower(lower, directions.T).T


def resolve(
    means: Float[Array, "D p"], covariance: Float[Array, "D D"], flat: FlatPosterior
) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """Integrate the flat coefficients out of a belief that is affine in them.

    Returns:
        Mean and covariance; a coordinate that depends on an unidentified direction has infinite
        variance, and no covariance with others.
    """
    if means.shape[1] == 1:
        return means[:, 0], covariance
    slopes = means[:, 1:]
    carried = slopes @ flat.factor
    covariance = covariance + carried @ carried.T
    leak = jnp.sum(jnp.abs(slopes @ flat.unidentified), axis=1)
    size = jnp.sum(jnp.abs(slopes), axis=1)
    open_ended = leak > 1e-6 * jnp.maximum(size, 1e-30)
    keep = ~(open_ended[:, None] | open_ended[None, :])
    covariance = jnp.where(keep, covariance, 0.0)
    covariance = covariance + jnp.diag(jnp.where(open_ended, jnp.inf, 0.0))
    return means[:, 0] + slopes @ flat.mean, covariance
