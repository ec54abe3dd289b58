"""NUTS with the states integrated out, against a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size

import ssmkit as sk
from ssmkit.engines import chains
from ssmkit.engines.options import RunOptions

YS = np.cumsum(np.random.default_rng(5).normal(0, 0.7, 50))
YS = YS + np.random.default_rng(6).normal(0, 1.0, 50)
YS[20:24] = np.nan
PRIOR = dist.HalfNormal(2.0)


CALLS = []


def program():
    CALLS.append(1)
    level = numpyro.sample("level", PRIOR)
    noise = numpyro.sample("noise", PRIOR)
    return sk.models.LocalLevel(level**2, noise**2)


ENGINE = sk.NUTS(sk.Kalman(), num_warmup=300, num_samples=500, num_chains=4)


@pytest.fixture(scope="module")
def posterior():
    return sk.infer(11, ENGINE, program, YS, progress=False)


@pytest.fixture(scope="module")
def grid():
    """Posterior on a grid of both scales: weights, and the smoothed last state at each point."""
    axis = jnp.linspace(0.02, 4.0, 120)
    level, noise = (a.ravel() for a in jnp.meshgrid(axis, axis, indexing="ij"))

    def one(a, b):
        model = sk.models.LocalLevel(a**2, b**2)
        value = sk.log_evidence(jax.random.key(0), sk.Kalman(), model, jnp.asarray(YS))
        return value + PRIOR.log_prob(a) + PRIOR.log_prob(b)

    log_weights = jax.jit(jax.vmap(one))(level, noise)
    return jax.nn.softmax(log_weights), {"level": level, "noise": noise}


def test_parameters_agree_with_the_grid(posterior, grid):
    weights, values = grid
    for name, value in values.items():
        draws = np.asarray(posterior.params[name])
        size = effective_sample_size(draws)
        mean = float(weights @ value)
        std = float(jnp.sqrt(weights @ (value - mean) ** 2))
        assert size > 200
        assert abs(draws.mean() - mean) < 4 * std / np.sqrt(size)
        # the variance of a sample standard deviation is wider for skewed laws: kurtosis enters
        fourth = float(weights @ ((value - mean) / std) ** 4)
        spread = std * np.sqrt((fourth - 1) / 4 / size)
        assert abs(draws.std() - std) < 5 * spread


def test_states_average_over_parameters(posterior, grid):
    weights, values = grid
    best = jnp.argsort(weights)[-400:]

    def one(a, b):
        model = sk.models.LocalLevel(a**2, b**2)
        parts = sk.Kalman().infer(
            jax.random.key(0), model, jnp.nan_to_num(YS), None, jnp.asarray(~np.isnan(YS)), "final"
        )
        return parts["final"].location[0], parts["final"].covariance[0, 0]

    mean, variance = jax.jit(jax.vmap(one))(values["level"][best], values["noise"][best])
    w = weights[best] / weights[best].sum()
    centre = float(w @ mean)
    std = float(jnp.sqrt(w @ (variance + (mean - centre) ** 2)))
    count = posterior.num_state_draws
    assert abs(posterior.final.mean().item() - centre) < 5 * std / np.sqrt(count)
    assert abs(posterior.final.std().item() / std - 1) < 5 / np.sqrt(2 * count)


def test_chains_are_kept_and_reported(posterior):
    assert posterior.params["level"].shape == (4, 500)
    report = posterior.diagnostics
    assert report["max_rhat"] < 1.02
    assert report["sample_stats"]["diverging"].shape == (4, 500)
    assert list(posterior.summary().table.index) == ["level", "noise"]


def test_no_evidence_is_claimed(posterior):
    assert posterior.evidence_kind is None
    with pytest.raises(sk.errors.NotComputed, match="log_evidence"):
        _ = posterior.log_evidence


def test_param_sites_are_refused_by_name():
    def mixed():
        level = numpyro.sample("level", PRIOR)
        return sk.models.LocalLevel(level, numpyro.param("frozen", 1.0))

    with pytest.raises(sk.errors.ParameterError, match="frozen"):
        sk.infer(0, sk.NUTS(sk.Kalman()), mixed, YS)


def test_forecast_averages_over_parameters(posterior):
    ahead = sk.forecast(0, posterior, 5).observations
    assert ahead.mean().shape == (5,)
    assert np.all(np.diff(np.asarray(ahead.std())) > 0)


@pytest.mark.parametrize("name", ["num_warmup", "num_samples", "num_chains", "num_state_draws"])
def test_sizes_that_cannot_work_are_refused(name):
    with pytest.raises(sk.errors.OptionError, match=name):
        sk.infer(0, sk.NUTS(sk.Kalman(), **{name: 0}), program, YS)


def test_an_interrupt_keeps_the_draws_so_far_whatever_the_chunks(posterior, monkeypatch):
    monkeypatch.setattr(chains, "next_chunk", lambda length, seconds: 37)
    seen = []

    def callback(report):
        seen.append(report | {"calls": len(CALLS)})
        if report["draws"] >= 100:
            raise KeyboardInterrupt

    part = sk.infer(11, ENGINE, program, YS, progress=False, callback=callback)
    assert [r["draws"] for r in seen if r["draws"]] == [37, 74, 111]
    assert seen[0]["calls"] == seen[-1]["calls"]  # one compiled program for all chunks
    assert part.diagnostics["interrupted"] and not posterior.diagnostics["interrupted"]
    assert part.diagnostics["sample_stats"]["energy"].shape == (4, 111)
    for name, values in part.params.values.items():
        np.testing.assert_array_equal(values, posterior.params[name][:, :111])
    assert part.states.mean().shape == (50, 1)
    assert "interrupted after 111 draws" in repr(part.summary())
    assert "interrupted" not in repr(posterior.summary())


def run(callback):
    """The loop alone, with steps that do nothing."""
    nothing = {"diverging": jnp.zeros((500, 4), bool)}
    begin = chains.Chains(None, nothing, jnp.zeros((), int))
    options = RunOptions(progress=False, callback=callback)
    return chains._run(ENGINE, lambda c, limit: c._replace(step=limit), begin, options)


def test_a_callback_can_stop_the_draws(monkeypatch):
    monkeypatch.setattr(chains, "next_chunk", lambda length, seconds: 37)
    end, interrupted = run(lambda report: report["draws"] >= 50)
    assert interrupted
    assert int(end.step) == 300 + 2 * 37
    end, interrupted = run(lambda report: None)
    assert not interrupted
    assert int(end.step) == 800


def test_without_draws_there_is_nothing_to_keep():
    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    with pytest.raises(sk.errors.NotComputed, match="before there were draws"):
        run(lambda report: True)
