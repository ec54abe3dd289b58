"""What a posterior is made of: the data it has seen, parameter draws, smoothed states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs import Categorical, Labels
from ssmkit.errors import NotComputed
from ssmkit.keys import as_key
from ssmkit.typing import Array, Float, Inputs, Key, PyTree

if TYPE_CHECKING:
    import pandas as pd


class Data(eqx.Module):
    """The series an engine has seen, as arrays.

    Attributes:
        ys: ``(T, *event)``, or ``(B, T, *event)``; what is missing holds nan (floats).
        us: inputs with the same leading axes, or None.
        mask: booleans of the shape of ``ys``, or None when everything is there.
        lengths: ``(B,)`` numbers of steps of a ragged batch, or None.
        labels: dates of the series and names of its coordinates.
        members: labels of the series of a ragged batch, or None.
    """

    ys: Array
    us: Inputs = None
    mask: Array | None = None
    lengths: tuple[int, ...] | None = eqx.field(static=True, default=None)
    labels: Labels = eqx.field(static=True, default=Labels())
    members: tuple[Labels, ...] | None = eqx.field(static=True, default=None)


class Draws(eqx.Module):
    """Weighted parameter draws with chain and draw axes; a point is one draw.

    Attributes:
        values: name to array ``(chains, draws, *shape)``; networks are pytrees of such arrays.
        log_weights: unnormalised log weights ``(chains, draws)``.
    """

    values: dict[str, PyTree]
    log_weights: Float[Array, "C S"]

    def __getitem__(self, name: str) -> PyTree:
        """Draws of one site, ``(chains, draws, *shape)``."""
        return self.values[name]

    @property
    def num_draws(self) -> int:
        """Number of draws over all chains."""
        return self.log_weights.size

    def flat(self) -> dict[str, PyTree]:
        """Draws with chains and draws merged, ``(K, *shape)``."""
        return jax.tree.map(lambda a: a.reshape((-1, *a.shape[2:])), self.values)

    def mean(self) -> dict[str, PyTree]:
        """Weighted means by name."""
        weights = jax.nn.softmax(self.log_weights.ravel())
        return jax.tree.map(lambda a: jnp.tensordot(weights, a, axes=1), self.flat())

    def std(self) -> dict[str, PyTree]:
        """Weighted standard deviations by name; zero for a point."""
        weights = jax.nn.softmax(self.log_weights.ravel())

        def spread(a: Array) -> Array:
            centre = jnp.tensordot(weights, a, axes=1)
            return jnp.sqrt(jnp.tensordot(weights, (a - centre) ** 2, axes=1))

        return jax.tree.map(spread, self.flat())


class States(eqx.Module):
    """Smoothed states: marginals per time, and whole paths.

    Attributes:
        marginals: the belief at each time given all data.
        paths: what draws paths, with the draw axis in front.
        log_weights: log weights of the parameter draws ``(K,)``.
    """

    marginals: Any
    paths: Any
    log_weights: Float[Array, " K"]

    def mean(self) -> Array:
        """Smoothed means ``(T, *state)``."""
        return self.marginals.mean()

    def cov(self) -> Array:
        """Smoothed covariances ``(T, D, D)``."""
        return self.marginals.cov()

    def std(self) -> Array:
        """Smoothed standard deviations ``(T, *state)``."""
        return self.marginals.std()

    def quantile(self, q: float | Array) -> Array:
        """Quantiles of each coordinate, with the shape of ``q`` in front."""
        return self.marginals.quantile(q)

    def probabilities(self) -> Array:
        """Smoothed probabilities ``(T, K)`` of a finite state."""
        return self._finite("probabilities").probabilities()

    def most_likely(self) -> Array:
        """The Viterbi path ``(T,)`` of a finite state: the most probable *whole* path."""
        self._finite("most_likely")
        if self.log_weights.shape[0] > 1:
            raise NotComputed(
                "the most likely path is defined at one parameter value.",
                fix="use states.sample(key, n), or a point fit (sk.GradientFit)",
            )
        return jax.tree.map(lambda a: a[0], self.paths).most_likely()

    def sample(self, key: Key | int, n: int) -> Array:
        """Draw ``n`` whole paths ``(n, T, *state)`` from the joint posterior."""
        return _draw_paths(as_key(key), self.paths, self.log_weights, n)

    def to_frame(self, **options: Any) -> pd.DataFrame:
        """Table of the marginals, one row per time."""
        return self.marginals.to_frame(**options)

    def _finite(self, name: str) -> Categorical:
        if isinstance(self.marginals, Categorical):
            return self.marginals
        raise NotComputed(f"states.{name} is for finite states.", fix="use states.mean()")


@eqx.filter_jit
def _draw_paths(key: Key, paths: Any, log_weights: Array, n: int) -> Array:
    if log_weights.shape[0] == 1:
        return jax.tree.map(lambda a: a[0], paths).sample(key, n)
    pick, draw = jax.random.split(key)
    index = jax.random.categorical(pick, log_weights, shape=(n,))

    def one(i: Array, k: Key) -> Array:
        return jax.tree.map(lambda a: a[i], paths).sample(k, 1)[0]

    return jax.vmap(one)(index, jax.random.split(draw, n))
