"""What plots ask of a posterior before they draw: its data, its names, whether it will do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.beliefs import Belief
from ssmkit.errors import EngineError, NotComputed, OptionError, ShapeError, UnknownNameError
from ssmkit.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def given_axes(axes: Any, count: int, what: str) -> list[Axes]:
    """Flatten the axes that a caller passed and check their number.

    Raises:
        ShapeError: there are not ``count`` of them.
    """
    flat = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(flat) != count:
        raise ShapeError(
            f"plots.{what} draws {count} panels.", got=f"{len(flat)} axes", expected=f"{count} axes"
        )
    return flat


def observations(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Data ``(T, M)`` with nan where missing, and steps ``(T,)`` with nothing observed."""
    data = posterior.data
    ys = np.asarray(data.ys, float).reshape(data.ys.shape[0], -1)
    if data.mask is not None:
        ys = np.where(np.asarray(data.mask).reshape(ys.shape), ys, np.nan)
    return ys, np.asarray(np.isnan(ys).all(axis=1))


def require_series(posterior: Any, what: str) -> None:
    """Refuse what is no posterior of one series.

    Raises:
        EngineError: a batch, or something else.
    """
    if not isinstance(posterior, Posterior):
        raise EngineError(
            f"plots.{what} draws a posterior.",
            got=type(posterior).__name__,
            expected="what sk.infer returns",
        )
    posterior.require_series(f"plots.{what}")
    if posterior.is_batch:
        raise EngineError(
            f"plots.{what} draws one series, and this posterior holds a batch.",
            fix=f"sk.plots.{what}(posterior[0])",
        )


def require_level(level: float) -> None:
    """Refuse a level that is no probability.

    Raises:
        OptionError: outside (0, 1).
    """
    if not 0 < level < 1:
        raise OptionError(
            "level is the probability inside the band.", got=level, expected="in (0, 1)"
        )


def coordinate_names(belief: Belief, default: str) -> list[str]:
    """Names of the coordinates of a belief's event."""
    size = int(np.prod(belief.event_shape))
    names = belief.labels.names
    if names is not None and len(names) == size:
        return list(names)
    return [default] if belief.event_shape == () else [f"{default}{i}" for i in range(size)]


def find(names: Sequence[str], index: int | str, what: str) -> int:
    """Turn a name or a number into a column.

    Raises:
        UnknownNameError: there is no such column; the text lists the names.
    """
    if isinstance(index, str) and index in names:
        return list(names).index(index)
    if isinstance(index, int | np.integer) and -len(names) <= index < len(names):
        return int(index) % len(names)
    raise UnknownNameError(
        f"there is no {what} of this name or number.",
        got=repr(index),
        expected=f"one of {', '.join(names)}, or a number below {len(names)}",
    )


def on_data_scale(posterior: Posterior, mean: np.ndarray, ys: np.ndarray) -> bool:
    """Whether most of a line lies within the range of the data."""
    seen = ys[np.isfinite(ys)]
    if posterior.data.ys.ndim > 1 and ys.shape[1] > 1:
        return False
    if seen.size == 0:
        return False
    margin = 0.1 * (seen.max() - seen.min())
    inside = (mean > seen.min() - margin) & (mean < seen.max() + margin)
    return bool(inside.mean() > 0.5)


def observed_directly(posterior: Posterior, column: int) -> bool:
    """Whether the mean of the observation moves one for one with a coordinate of the state."""
    model = posterior.model
    if posterior.num_state_draws > 1:
        model = jax.tree.map(lambda a: a[0], model)
    u = jax.tree.map(lambda a: a[0], posterior.data.us)
    event = posterior.states.marginals.event_shape
    try:
        zero = jnp.zeros(event)
        one = zero.ravel().at[column].set(1.0).reshape(event)
        mean = [model.at(0).emission(x, u).mean for x in (zero, one)]
        response = np.ravel(np.asarray(mean[1] - mean[0]))
    except (NotComputed, NotImplementedError, AttributeError, TypeError, ValueError):
        return False
    return response.size == 1 and bool(np.isclose(response[0], 1.0))
