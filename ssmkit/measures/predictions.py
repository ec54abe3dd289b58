r"""Measures of predictive laws: the probability integral transform, and the ranked score.

The transform is \(F(y^-) + U\,(F(y) - F(y^-))\) with \(U\) uniform: uniform on (0, 1) when \(y\)
has the law \(F\), be that continuous or discrete.

Source: A. P. Dawid (1984), Statistical theory: the prequential approach; C. Czado, T. Gneiting and
L. Held (2009), Predictive model assessment for count data.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.stats import norm

from ssmkit.typing import Array, Float, Law


class Bounds(NamedTuple):
    r"""\(P(Y < y)\) and \(P(Y \le y)\), by coordinate; the same for a continuous law."""

    below: Array
    at_most: Array


def cdf_bounds(law: Law, y: Array) -> Bounds | None:
    """Probabilities of less than ``y`` and of at most ``y``, for each coordinate by itself.

    Args:
        law: the law of one observation.
        y: the observation, of the shape of its event and inside the support.

    Returns:
        Probabilities of the shape of ``y``; None for a law whose distribution function is not
        known, which `bounds_by_draw` serves.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> below, at_most = cdf_bounds(dist.Bernoulli(0.25), jnp.array(0))
        >>> below.item(), at_most.item()
        (0.0, 0.75)
    """
    law = _marginals(law)
    if law.event_shape != ():
        return None
    if law.is_discrete and law.has_enumerate_support:
        return _counted(law, y)
    try:
        at_most = law.cdf(y)
    except NotImplementedError:
        return None
    at_most = jnp.broadcast_to(jnp.clip(at_most, 0.0, 1.0), jnp.shape(y))
    if not law.is_discrete:
        return Bounds(at_most, at_most)
    return Bounds(jnp.maximum(at_most - jnp.exp(law.log_prob(y)), 0.0), at_most)


def _marginals(law: Law) -> Law:
    """The laws of single coordinates, as one law with their axes as batch."""
    while _is_a(law, dist.Independent | dist.ExpandedDistribution):
        law = law.base_dist
    if _is_a(law, dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        return dist.Normal(law.mean, jnp.sqrt(law.variance), validate_args=False)
    if _is_a(law, dist.MultivariateStudentT):
        scale = jnp.sqrt(jnp.sum(law.scale_tril**2, axis=-1))
        return dist.StudentT(law.df, law.loc, scale, validate_args=False)
    return law


def _is_a(law: Law, kind: Any) -> bool:
    """``isinstance`` that does not bring numpyro's annotations back in."""
    return isinstance(law, kind)


def _counted(law: Law, y: Array) -> Bounds:
    """Sums over a finite support."""
    support = law.enumerate_support(expand=False)
    chances = jnp.exp(law.log_prob(support))
    below = jnp.sum(jnp.where(support < y, chances, 0.0), axis=0)
    at_most = jnp.sum(jnp.where(support <= y, chances, 0.0), axis=0)
    return Bounds(below, jnp.minimum(at_most, 1.0))


def bounds_by_draw(draw: Array, y: Array, dtype: jnp.dtype) -> Bounds:
    """The same from one draw: zeros and ones."""
    return Bounds((draw < y).astype(dtype), (draw <= y).astype(dtype))


def weighted_bounds(each: Bounds, log_weights: Float[Array, " N"]) -> Bounds:
    """Bounds under a mixture: weighted means over its members.

    Args:
        each: of the members, with their axis ``N`` in front.
        log_weights: unnormalised log weights ``(N,)``.
    """
    weights = jax.nn.softmax(log_weights)
    return Bounds(*(jnp.tensordot(weights, a, axes=1) for a in each))


def as_sampled(bounds: Bounds, log_weights: Float[Array, " N"], *, by_draw: bool) -> Bounds:
    """Make room for what a sample of members does not know of its tails.

    The observation counts as one member more: nothing is less likely than one over their effective
    number. For draws this makes ranks, which are exactly uniform.

    Args:
        bounds: under the mixture of the members.
        log_weights: unnormalised log weights of the members ``(N,)``.
        by_draw: whether each member is a draw of the observation, and not a law of it.
    """
    weights = jax.nn.softmax(log_weights)
    count = 1 / jnp.sum(weights**2)
    low, high = (0.0, 1.0) if by_draw else (0.5, 0.5)
    below = (count * bounds.below + low) / (count + 1)
    return Bounds(below, (count * bounds.at_most + high) / (count + 1))


def pit(uniforms: Float[Array, ...], bounds: Bounds) -> Float[Array, ...]:
    r"""Randomised probability integral transform \(F(y^-) + U\,(F(y) - F(y^-))\).

    Args:
        uniforms: one number in (0, 1) for each coordinate; it only counts where ``y`` has a
            positive probability.
        bounds: of the predictive law at ``y``.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> pit(jnp.array(0.5), cdf_bounds(dist.Bernoulli(0.25), jnp.array(0))).item()
        0.375
    """
    return bounds.below + uniforms * (bounds.at_most - bounds.below)


def crps(
    values: Float[Array, "... N"], log_weights: Float[Array, "... N"], y: Float[Array, ...]
) -> Float[Array, ...]:
    r"""Continuous ranked probability score of weighted draws, in units of ``y``; small is good.

    \[\int (F(z) - 1[z \ge y])^2\,dz = \mathrm{E}|Y - y| - \tfrac12 \mathrm{E}|Y - Y'|\]

    Args:
        values: draws of one coordinate ``(..., N)``.
        log_weights: unnormalised log weights ``(..., N)``.
        y: what was observed ``(...)``.

    Example:
        >>> import jax.numpy as jnp
        >>> crps(jnp.array([0.0, 2.0]), jnp.zeros(2), jnp.array(0.0)).item()
        0.5

    Source: T. Gneiting and A. Raftery (2007), Strictly proper scoring rules.
    """
    weights = jax.nn.softmax(log_weights, axis=-1)
    away = values - y[..., None]
    order = jnp.argsort(away, axis=-1)
    away, weights = (jnp.take_along_axis(a, order, axis=-1) for a in (away, weights))
    # half the mean distance of two draws: each gap, times the mass on either side of it
    mass = jnp.cumsum(weights, axis=-1)[..., :-1]
    spread = jnp.sum(jnp.diff(away, axis=-1) * mass * (1 - mass), axis=-1)
    return jnp.sum(weights * jnp.abs(away), axis=-1) - spread


def crps_normal(mean: Array, std: Array, y: Array) -> Array:
    r"""Continuous ranked probability score of normal laws, in units of ``y``.

    \[\sigma \big(z\,(2\Phi(z) - 1) + 2\phi(z) - 1/\sqrt\pi\big), \qquad z = (y - \mu) / \sigma\]

    Args:
        mean: of any shape.
        std: standard deviations, positive.
        y: what was observed.

    Example:
        >>> round(float(crps_normal(0.0, 1.0, 0.0)), 4)
        0.2337
    """
    z = (y - mean) / std
    return std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
