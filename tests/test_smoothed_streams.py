"""Looking back in a stream: the smoothed states of `infer`, and nothing else changes."""

import dataclasses

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

RANDOM = np.random.default_rng(21)
LENGTH, LAG = 12, 4
LINEAR = sk.models.LinearGaussian(
    np.array([0.5, -0.5]),
    np.array([[1.0, 0.2], [0.2, 2.0]]),
    transition_matrix=np.array([[0.8, 0.3], [-0.2, 0.7]]),
    transition_cov=np.array([[0.5, 0.1], [0.1, 0.3]]),
    emission_matrix=np.array([[1.0, 0.2], [0.5, -1.0]]),
    emission_cov=np.array([[0.6, 0.4], [0.4, 0.5]]),
)
TREND = sk.models.LocalLinearTrend(0.5, 0.1, 1.5)  # diffuse, and a singular start
STAY = np.array([[0.9, 0.1], [0.2, 0.8]])
COINS = sk.models.DiscreteHMM.poisson(np.array([0.5, 0.5]), STAY, np.array([1.0, 6.0]))
PAIRS, SCALARS = RANDOM.normal(size=(LENGTH, 2)), RANDOM.normal(size=LENGTH)
PAIRS[2, 0] = PAIRS[8] = PAIRS[10, 1] = np.nan
SCALARS[[3, 9]] = np.nan
COUNTS = RANDOM.poisson(3, size=LENGTH)
SEEN = np.arange(LENGTH) != 9
PUSH = RANDOM.normal(size=LENGTH)


class Wave(sk.StateSpaceModel):
    """Nonlinear, pushed by inputs."""

    scale: jax.Array

    def initial(self, u):
        return dist.Normal(u, 1.0)

    def transition(self, x, u):
        return dist.Normal(x + 0.4 * jnp.sin(x) + u, self.scale)

    def emission(self, x, u):
        return dist.Normal(x - 0.5 * u, 0.7)


class Weather(sk.StateSpaceModel):
    """Two states whose transitions depend on inputs."""

    logits: jax.Array

    def initial(self, u):
        return dist.Categorical(logits=self.logits[0])

    def transition(self, x, u):
        return dist.Categorical(logits=self.logits[x] * (1 + u))

    def emission(self, x, u):
        return dist.Poisson(jnp.array([1.0, 5.0])[x])


def changing():
    """Parameters of every time are their own."""
    cov = np.linspace(0.2, 1.0, LENGTH)[:, None, None]
    one = np.eye(1)
    move = np.linspace(0.5, 0.9, LENGTH)[:, None, None]
    return sk.models.LinearGaussian(np.zeros(1), one, move, cov, one, 0.5 * one)


WAVE = Wave(jnp.array(0.5))
ROWS = {
    "kalman": (sk.Kalman(), LINEAR, PAIRS, None, None),
    "square_root": (sk.Kalman(form="square_root"), changing(), SCALARS[:, None], None, None),
    "diffuse": (sk.Kalman(), TREND, SCALARS, None, None),
    "extended": (sk.ExtendedKalman(), WAVE, SCALARS, PUSH, None),
    "unscented": (sk.UnscentedKalman(), WAVE, SCALARS, PUSH, None),
    "finite": (sk.ForwardBackward(), COINS, COUNTS, None, SEEN),
    "finite-inputs": (
        sk.ForwardBackward(),
        Weather(jnp.array([[1.0, -1.0], [-0.5, 0.5]])),
        COUNTS,
        PUSH,
        SEEN,
    ),
}


def numbers(belief):
    """All that a belief is made of, without its labels."""
    return [np.asarray(a) for a in jax.tree.leaves(belief)]


def assert_last(found, whole, count):
    """The last ``count`` times of what `infer` has found."""
    for mine, theirs in zip(numbers(found), numbers(whole), strict=True):
        assert len(mine) == count
        np.testing.assert_allclose(mine, theirs[-count:], atol=1e-8)


def rows_of(data, part):
    return jax.tree.map(lambda a: a[part], data)


@pytest.mark.parametrize("name", ROWS)
def test_the_window_is_that_of_infer(name, tmp_path):
    """One by one and in chunks, short of the window and beyond it, before and after a file."""
    engine, model, *data = ROWS[name]
    flow = sk.stream(0, engine, model, lag=LAG)
    plain = sk.stream(0, engine, model)
    for t in range(3):
        for mine, same in zip(
            *(numbers(one.update(*rows_of(data, t))) for one in (flow, plain)), strict=True
        ):
            np.testing.assert_array_equal(mine, same)  # nothing changes in the beliefs
    early = sk.infer(0, engine, model, *rows_of(data, slice(3)))
    if name != "square_root":  # whose parameters are longer
        assert_last(flow.smoothed(), early.states.marginals, 3)
    flow.update_many(*rows_of(data, slice(3, LENGTH - 1)))
    again = sk.load_stream(flow.save(tmp_path / "a.stream"), using=[type(model)])
    for one in (flow, again):
        one.update(*rows_of(data, LENGTH - 1))
    whole = sk.infer(0, engine, model, *data)
    assert_last(flow.smoothed(), whole.states.marginals, LAG + 1)
    for mine, theirs in zip(numbers(flow.smoothed()), numbers(again.smoothed()), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert_last(flow.smoothed(), whole.states.marginals, LAG + 1)  # and the stream stays


def test_chunks_of_any_length_leave_the_same_window():
    engine, model, ys, *_ = ROWS["kalman"]
    whole = sk.infer(0, engine, model, ys).states.marginals
    expected = sk.stream(0, engine, model).update_many(ys)
    for sizes in ((LENGTH,), (2, 3, 7), (LAG + 1, 1, 6)):
        flow, beliefs, begin = sk.stream(0, engine, model, lag=LAG), [], 0
        for size in sizes:
            beliefs.append(flow.update_many(ys[begin : begin + size]).mean())
            begin += size
        assert_last(flow.smoothed(), whole, LAG + 1)
        np.testing.assert_allclose(np.concatenate(beliefs), expected.mean(), rtol=1e-12)
    assert len(flow._stepper.seen.window) == LAG + 1
    assert not sk.stream(0, engine, model)._stepper.seen.window


def test_one_program_smooths_however_much_was_seen():
    engine, model, ys, *_ = ROWS["kalman"]
    flow = sk.stream(0, engine, model, lag=3)
    for y in ys[:6]:
        flow.update(y)
        flow.smoothed()
    assert flow._stepper._functions.smooth._cache_size() == 1


def test_a_stream_that_went_on_from_a_posterior_looks_back_into_it(runs=None):
    """Its last state is the first of the window; dates go on."""
    days = pd.date_range("2024-01-01", periods=LENGTH, freq="D", name="day")
    engine, model = sk.Kalman(), TREND
    series = pd.Series(SCALARS, days)
    whole = sk.infer(0, engine, model, series).states
    flow = sk.stream(0, engine, sk.infer(0, engine, model, series[:9]), lag=LAG)
    assert_last(flow.smoothed(), sk.infer(0, engine, model, series[:9]).states.marginals, 1)
    for y in SCALARS[9:]:
        flow.update(y)
    assert_last(flow.smoothed(), whole.marginals, 4)
    assert flow.smoothed().to_frame().index.equals(days[8:])
    assert flow.smoothed().labels.names == whole.labels.names
    dated = sk.stream(0, engine, model, lag=LAG)
    for begin in (0, 4, 7, 9):
        dated.update_many(series[begin : {0: 4, 4: 7, 7: 9, 9: LENGTH}[begin]])
    assert dated.smoothed().to_frame().index.equals(days[-LAG - 1 :])
    assert list(dated.predict(1).to_frame().index) == [days[-1] + days.freq]
    bare = sk.stream(0, engine, model, lag=LAG)
    bare.update_many(SCALARS[:3])
    bare.update_many(series[3:5])
    assert bare.smoothed().to_frame().index.name == "time"


def test_a_bank_is_its_members():
    """A series that began within the window has no past there."""
    ys = RANDOM.normal(size=(3, LENGTH, 2))
    ys[1, 4] = np.nan
    bank = sk.stream(0, sk.Kalman(), LINEAR, num_series=3, lag=LAG)
    bank.update_many(ys[:, :7])
    bank.update(ys[:, 7])
    for t in range(8, 10):
        bank.update(ys[:, t], new=[2] if t == 9 else None)
    bank.update_many(ys[:, 10:])
    found = bank.smoothed()
    assert found.mean().shape == (3, LAG + 1, 2)
    for b in range(3):
        begin = 9 if b == 2 else 0
        alone = sk.infer(0, sk.Kalman(), LINEAR, ys[b, begin:]).states
        count = min(LAG + 1, LENGTH - begin)
        np.testing.assert_allclose(found.mean()[b, -count:], alone.mean()[-count:], atol=1e-8)
        np.testing.assert_allclose(found.cov()[b, -count:], alone.cov()[-count:], atol=1e-8)
    assert np.isnan(found.mean()[2, : LAG - 2]).all() and np.isfinite(found.mean()[:2]).all()
    pushed = sk.stream(0, sk.ExtendedKalman(), WAVE, num_series=2, lag=2)
    us = np.stack([PUSH, -PUSH])
    pushed.update_many(np.stack([SCALARS, SCALARS])[:, :8], us[:, :8])
    pushed.update(np.stack([SCALARS, SCALARS])[:, 8], us[:, 8])
    for b in range(2):
        alone = sk.infer(0, sk.ExtendedKalman(), WAVE, SCALARS[:9], us[b, :9]).states
        np.testing.assert_allclose(pushed.smoothed().mean()[b], alone.mean()[-3:], atol=1e-8)


def test_parameter_draws_are_mixed_by_what_they_predicted():
    build = lambda v: sk.models.LocalLevel(0.5, v).with_initial([0.0], [2.0])  # noqa: E731
    noises, weights = jnp.array([0.5, 1.5]), jnp.log(jnp.array([0.4, 0.6]))
    ys = np.nan_to_num(SCALARS)
    data, models = sk.posterior.Data(jnp.asarray(ys[:8])), jax.vmap(build)(noises)
    engine, key = sk.Kalman(), jax.random.key(0)
    parts = run_states(engine, key, models, data, RunOptions(), log_weights=weights)
    parts.pop("log_evidence")
    posterior = sk.Posterior(engine, models, data, models, parts, engine)
    flow = sk.stream(0, engine, posterior, lag=2)
    flow.update_many(ys[8:])
    each = [sk.infer(0, engine, build(v), ys) for v in noises]
    early = [sk.infer(0, engine, build(v), ys[:8]).log_evidence for v in noises]
    raw = weights + np.array([a.log_evidence - b for a, b in zip(each, early, strict=True)])
    share = np.exp(raw - np.logaddexp.reduce(raw))
    mean = sum(w * one.states.mean()[-3:] for w, one in zip(share, each, strict=True))
    np.testing.assert_allclose(flow.smoothed().mean(), mean, atol=1e-10)


CLOUD = sk.SMC(num_particles=400, smoother=None, num_paths=400)


def windows(engine, seeds, gap):
    """Smoothed moments by seed of one model, at the last ``LAG + 1`` times."""
    means, squares = [], []
    for seed in seeds:
        flow = sk.stream(seed, engine, Wave(jnp.array(0.5)) if gap is None else gap, lag=LAG)
        flow.update_many(SCALARS, PUSH) if gap is None else flow.update_many(PAIRS)
        belief = flow.smoothed()
        means.append(belief.mean())
        squares.append(belief.cov())
    return np.array(means), np.array(squares)


@pytest.mark.parametrize("proposal", [None, sk.Linearised()], ids=["bootstrap", "guided"])
def test_particles_look_back_within_their_error(proposal):
    """Over seeds, against the exact smoother of a linear model with gaps."""
    engine = dataclasses.replace(CLOUD, proposal=proposal)
    means, _ = windows(engine, range(24), LINEAR)
    exact = sk.infer(0, sk.Kalman(), LINEAR, PAIRS).states.mean()[-LAG - 1 :]
    error = means.std(axis=0, ddof=1) / np.sqrt(len(means))
    assert np.abs((means.mean(axis=0) - exact) / error).max() < 4
    filtered = sk.infer(0, sk.Kalman(), LINEAR, PAIRS).filtered.mean()[-LAG - 1 :]
    assert np.abs((filtered - exact) / error)[:-1].max() > 12  # and it sees the difference
    again = windows(engine, [3], LINEAR)[0][0]
    np.testing.assert_array_equal(again, means[3])


def test_guided_particles_take_their_cloud():
    engine = sk.GuidedSMC(sk.OnlineVariational(num_steps=0), num_particles=100, num_paths=100)
    flow = sk.stream(0, engine, LINEAR, lag=2)
    for y in PAIRS[:4]:
        flow.update(y)
    exact = sk.infer(0, sk.Kalman(), LINEAR, PAIRS[:4]).states
    gap = (flow.smoothed().mean() - exact.mean()[-3:]) / exact.std()[-3:]
    assert np.abs(gap).max() < 4 * np.sqrt(2 / 100)


def level():
    persistence = numpyro.param("persistence", 0.5)
    one = jnp.eye(1)
    return sk.models.LinearGaussian(jnp.zeros(1), one, persistence * one, 0.3 * one, one, one)


def test_learned_parameters_are_those_that_stand():
    """Held, they are those of the start, and the window is exact."""
    held = sk.RecursiveLikelihood(sk.Kalman(), sk.StochasticAscent(burn_in=10**6))
    flow = sk.stream(0, held, level, lag=LAG)
    flow.update_many(SCALARS[:, None])
    plain = sk.infer(0, sk.Kalman(), sk.program(lambda: level_at(0.5)), SCALARS[:, None])
    assert_last(flow.smoothed(), plain.states.marginals, LAG + 1)


def level_at(persistence):
    one = jnp.eye(1)
    return sk.models.LinearGaussian(jnp.zeros(1), one, persistence * one, 0.3 * one, one, one)


def test_what_cannot_look_back_says_so(tmp_path):
    with pytest.raises(errors.NotComputed, match="lag=20"):
        sk.stream(0, sk.Kalman(), LINEAR).smoothed()
    with pytest.raises(errors.NotComputed, match="update"):
        sk.stream(0, sk.Kalman(), LINEAR, lag=2).smoothed()
    for wrong in (-1, 2.0, True):
        with pytest.raises(errors.OptionError, match="lag is no number"):
            sk.stream(0, sk.Kalman(), LINEAR, lag=wrong)
    with pytest.raises(errors.NotComputed, match="EnsembleKalman"):
        sk.stream(0, sk.EnsembleKalman(16), LINEAR, lag=2)
    singular = sk.models.LocalLinearTrend(0.5, 0.0, 1.5).with_initial([0.0, 0.0], [1.0, 1.0])
    flow = sk.stream(0, CLOUD, singular, lag=2)
    flow.update(0.3)
    with pytest.raises(errors.SingularTransitionError, match="smoothing a stream"):
        flow.smoothed()
    kept = sk.stream(0, sk.Kalman(), LINEAR, lag=2)
    kept.update(PAIRS[0])
    with pytest.raises(errors.SaveError, match="lag differs"):
        sk.stream(0, sk.Kalman(), LINEAR).load(kept.save(tmp_path / "a.stream"))
