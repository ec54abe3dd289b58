"""Plots: what is drawn, what is left out, and what is refused by name."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest

import ssmkit as sk
from ssmkit.beliefs import Categorical, Labels, mix
from ssmkit.errors import DataError, EngineError, OptionError, ShapeError, UnknownNameError

LEVEL = sk.models.LocalLevel(1469.0, 15099.0)


@pytest.fixture(autouse=True)
def close_figures():
    settings = dict(plt.rcParams)
    yield
    plt.close("all")
    assert dict(plt.rcParams) == settings


@pytest.fixture(scope="module")
def nile():
    """With a gap of five years and one of one."""
    series = sk.data.load("nile").copy()
    series.iloc[20:25] = np.nan
    series.iloc[60] = np.nan
    return series


@pytest.fixture(scope="module")
def posterior(nile):
    return sk.infer(0, sk.Kalman(), LEVEL, nile)


@pytest.fixture(scope="module")
def structural(nile):
    model = LEVEL + sk.models.Cycle(10.0, 0.9, 100.0)
    return sk.infer(0, sk.Kalman(), model, nile)


def spans(ax):
    return [p for p in ax.patches if p.get_label() == "missing" or p.get_zorder() == 0.5]


def line(ax, label):
    return next(a for a in ax.lines if a.get_label() == label)


@pytest.mark.parametrize("which", ["smoothed", "filtered", "predicted"])
def test_states_draw_mean_data_and_missing_spans(posterior, nile, which):
    ax = sk.plots.states(posterior, "level", which=which)
    assert ax.get_title(loc="left") == f"level, {which}"
    mean = np.asarray(line(ax, "mean").get_ydata())
    belief = posterior.states.marginals if which == "smoothed" else getattr(posterior, which)
    keep = np.isfinite(np.asarray(belief.std())[:, 0])
    np.testing.assert_allclose(mean[keep], np.asarray(belief.mean())[keep, 0])
    assert np.isnan(mean[~keep]).all()
    data = np.asarray(line(ax, "data").get_ydata())
    np.testing.assert_array_equal(data, nile.to_numpy())
    assert len(spans(ax)) == 2
    assert np.isfinite(ax.get_ylim()).all() and ax.get_ylim()[1] < 2000
    ax.figure.canvas.draw()


def test_a_diffuse_start_is_left_out(posterior):
    ax = sk.plots.states(posterior, which="predicted")
    assert np.isnan(line(ax, "mean").get_ydata()[0])
    assert not np.isnan(line(ax, "mean").get_ydata()[1])


def test_given_axes_are_drawn_on_and_returned(posterior):
    _, ax = plt.subplots()
    assert sk.plots.states(posterior, ax=ax) is ax
    assert sk.plots.forecast(sk.forecast(1, posterior, 3), posterior, ax=ax) is ax


def test_dates_are_on_the_axis(posterior):
    ax = sk.plots.states(posterior)
    ax.figure.canvas.draw()
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert "1900" in labels


@pytest.mark.parametrize("kind", ["periods", "numbers", "zone", "none", "words"])
def test_every_kind_of_index_is_drawn(kind):
    values = np.array([1.0, 2.0, np.nan, 3.0, 2.5, 2.0])
    index = {
        "periods": pd.period_range("2000-01", periods=6, freq="M"),
        "numbers": pd.Index([3, 4, 5, 6, 7, 8]),
        "zone": pd.date_range("2000", periods=6, freq="D", tz="Europe/Paris"),
        "words": pd.Index(list("abcdef")),
    }
    series = values if kind == "none" else pd.Series(values, index[kind])
    posterior = sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1.0, 1.0), series)
    ax = sk.plots.forecast(sk.forecast(1, posterior, 3), posterior)
    ax.figure.canvas.draw()
    past = pd.Index(np.asarray(line(ax, "data").get_xdata(orig=True)))
    future = pd.Index(np.asarray(line(ax, "forecast mean").get_xdata(orig=True)))
    assert past.max() < future.min()


def test_data_are_drawn_only_where_they_are_on_the_scale_of_the_state(structural):
    labels = [a.get_label() for a in sk.plots.states(structural, "level").lines]
    assert "data" in labels
    labels = [a.get_label() for a in sk.plots.states(structural, "cycle1").lines]
    assert "data" not in labels
    labels = [a.get_label() for a in sk.plots.states(structural, "cycle1", show_data=True).lines]
    assert "data" in labels


def test_components_in_the_order_of_the_model(structural):
    axes = sk.plots.components(structural)
    assert [ax.get_title(loc="left") for ax in axes] == ["level", "cycle"]
    assert "data" in [a.get_label() for a in axes[0].lines]
    assert "data" not in [a.get_label() for a in axes[1].lines]
    axes[0].figure.canvas.draw()


def test_the_fan_widens_with_its_levels(posterior):
    ahead = sk.forecast(1, posterior, 5)
    ax = sk.plots.forecast(ahead, posterior, levels=(0.95, 0.5), last=7)
    heights = [np.ptp(band.get_paths()[0].vertices[:, 1]) for band in ax.collections]
    assert [band.get_label() for band in ax.collections] == ["95 %", "50 %"]
    assert heights[0] > heights[1]
    assert len(line(ax, "data").get_xdata()) == 7


def test_residuals(posterior):
    axes = sk.plots.residuals(posterior)
    assert axes.shape == (2, 2)
    heights = [patch.get_height() * patch.get_width() for patch in axes[0, 1].patches]
    assert np.sum(heights) == pytest.approx(1.0)
    bound = axes[1, 0].patches[0]
    np.testing.assert_allclose(bound.get_y() + bound.get_height(), 1.96 / np.sqrt(93))


def test_several_observations(nile):
    """Two series, seen with noise; the coordinates are found by their columns' names."""
    model = sk.models.LinearGaussian(
        np.zeros(2), 1e6 * np.eye(2), np.eye(2), 1e3 * np.eye(2), np.eye(2), 1e4 * np.eye(2)
    )
    frame = pd.DataFrame({"north": nile, "south": nile[::-1].to_numpy()}, nile.index)
    posterior = sk.infer(0, sk.Kalman(), model, frame)
    ax = sk.plots.forecast(sk.forecast(1, posterior, 2), posterior, "south")
    np.testing.assert_array_equal(line(ax, "data").get_ydata(), frame["south"].iloc[-40:])
    assert sk.plots.residuals(posterior, "north").shape == (2, 2)
    with pytest.raises(UnknownNameError, match="north, south"):
        sk.plots.residuals(posterior, "west")
    with pytest.raises(OptionError, match="2 observations"):
        sk.plots.states(posterior, show_data=True)


def test_a_finite_state_is_stacked():
    model = sk.models.DiscreteHMM(
        jnp.array([0.5, 0.5]),
        jnp.array([[0.9, 0.1], [0.2, 0.8]]),
        dist.Normal(jnp.array([0.0, 3.0]), 1.0),
    )
    ys = np.array([0.1, 0.2, np.nan, 2.9, 3.1])
    posterior = sk.infer(0, sk.ForwardBackward(), model, ys)
    ax = sk.plots.states(posterior)
    assert ax.get_ylim() == (0, 1)
    assert len(ax.collections) == 2
    assert len(spans(ax)) == 1


def test_finite_observations_in_a_forecast():
    belief = Categorical(jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5]])), (), Labels(None, None))
    ax = sk.plots.forecast(sk.Forecast(belief, belief))
    assert len(ax.collections) == 2


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda p: sk.plots.states(p, "lvel"), UnknownNameError, "one of level"),
        (lambda p: sk.plots.states(p, 3), UnknownNameError, "one of level"),
        (lambda p: sk.plots.states(p, which="both"), OptionError, "smoothed"),
        (lambda p: sk.plots.states(p, level=90), OptionError, "in \\(0, 1\\)"),
        (lambda p: sk.plots.states(None), EngineError, "NoneType"),
        (lambda p: sk.plots.forecast(p), EngineError, "sk.forecast"),
        (lambda p: sk.plots.forecast(sk.forecast(1, p, 2), p, last=-1), OptionError, "0 or more"),
        (lambda p: sk.plots.residuals(p, axes=plt.figure().subplots(3)), ShapeError, "4 axes"),
        (lambda p: sk.plots.components(p, axes=plt.figure().subplots(3)), ShapeError, "1 axes"),
    ],
)
def test_impossible_requests_are_refused_by_name(posterior, call, error, text):
    with pytest.raises(error, match=text):
        call(posterior)


def test_batches_and_empty_residuals_are_refused(nile):
    batch = sk.infer(0, sk.Kalman(), LEVEL, np.stack([nile.to_numpy()] * 2), batched=True)
    with pytest.raises(EngineError, match=r"posterior\[0\]"):
        sk.plots.states(batch)
    assert sk.plots.states(batch[0]) is not None
    lone = sk.infer(0, sk.Kalman(), LEVEL, np.array([1.0, np.nan, 2.0]))
    with pytest.raises(DataError, match="too few"):
        sk.plots.residuals(lone)


def test_draws_of_parameters_give_bands_too(posterior):
    """Two parameter draws, made by hand from one posterior."""
    twice = jax.tree.map(lambda a: jnp.stack([a, a]), (posterior.model, posterior.predicted))
    marginals = jax.tree.map(lambda a: jnp.stack([a, a]), posterior.states.marginals)
    weights = jnp.zeros(2)
    states = dataclasses.replace(posterior.states, marginals=mix(marginals, weights))
    parts = posterior.parts | {
        "states": dataclasses.replace(states, log_weights=weights),
        "predicted": mix(twice[1], weights),
        "state_log_weights": weights,
    }
    drawn = dataclasses.replace(posterior, model=twice[0], parts=parts)
    ax = sk.plots.states(drawn, which="predicted")
    assert np.isfinite(ax.get_ylim()).all()
    single = sk.plots.states(posterior, which="predicted")
    for label in ("mean", "data"):
        np.testing.assert_allclose(
            line(ax, label).get_ydata(), line(single, label).get_ydata(), rtol=1e-9
        )
    assert "level" in [ax.get_title(loc="left") for ax in sk.plots.components(drawn)]
