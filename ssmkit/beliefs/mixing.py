"""One belief from the beliefs at many parameter draws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from ssmkit.beliefs.categorical import Categorical
from ssmkit.beliefs.gaussian import GaussianMixture
from ssmkit.beliefs.particles import Particles
from ssmkit.typing import Array, Float


def mix(belief: Any, log_weights: Float[Array, " K"]) -> Any:
    """Merge the leading axis of a belief, one entry per parameter draw, into one belief.

    Args:
        belief: a belief with the draw axis ``K`` in front.
        log_weights: log weights of the draws ``(K,)``.
    """
    if log_weights.shape[0] == 1:
        return jax.tree.map(lambda a: a[0], belief)
    if isinstance(belief, Categorical):
        log_w = jax.nn.log_softmax(log_weights)
        log_w = log_w.reshape((-1,) + (1,) * (belief.log_probabilities.ndim - 1))
        merged = logsumexp(belief.log_probabilities + log_w, axis=0)
        return Categorical(merged, belief.event_shape, belief.labels)
    if isinstance(belief, Particles):
        return _pool(belief, log_weights)
    return GaussianMixture(belief, log_weights, belief.event_shape, belief.labels)


def _pool(belief: Particles, log_weights: Array) -> Particles:
    lead = belief.log_weights.ndim - 1  # axis of the particles
    own = jax.nn.log_softmax(belief.log_weights, axis=-1)
    own = own + log_weights.reshape((-1,) + (1,) * lead)
    weights = jnp.moveaxis(own, 0, -2).reshape((*own.shape[1:-1], -1))
    values = jnp.moveaxis(belief.values, 0, lead - 1)
    shape = (*values.shape[: lead - 1], -1, *values.shape[lead + 1 :])
    return Particles(values.reshape(shape), weights, belief.event_shape, belief.labels)
