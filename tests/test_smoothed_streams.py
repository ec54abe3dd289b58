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
from ssmkit.engines.guided_smc import Carry
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
# something is missing in every chunk, so that chunks of a length share a program
PAIRS[2, 0] = PAIRS[5] = PAIRS[8] = PAIRS[10, 1] = np.nan
SCALARS[[3, 6, 9]] = np.nan
COUNTS = RANDOM.poisson(3, size=LENGTH)
SEEN = ~np.isnan(SCALARS)
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


class Walk(sk.StateSpaceModel):
    """All scalar."""

    scale: jax.Array

    def initial(self, u):
        return dist.Normal(0.5, 1.0)

    def transition(self, x, u):
        return dist.Normal(0.9 * x, self.scale)

    def emission(self, x, u):
        return dist.Normal(x, 0.7)


class Changing(Walk):
    """Steps of a size that belongs to their time."""

    def at(self, t):
        return Walk(self.scale[t])

    @property
    def num_steps(self):
        return self.scale.shape[0]


WALK, CHANGING = Walk(jnp.array(0.5)), Changing(jnp.linspace(0.2, 2.0, LENGTH))
WAVE = Wave(jnp.array(0.5))
VARIATIONAL = sk.OnlineVariational(
    num_steps=0, num_paths=20, value=sk.learned.Polynomial(num_points=40)
)
ROWS = {
    "kalman": (sk.Kalman(), LINEAR, PAIRS, None, None),
    "square_root": (sk.Kalman(form="square_root"), CHANGING, SCALARS, None, None),
    "diffuse": (sk.Kalman(), TREND, SCALARS, None, None),
    "unscented": (sk.UnscentedKalman(), WAVE, SCALARS, PUSH, None),
    "variational": (VARIATIONAL, WALK, SCALARS, None, None),
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


def until(data, length):
    """The same series with nothing seen from ``length`` on, so that nothing compiles anew."""
    ys, us, observed = data
    there = np.arange(LENGTH) < length
    if observed is not None:
        return ys, us, observed & there
    return np.where(there.reshape((-1,) + (1,) * (ys.ndim - 1)), ys, np.nan), us, None


@pytest.mark.parametrize("name", ROWS)
def test_the_window_is_that_of_infer(name, tmp_path):
    """One by one and in chunks, short of the window and beyond it, before and after a file."""
    engine, model, *data = ROWS[name]
    flow = sk.stream(0, engine, model, lag=LAG)
    plain = sk.stream(0, engine, model)
    for t in range(3):
        beliefs = [one.update(*rows_of(data, t)) for one in (flow, plain)]
        for mine, same in zip(*map(numbers, beliefs), strict=True):
            np.testing.assert_array_equal(mine, same)  # nothing changes in the beliefs
    early = sk.infer(0, engine, model, *until(data, 3)).states.marginals
    assert_last(flow.smoothed(), jax.tree.map(lambda a: a[:3], early), 3)
    for begin in (3, 7):
        flow.update_many(*rows_of(data, slice(begin, begin + 4)))
    again = sk.load_stream(flow.save(tmp_path / "a.stream"), using=[type(model)])
    for one in (flow, again):
        one.update(*rows_of(data, LENGTH - 1))
    whole = sk.infer(0, engine, model, *data).states.marginals
    for _ in range(2):  # the stream stays where it is
        assert_last(flow.smoothed(), whole, LAG + 1)
    for mine, theirs in zip(numbers(flow.smoothed()), numbers(again.smoothed()), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture(scope="module")
def exact():
    return sk.infer(0, sk.Kalman(), WALK, SCALARS)


@pytest.mark.parametrize("sizes", [(LENGTH,), (4, 4, 4), (4, 8)])
def test_chunks_of_any_length_leave_the_same_window(exact, sizes):
    """No more is kept than can be asked for, and nothing without a lag."""
    flow, plain = (sk.stream(0, sk.Kalman(), WALK, lag=lag) for lag in (LAG, 0))
    beliefs = [flow.update_many(part) for part in np.split(SCALARS, np.cumsum(sizes)[:-1])]
    assert_last(flow.smoothed(), exact.states.marginals, LAG + 1)
    means = np.concatenate([belief.mean() for belief in beliefs])
    np.testing.assert_allclose(means, exact.filtered.mean(), rtol=1e-12)
    assert len(flow._stepper.seen.window) == LAG + 1
    plain.update(0.1)
    assert not plain._stepper.seen.window


def test_one_program_smooths_however_much_was_seen():
    flow = sk.stream(0, sk.Kalman(), WALK, lag=3)
    flow.update(SCALARS[0])
    count = flow._stepper._functions.smooth._cache_size()
    for y in SCALARS[1:7]:
        assert len(flow.smoothed().mean()) == min(flow.time, 4)
        flow.update(y)
    assert flow._stepper._functions.smooth._cache_size() == count + 1


def test_a_stream_that_went_on_from_a_posterior_looks_back_into_it(exact):
    """Its last state is the first of the window; dates go on."""
    days = pd.date_range("2024-01-01", periods=LENGTH, freq="D", name="day")
    series = pd.Series(SCALARS, days)
    past = sk.infer(0, sk.Kalman(), WALK, series[:9])
    flow = sk.stream(0, sk.Kalman(), past, lag=LAG)
    assert_last(flow.smoothed(), past.states.marginals, 1)
    for y in SCALARS[9:]:
        flow.update(y)
    assert_last(flow.smoothed(), exact.states.marginals, 4)
    assert flow.smoothed().to_frame().index.equals(days[8:])
    dated = sk.stream(0, sk.Kalman(), WALK, lag=LAG)
    for begin in (0, 4, 8):
        dated.update_many(series[begin : begin + 4])
    assert dated.smoothed().to_frame().index.equals(days[-LAG - 1 :])
    assert list(dated.predict(1).to_frame().index) == [days[-1] + days.freq]
    bare = sk.stream(0, sk.Kalman(), WALK, lag=LAG)
    bare.update_many(SCALARS[:4])
    bare.update_many(series[4:8])
    assert bare.smoothed().to_frame().index.name == "time"  # not all dates are known


def test_a_bank_is_its_members():
    """A series that began within the window has no past there."""
    ys = RANDOM.normal(size=(3, LENGTH))
    ys[1, [4, 10]] = np.nan
    bank = sk.stream(0, sk.Kalman(), WALK, num_series=3, lag=LAG)
    bank.update_many(ys[:, :9])
    bank.update(ys[:, 9], new=[2])
    for t in range(10, LENGTH):
        bank.update(ys[:, t])
    found = bank.smoothed()
    assert found.mean().shape == (3, LAG + 1)
    for b in range(3):
        alone = sk.stream(0, sk.Kalman(), WALK, lag=LAG)
        for y in ys[b, 9 if b == 2 else 0 :]:
            alone.update(y)
        mean, cov = (np.asarray(a) for a in (alone.smoothed().mean(), alone.smoothed().cov()))
        assert len(mean) == (3 if b == 2 else LAG + 1)
        np.testing.assert_allclose(found.mean()[b, -len(mean) :], mean, atol=1e-12)
        np.testing.assert_allclose(found.cov()[b, -len(mean) :], cov, atol=1e-12)
    assert np.isnan(found.mean()[2, : LAG - 2]).all() and np.isfinite(found.mean()[:2]).all()


def test_inputs_of_a_bank_are_those_of_its_members():
    us = np.stack([PUSH, -PUSH])
    bank = sk.stream(0, sk.ExtendedKalman(), WAVE, num_series=2, lag=2)
    bank.update_many(np.stack([SCALARS, SCALARS])[:, :-1], us[:, :-1])
    last = us[:, -1].copy()
    bank.update(SCALARS[-1:].repeat(2), last)
    last[:] = 9.0  # who feeds the stream may use the array again
    for b in range(2):
        alone = sk.infer(0, sk.ExtendedKalman(), WAVE, SCALARS, us[b]).states
        np.testing.assert_allclose(bank.smoothed().mean()[b], alone.mean()[-3:], atol=1e-8)


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


@pytest.mark.parametrize("proposal", [None, sk.Linearised()], ids=["bootstrap", "guided"])
def test_particles_look_back_within_their_error(exact, proposal):
    """Over seeds, against the exact smoother, with gaps."""
    engine = dataclasses.replace(CLOUD, proposal=proposal)
    means = []
    for seed in range(24):
        flow = sk.stream(seed, engine, WALK, lag=LAG)
        flow.update_many(SCALARS)
        means.append(flow.smoothed().mean())
    means = np.array(means)
    error = means.std(axis=0, ddof=1) / np.sqrt(len(means))
    smoothed, filtered = (b.mean()[-LAG - 1 :] for b in (exact.states, exact.filtered))
    assert np.abs((means.mean(axis=0) - smoothed) / error).max() < 4
    assert np.abs((filtered - smoothed) / error)[:-1].max() > 12  # and it sees the difference
    np.testing.assert_array_equal(flow.smoothed().mean(), means[-1])
    window = [step.carry for step in flow._stepper.seen.window]
    clouds = jax.tree.map(lambda *a: jnp.stack(a), *window)
    times, key = jnp.arange(LENGTH - LAG - 1, LENGTH), jax.random.key(0)
    guided = sk.GuidedSMC(sk.OnlineVariational(), num_paths=400)
    both = [
        engine.smooth(key, WALK, clouds, times, None),
        guided.smooth(key, WALK, Carry(clouds, None), times, None),
    ]
    np.testing.assert_array_equal(both[0].values, both[1].values)


def level():
    return Walk(numpyro.param("scale", 0.5))


def test_learned_parameters_are_those_that_stand():
    """Held, they are those of the start, and the window is exact."""
    held = sk.RecursiveLikelihood(sk.Kalman(), sk.StochasticAscent(burn_in=10**6))
    flow = sk.stream(0, held, level, lag=LAG)
    for y in SCALARS[:2]:
        flow.update(y)
    early = sk.infer(0, sk.Kalman(), WALK, *until((SCALARS, None, None), 2)).states.marginals
    assert_last(flow.smoothed(), jax.tree.map(lambda a: a[:2], early), 2)


def test_what_cannot_look_back_says_so(tmp_path):
    with pytest.raises(errors.NotComputed, match="lag=20"):
        sk.stream(0, sk.Kalman(), WALK).smoothed()
    with pytest.raises(errors.NotComputed, match="update"):
        sk.stream(0, sk.Kalman(), WALK, lag=2).smoothed()
    for wrong in (-1, 2.0, True):
        with pytest.raises(errors.OptionError, match="lag is no number"):
            sk.stream(0, sk.Kalman(), WALK, lag=wrong)
    with pytest.raises(errors.NotComputed, match="EnsembleKalman"):
        sk.stream(0, sk.EnsembleKalman(16), WALK, lag=2)
    singular = sk.models.LocalLinearTrend(0.5, 0.0, 1.5).with_initial([0.0, 0.0], [1.0, 1.0])
    flow = sk.stream(0, CLOUD, singular, lag=2)
    flow.update(0.3)
    with pytest.raises(errors.SingularTransitionError, match="smoothing a stream"):
        flow.smoothed()
    kept = sk.stream(0, sk.Kalman(), WALK, lag=2)
    kept.update(0.1)
    with pytest.raises(errors.SaveError, match="lag differs"):
        sk.stream(0, sk.Kalman(), WALK).load(kept.save(tmp_path / "a.stream"))
