"""Plots over time in one panel: states, and forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmkit.beliefs import Belief, Categorical
from ssmkit.errors import EngineError, OptionError
from ssmkit.forecast import Forecast
from ssmkit.plots import canvas, requests
from ssmkit.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WHICH = ("smoothed", "filtered", "predicted")


def states(
    posterior: Posterior,
    index: int | str = 0,
    *,
    which: str = "smoothed",
    level: float = 0.9,
    show_data: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one coordinate of the state over time: mean, band, data, missing spans shaded.

    A finite state is drawn as stacked probabilities. Where a variance is infinite (a diffuse
    start) nothing is drawn.

    Args:
        posterior: of one series.
        index: number or name of the coordinate.
        which: ``"smoothed"`` (given all data), ``"filtered"`` (given the data so far) or
            ``"predicted"`` (given the data before).
        level: probability inside the band.
        show_data: draw the data too; None does where they are on the scale of the state.
        ax: matplotlib axes to draw on; new ones when None.

    Returns:
        The axes.

    Raises:
        UnknownNameError: no such coordinate.
        OptionError: ``which`` or ``level`` is impossible, or data cannot be drawn.
        EngineError: ``posterior`` is a batch, or no posterior.
        NotComputed: the engine kept no such beliefs.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> ax = sk.plots.states(posterior, "level", which="filtered")
        >>> ax.get_title(loc="left")
        'level, filtered'
    """
    requests.require_series(posterior, "states")
    requests.require_level(level)
    belief = _belief(posterior, which)
    length = posterior.data.ys.shape[0]
    x = canvas.positions(posterior.data.labels.times, length)
    if isinstance(belief, Categorical):
        return _finite_states(posterior, belief, x, which, ax)
    names = requests.coordinate_names(belief, "x")
    column = requests.find(names, index, "state")
    ax = canvas.one_axes(ax)
    canvas.draw_band(ax, x, belief, column, level)
    ys, missing = requests.observations(posterior)
    if _wants_data(posterior, column, ys, show_data):
        canvas.draw_data(ax, x, ys[:, 0])
    canvas.shade_missing(ax, x, missing)
    canvas.label_time(ax, x)
    canvas.tidy(ax, title=f"{names[column]}, {which}")
    canvas.legend(ax)
    return ax


def _belief(posterior: Posterior, which: str) -> Belief:
    if which not in WHICH:
        raise OptionError("unknown value of which.", got=repr(which), expected=WHICH)
    return posterior.states.marginals if which == "smoothed" else getattr(posterior, which)


def _finite_states(
    posterior: Posterior, belief: Categorical, x: np.ndarray, which: str, ax: Axes | None
) -> Axes:
    ax = canvas.one_axes(ax)
    canvas.draw_probabilities(ax, x, belief)
    canvas.shade_missing(ax, x, requests.observations(posterior)[1])
    canvas.label_time(ax, x)
    canvas.tidy(ax, title=f"states, {which}", ylabel="probability")
    canvas.legend(ax)
    return ax


def _wants_data(posterior: Posterior, column: int, ys: np.ndarray, show_data: bool | None) -> bool:
    if show_data is None:
        mean = canvas.interval(posterior.states.marginals, column, 0.5)[0]
        same_scale = requests.on_data_scale(posterior, mean, ys)
        return same_scale and requests.observed_directly(posterior, column)
    if show_data and ys.shape[1] > 1:
        raise OptionError(
            "show_data=True does not say which of the observations.",
            got=f"{ys.shape[1]} observations at each time",
            fix="draw them on the axes that come back: ax.plot(ys.index, ys['name'], 'o')",
        )
    return show_data


def forecast(
    forecast: Forecast,
    posterior: Posterior | None = None,
    index: int | str = 0,
    *,
    last: int | None = None,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    ax: Axes | None = None,
) -> Axes:
    """Draw a forecast of the observations as a fan, after the data that came before.

    Args:
        forecast: what ``sk.forecast`` returned.
        posterior: the posterior it started from, for the data; None draws the fan alone.
        index: number or name of the observation.
        last: number of past steps to draw; None for four times the forecast, at least 40.
        levels: probabilities inside the bands.
        ax: matplotlib axes to draw on; new ones when None.

    Returns:
        The axes.

    Raises:
        UnknownNameError: no such observation.
        OptionError: a level outside (0, 1), or ``last`` below zero.
        EngineError: ``forecast`` is no forecast, or ``posterior`` a batch.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> ax = sk.plots.forecast(sk.forecast(1, posterior, 10), posterior)
        >>> len(ax.collections)
        3
    """
    _check_forecast(forecast, posterior, levels, last)
    ax = canvas.one_axes(ax)
    belief = forecast.observations
    finite = isinstance(belief, Categorical)
    steps = belief.log_probabilities.shape[0] if finite else belief.mean().shape[0]
    x = _future(belief, posterior, steps)
    names = ["observation"] if finite else requests.coordinate_names(belief, "y")
    column = requests.find(names, index, "observation")
    if posterior is not None:
        _history(ax, posterior, column, max(4 * steps, 40) if last is None else last)
    if isinstance(belief, Categorical):
        canvas.draw_probabilities(ax, x, belief)
    else:
        _fan(ax, x, belief, column, sorted(levels, reverse=True))
    canvas.label_time(ax, x)
    canvas.tidy(ax, title=f"{names[column]}, {steps} steps ahead")
    canvas.legend(ax)
    return ax


def _check_forecast(
    forecast: Any, posterior: Posterior | None, levels: Sequence[float], last: int | None
) -> None:
    if not isinstance(forecast, Forecast):
        raise EngineError(
            "plots.forecast draws a forecast.",
            got=type(forecast).__name__,
            expected="what sk.forecast returns",
            fix="sk.plots.forecast(sk.forecast(key, posterior, num_steps=10), posterior)",
        )
    if posterior is not None:
        requests.require_series(posterior, "forecast")
    for level in levels:
        requests.require_level(level)
    if last is not None and last < 0:
        raise OptionError("last counts past steps.", got=last, expected="0 or more")


def _future(belief: Belief, posterior: Posterior | None, steps: int) -> np.ndarray:
    """Places of the forecast: its dates, else the steps after the data."""
    x = canvas.positions(belief.labels.times, steps)
    dated = belief.labels.times is not None and x.dtype.kind == "M"
    numbered = belief.labels.times is not None and len(belief.labels.times) == steps
    if dated or numbered or posterior is None:
        return x
    return x + posterior.data.ys.shape[0]


def _history(ax: Axes, posterior: Posterior, column: int, last: int) -> None:
    ys, missing = requests.observations(posterior)
    start = max(0, len(ys) - last)
    if start == len(ys):
        return
    x = canvas.positions(posterior.data.labels.times, len(ys))[start:]
    line = {"color": canvas.INK, "linewidth": 0.9, "markersize": 2.8, "alpha": 0.75}
    ax.plot(x, ys[start:, column], "o-", label="data", **line)
    canvas.shade_missing(ax, x, missing[start:])


def _fan(ax: Axes, x: np.ndarray, belief: Belief, column: int, levels: Sequence[float]) -> None:
    shades = np.linspace(0.14, 0.3, len(levels))
    for level, alpha in zip(levels, shades, strict=True):
        low, high = canvas.finite_only(*canvas.interval(belief, column, level)[1:])
        label = f"{100 * level:g} %"
        ax.fill_between(x, low, high, color=canvas.BLUE, alpha=alpha, linewidth=0, label=label)
    (mean,) = canvas.finite_only(canvas.interval(belief, column, 0.5)[0])
    ax.plot(x, mean, color=canvas.BLUE, linewidth=1.8, label="forecast mean")
