"""Names and dates that travel with a belief, and what all beliefs share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ssmkit.errors import NotComputed
from ssmkit.typing import Array

if TYPE_CHECKING:
    import pandas as pd


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


class BaseBelief(eqx.Module):
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


class NumericBelief(BaseBelief):
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
