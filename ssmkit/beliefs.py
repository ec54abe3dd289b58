"""Beliefs: what is known of a state or an observation, at one time or at many.

All answer ``mean() cov() std() quantile(q) sample(key, n) to_frame()``; categorical ones answer
``probabilities()`` and refuse ``mean()``. Leading axes (time, series) come first, the event last.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp, ndtr, ndtri

from ssmkit.errors import NotComputed
from ssmkit.keys import as_key
from ssmkit.linalg import cholesky_psd
from ssmkit.typing import Array, Float, Key

if TYPE_CHECKING:
    import pandas as pd

BISECTIONS = 60


class Labels:
    """Dates and coordinate names that travel with a belief; compared by content."""

    __slots__ = ("names", "times")

    def __init__(self, times: pd.Index | None = None, names: tuple[str, ...] | None = None) -> None:
        """Hold the index of the leading axis and the names of the event's coordinates."""
        self.times, self.names = times, names

    def __eq__(self, other: object) -> bool:
        """Equal when dates and names are."""
        if not isinstance(other, Labels) or self.names != other.names:
            return False
        if self.times is None or other.times is None:
            return self.times is other.times
        return self.times.equals(other.times)

    def __hash__(self) -> int:
        """Hash by names and length."""
        return hash((self.names, None if self.times is None else len(self.times)))

    def __repr__(self) -> str:
        """Say how many dates and which names."""
        count = 0 if self.times is None else len(self.times)
        return f"Labels({count} times, names={self.names})"


class _Belief(eqx.Module):
    """What all beliefs share: names, dates and the table."""

    def labelled(self: Any, labels: Labels) -> Any:
        """Return the same belief with dates and names."""
        return dataclasses.replace(self, labels=labels)

    def _names(self: Any, default: str = "x") -> list[str]:
        size = int(np.prod(self.event_shape))
        if self.labels.names is not None and len(self.labels.names) == size:
            return list(self.labels.names)
        return [default] if self.event_shape == () else [f"{default}{i}" for i in range(size)]

    def _frame(self: Any, columns: dict[str, Any]) -> pd.DataFrame:
        import pandas as pd

        columns = {k: np.atleast_1d(np.asarray(v)) for k, v in columns.items()}
        if any(v.ndim > 1 for v in columns.values()):
            raise NotComputed(
                "a table holds one series, and this belief is of a batch.",
                fix="posterior[b].states.to_frame() for series b",
            )
        frame = pd.DataFrame(columns)
        if self.labels.times is not None and len(self.labels.times) == len(frame):
            frame.index = self.labels.times
        else:
            frame.index.name = "time"
        return frame


class _Numeric(_Belief):
    """Beliefs over real or count-valued arrays."""

    def std(self: Any) -> Array:
        """Standard deviations ``(..., *event)``."""
        variances = jnp.diagonal(self.cov(), axis1=-2, axis2=-1)
        return jnp.sqrt(variances).reshape(variances.shape[:-1] + self.event_shape)

    def mean(self) -> Array:
        """Means ``(..., *event)``."""
        raise NotImplementedError

    def cov(self) -> Array:
        """Covariances ``(..., n, n)`` of the flattened event."""
        raise NotImplementedError

    def quantile(self, q: float | Array) -> Array:
        """Quantiles of each coordinate, with the shape of ``q`` in front."""
        raise NotImplementedError

    def to_frame(self: Any, level: float = 0.9) -> pd.DataFrame:
        """Table with mean, standard deviation and a central interval, one row per time.

        Args:
            level: probability inside the interval.
        """
        tail = (1 - level) / 2
        bounds = self.quantile(jnp.array([tail, 1 - tail]))
        stats = {"mean": self.mean(), "std": self.std()}
        stats |= {f"{100 * tail:g}%": bounds[0], f"{100 * (1 - tail):g}%": bounds[1]}
        names = self._names()
        lead = self.mean().ndim - len(self.event_shape)
        columns = {}
        for i, name in enumerate(names):
            for stat, values in stats.items():
                flat = np.asarray(values).reshape((*values.shape[:lead], -1))
                label = stat if len(names) == 1 else f"{name} {stat}"
                columns[label] = flat[..., i]
        return self._frame(columns)


class Gaussian(_Numeric):
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


class GaussianMixture(_Numeric):
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


class Particles(_Numeric):
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


class Categorical(_Belief):
    """Beliefs over a finite state.

    Attributes:
        log_probabilities: ``(..., K)``.
    """

    log_probabilities: Float[Array, "... K"]
    event_shape: tuple[int, ...] = eqx.field(static=True, default=())
    labels: Labels = eqx.field(static=True, default=Labels())

    def probabilities(self) -> Array:
        """Probabilities of the states ``(..., K)``."""
        return jnp.exp(self.log_probabilities)

    def mode(self) -> Array:
        """The most probable state at each time ``(...)``."""
        return jnp.argmax(self.log_probabilities, axis=-1)

    def sample(self, key: Key | int, n: int) -> Array:
        """Independent draws ``(n, ...)`` at each time; paths come from ``states``."""
        shape = (n, *self.log_probabilities.shape[:-1])
        return jax.random.categorical(as_key(key), self.log_probabilities, shape=shape)

    def mean(self) -> Array:
        """Refuse: categories have no mean.

        Raises:
            NotComputed: always.
        """
        raise NotComputed(
            "a categorical belief has no mean.",
            fix="use .probabilities(), .mode() or .sample(key, n)",
        )

    cov = std = quantile = mean

    def to_frame(self: Any) -> pd.DataFrame:
        """Table of the states' probabilities, one row per time."""
        names = self.labels.names or [f"state {k}" for k in range(self.log_probabilities.shape[-1])]
        values = np.atleast_2d(np.asarray(self.probabilities()))
        return self._frame({name: values[:, k] for k, name in enumerate(names)})


Belief: TypeAlias = Gaussian | GaussianMixture | Particles | Categorical


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
