"""Beliefs over a finite state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.beliefs.base import BaseBelief, Labels
from ssmkit.errors import NotComputed
from ssmkit.keys import as_key
from ssmkit.typing import Array, Float, Key

if TYPE_CHECKING:
    import pandas as pd


class Categorical(BaseBelief):
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
