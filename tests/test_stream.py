"""Streams: the numbers of `infer`, one observation at a time; what is fed wrong changes nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

import ssmkit as sk
from ssmkit import errors
from ssmkit.engines.options import RunOptions
from ssmkit.engines.states import run_states

NOISE = np.random.default_rng(5)
LENGTH = 8
VOLATILITY = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
PARTICLES = sk.SMC(num_particles=64, smoother=None)
LEVEL = sk.models.LocalLevel(0.5, 1.5)
PROPER = LEVEL.with_initial([0.0], [2.0])
STAY = np.array([[0.9, 0.1], [0.2, 0.8]])
COINS = sk.models.DiscreteHMM.poisson(np.array([0.5, 0.5]), STAY, np.array([1.0, 6.0]))
LINEAR = sk.models.LinearGaussian(
    np.array([0.5, -0.5]),
    np.array([[1.0, 0.2], [0.2, 2.0]]),
    transition_matrix=np.array([[0.8, 0.3], [-0.2, 0.7]]),
    transition_cov=np.array([[0.5, 0.1], [0.1, 0.3]]),
    emission_matrix=np.array([[1.0, 0.2], [0.5, -1.0]]),
    emission_cov=np.array([[0.6, 0.4], [0.4, 0.5]]),
)
SCALARS, PAIRS = NOISE.normal(size=LENGTH), NOISE.normal(size=(LENGTH, 2))
GAPS = SCALARS.copy()
GAPS[[3, 4]] = np.nan
PAIRS[2, 0] = PAIRS[5] = np.nan
COUNTS = NOISE.poisson(3, size=LENGTH)
SEEN = np.arange(LENGTH) != 4


class Pushed(sk.StateSpaceModel):
    """A state pushed by inputs."""

    scale: jax.Array

    def initial(self, u):
        return dist.Normal(u["push"][0], self.scale)

    def transition(self, x, u):
        return dist.Normal(0.9 * x + u["push"][0], self.scale)

    def emission(self, x, u):
        return dist.Normal(x, 0.7)


PUSHED, PUSH = Pushed(jnp.array(0.5)), {"push": NOISE.normal(size=(LENGTH, 1))}

ROWS = {
    "kalman": (sk.Kalman(), LINEAR, PAIRS, None, None),
    "kalman-inputs": (sk.Kalman(), PUSHED, SCALARS, PUSH, None),
    "diffuse": (sk.Kalman(), LEVEL, GAPS, None, None),
    "finite": (sk.ForwardBackward(num_forecast_draws=3), COINS, COUNTS, None, SEEN),
    "particles": (PARTICLES, VOLATILITY, GAPS, None, None),
    "ensemble": (sk.EnsembleKalman(16, "stochastic"), LINEAR, PAIRS, None, None),
}


def row_at(t, *trees):
    return [jax.tree.map(lambda a: a[t], tree) for tree in trees]


def leaves(tree):
    return [np.asarray(a) for a in jax.tree.leaves(tree)]


def assert_same(a, b):
    """The same bits."""
    for left, right in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def assert_close(a, b):
    """The same to rounding."""
    for left, right in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-14)


def feed(stream, ys, us=None, observed=None):
    return [stream.update(*row_at(t, ys, us, observed)) for t in range(len(ys))]


def stacked(beliefs):
    return jax.tree.map(lambda *a: np.stack([np.asarray(x) for x in a]), *beliefs)


class Run:
    """One row by `infer`, one by one, and by `update_many` in two chunks."""

    def __init__(self, name):
        self.row = engine, model, *data = ROWS[name]
        self.posterior = sk.infer(3, engine, model, *data)
        self.single, self.chunks = (sk.stream(3, engine, model) for _ in range(2))
        self.beliefs = feed(self.single, *data)
        self.many = self.chunks.update_many(*data)


@pytest.fixture(scope="module")
def runs():
    made = {}
    return lambda name: made.setdefault(name, None) or made.update({name: Run(name)}) or made[name]


@pytest.mark.parametrize("name", ROWS)
def test_online_is_offline(runs, name):
    """To rounding: three programs of one step, each of which XLA fuses in its own way."""
    run = runs(name)
    assert run.single.time == run.chunks.time == LENGTH
    for stream in (run.single, run.chunks):
        assert_close(stream.log_evidence, run.posterior.log_evidence)
        assert stream.evidence_kind == run.posterior.evidence_kind
    assert_close(run.single._stepper.seen.state, run.chunks._stepper.seen.state)
    assert_close(stacked(run.beliefs), run.posterior.filtered)
    assert_close(run.many, run.posterior.filtered)
    found = run.single.diagnostics
    np.testing.assert_allclose(
        found["log_likelihood"], run.posterior.log_likelihood[-1], rtol=1e-12
    )
    assert found["skipped"] == 0


def test_a_stream_goes_on_where_its_posterior_ended(runs):
    """The first part offline, the rest online: the numbers of the whole, by the same program."""
    run = runs("particles")
    engine, model, ys, *_ = run.row
    compiled = run.single._stepper._functions.step
    count = compiled._cache_size()
    stream = sk.stream(3, engine, sk.infer(3, engine, model, ys[:5]))
    assert stream.time == 5 and stream.diagnostics == {"skipped": 0}
    rest = feed(stream, ys[5:])
    assert_close(rest[-1], run.beliefs[-1])
    assert_close(stream.log_evidence, run.posterior.log_evidence)
    assert compiled._cache_size() == count  # no weak type, which would compile anew


@pytest.mark.parametrize("name", ROWS)
def test_the_same_program_gives_the_same_bits(runs, name):
    engine, model, *data = runs(name).row
    assert_same(feed(sk.stream(3, engine, model), *data), runs(name).beliefs)


def test_a_forecast_of_a_stream_is_that_of_the_posterior(runs):
    run = runs("particles")
    ours, theirs = run.single.predict(3), sk.forecast(3, run.posterior, 3)
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert run.single.time == LENGTH  # and the stream stays where it is
    run = runs("kalman-inputs")
    us = {"push": np.ones((2, 1))}
    ours, theirs = run.single.predict(2, us), sk.forecast(0, run.posterior, 2, us)
    np.testing.assert_allclose(ours.observations.cov(), theirs.observations.cov(), rtol=1e-12)


def test_beliefs_stay_valid_and_carry_names(runs):
    run = runs("particles")
    kept, values = run.beliefs[0], np.array(run.beliefs[0].values)
    sk.stream(3, *run.row[:2]).update(run.row[2][0])
    run.single.predict(3)
    assert_same(kept.values, values)
    assert kept.labels.names == ("log_variance",) == run.many.labels.names


def test_dates_go_on():
    days = pd.date_range("2024-01-01", periods=LENGTH, freq="D", name="day")
    stream = sk.stream(0, sk.Kalman(), LEVEL)
    beliefs = stream.update_many(pd.Series(GAPS, days))
    assert beliefs.to_frame().index.equals(days)
    stream.update(0.5)
    table = stream.predict(2).to_frame()
    assert list(table.index) == list(pd.date_range(days[-1], periods=4, freq="D")[2:])
    assert table.index.name == "day"


# What cannot be used leaves no trace.


def test_an_impossible_observation_is_taken_as_a_missing_one(runs):
    run = runs("particles")
    ys = run.row[2].copy()
    ys[1], ys[6] = 1e200, np.inf  # all particles die
    seen = np.where(np.isfinite(ys) & (ys < 1e9), ys, np.nan)
    good, bad = (sk.stream(3, *run.row[:2]) for _ in range(2))
    feed(good, seen[:7])
    beliefs = feed(bad, ys[:7])
    assert bad.diagnostics["log_likelihood"] == -np.inf
    assert bad.diagnostics["skipped"] == 2 and good.diagnostics["skipped"] == 0
    assert all(np.isfinite(a).all() for a in leaves(beliefs))
    assert_close(bad._stepper.seen.state._replace(skipped=0), good._stepper.seen.state)
    assert_close(bad.update(0.3), good.update(0.3))
    assert "2 skipped" in repr(bad)


@pytest.mark.parametrize("name", ["kalman", "finite"])
def test_other_engines_skip_too(runs, name):
    engine, model, ys, *_ = runs(name).row
    stream = sk.stream(3, engine, model)
    stream.update(ys[0])
    before = stream.log_evidence
    wrong = np.full_like(ys[0], np.inf) if name == "kalman" else -1
    belief = stream.update(wrong)
    assert stream.diagnostics["skipped"] == 1
    assert_same(stream.log_evidence, before)
    assert all(np.isfinite(a).all() for a in leaves(belief))


def test_a_step_that_breaks_the_prediction_keeps_the_last_good_state():
    stream = sk.stream(0, sk.Kalman(), PUSHED)
    good = stream.update(0.1, {"push": np.ones(1)})
    kept = stream.update(0.2, {"push": np.full(1, np.inf)})
    assert_same(kept, good)
    assert stream.diagnostics["skipped"] == 1 and stream.time == 2
    assert np.isfinite(stream.update(0.2, {"push": np.ones(1)}).mean())


def test_a_first_belief_that_is_no_number_is_refused():
    stream = sk.stream(0, sk.Kalman(), PROPER.with_initial([np.nan], [2.0]))
    with pytest.raises(errors.NonFiniteError, match="first state"):
        stream.update(0.1)
    assert stream.time == 0


# Banks and draws.


def test_a_bank_is_its_members():
    bank = sk.stream(3, sk.Kalman(), PROPER, num_series=3)
    ys = NOISE.normal(size=(3, LENGTH))
    ys[1, 2], ys[2, 3] = np.nan, np.inf
    first = bank.update(ys[:, 0])
    beliefs = bank.update_many(ys[:, 1:])
    assert first.mean().shape == (3, 1) and beliefs.mean().shape == (3, LENGTH - 1, 1)
    assert bank.diagnostics["skipped"].tolist() == [0, 0, 1]
    assert "3 series" in repr(bank) and bank.time == LENGTH
    for b in range(3):
        member = sk.stream(3, sk.Kalman(), PROPER)
        alone = feed(member, ys[b])
        np.testing.assert_allclose(beliefs.mean()[b, -1], alone[-1].mean(), rtol=1e-12)
        np.testing.assert_allclose(bank.log_evidence[b], member.log_evidence, rtol=1e-12)
    assert bank.predict(2).states.mean().shape == (3, 2, 1)


def test_series_of_a_particle_bank_have_noise_of_their_own():
    bank = sk.stream(3, PARTICLES, VOLATILITY, num_series=2)
    values = bank.update(np.zeros(2)).values
    assert len(np.unique(values)) == 2 * PARTICLES.num_particles


def drawn(engine, models, weights, ys):
    """A posterior at several parameter draws, without the cost of a fit."""
    data = sk.posterior.Data(jnp.asarray(ys))
    weights = jnp.asarray(weights)
    key, options = jax.random.key(0), RunOptions()
    parts = run_states(engine, key, models, data, options, log_weights=weights)
    parts.pop("log_evidence")
    return sk.Posterior(engine, models, data, models, parts, engine)


def test_draws_count_by_how_well_they_predict():
    """Against one stream per draw; beliefs of a chunk are mixed anew at each time."""
    noises, weights = np.array([0.5, 1.5, 4.0]), np.log([0.2, 0.5, 0.3])
    build = lambda v: sk.models.LocalLevel(0.5, v).with_initial([0.0], [2.0])  # noqa: E731
    posterior = drawn(sk.Kalman(), jax.vmap(build)(jnp.asarray(noises)), weights, SCALARS[:4])
    single, chunk = (sk.stream(3, sk.Kalman(), posterior) for _ in range(2))
    beliefs = feed(single, SCALARS[4:])
    many = chunk.update_many(SCALARS[4:])
    before = [sk.infer(0, sk.Kalman(), build(noise), SCALARS[:4]) for noise in noises]
    members = [sk.stream(3, sk.Kalman(), one) for one in before]
    starts = np.array([m.log_evidence for m in members])
    ends = [feed(m, SCALARS[4:])[-1] for m in members]
    raw = weights + np.array([m.log_evidence for m in members]) - starts
    total = np.logaddexp.reduce(raw)
    means = np.array([end.mean()[0] for end in ends])
    stds = np.array([end.std()[0] for end in ends])
    share = np.exp(raw - total)
    np.testing.assert_allclose(single.log_evidence, total, rtol=1e-10)
    assert (single.evidence_kind, single.evidence_of) == ("approximate", "data since the posterior")
    mean = share @ means
    variance = share @ (stds**2 + (means - mean) ** 2)
    for belief in (beliefs[-1], jax.tree.map(lambda a: a, many)):
        np.testing.assert_allclose(belief.mean().ravel()[-1], mean, rtol=1e-10)
        np.testing.assert_allclose(belief.cov().ravel()[-1], variance, rtol=1e-10)
    np.testing.assert_allclose(many.mean(), stacked([b.mean() for b in beliefs]), rtol=1e-10)
    np.testing.assert_allclose(
        many.quantile(0.8), stacked([b.quantile(0.8) for b in beliefs]), rtol=1e-8
    )
    spread = many.sample(0, 4000)
    assert spread.shape == (4000, 4, 1)
    np.testing.assert_allclose(spread.std(0), many.std(), rtol=0.06)
    np.testing.assert_allclose(
        single.diagnostics["effective_draws"], 1 / np.sum(share**2), rtol=1e-8
    )
    assert "3 parameter draws" in repr(single)


def test_another_engine_begins_at_the_last_belief():
    """Particles from a Kalman posterior of a diffuse model, within their Monte Carlo error."""
    posterior = sk.infer(0, sk.Kalman(), LEVEL, GAPS)
    exact = sk.stream(0, sk.Kalman(), posterior)
    count = 4000
    rough = sk.stream(1, sk.SMC(num_particles=count), posterior)
    assert_same(rough.log_evidence, posterior.log_evidence)
    for y in (0.3, 1.0):
        true, near = exact.update(y), rough.update(y)
        error = 5 * true.std()[0] / np.sqrt(0.4 * count)
        assert abs(near.mean()[0] - true.mean()[0]) < error
    assert abs(rough.log_evidence - exact.log_evidence) < 0.1
    assert rough.evidence_kind == "unbiased" and rough.time == LENGTH + 2


def test_a_gaussian_engine_of_another_form_goes_on():
    posterior = sk.infer(0, sk.Kalman(), PROPER, SCALARS)
    same, other = (sk.stream(0, sk.Kalman(form=f), posterior) for f in ("auto", "square_root"))
    np.testing.assert_allclose(other.update(0.3).cov(), same.update(0.3).cov(), rtol=1e-10)
    np.testing.assert_allclose(other.log_evidence, same.log_evidence, rtol=1e-10)


# What is refused, by name, and changes nothing.


def free():
    return sk.models.LocalLevel(numpyro.param("level", 1.0), 1.0)


def batch():
    one = sk.infer(0, sk.Kalman(), LEVEL, GAPS)
    return eqx.tree_at(lambda p: p.parts, one, one.parts | {"batch": jnp.arange(2)})


REFUSED = {
    "class": (lambda: sk.stream(0, sk.Kalman, LEVEL), errors.EngineError, "an instance"),
    "fit": (
        lambda: sk.stream(0, sk.GradientFit(sk.Kalman()), free),
        errors.EngineError,
        "fit first",
    ),
    "thing": (lambda: sk.stream(0, 3, LEVEL), errors.EngineError, "one observation at a time"),
    "free": (lambda: sk.stream(0, sk.Kalman(), free), errors.ParameterError, "level"),
    "key": (lambda: sk.stream(0.5, sk.Kalman(), LEVEL), errors.RandomKeyError, "typed key"),
    "none": (lambda: sk.stream(0, sk.Kalman(), LEVEL, 0), errors.OptionError, "num_series"),
    "batch": (lambda: sk.stream(0, sk.Kalman(), batch()), errors.EngineError, r"posterior\[0\]"),
    "unseen": (lambda: sk.stream(0, sk.Kalman(), LEVEL).predict(1), errors.NotComputed, "update"),
    "model": (
        lambda: sk.stream(0, sk.Kalman(), VOLATILITY).update(0.1),
        errors.SsmkitError,
        "Kalman",
    ),
    "diffuse": (
        lambda: sk.stream(0, PARTICLES, LEVEL).update(0.1),
        errors.ImproperStartError,
        "diffuse",
    ),
    "still diffuse": (
        lambda: sk.stream(0, PARTICLES, sk.infer(0, sk.Kalman(), LEVEL, SCALARS * np.nan)),
        errors.EngineError,
        "still diffuse",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_begin_is_refused(name):
    run, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        run()


def test_a_gaussian_engine_cannot_go_on_from_particles():
    rough = sk.infer(0, PARTICLES, PROPER, SCALARS, keep="final")
    with pytest.raises(errors.EngineError, match="not normal"):
        sk.stream(0, sk.Kalman(), rough)


WRONG = {
    "shape": (dict(y=[0.1]), errors.ShapeError, r"shape \(1,\)"),
    "text": (dict(y="740"), errors.DataError, "real numbers"),
    "none": (dict(y=None), errors.DataError, "observed=False"),
    "u": (dict(y=0.1, u=1.0), errors.DataError, "no inputs"),
    "observed": (dict(y=0.1, observed=[True]), errors.ShapeError, "observed does not match"),
    "weights": (dict(y=0.1, observed=1.0), errors.ShapeError, "booleans"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_changes_nothing(runs, name):
    stream = runs("particles").single
    options, error, text = WRONG[name]
    state, time = stream._stepper.seen.state, stream.time
    with pytest.raises(error, match=text):
        stream.update(**options)
    assert stream._stepper.seen.state is state and stream.time == time


def test_inputs_stay_as_they_were(runs):
    stream = runs("kalman-inputs").single
    for u, error in (
        (None, errors.DataError),
        ({"push": np.array([np.nan])}, errors.DataError),
        ({"push": np.ones(2)}, errors.ShapeError),
        (np.ones(1), errors.ShapeError),
    ):
        with pytest.raises(error):
            stream.update(0.1, u)
    with pytest.raises(errors.DataError):
        stream.predict(1)
    assert stream.time == LENGTH


def test_counts_stay_integers_and_levels_stay_floats(runs):
    with pytest.raises(errors.DataError, match="integers so far"):
        runs("finite").single.update(1.5)
    level = sk.stream(0, sk.Kalman(), PROPER)
    level.update(740)
    assert float(level.update(740.5).mean()[0]) != float(level.update(740).mean()[0])


def test_many_of_nothing_is_refused(runs):
    for ys in (0.1, []):
        with pytest.raises(errors.ShapeError, match=r"\(T, \*observation\)"):
            runs("particles").chunks.update_many(ys)


def test_a_stream_cannot_outlive_its_model():
    fixed = {"transition_matrix": np.eye(1), "emission_matrix": np.eye(1)}
    cov = np.ones((3, 1, 1))
    model = sk.models.LinearGaussian(
        np.zeros(1), np.eye(1), transition_cov=cov, emission_cov=np.eye(1), **fixed
    )
    stream = sk.stream(0, sk.Kalman(), model)
    stream.update_many(np.ones((2, 1)))
    assert stream.predict(1).states.mean().shape == (1, 1)
    belief = stream.update(np.ones(1))
    for late in (lambda: stream.update(np.ones(1)), lambda: stream.predict(1)):
        with pytest.raises(errors.EngineError, match="parameters end"):
            late()
    assert stream.time == 3 and np.isfinite(belief.mean())


def test_single_coordinates_of_a_row_that_has_no_marginals():
    class Shares(sk.StateSpaceModel):
        def initial(self, u):
            return dist.Normal(0.0, 1.0)

        def transition(self, x, u):
            return dist.Normal(x, 0.1)

        def emission(self, x, u):
            return dist.Dirichlet(jnp.stack([jnp.exp(x), 1.0, 1.0]))

    stream = sk.stream(0, PARTICLES, Shares())
    stream.update([0.2, 0.3, 0.5])
    with pytest.raises(errors.MissingDataError, match="whole row"):
        stream.update([0.2, 0.3, np.nan])
    assert np.isfinite(stream.update([np.nan] * 3).mean()) and stream.time == 2


def test_tracers_are_refused(runs):
    stream = runs("particles").single
    with pytest.raises(errors.TracerError):
        jax.jit(lambda y: stream.update(y).mean())(0.1)
    with pytest.raises(errors.TracerError):
        jax.jit(lambda key: sk.stream(key, sk.Kalman(), LEVEL).time)(jax.random.key(0))


# Compiled once, and without waiting.


def test_a_step_traces_once_a_shape():
    traces = []

    class Noted(sk.StateSpaceModel):
        scale: jax.Array

        def initial(self, u):
            return dist.Normal(0.0, self.scale)

        def transition(self, x, u):
            traces.append(1)
            return dist.Normal(x, self.scale)

        def emission(self, x, u):
            return dist.Normal(x, 1.0)

    stream = sk.stream(0, sk.Kalman(), Noted(1.0))
    feed(stream, SCALARS[:2])
    count = len(traces)
    feed(stream, SCALARS[2:])
    stream.update(3)
    stream.update(jnp.array(0.2))
    assert len(traces) == count
    other = sk.stream(1, sk.Kalman(), Noted(2.0))  # other numbers, the same program
    checked = len(traces)
    feed(other, SCALARS)
    assert len(traces) - checked < count  # the dry run of its first observation only


def test_updates_do_not_wait(runs):
    """Nothing that was computed is looked at: shapes and types would do."""
    run = runs("particles")
    stream = sk.stream(9, *run.row[:2])
    feed(stream, run.row[2][:2])
    functions = stream._stepper._functions
    abstract = [lambda *a, f=f, **k: jax.eval_shape(f, *a, **k) for f in functions]
    stream._stepper.__dict__["_functions"] = type(functions)(*abstract)
    belief = stream.update(0.5)
    stream.update(np.nan)
    stream.update_many(np.ones(3))
    assert isinstance(belief.values, jax.ShapeDtypeStruct) and stream.time == 7


# Files.


def test_a_saved_stream_goes_on_with_the_same_bits(runs, tmp_path):
    for name in ("particles", "diffuse"):
        engine, model, ys, *_ = runs(name).row
        stream = sk.stream(3, engine, model)
        feed(stream, ys[:5])
        again = sk.load_stream(stream.save(tmp_path / "a.stream"))
        assert repr(again) == repr(stream) and again.diagnostics == stream.diagnostics
        rest = feed(again, ys[5:])
        assert_same(rest, runs(name).beliefs[5:])
        assert_same(again.log_evidence, runs(name).single.log_evidence)
        assert_same(again.predict(2), runs(name).single.predict(2))


def test_load_takes_only_the_same_stream(runs, tmp_path):
    engine, model, ys, *_ = runs("particles").row
    stream = sk.stream(3, engine, model)
    feed(stream, ys[:2])
    path = stream.save(tmp_path / "a.stream")
    back = sk.stream(8, engine, model).load(path)  # the key comes with the file
    assert_same(back.update(0.1), stream.update(0.1))
    wider = sk.models.StochasticVolatility(-1.0, 0.97, 0.3)
    bigger = sk.SMC(num_particles=65, smoother=None)
    for other, text in (
        (sk.stream(3, bigger, model), "engine differs"),
        (sk.stream(3, engine, wider), "scale differs"),
        (sk.stream(3, engine, model, 2), "num_series differs"),
        (sk.stream(3, engine, PROPER), "model differs"),
    ):
        before = other._stepper
        with pytest.raises(errors.SaveError, match=text):
            other.load(path)
        assert other._stepper is before


def test_damaged_and_other_files_are_refused(runs, tmp_path):
    run = runs("diffuse")
    stream = run.single
    path = stream.save(tmp_path / "a.stream")
    data = path.read_bytes()
    (tmp_path / "bad.stream").write_bytes(data[: len(data) // 2])
    run.posterior.save(tmp_path / "posterior.ssm")
    for name, text in (("bad.stream", "damaged"), ("posterior.ssm", "something else")):
        for load in (sk.load_stream, stream.load):
            with pytest.raises(errors.SaveError, match=text):
                load(tmp_path / name)
    with pytest.raises(errors.SaveError):
        sk.load_posterior(path)
    assert stream.time == LENGTH


def test_a_model_of_your_own_is_handed_over(runs, tmp_path):
    stream = runs("kalman-inputs").single
    path = stream.save(tmp_path / "own.stream")
    with pytest.raises(errors.SaveError, match="Pushed"):
        sk.load_stream(path)
    again = sk.load_stream(path, using=[Pushed])
    u = {"push": np.ones(1)}
    assert_same(again.update(0.2, u), sk.stream(0, sk.Kalman(), PUSHED).load(path).update(0.2, u))


KILLED = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import ssmkit as sk
model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
stream = sk.stream(3, sk.SMC(num_particles=64, smoother=None), model)
for line in sys.stdin:
    stream.update(float(line))
    stream.save(sys.argv[1])
    print(stream.time, flush=True)
"""


def test_a_killed_process_is_gone_on_from(runs, tmp_path):
    """``kill -9`` between two saves; the rest here, bit for bit as if nothing had happened."""
    ys, path = runs("particles").row[2], tmp_path / "a.stream"
    root = str(Path(sk.__file__).parent.parent)
    cache = jax.config.jax_compilation_cache_dir or ""
    environment = os.environ | {"PYTHONPATH": root, "JAX_COMPILATION_CACHE_DIR": cache}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    for y in ys[:3]:
        process.stdin.write(f"{float(y)!r}\n")
        process.stdin.flush()
        assert process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdin.close(), process.stdout.close()
    stream = sk.load_stream(path)
    assert stream.time == 3
    assert_same(feed(stream, ys[3:]), runs("particles").beliefs[3:])
    assert_same(stream.log_evidence, runs("particles").single.log_evidence)
