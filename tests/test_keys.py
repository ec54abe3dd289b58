"""Random keys: one purpose, one key; no key is used twice in a run."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ssmkit as sk
from ssmkit import keys
from ssmkit.engines import states
from ssmkit.engines.options import RunOptions
from ssmkit.models.base import simulate_series
from ssmkit.models.programs import free_sites

YS = jnp.linspace(-1.0, 1.0, 4)
WALK = sk.models.LocalLevel(1.0, 1.0).with_initial([0.0], [1.0])
HALF = jnp.full((2, 2), 0.5)
COUNTS = sk.models.DiscreteHMM.poisson(HALF[0], HALF, jnp.array([1.0, 5.0]))


class Recorder:
    """Key data of every draw, and of every key that was split or folded."""

    def __init__(self):
        self.drawn = []
        self.forked = []

    def rows(self, which):
        return np.concatenate([np.reshape(k, (-1, 2)) for k in which])


@pytest.fixture
def recorder(monkeypatch):
    """Record concrete keys at the primitives: works inside scans and vmaps, without jit."""
    found = Recorder()
    bits, fold, split = jax.random.bits, jax.random.fold_in, jax.random.split
    normal, uniform, gumbel = jax.random.normal, jax.random.uniform, jax.random.gumbel
    originals = dict(normal=normal, uniform=uniform, gumbel=gumbel, bits=bits)
    depth = [0]

    def note(where, key):
        jax.debug.callback(lambda k: where.append(np.array(k)), jax.random.key_data(key))

    def drawing(original):
        def draw(key, *args, **kwargs):
            if depth[0] == 0:
                note(found.drawn, key)
            depth[0] += 1
            try:
                return original(key, *args, **kwargs)
            finally:
                depth[0] -= 1

        return draw

    for name in (*originals, "categorical", "poisson", "multivariate_normal", "exponential"):
        monkeypatch.setattr(jax.random, name, drawing(getattr(jax.random, name)))

    def folding(key, data):
        note(found.forked, key)
        return fold(key, data)

    def splitting(key, num=2):
        note(found.forked, key)
        return split(key, num)

    monkeypatch.setattr(jax.random, "fold_in", folding)
    monkeypatch.setattr(jax.random, "split", splitting)
    jax.clear_caches()  # a compiled run would not be recorded
    yield found
    jax.clear_caches()


def assert_distinct(recorder, draws):
    jax.effects_barrier()
    drawn = recorder.rows(recorder.drawn)
    assert len(drawn) == draws
    assert len(np.unique(drawn, axis=0)) == draws
    # a key that is drawn from is not also split or folded
    if recorder.forked:
        forked = {tuple(k) for k in recorder.rows(recorder.forked)}
        assert not forked & {tuple(k) for k in drawn}


def test_purposes_have_keys_of_their_own():
    assert len(set(keys.PURPOSES.values())) == len(keys.PURPOSES)
    own = [jax.random.key_data(keys.purpose(jax.random.key(0), name)) for name in keys.PURPOSES]
    assert len(np.unique(np.stack(own), axis=0)) == len(own)


def test_tags_never_change():
    """A saved run goes on with the same numbers only if these stay; new ones are added."""
    frozen = {"time": 1, "learning": 2, "forecasting": 3, "states": 4}
    frozen |= {"restarts": 5, "simulation": 6, "draws": 7}
    assert frozen.items() <= keys.PURPOSES.items()


def test_why_purposes_are_tags_and_a_key_is_split_or_folded():
    """The facts the rule rests on; if JAX changes them, the rule can be thought over."""
    key = jax.random.key(3)
    data = jax.random.key_data
    np.testing.assert_array_equal(
        data(jax.random.split(key, 5)[2]), data(jax.random.fold_in(key, 2))
    )
    np.testing.assert_array_equal(
        data(jax.random.split(key, 9)[:5]), data(jax.random.split(key, 5))
    )


def test_an_integer_is_a_seed():
    data = jax.random.key_data
    np.testing.assert_array_equal(data(keys.as_key(7)), data(jax.random.key(7)))


def test_simulate_draws_every_number_from_its_own_key(recorder):
    sk.simulate(0, WALK, 5, num_series=3)
    assert_distinct(recorder, 3 * 2 * 5)


def test_simulated_series_do_not_share_noise():
    paths = sk.simulate(0, WALK, 6, num_series=50)
    for values in paths:
        steps = np.asarray(values).reshape(50, -1)
        assert len(np.unique(steps)) == steps.size
        correlation = np.corrcoef(steps) - np.eye(50)
        assert np.abs(correlation).max() < 1 - 1e-6


def test_simulation_of_one_series_is_a_prefix_of_a_longer_one():
    """Step t uses ``fold_in(time_key, t)``: the length changes nothing before it."""
    short, long = sk.simulate(1, WALK, 4), sk.simulate(1, WALK, 7)
    np.testing.assert_array_equal(short.states, long.states[:4])
    np.testing.assert_array_equal(short.observations, long.observations[:4])
    assert not np.array_equal(sk.simulate(2, WALK, 4).states, short.states)


def test_path_draws_of_a_gaussian_posterior(recorder):
    posterior = sk.infer(0, sk.Kalman(), WALK, YS)
    assert recorder.drawn == []  # nothing in a Kalman filter is random
    posterior.states.sample(1, 6)
    assert_distinct(recorder, 2 * 6)  # noise of the path, and of the flat coefficients


def test_path_draws_of_a_finite_posterior(recorder):
    posterior = sk.infer(0, sk.ForwardBackward(), COUNTS, jnp.array([0, 3, 5, 1]))
    posterior.states.sample(1, 6)
    assert_distinct(recorder, 6 * 4)


def test_forecast_draws(recorder):
    engine = sk.ForwardBackward(num_forecast_draws=5)
    posterior = sk.infer(0, engine, COUNTS, jnp.array([0, 3, 5, 1]), keep="final")
    sk.forecast(1, posterior, 3)
    assert_distinct(recorder, 2 * 5 * 3)  # a state and an observation, 5 draws, 3 steps


def test_forecast_of_a_longer_series_uses_other_numbers():
    engine = sk.ForwardBackward(num_forecast_draws=50)
    same = jnp.array([0, 3, 5, 1])
    one = sk.infer(0, engine, COUNTS, same, keep="final")
    more = sk.infer(0, engine, COUNTS, jnp.append(same, 3), keep="final")
    values = [sk.forecast(1, p, 1).observations.values for p in (one, more)]
    assert not np.array_equal(*values)


def added(model, x_before, x, y, u):
    return x


@pytest.mark.parametrize("method, draws", [("backward_mcmc", 4), ("backward", 3)])
def test_what_goes_along_with_a_cloud_has_keys_of_its_own(recorder, method, draws):
    additive = sk.AdditiveFunctional(added, method=method, num_draws=3)
    engine = sk.SMC(5, threshold=1.0, smoother=None, additive=additive)
    sk.infer(0, engine, WALK, YS)
    # states, ancestors, and of each step two draws by proposals and levels, or three at once
    assert_distinct(recorder, 4 + 3 + 3 * draws)


def test_starts_of_a_fit_draw_from_keys_of_their_own(recorder):
    def program():
        level = numpyro.param("level", 1.0, constraint=dist.constraints.positive)
        slope = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
        return sk.models.LocalLevel(level, slope)

    engine = sk.GradientFit(sk.Kalman(), num_starts=4)
    sites = free_sites(sk.program(program))
    recorder.drawn.clear()
    recorder.forked.clear()
    starts = engine._starts(jax.random.key(0), sites, learned=None)
    assert_distinct(recorder, 3 * 2)  # three moved starts, two sites
    values = np.array([float(s["level"]) for s in starts])
    assert len(np.unique(values)) == 4


def test_parameter_draws_and_series_get_keys_of_their_own():
    """Every series at every parameter draw is handed another key by `run_states`."""

    class Echo(sk.Kalman):
        def infer(self, key, model, ys, us, mask, keep):
            parts = super().infer(key, model, ys, us, mask, keep)
            return parts | {"key": jax.random.key_data(key)}

    models = jax.vmap(lambda v: sk.models.LocalLevel(v, 1.0))(jnp.arange(1.0, 4.0))
    data = sk.posterior.Data(jnp.stack([YS, YS + 1.0]))
    key = keys.purpose(jax.random.key(0), "time")
    options = RunOptions(keep="final", batched=True)
    parts = states.run_states(Echo(), key, models, data, options, jnp.zeros(3))
    seen = np.asarray(parts["key"]).reshape(-1, 2)
    assert len(np.unique(seen, axis=0)) == 6


def test_the_recorder_sees_a_key_used_twice(recorder):
    key = jax.random.key(0)
    jax.jit(lambda k: jax.random.normal(k, (2,)) + jax.random.uniform(k, (2,)))(key)
    with pytest.raises(AssertionError):
        assert_distinct(recorder, 2)


def test_the_recorder_sees_a_key_drawn_from_and_folded(recorder):
    key = jax.random.key(0)
    jax.random.normal(key), jax.random.normal(jax.random.fold_in(key, 1))
    with pytest.raises(AssertionError):
        assert_distinct(recorder, 2)


def test_the_recorder_counts_shared_noise_of_a_vmap(recorder):
    """Two series with one key: what `simulate` must never do."""
    one = keys.purpose(jax.random.key(0), "simulation")
    jax.vmap(lambda _: simulate_series(one, WALK, 2).states)(jnp.arange(2))
    with pytest.raises(AssertionError):
        assert_distinct(recorder, 2 * 2 * 2)
