r"""A random walk that learns its steps during warm-up, for targets that are known up to noise.

\[z' = z + e^{s} L \epsilon, \quad LL^\top = \Sigma; \qquad
s \leftarrow s + \gamma_t (\alpha - \alpha^*), \quad
\Sigma \leftarrow \Sigma + \eta_t \big((z - \mu)(z - \mu)^\top - \Sigma\big)\]

Source: H. Haario, E. Saksman and J. Tamminen (2001), An adaptive Metropolis algorithm; C. Andrieu
and J. Thoms (2008), A tutorial on adaptive MCMC, algorithm 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.linalg import cholesky_psd
from ssmkit.typing import Array, Bool, Float, Int, Key, Scalar

LogTarget = Callable[[Key, Array], Scalar]
FIRST_STD = 0.3  # of a coordinate in unconstrained space, until the chain has told
PSEUDO_COUNT = 20  # steps that the first covariance is worth


class Walk(NamedTuple):
    """One chain.

    Attributes:
        position: ``(d,)``.
        log_target: the estimate that was drawn together with the position. It is part of the
            chain's state: computing it anew would make another chain, with a wrong target.
        mean: running mean of the positions.
        cov: their running covariance.
        log_scale: log of the factor on its root.
        accept_prob: of the last step.
        accepted: whether the last step moved.
    """

    position: Float[Array, " d"]
    log_target: Scalar
    mean: Float[Array, " d"]
    cov: Float[Array, "d d"]
    log_scale: Scalar
    accept_prob: Scalar
    accepted: Bool[Array, ""]


def begin(position: Float[Array, " d"], log_target: Scalar) -> Walk:
    """A chain at its start."""
    size, dtype = position.shape[0], position.dtype
    return Walk(
        position,
        log_target,
        position,
        FIRST_STD**2 * jnp.eye(size, dtype=dtype),
        jnp.asarray(math.log(2.38 / math.sqrt(size)), dtype),
        jnp.zeros((), dtype),
        jnp.asarray(False),
    )


def step(key: Key, walk: Walk, log_target: LogTarget) -> Walk:
    """Propose, and accept with probability ``min(1, target' / target)``.

    Args:
        key: the key of this step of this chain.
        walk: the chain.
        log_target: ``(key, position) -> scalar``, log of an unbiased estimate, or exact.
    """
    propose_key, accept_key, target_key = jax.random.split(key, 3)
    # a little of each variance more: a direction not yet seen must stay open
    factor = cholesky_psd(walk.cov + 1e-4 * jnp.diag(jnp.diagonal(walk.cov)))
    noise = jax.random.normal(propose_key, walk.position.shape, walk.position.dtype)
    proposal = walk.position + jnp.exp(walk.log_scale) * (factor @ noise)
    value = log_target(target_key, proposal).astype(walk.log_target.dtype)
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    log_ratio = value - walk.log_target  # nan where both are impossible: stay
    log_level = jnp.log1p(-jax.random.uniform(accept_key, dtype=walk.log_target.dtype))
    accepted = log_level < log_ratio
    prob = jnp.nan_to_num(jnp.exp(jnp.minimum(log_ratio, 0.0)))
    return walk._replace(
        position=jnp.where(accepted, proposal, walk.position),
        log_target=jnp.where(accepted, value, walk.log_target),
        accept_prob=prob.astype(walk.accept_prob.dtype),
        accepted=accepted,
    )


def adapt(walk: Walk, number: Int[Array, ""], wanted: Scalar) -> Walk:
    """Learn from the last step; to be called during warm-up only.

    Args:
        walk: the chain after the step.
        number: of the step, from 0.
        wanted: acceptance probability that the scale is led to.
    """
    number = number.astype(walk.position.dtype)
    # weights that grow with time: where the chain began is forgotten, and a chain that sticks
    # for a while does not lose its covariance
    gain = 2 / (number + PSEUDO_COUNT)
    away = walk.position - walk.mean
    return walk._replace(
        mean=walk.mean + gain * away,
        cov=walk.cov + gain * (jnp.outer(away, away) - walk.cov),
        log_scale=walk.log_scale + (number + 1) ** -0.6 * (walk.accept_prob - wanted),
    )


def wanted_acceptance(dimension: int, noise_std: float) -> float:
    r"""Acceptance to aim at: 0.234 (0.44 in one dimension), less for a noisy target.

    Steps of the length \(\ell\) that is best without noise, \(2\Phi(-\ell/2) = 0.234\), are
    accepted with probability \(2\Phi(-\tfrac12\sqrt{\ell^2 + 2\sigma^2})\) when the log target has
    normal noise of standard deviation \(\sigma\); the best length hardly depends on it.

    Source: C. Sherlock, A. Thiery, G. Roberts and J. Rosenthal (2015), On the efficiency of
    pseudo-marginal random walk Metropolis algorithms.
    """
    normal = NormalDist()
    length = 2 * normal.inv_cdf((0.44 if dimension == 1 else 0.234) / 2)
    return 2 * normal.cdf(-0.5 * math.sqrt(length**2 + 2 * noise_std**2))
