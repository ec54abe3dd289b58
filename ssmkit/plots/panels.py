"""Plots of several panels: the components of a structural model, and its residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssmkit.beliefs import Belief
from ssmkit.diagnostics import components as find_components
from ssmkit.diagnostics import residuals as find_residuals
from ssmkit.errors import DataError
from ssmkit.plots import canvas, requests
from ssmkit.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_RESIDUALS = 3
MANY = 250  # more stems than this hide each other


def components(posterior: Posterior, *, level: float = 0.9, axes: Any = None) -> np.ndarray:
    """Draw each component of a structural model with its band; the level with the data.

    Args:
        posterior: of one series under a structural model.
        level: probability inside the bands.
        axes: as many matplotlib axes as components; a new column of panels when None.

    Returns:
        The axes, ``(number of components,)``.

    Raises:
        EngineError: the model has no components, or ``posterior`` is a batch.
        ShapeError: not as many axes as components.
        OptionError: ``level`` is outside (0, 1).

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0) + sk.models.Cycle(10.0, 0.9, 100.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> [ax.get_title(loc="left") for ax in sk.plots.components(posterior)]
        ['level', 'cycle']
    """
    requests.require_series(posterior, "components")
    requests.require_level(level)
    parts = find_components(posterior)
    if axes is None:
        size = (8.5, 1.0 + 2.1 * len(parts))
        axes = canvas.new_axes(len(parts), 1, size=size, sharex=True)
    flat = requests.given_axes(axes, len(parts), "components")
    ys, missing = requests.observations(posterior)
    x = canvas.positions(posterior.data.labels.times, len(ys))
    with_data = _level_of(posterior, parts, ys)
    for ax, (name, belief) in zip(flat, parts.items(), strict=True):
        canvas.draw_band(ax, x, belief, 0, level)
        if name == with_data:
            canvas.draw_data(ax, x, ys[:, 0])
        else:
            ax.axhline(0.0, color=canvas.GREY, linewidth=0.8)
        canvas.shade_missing(ax, x, missing)
        canvas.tidy(ax, title=name)
    canvas.legend(flat[0])
    canvas.label_time(flat[-1], x)
    return np.array(flat, dtype=object)


def _level_of(posterior: Posterior, parts: dict[str, Belief], ys: np.ndarray) -> str | None:
    """The first component that lies where the data are."""
    for name, belief in parts.items():
        if requests.on_data_scale(posterior, np.asarray(belief.mean()).ravel(), ys):
            return name
    return None


def residuals(posterior: Posterior, index: int | str = 0, *, axes: Any = None) -> np.ndarray:
    """Draw the standardised one-step residuals: over time, histogram, autocorrelation, Q–Q.

    Under the right model they are independent standard normals. With correlated observations
    they are whitened in the order of the coordinates.

    Args:
        posterior: of one series, by an engine that predicts observations.
        index: number or name of the observation.
        axes: four matplotlib axes; a new two-by-two panel when None.

    Returns:
        The axes, ``(2, 2)``.

    Raises:
        UnknownNameError: no such observation.
        DataError: fewer than three residuals.
        ShapeError: not four axes.
        NotComputed: the engine predicts no observations.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> sk.plots.residuals(posterior).shape
        (2, 2)

    Source: Durbin and Koopman (2012), Time Series Analysis by State Space Methods, 2.12.
    """
    requests.require_series(posterior, "residuals")
    errors = find_residuals(posterior)
    names = requests.coordinate_names(posterior.predicted_observations, "y")
    errors = errors[:, requests.find(names, index, "observation")]
    if np.isfinite(errors).sum() < MIN_RESIDUALS:
        raise DataError(
            "there are too few residuals to draw.",
            got=f"{int(np.isfinite(errors).sum())} of {len(errors)} steps",
            expected=f"at least {MIN_RESIDUALS} observed steps after the diffuse start",
        )
    axes = canvas.new_axes(2, 2, size=(8.5, 5.6)) if axes is None else axes
    flat = requests.given_axes(axes, 4, "residuals")
    _over_time(flat[0], posterior, errors)
    seen = errors[np.isfinite(errors)]
    _histogram(flat[1], seen)
    _autocorrelation(flat[2], errors)
    _quantiles(flat[3], seen)
    return np.array(flat, dtype=object).reshape(2, 2)


def _over_time(ax: Axes, posterior: Posterior, errors: np.ndarray) -> None:
    x = canvas.positions(posterior.data.labels.times, len(errors))
    if len(errors) <= MANY:
        ax.vlines(x, 0, errors, color=canvas.BLUE, linewidth=0.7, alpha=0.6)
    ax.plot(x, errors, "o", color=canvas.BLUE, markersize=2.2)
    for bound in (-1.96, 1.96):
        ax.axhline(bound, color=canvas.GREY, linewidth=0.8, linestyle="--")
    ax.axhline(0, color=canvas.GREY, linewidth=0.8)
    canvas.shade_missing(ax, x, requests.observations(posterior)[1])
    canvas.label_time(ax, x)
    canvas.tidy(ax, title="standardised residuals (lines: 95 %)")


def _histogram(ax: Axes, seen: np.ndarray) -> None:
    edge = max(3.5, 1.05 * float(np.abs(seen).max()))
    bins = np.linspace(-edge, edge, int(np.clip(2 * np.sqrt(seen.size), 10, 40)) + 1)
    ax.hist(seen, bins=list(bins), density=True, color=canvas.SKY, alpha=0.6, label="residuals")
    grid = np.linspace(-edge, edge, 200)
    density = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    ax.plot(grid, density, color=canvas.RED, linewidth=1.5, label="standard normal")
    canvas.tidy(ax, title="histogram")
    ax.set_ylim(top=1.25 * max(ax.get_ylim()[1], 0.4))
    canvas.legend(ax)


def _autocorrelation(ax: Axes, errors: np.ndarray) -> None:
    """Correlations of pairs that are both there; the bounds are those of white noise."""
    count = int(np.isfinite(errors).sum())
    lags = np.arange(1, min(24, count // 2) + 1)
    z = np.where(np.isfinite(errors), errors - np.nanmean(errors), 0.0)
    values = np.array([np.sum(z[k:] * z[:-k]) for k in lags]) / max(np.sum(z**2), 1e-300)
    bound = 1.96 / np.sqrt(count)
    ax.axhspan(-bound, bound, color=canvas.PALE, alpha=0.6, linewidth=0)
    ax.axhline(0, color=canvas.GREY, linewidth=0.8)
    ax.vlines(lags, 0, values, color=canvas.BLUE, linewidth=1.6)
    ax.plot(lags, values, "o", color=canvas.BLUE, markersize=3.5)
    edge = 1.25 * max(np.abs(values).max(), bound)
    ax.set_ylim(-edge, edge)
    ax.set_xlabel("lag", fontsize=9.5, color=canvas.INK)
    canvas.tidy(ax, title="autocorrelation (band: 95 % for white noise)")


def _quantiles(ax: Axes, seen: np.ndarray) -> None:
    from scipy.stats import norm

    theory = norm.ppf((np.arange(1, seen.size + 1) - 0.5) / seen.size)
    edge = 1.05 * max(np.abs(theory).max(), np.abs(seen).max())
    ax.plot([-edge, edge], [-edge, edge], color=canvas.RED, linewidth=1.2)
    ax.plot(theory, np.sort(seen), "o", color=canvas.BLUE, markersize=2.8, alpha=0.8)
    ax.set_xlabel("normal quantile", fontsize=9.5, color=canvas.INK)
    canvas.tidy(ax, title="residual quantiles against normal ones")
