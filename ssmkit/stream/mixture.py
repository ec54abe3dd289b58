"""Mixtures over parameter draws whose weights change from step to step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.beliefs import Gaussian, GaussianMixture
from ssmkit.keys import as_key
from ssmkit.typing import Array, Key


class MixturesOverTime(GaussianMixture):
    """Mixtures of normals, one per time, as a stream of many parameter draws answers.

    Attributes:
        components: a `Gaussian` with the component axis ``K`` in front, then time.
        log_weights: unnormalised log weights ``(K, T)``.
    """

    def _average(self, values: Array) -> Array:
        weights = jax.nn.softmax(self.log_weights, axis=0)
        return jnp.einsum("kt,kt...->t...", weights, values)

    def sample(self, key: Key | int, n: int) -> Array:
        """Independent draws ``(n, T, *event)`` at each time, each from one component."""
        pick, draw = jax.random.split(as_key(key))
        shape = (n, self.log_weights.shape[1])
        index = jax.random.categorical(pick, self.log_weights, axis=0, shape=shape)

        def one(i: Array, k: Key) -> Array:
            times = jnp.arange(i.shape[0])
            return jax.tree.map(lambda a: a[i, times], self.components).sample(k, 1)[0]

        return jax.vmap(one)(index, jax.random.split(draw, n))


def over_time(belief: Any) -> Any:
    """Give a stack of beliefs, one per time, the axes of one belief over time."""
    if not isinstance(belief, GaussianMixture):
        return belief
    components: Gaussian = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), belief.components)
    weights = jnp.moveaxis(belief.log_weights, 0, 1)
    return MixturesOverTime(components, weights, belief.event_shape, belief.labels)
