"""The mean over time of parameters that are learned as data arrive."""

import dataclasses

import jax
import numpy as np
import pytest
from linear_reference import program

import ssmkit as sk

START, LENGTH = 7, 30


ENGINE = sk.OnlineVariational(
    num_steps=0,
    num_paths=2,
    value=sk.learned.Polynomial(num_points=40),
    ascent=sk.StochasticAscent(rate=0.05, averaging_from=START),
)
YS = np.random.default_rng(3).normal(size=(LENGTH, 1))


@pytest.fixture(scope="module")
def posterior():
    return sk.infer(0, ENGINE, program, YS)


def test_it_is_the_mean_of_the_path_where_parameters_are_free(posterior):
    told = {name: np.array(value) for name, value in posterior.diagnostics.items()}
    for name, free, back in (("noise", np.log, np.exp), ("persistence", np.array, np.array)):
        path, averaged = free(told[f"online {name}"]), told[f"averaged {name}"]
        np.testing.assert_allclose(averaged[:START], told[f"online {name}"][:START], rtol=1e-12)
        means = [path[START : t + 1].mean() for t in range(START, LENGTH)]
        np.testing.assert_allclose(averaged[START:], back(means), rtol=1e-10)
        np.testing.assert_allclose(posterior.params.mean()[name], averaged[-1], rtol=1e-12)
        assert abs(averaged[-1] - told[f"online {name}"][-1]) > 1e-3


def test_it_changes_what_is_reported_and_nothing_else(posterior):
    plain = dataclasses.replace(ENGINE, ascent=sk.StochasticAscent(rate=0.05))
    found = sk.infer(0, plain, program, YS)
    assert "averaged noise" not in found.diagnostics
    for name in ("online noise", "online persistence"):
        np.testing.assert_array_equal(found.diagnostics[name], posterior.diagnostics[name])
    np.testing.assert_array_equal(found.filtered.mean(), posterior.filtered.mean())
    last = np.array(found.diagnostics["online noise"])[-1]
    np.testing.assert_allclose(found.params.mean()["noise"], last, rtol=1e-12)


def test_a_stream_keeps_it_from_file_to_file(posterior, tmp_path):
    flow = sk.stream(0, ENGINE, program)
    for y in YS[: START + 3]:
        flow.update(y)
    again = sk.load_stream(flow.save(tmp_path / "mean.stream"), using=[program])
    for y in YS[START + 3 : START + 6]:
        again.update(y)
    exact = np.array(posterior.diagnostics["averaged noise"])[START + 5]
    np.testing.assert_allclose(again.params["noise"], exact, rtol=1e-6)
    # of a posterior it goes on with both: the mean, and the parameters as they stand
    later = sk.stream(0, ENGINE, posterior)
    later.update(YS[0])
    path = np.log(np.array(posterior.diagnostics["online noise"]))
    now = float(later._stepper.seen.state.carry.learning.params["noise"])
    assert abs(now - path[-1]) < 0.1
    mean = np.append(path[START:], now).mean()
    np.testing.assert_allclose(later.params["noise"], np.exp(mean), rtol=1e-6)


def test_a_bank_keeps_one_for_each_series():
    flow = sk.stream(0, ENGINE, program, num_series=2)
    for row in YS[: START + 2]:
        flow.update(np.stack([row, 2 * row]))
    averages = np.array(flow.params["noise"])
    iterates = np.exp(np.array(flow._stepper.seen.state.carry.learning.params["noise"]))
    assert averages.shape == (2,) and averages[0] != averages[1]
    assert np.all(averages != iterates)
    assert jax.tree.all(jax.tree.map(lambda a: a.shape == (2,), flow.params))
