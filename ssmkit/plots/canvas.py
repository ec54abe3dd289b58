"""What all plots share: axes, colours, dates, bands.

Matplotlib is imported when something is drawn, so that ``import ssmkit`` stays cheap; its global
settings are never changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from ssmkit.beliefs import Belief, Categorical

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Okabe and Ito (2008): told apart with every common form of colour blindness.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
INK, GREY, PALE = "#333333", "#8A8A8A", "#D9D9D9"


def new_axes(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (8.0, 3.6), sharex: bool = False
) -> np.ndarray:
    """Make a figure and return its axes ``(rows, columns)``; ``size`` is in inches."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, sharex=sharex, layout="constrained"
    )
    return axes


def one_axes(ax: Axes | None) -> Axes:
    """The axes that a caller passed, or new ones."""
    return new_axes()[0, 0] if ax is None else ax


def tidy(ax: Axes, *, title: str | None = None, ylabel: str | None = None) -> Axes:
    """Remove what carries no information, and label."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(colors=INK, labelsize=9)
    ax.grid(axis="y", color=PALE, linewidth=0.6, alpha=0.6)
    ax.set_axisbelow(True)
    if title is not None:
        ax.set_title(title, loc="left", fontsize=10.5, color=INK)
    if ylabel is not None:
        ax.set_ylabel(ylabel, fontsize=9.5, color=INK)
    return ax


def legend(ax: Axes) -> None:
    """Add a legend above the axes, on the right of the title, where it hides no data."""
    handles, labels = ax.get_legend_handles_labels()
    if len(handles) > 1:
        place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.2}
        spacing = {"ncols": min(len(handles), 6), "columnspacing": 1.2, "handlelength": 1.4}
        style = {"frameon": False, "fontsize": 8.5, "labelcolor": INK, "handletextpad": 0.5}
        ax.legend(handles, labels, **place, **spacing, **style)


def positions(times: pd.Index | None, length: int) -> np.ndarray:
    """Places on the x axis: dates, numbers, or ``0 … length-1`` where there is neither."""
    if times is None or len(times) != length:
        return np.arange(length)
    index: Any = times
    if hasattr(index, "to_timestamp"):  # periods are drawn at their start
        index = index.to_timestamp()
    if getattr(index, "tz", None) is not None:  # drawn in its own time
        index = index.tz_localize(None)
    values = np.asarray(index)
    return values if values.dtype.kind in "Miuf" else np.arange(length)


def label_time(ax: Axes, x: np.ndarray) -> None:
    """Format the x axis for dates, or name it for steps."""
    if x.dtype.kind != "M":
        ax.set_xlabel("t", fontsize=9.5, color=INK)
        return
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def finite_only(*arrays: Any) -> list[np.ndarray]:
    """Put nan wherever one of the arrays is infinite, so that it is neither drawn nor scaled to."""
    found = [np.asarray(a, float) for a in arrays]
    there = np.logical_and.reduce([np.isfinite(a) for a in found])
    return [np.where(there, a, np.nan) for a in found]


def draw_band(
    ax: Axes, x: np.ndarray, belief: Belief, column: int, level: float, label: str | None = None
) -> None:
    """Draw the mean and the central interval of one coordinate, where its variance is finite."""
    mean, low, high = finite_only(*interval(belief, column, level))
    name = "mean" if label is None else label
    band = {"color": BLUE, "alpha": 0.2, "linewidth": 0}
    ax.fill_between(x, low, high, label=f"{100 * level:g} % interval", **band)
    ax.plot(x, mean, color=BLUE, linewidth=1.6, label=name)


def interval(belief: Any, column: int, level: float) -> tuple[Any, Any, Any]:
    """Mean and ends of the central interval of one coordinate, each ``(T,)``."""
    tail = (1 - level) / 2
    ends = np.asarray(belief.quantile(jnp.array([tail, 1 - tail])))
    ends = ends.reshape(2, ends.shape[1], -1)[..., column]
    mean = np.asarray(belief.mean())
    return mean.reshape(mean.shape[0], -1)[:, column], ends[0], ends[1]


def draw_data(ax: Axes, x: np.ndarray, ys: np.ndarray, label: str = "data") -> None:
    """Draw observations as dots; what is missing leaves a gap."""
    size = 3.5 if len(ys) <= 200 else 2.2
    ax.plot(x, ys, "o", color=INK, markersize=size, alpha=0.65, markeredgewidth=0, label=label)


def shade_missing(ax: Axes, x: np.ndarray, missing: np.ndarray) -> None:
    """Shade spans of time in which nothing was observed."""
    if not missing.any() or len(x) < 2:
        return
    half = (x[1:] - x[:-1]) / 2
    left: Any = x - np.concatenate([half[:1], half])
    right: Any = x + np.concatenate([half, half[-1:]])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(int), [0]])))
    for number, (start, stop) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        label = "missing" if number == 0 else None
        span = {"color": GREY, "alpha": 0.22, "linewidth": 0, "zorder": 0.5}
        ax.axvspan(left[start], right[stop - 1], label=label, **span)


def draw_probabilities(ax: Axes, x: np.ndarray, belief: Categorical) -> None:
    """Stack the probabilities of the states."""
    probabilities = np.asarray(belief.probabilities())
    names = belief.labels.names
    if names is None or len(names) != probabilities.shape[-1]:
        names = tuple(f"state {k}" for k in range(probabilities.shape[-1]))
    colours = [COLOURS[k % len(COLOURS)] for k in range(len(names))]
    ax.stackplot(x, probabilities.T, labels=names, colors=colours, alpha=0.75, linewidth=0)
    ax.set_ylim(0, 1)
    ax.margins(x=0)
