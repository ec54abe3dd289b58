"""Normal beliefs, and mixtures of them over parameter draws."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from ssmkit.beliefs.base import Labels, NumericBelief
from ssmkit.keys import as_key
from ssmkit.linalg import cholesky_psd
from ssmkit.typing import Array, Float, Key

BISECTIONS = 60


class Gaussian(NumericBelief):
    """Normal beliefs; a coordinate that is not identified yet has infinite variance.

    Attributes:
        location: means of the flattened event ``(..., n)``.
        covariance: covariances ``(..., n, n)``.
    """

    location: Float[Array, "... n"]
    covariance: Float[Array, "... n n"]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    labels: Labels = eqx.field(static=True, default=Labels())

    def mean(self) -> Array:
        """Means ``(..., *event)``."""
        return self.location.reshape(self.location.shape[:-1] + self.event_shape)

    def cov(self) -> Array:
        """Covariances ``(..., n, n)`` of the flattened event."""
        return self.covariance

    def quantile(self, q: float | Array) -> Array:
        """Quantiles of each coordinate, with the shape of ``q`` in front."""
        q = jnp.asarray(q, self.location.dtype)
        mean = self.mean()
        z = ndtri(q).reshape(q.shape + (1,) * mean.ndim)
        return mean + jnp.where(z == 0, 0.0, z * self.std())

    def cdf(self, x: Array) -> Array:
        """Probability of at most ``x``, for each coordinate."""
        std = self.std()
        z = (x - self.mean()) / jnp.where(std > 0, std, 1.0)
        return jnp.where(std > 0, ndtr(z), (x >= self.mean()).astype(z.dtype))

    def sample(self, key: Key | int, n: int) -> Array:
        """Independent draws ``(n, ..., *event)`` at each time; paths come from ``states``."""
        shape = (n, *self.location.shape)
        noise = jax.random.normal(as_key(key), shape, self.location.dtype)
        draws = self.location + jnp.einsum("...ij,...j->...i", cholesky_psd(self.covariance), noise)
        flat = jnp.isinf(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))
        draws = jnp.where(flat, jnp.nan, draws)  # a flat law has no draws
        return draws.reshape(shape[:-1] + self.event_shape)


class GaussianMixture(NumericBelief):
    """Weighted mixtures of normals, one component per parameter draw.

    Attributes:
        components: a `Gaussian` with the component axis ``K`` in front.
        log_weights: unnormalised log weights ``(K,)``.
    """

    components: Gaussian
    log_weights: Float[Array, " K"]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    labels: Labels = eqx.field(static=True, default=Labels())

    def _average(self, values: Array) -> Array:
        return jnp.tensordot(jax.nn.softmax(self.log_weights), values, axes=1)

    def mean(self) -> Array:
        """Means ``(..., *event)``."""
        return self._average(self.components.mean())

    def cov(self) -> Array:
        """Total covariances: within components and between their means."""
        location = self.components.location
        centred = location - self._average(location)
        between = centred[..., :, None] * centred[..., None, :]
        return self._average(self.components.cov() + between)

    def quantile(self, q: float | Array) -> Array:
        """Quantiles by bisection on the mixture's distribution function."""
        q = jnp.asarray(q, self.log_weights.dtype)
        return _mixture_quantiles(self, q.ravel()).reshape(q.shape + self.mean().shape)

    def _quantile(self, q: Array) -> Array:
        each = self.components.quantile(q)
        low, high = jnp.min(each, axis=0), jnp.max(each, axis=0)

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = 0.5 * (bounds[0] + bounds[1])
            below = self._average(self.components.cdf(middle)) < q
            return jnp.where(below, middle, bounds[0]), jnp.where(below, bounds[1], middle)

        low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
        return 0.5 * (low + high)

    def sample(self, key: Key | int, n: int) -> Array:
        """Independent draws ``(n, ..., *event)``, each from one component."""
        pick, draw = jax.random.split(as_key(key))
        index = jax.random.categorical(pick, self.log_weights, shape=(n,))

        def one(i: Array, k: Key) -> Array:
            return jax.tree.map(lambda a: a[i], self.components).sample(k, 1)[0]

        return jax.vmap(one)(index, jax.random.split(draw, n))


@eqx.filter_jit
def _mixture_quantiles(mixture: GaussianMixture, levels: Array) -> Array:
    return jax.vmap(mixture._quantile)(levels)
