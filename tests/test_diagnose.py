"""Measures, diagnosis, replicated evidence and the alarm, against closed forms and grids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
from grid_reference import stochastic_volatility
from jax.scipy.special import ndtr
from scipy import stats

import ssmkit as sk
from ssmkit.alarm import init_alarm, read_alarm, step_alarm
from ssmkit.engines.options import RunOptions
from ssmkit.engines.states import run_states
from ssmkit.measures import (
    as_sampled,
    bounds_by_draw,
    cdf_bounds,
    crps,
    crps_normal,
    normal_scores,
    pareto_k,
    pit,
    pit_tests,
    weighted_bounds,
)

SV = (-0.5, 0.9, 0.6)
VOLATILITY = sk.models.StochasticVolatility(*SV)
RETURNS = np.array([0.4, -1.6, 0.2, 0.9, -0.1, 2.0])
COUNTS = sk.models.PoissonCounts(mean=1.0, persistence=0.8, scale=0.6)
LEVEL = sk.models.LocalLevel(1469.0, 15099.0)
STAY = np.array([[0.9, 0.1], [0.2, 0.8]])
COINS = sk.models.DiscreteHMM.poisson(np.array([0.5, 0.5]), STAY, np.array([1.0, 6.0]))
FILTER = sk.SMC(num_particles=500, smoother=None)


# Measures.


def arviz_k(log_weights):
    """ArviZ's own shape, by either of its addresses."""
    try:
        from arviz_stats.base import array_stats
    except ImportError:
        from arviz import psislw

        return float(psislw(log_weights.copy())[1])
    return float(array_stats.psislw(-log_weights)[1])  # takes the negative


# 1.x rounds the length of the tail down, 0.2x and the paper up: sizes where both are the same
@pytest.mark.parametrize("count", [30, 100, 1600])
def test_the_pareto_shape_is_that_of_arviz(count):
    draws = np.random.default_rng(count).exponential(size=(4, count))
    log_weights = draws * np.array([0.3, 0.7, 1.5, 5.0])[:, None]
    found = jax.jit(pareto_k)(jnp.asarray(log_weights))
    for one, weights in zip(found, log_weights, strict=True):
        np.testing.assert_allclose(one, arviz_k(weights), rtol=1e-8)


def test_the_pareto_shape_of_extreme_weights():
    assert jnp.isnan(pareto_k(jnp.zeros(100)))
    assert pareto_k(jnp.full(100, -jnp.inf).at[0].set(0.0)) == jnp.inf
    assert pareto_k(jnp.arange(10.0)) == jnp.inf
    assert pareto_k(jnp.log(jax.random.uniform(jax.random.key(0), (1000,)))) < 0.3
    single = pareto_k(jnp.asarray(np.random.default_rng(0).exponential(size=1000), jnp.float32))
    assert single.dtype == jnp.float32 and abs(single - 1) < 0.4


def test_the_ranked_score_is_its_double_sum():
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(2, 50)), rng.exponential(size=(2, 50))
    y = np.array([0.3, -4.0])
    share = w / w.sum(axis=1, keepdims=True)
    apart = np.abs(x[:, :, None] - x[:, None, :])
    expected = np.sum(share * np.abs(x - y[:, None]), axis=1)
    expected -= 0.5 * np.einsum("bi,bj,bij->b", share, share, apart)
    found = crps(jnp.asarray(x), jnp.log(w), jnp.asarray(y))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_ranked_score_of_normal_draws_is_the_closed_form():
    x = 2 + 3 * stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    for y in (-5.0, 2.0, 3.3):
        found = crps(jnp.asarray(x), jnp.zeros(x.size), jnp.asarray(y))
        np.testing.assert_allclose(found, crps_normal(2.0, 3.0, y), rtol=1e-4)


COV = np.array([[1.0, 0.6], [0.6, 2.0]])
LAWS = {
    "normal": dist.Normal(1.0, 2.0),
    "independent": dist.Normal(jnp.array([0.0, 3.0]), 2.0).to_event(1),
    "expanded": dist.Exponential(0.5).expand([2]).to_event(1),
    "multivariate": dist.MultivariateNormal(jnp.ones(2), COV),
    "student": dist.MultivariateStudentT(5.0, jnp.ones(2), np.linalg.cholesky(COV)),
    "mixture": dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.3, 0.7])), dist.Normal(jnp.array([-2.0, 1.0]), 0.5)
    ),
    "transformed": dist.LogNormal(0.0, 1.0),
    "poisson": dist.Poisson(1.7),
    "negative binomial": dist.NegativeBinomial2(3.0, 2.0),
    "bernoulli": dist.Bernoulli(0.3),
    "binomial": dist.Binomial(5, jnp.array([0.2, 0.9])).to_event(1),
    "categorical": dist.Categorical(jnp.array([0.2, 0.5, 0.3])),
}


@pytest.mark.parametrize("name", LAWS)
def test_transforms_of_a_law_s_own_draws_are_uniform(name):
    """Seen by Kolmogorov–Smirnov: a draw that is not randomised, or half a law."""
    law = LAWS[name]
    key, other = jax.random.split(jax.random.key(3))
    draws = law.sample(key, (2000,))
    bounds = jax.vmap(lambda y: cdf_bounds(law, y))(draws)
    u = np.asarray(pit(jax.random.uniform(other, bounds.below.shape), bounds))
    assert np.all((u >= 0) & (u <= 1))
    for column in u.reshape(2000, -1).T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    if law.is_discrete:
        upper = np.asarray(bounds.at_most).reshape(2000, -1)[:, 0]
        assert stats.kstest(upper, "uniform").pvalue < 1e-6


def test_ranks_among_draws_are_uniform():
    assert cdf_bounds(dist.VonMises(0.0, 1.0), jnp.array(0.1)) is None
    draws = jax.random.normal(jax.random.key(0), (3000, 10))
    each = bounds_by_draw(draws[:, 1:], draws[:, :1], draws.dtype)
    flat = jnp.zeros(9)
    rank = lambda b: as_sampled(weighted_bounds(b, flat), flat, by_draw=True)  # noqa: E731
    bounds = jax.vmap(rank)(each)
    u = np.asarray(pit(jax.random.uniform(jax.random.key(1), (3000,)), bounds))
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_tests_of_transforms_see_what_is_wrong():
    z = np.random.default_rng(0).normal(size=400)
    worst = lambda z: min(t.p_value for t in pit_tests(stats.norm.cdf(z)))  # noqa: E731
    assert worst(z) > 0.01
    assert worst(1.4 * z) < 1e-4 and worst(z / 1.4) < 1e-4 and worst(z + 0.4) < 1e-4
    assert worst(np.convolve(z, [0.8, 0.6])[:400]) < 1e-4
    assert pit_tests(np.full(19, 0.5)) == []
    assert np.isfinite(normal_scores(np.array([0.0, 1.0]))).all()


# Diagnosis.


@pytest.mark.parametrize("proposal", [None, sk.Linearised()])
def test_transforms_of_a_particle_filter_are_those_of_the_grid(proposal):
    engine = sk.SMC(num_particles=2000, proposal=proposal, smoother=None)
    expected = stochastic_volatility(*SV, RETURNS).pit
    runs = [sk.diagnose(sk.infer(k, engine, VOLATILITY, RETURNS)).pit[:, 0] for k in range(12)]
    error = np.std(runs, axis=0, ddof=1) / np.sqrt(len(runs))
    assert error.max() < 0.01
    assert np.all(np.abs(np.mean(runs, axis=0) - expected) < 4.5 * error + 5e-4)


@pytest.fixture(scope="module")
def counted():
    ys = sk.simulate(5, COUNTS, 400).observations
    return sk.infer(1, FILTER, COUNTS, ys)


def test_transforms_of_counts_are_uniform(counted):
    diagnosis = sk.diagnose(counted)
    assert diagnosis.pit.shape == diagnosis.crps.shape == (400, 1)
    assert stats.kstest(diagnosis.pit[:, 0], "uniform").pvalue > 0.01
    assert [t for t in diagnosis.tests if t.p_value < 1e-3] == []
    np.testing.assert_array_equal(diagnosis.log_score, counted.log_likelihood)
    again, other = sk.diagnose(counted, 0), sk.diagnose(counted, 1)
    np.testing.assert_array_equal(again.pit, diagnosis.pit)
    assert np.abs(other.pit - diagnosis.pit).max() > 0.01


def test_a_wrong_scale_is_seen(counted):
    calm = sk.models.PoissonCounts(mean=1.0, persistence=0.8, scale=0.15)
    diagnosis = sk.diagnose(sk.infer(1, FILTER, calm, counted.data.ys))
    assert min(t.p_value for t in diagnosis.tests) < 1e-4
    assert "not calibrated" in repr(diagnosis)
    right = sk.diagnose(counted)
    assert diagnosis.crps.mean() > right.crps.mean()
    assert diagnosis.log_score.sum() < right.log_score.sum() - 10


def test_the_ranked_score_is_the_absolute_error_of_a_point():
    """Particles that agree: a nearly certain state and emission."""
    sure = sk.models.LinearGaussian(
        np.zeros(1), 1e-12 * np.eye(1), np.eye(1), 1e-12 * np.eye(1), np.eye(1), 1e-12 * np.eye(1)
    )
    ys = np.array([[2e-6], [-1e-6]])
    for engine in (FILTER, sk.Kalman()):
        found = sk.diagnose(sk.infer(0, engine, sure, ys)).crps[0]
        assert found.shape == (1,) and 0 < found[0] < 2.5e-6


def narrow(model, x, y, u):
    """A tenth of the transition's scale."""
    return dist.Normal(model.transition(x, u).mean, 0.1 * model.scale)


def test_a_proposal_that_covers_too_little_is_flagged():
    ys = sk.simulate(2, VOLATILITY, 60).observations
    engine = sk.SMC(num_particles=1000, proposal=sk.Proposal(narrow), smoother=None)
    posterior = sk.infer(0, engine, VOLATILITY, ys)
    flagged = sk.diagnose(posterior)
    assert np.mean(flagged.k_hat[1:] > 0.7) > 0.5
    assert "covers too little" in " ".join(flagged.warnings)
    for text in (repr(flagged), repr(posterior.summary())):
        assert "k-hat of the weights is above 0.7 at " in text and "steps, first at t=" in text
    plain = sk.SMC(num_particles=1000, smoother=None)
    assert np.mean(sk.diagnose(sk.infer(0, plain, VOLATILITY, ys)).k_hat > 0.7) == 0


def test_everything_is_dated():
    dates = pd.date_range("2001-03-31", periods=30, freq="ME", name="month")
    ys = pd.Series(np.asarray(sk.simulate(5, COUNTS, 30).observations, float), dates, name="falls")
    ys.iloc[[3, 4]] = np.nan
    diagnosis = sk.diagnose(sk.infer(1, sk.SMC(20, smoother=None), COUNTS, ys))
    frame = diagnosis.to_frame()
    pd.testing.assert_index_equal(frame.index, dates)
    assert list(frame.columns) == [
        "log score", "pit", "crps", "ess", "unique ancestors", "resampled", "k hat",
    ]  # fmt: skip
    assert frame["pit"].isna().to_numpy().nonzero()[0].tolist() == [3, 4]
    assert frame["crps"].isna().sum() == 2 and (frame["log score"].iloc[3:5] == 0).all()
    few = dataclasses.replace(diagnosis, ess=np.where(np.arange(30) == 7, 2.0, 15.0))
    assert "ESS) at 1 of 30 steps, first at t=7 (2001-10-31)" in repr(few)


def test_gaussian_transforms_are_those_of_the_residuals():
    nile = sk.data.load("nile").copy()
    nile.iloc[10:13] = np.nan
    posterior = sk.infer(0, sk.Kalman(), LEVEL, nile)
    diagnosis = sk.diagnose(posterior)
    np.testing.assert_allclose(diagnosis.pit, stats.norm.cdf(sk.residuals(posterior)), atol=1e-12)
    assert np.isnan(diagnosis.pit[[0, 10, 11, 12]]).all()  # diffuse, and missing
    assert diagnosis.k_hat is None and list(diagnosis.to_frame()) == ["log score", "pit", "crps"]
    assert "Diagnosis of 96 observations" in repr(diagnosis)


def test_coordinates_have_names():
    pair = sk.models.LinearGaussian(
        np.zeros(1), np.eye(1), 0.9 * np.eye(1), np.eye(1), np.ones((2, 1)), COV
    )
    ys = sk.simulate(0, pair, 40).observations.at[3, 1].set(jnp.nan)
    exact = sk.diagnose(sk.infer(0, sk.Kalman(), pair, ys))
    cloud = sk.diagnose(sk.infer(0, sk.SMC(2000, smoother=None), pair, ys))
    assert list(exact.to_frame()) == ["log score", "y0 pit", "y1 pit", "y0 crps", "y1 crps"]
    assert [t.name for t in cloud.tests if "Smirnov" in t.name][1].endswith("y1")
    assert np.isnan(cloud.pit[3]).tolist() == [False, True]
    np.testing.assert_allclose(cloud.pit, exact.pit, atol=0.1)
    np.testing.assert_allclose(np.nanmean(cloud.crps), np.nanmean(exact.crps), rtol=0.05)


def test_finite_states_are_averaged_over():
    ys = np.asarray(sk.simulate(1, COINS, 200).observations)
    posterior = sk.infer(0, sk.ForwardBackward(), COINS, ys)
    diagnosis = sk.diagnose(posterior)
    chances = np.asarray(posterior.predicted.probabilities())
    bound = lambda y: np.sum(chances * stats.poisson.cdf(y[:, None], [1.0, 6.0]), axis=1)  # noqa: E731
    u = diagnosis.pit[:, 0]
    assert np.all((bound(ys - 1) - 1e-12 <= u) & (u <= bound(ys) + 1e-12))
    assert min(t.p_value for t in diagnosis.tests) > 1e-3


class Turning(sk.StateSpaceModel):
    """An emission without a distribution function."""

    def initial(self, u):
        return dist.Categorical(jnp.array([0.5, 0.5]))

    def transition(self, x, u):
        return dist.Categorical(jnp.asarray(STAY)[x])

    def emission(self, x, u):
        return dist.VonMises(jnp.where(x == 0, -1.0, 1.0), 2.0)


@pytest.mark.parametrize("engine", [sk.ForwardBackward(), FILTER])
def test_draws_serve_where_there_is_no_distribution_function(engine):
    ys = sk.simulate(1, Turning(), 200).observations
    diagnosis = sk.diagnose(sk.infer(0, engine, Turning(), ys))
    assert np.all((diagnosis.pit > 0) & (diagnosis.pit < 1))
    assert min(t.p_value for t in diagnosis.tests) > 1e-3


class Counting(sk.StateSpaceModel):
    """Counts how often its emission is traced."""

    scale: jax.Array
    traces = 0

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(0.9 * x, self.scale)

    def emission(self, x, u):
        Counting.traces += 1
        return dist.Normal(x, 1.0)


def test_one_trace_a_shape():
    index = pd.date_range("2020-01-01", periods=12)
    ys = pd.Series(np.random.default_rng(0).normal(size=12), index)
    later = ys.set_axis(index + pd.Timedelta(days=9)) + 1.0
    engine = sk.SMC(30, smoother=None)
    posteriors = [sk.infer(0, engine, Counting(s), y) for s, y in ((0.5, ys), (0.7, later))]
    sk.diagnose(posteriors[0])
    before = Counting.traces
    sk.diagnose(posteriors[1], 7)
    assert Counting.traces == before


def with_draws(posterior):
    weights = jnp.zeros(3)
    return dataclasses.replace(posterior, parts=posterior.parts | {"state_log_weights": weights})


def test_what_cannot_be_diagnosed_is_named(counted):
    ys = counted.data.ys[:8]
    bank = sk.infer(0, FILTER, COUNTS, jnp.stack([ys, ys]), batched=True)
    for verb in (sk.diagnose, lambda p: sk.replicate_evidence(0, p)):
        with pytest.raises(sk.errors.NotComputed, match=r"posterior\[b\]"):
            verb(bank)
        with pytest.raises(sk.errors.NotComputed, match="3 draws of the parameters"):
            verb(with_draws(counted))
    assert sk.diagnose(bank[1]).pit.shape == (8, 1)
    final = sk.infer(0, FILTER, COUNTS, ys, keep="final")
    with pytest.raises(sk.errors.NotComputed, match='keep="all"'):
        sk.diagnose(final)
    assert "observations" in repr(final.summary())


# Summary.


def test_summaries_of_particles_have_tests_and_warnings(counted):
    summary = counted.summary()
    assert len(summary.tests) == 5 and "normality" in repr(summary)
    ys = np.r_[np.asarray(sk.simulate(3, VOLATILITY, 30).observations), 60.0]
    text = repr(sk.infer(1, sk.SMC(50, smoother=None, threshold=1.0), VOLATILITY, ys).summary())
    assert "fewer than 10 effective particles (ESS)" in text


@pytest.mark.parametrize(
    ("error", "words"),
    [(1.7, "up to 1.7 nats"), (np.nan, "five first ancestors survive"), (0.3, None)],
)
def test_the_standard_error_is_spoken_of(counted, error, words):
    parts = counted.parts | {"log_evidence_se": jnp.asarray(error)}
    warnings = " ".join(dataclasses.replace(counted, parts=parts).summary().warnings)
    assert "replicate_evidence" not in warnings if words is None else words in warnings


# Replicates.


def test_replicates_are_those_of_kalman():
    one = np.ones((1, 1))
    model = sk.models.LinearGaussian(np.zeros(1), one, 0.8 * one, 0.5 * one, one, one)
    ys = sk.simulate(0, model, 25).observations.at[4].set(jnp.nan)
    exact = float(sk.infer(0, sk.Kalman(), model, ys).log_evidence)
    posterior = sk.infer(0, sk.SMC(200, smoother=None), model, ys, keep="final")
    found = sk.replicate_evidence(1, posterior, 100)
    assert found.values.shape == (100,) and len(np.unique(found.values)) == 100
    assert 0 < found.log_evidence_se < 0.1
    assert abs(found.log_evidence - exact) < 4 * found.log_evidence_se
    np.testing.assert_allclose(found.per_run_std / 10, found.log_evidence_se, rtol=0.3)
    shift = found.values - found.log_evidence
    np.testing.assert_allclose(np.mean(np.exp(shift)), 1.0, rtol=1e-12)
    assert "from 100 runs" in repr(found) and "too far apart" not in repr(found)
    assert "too far apart" in repr(dataclasses.replace(found, per_run_std=2.0))
    with pytest.raises(sk.errors.OptionError, match="≥ 2"):
        sk.replicate_evidence(1, posterior, 1)


def test_exact_evidences_are_not_replicated():
    posterior = sk.infer(0, sk.Kalman(), LEVEL, sk.data.load("nile"))
    with pytest.raises(sk.errors.EngineError, match=r"exact(.|\n)*posterior.log_evidence"):
        sk.replicate_evidence(0, posterior)


# The alarm.


def alarm_times(scale, run_length, count, length):
    """When alarms on normal scores of that scale were raised; −1 for never."""

    def one(key):
        u = ndtr(scale * jax.random.normal(key, (length, 1)))
        step = lambda s, u: (step_alarm(s, u, run_length), None)  # noqa: E731
        return jax.lax.scan(step, init_alarm(1), u)[0].since

    keys = jax.random.split(jax.random.key(8), count)
    return np.asarray(jax.jit(jax.vmap(one))(keys))


def test_false_alarms_are_as_rare_as_promised():
    found = alarm_times(1.0, 200.0, 500, 4000)
    assert (found >= 0).all()
    times = found + 1
    assert times.mean() > 200 + 2 * times.std() / np.sqrt(times.size)


@pytest.mark.parametrize("scale", [3.0, 1 / 3])
def test_changes_are_seen_at_once(scale):
    found = alarm_times(scale, 1000.0, 200, 50)
    assert np.mean(found >= 0) > 0.95


def test_what_is_missing_leaves_the_alarm_alone():
    nothing, one = jnp.array([jnp.nan, jnp.nan]), jnp.array([jnp.nan, 1e-3])
    start = step_alarm(init_alarm(2), jnp.array([0.2, 0.9]), 100.0, -1.0, 50.0)
    after = step_alarm(start, nothing, 100.0, 0.0, 40.0)
    np.testing.assert_array_equal(after.log_bets, start.log_bets)
    assert after.mean_log_score == start.mean_log_score == -1.0 and after.num_scores == 1
    assert after.t == 2 and after.ess == 40 and np.isnan(after.pit).all()
    partly = step_alarm(start, one, 100.0, -2.0)
    np.testing.assert_array_equal(partly.log_bets[0], start.log_bets[0])
    assert np.all(partly.log_bets[1] != start.log_bets[1]) and partly.mean_log_score == -1.5
    dead = step_alarm(start, jnp.array([0.0, 1.0]), 100.0, -jnp.inf)
    assert dead.mean_log_score == -1.0 and np.isfinite(dead.log_bets).all()
    far = jax.lax.fori_loop(0, 3000, lambda _, s: step_alarm(s, jnp.zeros(2), 100.0), start)
    assert np.isinf(read_alarm(far, 100.0).statistic) and read_alarm(far, 100.0).raised


STREAMS = {
    "particles": (sk.SMC(400, smoother=None), VOLATILITY),
    "guided particles": (sk.SMC(400, proposal=sk.Linearised(), smoother=None), VOLATILITY),
    "kalman": (sk.Kalman(), sk.models.LocalLevel(0.5, 1.5)),
    "unscented": (sk.UnscentedKalman(), sk.models.LocalLevel(0.5, 1.5).with_initial([0.0], [1.0])),
    "finite": (sk.ForwardBackward(), sk.models.DiscreteHMM.normal(
        np.array([0.5, 0.5]), STAY, np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_has_the_transforms_of_its_diagnosis(name):
    engine, model = STREAMS[name]
    ys = RETURNS.copy()
    ys[3] = np.nan
    posterior = sk.infer(0, engine, model, ys)
    expected = sk.diagnose(posterior)
    flow = sk.stream(0, engine, model, run_length=50)
    with pytest.raises(sk.errors.NotComputed, match="update"):
        _ = flow.alarm
    for y, expected_pit in zip(ys, expected.pit, strict=True):
        belief = flow.update(y)
        np.testing.assert_allclose(flow.alarm.pit, expected_pit, atol=1e-9)
    np.testing.assert_allclose(belief.mean() if name != "finite" else belief.probabilities(),
                               last_of(posterior, name), rtol=1e-9)  # fmt: skip
    alarm = flow.alarm
    scores = expected.log_score[[0, 1, 2, 4, 5]]
    counted = scores if name != "kalman" else scores[1:]  # nothing is predicted of a diffuse start
    np.testing.assert_allclose(alarm.mean_log_score, counted.mean(), rtol=1e-9)
    assert not alarm.raised and alarm.since == -1 and alarm.run_length == 50
    assert np.isnan(alarm.ess) == ("particles" not in name)
    if name == "kalman":
        many = sk.stream(0, engine, model, run_length=50)
        many.update_many(ys)
        np.testing.assert_allclose(many.alarm.statistic, alarm.statistic, rtol=1e-9)


def last_of(posterior, name):
    final = posterior.final
    return final.probabilities() if name == "finite" else final.mean()


def test_streams_without_an_alarm():
    with pytest.raises(sk.errors.NotComputed, match="run_length=1000"):
        _ = sk.stream(0, sk.Kalman(), LEVEL).alarm


def test_a_change_of_the_noise_raises_the_alarm():
    """Within fifty steps for most of a bank of series."""
    engine, model = sk.Kalman(), sk.models.LocalLevel(0.5, 1.5).with_initial([0.0], [1.0])
    ys = np.asarray(sk.simulate(3, model, 100, num_series=40).observations)
    noise = np.random.default_rng(0).normal(size=(40, 50)) * np.sqrt(1.5 * 8)
    changed = np.concatenate([ys[:, :50], ys[:, 50:] + noise], axis=1)
    flow = sk.stream(0, engine, model, num_series=40, run_length=1000)
    flow.update_many(ys[:, :50])
    assert flow.alarm.statistic.shape == (40,) and flow.alarm.pit.shape == (40, 1)
    assert np.mean(flow.alarm.raised) < 0.1
    flow.update_many(changed[:, 50:])
    since = flow.alarm.since
    assert np.mean(flow.alarm.raised) > 0.9 and np.all(since[since >= 0] < 100)


def test_parameter_draws_share_an_alarm():
    """The mixture's transform, by weights that do not know the observation yet."""
    build = lambda v: sk.models.LocalLevel(0.5, v).with_initial([0.0], [2.0])  # noqa: E731
    noises, weights = np.array([0.5, 4.0]), np.log([0.3, 0.7])
    models = jax.vmap(build)(jnp.asarray(noises))
    data = sk.posterior.Data(jnp.asarray(RETURNS[:3]))
    key, options = jax.random.key(0), RunOptions()
    parts = run_states(sk.Kalman(), key, models, data, options, log_weights=jnp.asarray(weights))
    posterior = sk.Posterior(sk.Kalman(), models, data, models, parts, sk.Kalman())
    flow = sk.stream(3, sk.Kalman(), posterior, run_length=100)
    ends = [sk.infer(0, sk.Kalman(), build(v), RETURNS[:3]) for v in noises]
    members = [sk.stream(3, sk.Kalman(), end, run_length=100) for end in ends]
    starts = np.array([m.log_evidence for m in members])
    for y in RETURNS[3:]:
        share = np.exp(weights + np.array([m.log_evidence for m in members]) - starts)
        for one in (flow, *members):
            one.update(y)
        each = np.array([m.alarm.pit for m in members])
        np.testing.assert_allclose(flow.alarm.pit, share @ each / share.sum(), rtol=1e-9)
    assert flow.alarm.log_score == flow.diagnostics["log_likelihood"]


def test_an_alarm_goes_on_from_a_file(tmp_path):
    flow = sk.stream(0, FILTER, COUNTS, run_length=100)
    for y in (1, 2, 30):
        flow.update(y)
    again = sk.load_stream(flow.save(tmp_path / "counts.stream"))
    for one in (flow, again):
        one.update(25, observed=True)
        one.update(0, observed=False)
    np.testing.assert_array_equal(again.alarm.statistic, flow.alarm.statistic)
    assert np.isnan(again.alarm.pit).all() and again.alarm.run_length == 100
    with pytest.raises(sk.errors.SaveError, match="run_length differs"):
        sk.stream(0, FILTER, COUNTS).load(tmp_path / "counts.stream")
    posterior = sk.infer(0, FILTER, COUNTS, np.array([1, 2, 3]))
    later = sk.stream(0, FILTER, posterior, run_length=100)
    assert later.alarm.statistic == 0 and not later.alarm.raised
    later.update(300)
    for y in (200, 300, 400):
        later.update(y)
    assert later.alarm.raised and 3 <= later.alarm.since < 7


@pytest.mark.parametrize("run_length", [0, 1, -5, float("inf"), float("nan")])
def test_impossible_run_lengths(run_length):
    with pytest.raises(sk.errors.OptionError, match="run_length=1000"):
        sk.stream(0, sk.Kalman(), LEVEL, run_length=run_length)
