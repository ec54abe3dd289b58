"""Measures of importance weights."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from ssmkit.typing import Array, Float, Scalar

PRIOR_SHAPE, PRIOR_COUNT = 0.5, 10  # the shape is drawn towards ½ as by ten more weights
FEWEST = 5  # weights in the tail below which no shape is fitted


def effective_sample_size(log_weights: Float[Array, " N"]) -> Scalar:
    r"""Effective sample size of weighted draws, \(1 / \sum_i W_i^2\).

    Args:
        log_weights: unnormalised log weights ``(N,)``.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(effective_sample_size(jnp.zeros(10))), 6)
        10.0
    """
    weights = jax.nn.softmax(log_weights)
    return 1 / (weights**2).sum()


def pareto_k(log_weights: Float[Array, "... N"]) -> Float[Array, ...]:
    r"""Pareto shape \(\hat k\) of the largest importance weights.

    A generalised Pareto law is fitted to the \(\min(N/5, 3\sqrt N)\) largest weights. Its moments
    of order \(1/k\) and above are infinite: beyond ½ the variance of the weights is, and estimates
    settle slowly; beyond 0.7 no practical number of draws makes them trustworthy.

    Args:
        log_weights: unnormalised log weights ``(..., N)``.

    Returns:
        The shape ``(...)``: infinite when fewer than five weights stand out of the rest (nearly
        all the weight is on a few draws, or ``N`` is below 21), nan when none does (they are
        equal, and there is no tail).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> heavy = 0.9 * jax.random.exponential(jax.random.key(0), (2, 4000))
        >>> bool(jnp.all(jnp.abs(pareto_k(heavy) - 0.9) < 0.25))
        True

    Source: J. Zhang and M. Stephens (2009), A new and efficient estimation method for the
    generalized Pareto distribution; A. Vehtari et al. (2024), Pareto smoothed importance sampling.
    """
    return jnp.vectorize(_pareto_k, signature="(n)->()")(log_weights)


def _pareto_k(log_weights: Array) -> Array:
    count = log_weights.shape[0]
    size = math.ceil(min(count / 5, 3 * math.sqrt(count)))
    x = jnp.sort(log_weights)[-size - 1 :]
    x = x - x[-1]
    cutoff = jnp.maximum(x[0], math.log(jnp.finfo(x.dtype).tiny))
    tail = jnp.maximum(jnp.exp(x[1:]) - jnp.exp(cutoff), 0.0)  # sorted; what is no tail is zero
    length = jnp.sum(x[1:] > cutoff)
    fitted = _fit_shape(tail, jnp.maximum(length, 1))
    few = jnp.where(length == 0, jnp.nan, jnp.inf)
    few = jnp.where(x[0] == -jnp.inf, jnp.inf, few)  # hardly any draw has weight at all
    return jnp.where(length < FEWEST, few, fitted)


def _fit_shape(tail: Array, length: Array) -> Array:
    """Posterior mean of the shape over a grid of ``b = shape / scale``; the tail stands last."""
    size = tail.shape[0]
    grid = jnp.arange(1, 31 + math.isqrt(size), dtype=tail.dtype)
    num_points = 30 + jnp.floor(jnp.sqrt(length.astype(tail.dtype)))
    quartile = tail[size - length + (length / 4 + 0.5).astype(int) - 1]
    b = (1 - jnp.sqrt(num_points / (grid - 0.5))) / (3 * quartile) + 1 / tail[-1]

    def shape(b: Array) -> Array:
        return jnp.sum(jnp.log1p(-b * tail)) / length  # zeros add nothing

    k = jax.vmap(shape)(b)
    log_profile = length * (jnp.log(-b / k) - k - 1)
    weights = jax.nn.softmax(jnp.where(grid <= num_points, log_profile, -jnp.inf))
    centre = jnp.sum(jnp.where(weights > 0, weights * b, 0.0))
    return (length * shape(centre) + PRIOR_COUNT * PRIOR_SHAPE) / (length + PRIOR_COUNT)
