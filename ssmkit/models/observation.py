"""The one missing-data contract: the log density of what was observed.

Missing entries are filled with a value *inside the support* first and masked after: a density
evaluated at nan, or outside its support, has nan gradients that a mask alone does not remove.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jax.scipy.special import gammaln, logsumexp

from ssmkit.errors import MissingDataError
from ssmkit.linalg import cholesky_psd, solve_lower
from ssmkit.models.distributions import base_distribution, is_a, log_density
from ssmkit.typing import Array, Law

MULTIVARIATE = (
    dist.MultivariateNormal,
    dist.LowRankMultivariateNormal,
    dist.MultivariateStudentT,
)


def observed_mask(
    ys: Array, observed: Array | None, event_ndim: int, *, start: int = 1
) -> Array | None:
    """The mask of what is there: ``observed`` and not nan; None when all is by type.

    Args:
        ys: observations ``(T, *event)``.
        observed: booleans ``(T,)`` or ``(T, *event)``, or None.
        event_ndim: number of event axes of one observation.
        start: number of leading axes before the event (1 for a series, 0 for one step).

    Returns:
        Booleans ``(T, *event)``, or None for integer data without a mask.
    """
    finite = ~jnp.isnan(ys) if jnp.issubdtype(ys.dtype, jnp.inexact) else None
    if observed is None:
        return finite
    observed = jnp.asarray(observed, bool)
    missing_axes = start + event_ndim - observed.ndim
    observed = jnp.reshape(observed, observed.shape + (1,) * missing_axes)
    observed = jnp.broadcast_to(observed, ys.shape)
    return observed if finite is None else observed & finite


def is_concrete(*arrays: Array | None) -> bool:
    """Whether values can be looked at: none of the arrays is being traced."""
    return not any(isinstance(a, Tracer) for a in arrays)


class RowMasks(eqx.Module):
    """The mask of a series, formed one row at a time: ``input_at(mask, t)``.

    A mask of the whole series would take memory that grows with its length. Where all of it is
    needed, ``jnp.asarray(mask)`` gives it.

    Attributes:
        ys: observations ``(T, *event)``; nan is missing.
        observed: booleans ``(T,)`` or ``(T, *event)``, or None.
    """

    ys: Array
    observed: Array | None

    def __getitem__(self, t: int | Array) -> Array | None:
        """Booleans of the shape of one observation; None for integers without ``observed``."""
        y = self.ys[t]
        observed = None if self.observed is None else self.observed[t]
        return observed_mask(y, observed, y.ndim, start=0)

    def __jax_array__(self) -> Array | None:
        """Booleans ``(T, *event)``; of one observation where a scan has taken a row."""
        return observed_mask(self.ys, self.observed, self.ys.ndim - 1)


Mask: TypeAlias = Array | RowMasks | None


def needed_mask(ys: Array, observed: Array | None) -> RowMasks | None:
    """The mask of a series, or None as soon as it can be seen that nothing is missing.

    Args:
        ys: observations ``(T, *event)``.
        observed: booleans ``(T,)`` or ``(T, *event)``, or None.
    """
    may_be_nan = jnp.issubdtype(ys.dtype, jnp.inexact)
    if observed is None and not may_be_nan:
        return None
    # by numpy: under jit, jax would trace what is computed from known arrays
    if is_concrete(ys, observed):
        gaps = may_be_nan and np.isnan(np.asarray(ys)).any()
        if not gaps and (observed is None or np.all(np.asarray(observed))):
            return None
    return RowMasks(ys, None if observed is None else jnp.asarray(observed, bool))


def whole_rows(mask: Array) -> Array:
    """The mask ``(T,)`` by row, for laws of which no coordinate can be missing by itself.

    Raises:
        MissingDataError: part of a row is missing; a row that is traced counts as missing then.
    """
    event = tuple(range(1, mask.ndim))
    rows = jnp.all(mask, axis=event)
    if is_concrete(mask) and np.any(np.asarray(mask).any(axis=event) & ~np.asarray(rows)):
        raise _no_marginals("the one given")
    return rows


def supports_coordinates(distribution: Law) -> bool:
    """Whether single coordinates of one observation may be missing under this law."""
    if distribution.event_shape == ():
        return True
    if is_a(distribution, dist.MixtureSameFamily):
        return supports_coordinates(distribution.component_distribution)
    if is_a(distribution, dist.MixtureGeneral):
        return all(supports_coordinates(d) for d in distribution.component_distributions)
    if is_a(distribution, dist.Independent):
        return base_distribution(distribution).event_shape == ()
    return isinstance(distribution, MULTIVARIATE)


def observed_log_prob(distribution: Law, y: Array, observed: Array | None = None) -> Array:
    r"""Log density of the observed part of one observation, \(\log p(y_{obs})\), in nats.

    Nothing observed gives exactly zero. Whole observations may be missing under any law; single
    coordinates under independent events, (low-rank) normals, Student-t and mixtures of these.

    Args:
        distribution: the law of one observation.
        y: the observation, with the event shape of the law; masked entries are ignored.
        observed: None (all there), one boolean, or one per coordinate.

    Returns:
        The log density, with the batch shape of the law.

    Raises:
        MissingDataError: a mask per coordinate for a law without such marginals.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> law = dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.9], [0.9, 1.0]]))
        >>> y = jnp.array([0.0, jnp.nan])
        >>> round(float(observed_log_prob(law, y, jnp.array([True, False]))), 4)
        -0.9189
    """
    if observed is None:
        return log_density(distribution, y)
    y, observed = jnp.asarray(y), jnp.asarray(observed, bool)
    if observed.ndim == 0 or distribution.event_shape == ():
        return _whole(distribution, y, observed)
    if not supports_coordinates(distribution):
        raise _no_marginals(type(distribution).__name__)
    value = _coordinates(distribution, y, observed)
    # rounding of mixture weights must not turn nothing into something
    nothing = ~jnp.any(observed, axis=tuple(range(-len(distribution.event_shape), 0)))
    return jnp.where(nothing, 0.0, value)


def emission_log_prob(law: Law, y: Array, mask: Array | None) -> Array:
    """`observed_log_prob` in a filter: a law without marginals loses rows that are not whole."""
    if mask is not None and not supports_coordinates(law):
        mask = jnp.all(mask)
    return observed_log_prob(law, y, mask)


def _no_marginals(emission: str) -> MissingDataError:
    return MissingDataError(
        "single coordinates are missing, and this emission has no marginals for them.",
        got=f"emission {emission}",
        expected="an independent or (low-rank) normal, Student-t, or a mixture of these",
        fix="mark the whole row as missing: observed of shape (T,)",
    )


def feasible(distribution: Law, y: Array, observed: Array) -> Array:
    """Fill what is not observed with a value inside the support."""
    inside = distribution.support.feasible_like(jnp.zeros_like(y))
    mask = jnp.reshape(observed, observed.shape + (1,) * (y.ndim - observed.ndim))
    return jnp.where(mask, y, jnp.broadcast_to(inside, y.shape).astype(y.dtype))


def _whole(distribution: Law, y: Array, observed: Array) -> Array:
    log_prob = log_density(distribution, feasible(distribution, y, observed))
    return jnp.where(observed, log_prob, 0.0)


def _coordinates(distribution: Law, y: Array, observed: Array) -> Array:
    if is_a(distribution, dist.MixtureSameFamily):
        return _mixture(distribution.mixing_distribution, distribution, y, observed)
    if is_a(distribution, dist.MixtureGeneral):
        parts = [_coordinates(d, y, observed) for d in distribution.component_distributions]
        log_weights = jnp.log(distribution.mixing_distribution.probs)
        return logsumexp(jnp.stack(parts, axis=-1) + log_weights, axis=-1)
    if is_a(distribution, dist.Independent):
        base = distribution
        while is_a(base, dist.Independent):
            base = base.base_dist
        filled = feasible(distribution, y, observed)
        terms = jnp.where(observed, base.log_prob(filled), 0.0)
        return jnp.sum(terms, axis=tuple(range(-len(distribution.event_shape), 0)))
    return _elliptical(distribution, y, observed)


def _mixture(mixing: Law, mixture: Law, y: Array, observed: Array) -> Array:
    terms = _coordinates(mixture.component_distribution, y, observed)
    log_weights = jnp.log(mixing.probs)
    return logsumexp(terms + log_weights, axis=-1)


def _elliptical(distribution: Law, y: Array, observed: Array) -> Array:
    """Normal and Student-t marginals: rows and columns of what is missing leave the matrix."""
    is_student = is_a(distribution, dist.MultivariateStudentT)
    if is_student:
        matrix = distribution.scale_tril @ jnp.swapaxes(distribution.scale_tril, -1, -2)
    else:
        matrix = distribution.covariance_matrix
    pair = observed[..., :, None] & observed[..., None, :]
    matrix = jnp.where(pair, matrix, jnp.eye(matrix.shape[-1], dtype=matrix.dtype))
    residual = jnp.where(observed, jnp.where(observed, y, 0.0) - distribution.loc, 0.0)
    factor = cholesky_psd(matrix)
    white = solve_lower(factor, residual[..., None])[..., 0]
    quadratic = jnp.sum(white**2, axis=-1)
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
    count = jnp.sum(observed, axis=-1)
    if not is_student:
        return -0.5 * quadratic - half_log_det - 0.5 * count * math.log(2 * math.pi)
    df = distribution.df
    normaliser = gammaln(0.5 * (df + count)) - gammaln(0.5 * df)
    normaliser = normaliser - 0.5 * count * jnp.log(df * math.pi) - half_log_det
    return normaliser - 0.5 * (df + count) * jnp.log1p(quadratic / df)
