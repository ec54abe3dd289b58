"""Weighted draws."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs.base import Labels, NumericBelief
from ssmkit.keys import as_key
from ssmkit.typing import Array, Float, Key


class Particles(NumericBelief):
    """Weighted draws.

    Attributes:
        values: ``(..., N, *event)``.
        log_weights: unnormalised log weights ``(..., N)``.
    """

    values: Array
    log_weights: Float[Array, "... N"]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    labels: Labels = eqx.field(static=True, default=Labels())

    def _flat(self) -> tuple[Array, Array]:
        flat = self.values.reshape((*self.log_weights.shape, -1))
        return flat, jax.nn.softmax(self.log_weights, axis=-1)

    def mean(self) -> Array:
        """Weighted means ``(..., *event)``."""
        flat, weights = self._flat()
        mean = jnp.einsum("...n,...ni->...i", weights, flat)
        return mean.reshape(mean.shape[:-1] + self.event_shape)

    def cov(self) -> Array:
        """Weighted covariances ``(..., n, n)`` of the flattened event."""
        flat, weights = self._flat()
        centred = flat - jnp.einsum("...n,...ni->...i", weights, flat)[..., None, :]
        return jnp.einsum("...n,...ni,...nj->...ij", weights, centred, centred)

    def quantile(self, q: float | Array) -> Array:
        """Weighted quantiles of each coordinate, with the shape of ``q`` in front."""
        q = jnp.asarray(q)
        flat, weights = self._flat()
        order = jnp.argsort(flat, axis=-2)
        ordered = jnp.take_along_axis(flat, order, axis=-2)
        mass = jnp.cumsum(jnp.take_along_axis(weights[..., None], order, axis=-2), axis=-2)

        def one(level: Array) -> Array:
            short = jnp.sum(mass < level * (1 - 1e-12), axis=-2, keepdims=True)
            place = jnp.minimum(short, flat.shape[-2] - 1)
            chosen = jnp.take_along_axis(ordered, place, axis=-2)[..., 0, :]
            return chosen.reshape(chosen.shape[:-1] + self.event_shape)

        shape = self.log_weights.shape[:-1] + self.event_shape
        return jax.vmap(one)(q.ravel()).reshape(q.shape + shape)

    def sample(self, key: Key | int, n: int) -> Array:
        """Independent draws ``(n, ..., *event)`` at each time."""
        index = jax.random.categorical(
            as_key(key), self.log_weights, shape=(n, *self.log_weights.shape[:-1])
        )
        flat, _ = self._flat()
        drawn = jnp.take_along_axis(flat[None], index[..., None, None], axis=-2)[..., 0, :]
        return drawn.reshape(drawn.shape[:-1] + self.event_shape)
