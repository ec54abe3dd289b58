"""Smoothed additive functionals against dense normals, enumeration and the score of Kalman."""

from functools import cache

import dense
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from enumeration import enumerate_paths
from scipy import stats

import ssmkit as sk
from ssmkit import errors
from ssmkit.models.base import as_arrays
from ssmkit.smc import forward_smoothing

LENGTH, REPLICATES, STUDY = 6, 40, pytest.mark.study
LINEAR = as_arrays(
    sk.models.LinearGaussian(
        np.array([0.5, -0.5]),
        np.array([[1.0, 0.2], [0.2, 2.0]]),
        np.array([[0.8, 0.3], [-0.2, 0.7]]),
        np.array([[0.5, 0.1], [0.1, 0.3]]),
        np.array([[1.0, 0.2], [0.5, -1.0]]),
        np.array([[0.6, 0.4], [0.4, 0.5]]),
    )
)
PAIRS = np.array([[0.5, 0.4], [0.9, 0.3], [-0.4, 0.5], [0.1, -0.6], [1.0, 0.4], [0.3, 0.6]])
PAIRS[2], PAIRS[4, 0] = np.nan, np.nan
SERIES = jnp.asarray(PAIRS), None, ~jnp.isnan(PAIRS)
STAY = np.array([[0.9, 0.1], [0.2, 0.8]])
COINS = as_arrays(sk.models.DiscreteHMM.poisson(np.array([0.3, 0.7]), STAY, np.array([1.0, 4.0])))
COUNTS, SEEN = np.array([0, 3, 99, 2, 1, 5]), np.arange(LENGTH) != 2
VOLATILITY = sk.models.StochasticVolatility(-1.0, 0.9, 0.5)
RETURNS = np.random.default_rng(3).normal(size=LENGTH)
RETURNS[3] = np.nan


def moments(model, x_before, x, y, u):
    """Sums of states, and of products with the state before."""
    products = jnp.zeros((2, 2)) if x_before is None else jnp.outer(x_before, x)
    return {"states": x, "products": products}


def emitted(model, x_before, x, y, u):
    """Jumps, and what each of two states has emitted; what is missing counts for nothing."""
    jumps = 0 if x_before is None else jnp.where(x_before != x, 1, 0)
    return jumps, jax.nn.one_hot(x, 2) * jnp.where(y < 0, 0, y)


def squares(model, x_before, x, y, u):
    return 0.0 if x_before is None else (x - x_before) ** 2


def products(model, x_before, x, y, u):
    return 0.0 if x_before is None else x * x_before


def functional(function, method, **options):
    return sk.AdditiveFunctional(function, method=method, **options)


def running(engine, model, series, key=5, count=REPLICATES):
    """The means at every time, of independent runs; the seed says which."""

    def one(key):
        return engine.infer(key, model, *series, "all")["steps"]["running_additive"]

    keys = jax.random.split(jax.random.key(key), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))


def agree(found, expected):
    """The mean over runs is exact, to 4.5 standard errors and a bias of order 1/N."""
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0) - expected) < 4.5 * error + 3e-3)


@cache
def exact_moments():
    """At every time ``t``: sums given the observations up to it, from one normal law."""
    law, there = dense.joint(LINEAR, LENGTH), ~np.isnan(PAIRS)
    states, products = [], []
    for t in range(LENGTH):
        given = dense.condition(law, PAIRS, there & (np.arange(LENGTH)[:, None] <= t))
        mean = given.mean[: law.split].reshape(LENGTH, 2)
        cov = given.cov[: law.split, : law.split].reshape(LENGTH, 2, LENGTH, 2)
        states.append(mean[: t + 1].sum(axis=0))
        pairs = [cov[s - 1, :, s] + np.outer(mean[s - 1], mean[s]) for s in range(1, t + 1)]
        products.append(np.sum(pairs, axis=0) if pairs else np.zeros((2, 2)))
    return {"states": np.stack(states), "products": np.stack(products)}


ENGINES = {
    "all_pairs": sk.SMC(300, additive=functional(moments, "all_pairs")),
    "backward": sk.SMC(400, additive=functional(moments, "backward")),
    "backward_mcmc": sk.SMC(1000, additive=functional(moments, "backward_mcmc")),
    "genealogy": sk.SMC(1000, additive=functional(moments, "genealogy")),
    "guided auxiliary": sk.SMC(
        2000,
        proposal=sk.Linearised(),
        lookahead="mean",
        additive=functional(moments, "backward_mcmc", num_draws=3),
    ),
    "by a guide": sk.GuidedSMC(
        sk.OnlineVariational(num_steps=0), 1000, additive=functional(moments, "backward_mcmc")
    ),
}


FIRST = ("all_pairs", "backward_mcmc")


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=STUDY) for name in ENGINES]
)
def test_sums_of_a_linear_gaussian_model(name):
    engine = ENGINES[name]
    found = running(engine, LINEAR, SERIES)
    for part, expected in exact_moments().items():
        agree(found[part], expected)


def enumerated():
    """Expected jumps and emissions at the end, over all paths."""
    log_emission = stats.poisson.logpmf(COUNTS[:, None], np.array([1.0, 4.0]))
    log_emission[~SEEN] = 0.0
    every = enumerate_paths(
        np.array([0.3, 0.7]), np.broadcast_to(STAY, (LENGTH, 2, 2)), log_emission
    )
    paths, shares = every.paths, every.probabilities
    jumps = shares @ np.sum(paths[:, 1:] != paths[:, :-1], axis=1)
    there = np.where(SEEN, COUNTS, 0)
    return jumps, np.stack([shares @ ((paths == k) @ there) for k in range(2)])


@pytest.mark.parametrize("method", [pytest.param("all_pairs", marks=STUDY), "backward_mcmc"])
def test_integer_states_and_missing_integers(method):
    engine = sk.SMC(300, additive=functional(emitted, method))
    series = jnp.asarray(COUNTS), None, jnp.asarray(SEEN)
    jumps, emissions = running(engine, COINS, series)
    expected = enumerated()
    agree(jumps[:, -1], expected[0])
    agree(emissions[:, -1], expected[1])


@pytest.mark.study
def test_two_draws_are_stable_where_one_degenerates():
    """In the long run one draw is one path, however many particles there are.

    Each variance is estimated from 60 runs: their ratio scatters as F with 59 degrees of freedom.
    """
    model = as_arrays(sk.models.LocalLevel(0.3, 1.0).with_initial([0.0], [1.0]))
    ys = sk.simulate(0, model, 200).observations
    runs, variance = 60, {}
    for method, draws in [("backward", 2), ("backward_mcmc", 2), ("backward", 1), ("genealogy", 1)]:
        additive = functional(steps_taken, method, num_draws=draws)
        engine = sk.SMC(64, smoother=None, additive=additive)
        found = running(engine, model, (ys, None, None), count=runs)
        variance[method, draws] = found[:, -1].var(ddof=1)
    clear = stats.f.ppf(0.999, runs - 1, runs - 1)
    for two in ("backward", "backward_mcmc"):
        for one in ("backward", "genealogy"):
            assert variance[two, 2] * clear < variance[one, 1]


def steps_taken(model, x_before, x, y, u):
    return 0.0 if x_before is None else (x[0] - x_before[0]) ** 2


def test_blocks_of_pairs_are_all_pairs(monkeypatch):
    """Seven at a time, the last block filled up."""
    monkeypatch.setattr(forward_smoothing, "BLOCK", 7 * 50 * 3)
    x, sizes = jnp.arange(100.0).reshape(50, 2), []

    def block(key, x):
        sizes.append(len(x))
        return {"twice": 2 * x, "first": x[:, 0]}

    found = forward_smoothing._in_blocks(block, jax.random.key(0), x, width=3)
    assert sizes == [7]
    np.testing.assert_array_equal(found["twice"], 2 * x)
    np.testing.assert_array_equal(found["first"], x[:, 0])


# --- what is carried


ADDITIVE = functional(squares, "backward_mcmc")
PARTICLES = sk.SMC(num_particles=64, smoother=None, additive=ADDITIVE)


@pytest.fixture(scope="module")
def posterior():
    return sk.infer(3, PARTICLES, VOLATILITY, RETURNS)


@pytest.fixture(scope="module")
def plain():
    """The same without a functional."""
    return sk.infer(3, sk.SMC(64, smoother=None), VOLATILITY, RETURNS)


@pytest.fixture(scope="module")
def fed():
    """A stream that was fed one by one, and what it said at each time."""
    flow, told = sk.stream(3, PARTICLES, VOLATILITY), []
    for y in RETURNS:
        flow.update(y)
        told.append(flow.diagnostics["additive"])
    return flow, np.array(told)


def test_online_is_offline(posterior, fed):
    np.testing.assert_allclose(fed[1], posterior.diagnostics["running_additive"], rtol=1e-12)
    many = sk.stream(3, PARTICLES, VOLATILITY)
    many.update_many(RETURNS)
    np.testing.assert_allclose(many.diagnostics["additive"], fed[1][-1], rtol=1e-12)
    np.testing.assert_allclose(posterior.diagnostics["additive"], fed[1][-1], rtol=1e-12)


def test_a_file_goes_on_bit_for_bit(posterior, fed, tmp_path):
    flow = sk.stream(3, PARTICLES, VOLATILITY)
    for y in RETURNS[:4]:
        flow.update(y)
    again = sk.load_stream(flow.save(tmp_path / "flow"), using=[squares])
    assert again.diagnostics["additive"] == flow.diagnostics["additive"] == fed[1][3]
    for y in RETURNS[4:]:
        again.update(y)
    assert again.diagnostics["additive"] == fed[1][-1]
    read = sk.load_posterior(posterior.save(tmp_path / "posterior"), using=[squares])
    assert read.diagnostics["additive"] == posterior.diagnostics["additive"]


def test_a_stream_goes_on_where_a_posterior_ended(fed, plain):
    flow = sk.stream(3, PARTICLES, sk.infer(3, PARTICLES, VOLATILITY, RETURNS[:4]))
    for y in RETURNS[4:]:
        flow.update(y)
    np.testing.assert_allclose(flow.diagnostics["additive"], fed[1][-1], rtol=1e-12)
    # of one that carried nothing along, it begins there
    assert not PARTICLES.takes_carry_of(plain.engine)
    flow = sk.stream(3, PARTICLES, plain)
    flow.update(0.3)
    assert 0 < flow.diagnostics["additive"] < fed[1][-1] / 2


def test_an_impossible_observation_is_taken_as_a_missing_one(fed):
    flow, quiet = sk.stream(3, PARTICLES, VOLATILITY), sk.stream(3, PARTICLES, VOLATILITY)
    for y, other in [(0.3, 0.3), (np.inf, np.nan), (0.1, 0.1)]:
        flow.update(y)
        quiet.update(other)
    assert flow.diagnostics["skipped"] == 1
    np.testing.assert_allclose(flow.diagnostics["additive"], quiet.diagnostics["additive"])


def test_a_bank_and_its_new_series():
    bank = sk.stream(0, PARTICLES, VOLATILITY, num_series=3)
    for _ in range(4):
        bank.update(np.array([0.3, -2.0, np.nan]))
    before = bank.diagnostics["additive"]
    assert before.shape == (3,) and len(set(before)) == 3
    bank.update(np.array([0.1, 0.2, 0.3]), new=[1])
    after = bank.diagnostics["additive"]
    assert after[1] == 0.0 and np.all(after[[0, 2]] > before[[0, 2]])


def test_short_series_of_a_ragged_batch_end_where_they_end():
    short, long = RETURNS[:3], RETURNS
    batch = sk.infer(3, PARTICLES, VOLATILITY, [short, long])
    ends = batch.diagnostics["additive"]
    assert ends.shape == (2,)
    for b in range(2):
        one, length = batch[b].diagnostics, (3, LENGTH)[b]
        assert one["running_additive"].shape == (length,)
        assert one["running_additive"][-1] == one["additive"] == ends[b]
    # what a stream goes on from is of that time as well
    carried = batch[0].parts["carry"].collected
    assert carried.mean()[0] == ends[0]
    flow = sk.stream(3, PARTICLES, batch[0])
    flow.update(0.2)
    assert ends[0] < flow.diagnostics["additive"]
    final = sk.infer(3, PARTICLES, VOLATILITY, [short, long], keep="final").diagnostics
    np.testing.assert_allclose(final["additive"], ends, rtol=1e-12)


def test_long_sums_keep_their_digits_in_float32():
    """A tenth is no binary number: 20,000 of them, added one by one, would be wrong by 5e-4."""
    length = 20_000
    model = jax.tree.map(lambda a: a.astype(jnp.float32), as_arrays(VOLATILITY))
    engine = sk.SMC(4, smoother=None, additive=functional(tenth, "backward_mcmc"))
    ys = jnp.zeros(length, jnp.float32)
    found = jax.jit(engine.infer, static_argnums=5)(
        jax.random.key(0), model, ys, None, None, "final"
    )["run"]["additive"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 0.1 * length, rtol=2e-7)


def tenth(model, x_before, x, y, u):
    return 0.1


def test_nobody_pays_who_does_not_ask(posterior, plain):
    extra = len(jax.tree.leaves(posterior.parts["carry"].collected))
    leaves = [len(jax.tree.leaves(p.parts["carry"])) for p in (plain, posterior)]
    assert leaves[0] + extra == leaves[1] and extra == 3
    assert "additive" not in plain.diagnostics
    # and the cloud is the same, to rounding
    np.testing.assert_allclose(plain.log_evidence, posterior.log_evidence, rtol=1e-12)
    np.testing.assert_allclose(plain.final.values, posterior.final.values, rtol=1e-12)


def test_one_compilation_and_none_for_the_evidence():
    calls = []

    def counted(model, x_before, x, y, u):
        calls.append(1)
        return x

    engine = sk.SMC(16, smoother=None, additive=functional(counted, "backward_mcmc"))
    sk.log_evidence(jax.random.key(0), engine, VOLATILITY, jnp.asarray(RETURNS))
    assert not calls
    sk.infer(0, engine, VOLATILITY, RETURNS)
    count = len(calls)
    model = sk.models.StochasticVolatility(-2.0, 0.8, 0.3)
    sk.infer(1, engine, model, RETURNS[::-1].copy())
    assert len(calls) == count + 2  # the dry run


# --- the score


LEVEL, TRUTH = {"level": 0.6, "noise": 1.5}, {"level": 1.0, "noise": 1.0}


def level():
    positive = numpyro.distributions.constraints.positive
    size = numpyro.param("level", 1.0, constraint=positive)
    noise = numpyro.param("noise", 1.0, constraint=positive)
    return sk.models.LocalLevel(size**2, noise).with_initial([0.5], [2.0])


@pytest.mark.parametrize("seed", range(3))
def test_the_score_is_that_of_kalman(seed):
    """In the sites of a program."""
    ys = sk.simulate(seed, sk.program(level).model_at(TRUTH), 30).observations
    ys = ys.at[jnp.array([4, 11])].set(jnp.nan)
    found = scores()(jax.random.split(jax.random.key(10 + seed), REPLICATES), ys)
    expected = kalman_score(jax.tree.map(jnp.asarray, LEVEL), ys)
    for name in LEVEL:
        agree_relative(np.asarray(found[name]), float(expected[name]))


@jax.jit
@jax.grad
def kalman_score(values, ys):
    model = sk.program(level).model_at(values)
    return sk.log_evidence(jax.random.key(0), sk.Kalman(), model, ys)


def agree_relative(found, expected):
    """To 4.5 standard errors, and a bias of a tenth of what one run scatters by."""
    slack = 4.5 / np.sqrt(len(found)) + 0.1
    assert abs(found.mean() - expected) < slack * found.std(ddof=1)


@cache
def scores():
    program, engine = sk.program(level), sk.SMC(300, smoother=None, additive=sk.Score())

    @jax.jit
    def run(keys, ys):
        model, mask = program.model_at(LEVEL), ~jnp.isnan(ys)

        def one(key):
            slopes = engine.infer(key, model, ys, None, mask, "final")["run"]["additive"]
            return program.pull_back(LEVEL, slopes)

        return jax.vmap(one)(keys)

    return run


def test_a_score_is_a_model_in_a_stream_and_in_a_file(tmp_path):
    flow = sk.stream(0, sk.SMC(64, additive=sk.Score()), VOLATILITY)
    for y in RETURNS:
        flow.update(y)
    slopes = flow.diagnostics["additive"]
    assert isinstance(slopes, sk.models.StochasticVolatility)
    assert np.isfinite(slopes.persistence) and slopes.persistence != 0
    again = sk.load_stream(flow.save(tmp_path / "flow"))
    assert again.diagnostics["additive"].scale == slopes.scale


# --- what is refused


class Still(sk.StateSpaceModel):
    """A state that stays, so that there is no density."""

    def initial(self, u):
        return numpyro.distributions.Normal(0.0, 1.0)

    def transition(self, x, u):
        return numpyro.distributions.Delta(x)

    def emission(self, x, u):
        return numpyro.distributions.Normal(x, 1.0)


def test_a_transition_without_density_has_its_genealogy():
    engine = sk.SMC(64, smoother="genealogy", additive=functional(products, "backward"))
    with pytest.raises(errors.SingularTransitionError, match="genealogy"):
        sk.infer(0, engine, Still(), RETURNS)
    engine = sk.SMC(64, smoother="genealogy", additive=functional(products, "genealogy"))
    posterior = sk.infer(0, engine, Still(), RETURNS)
    squared = np.average(
        np.asarray(posterior.final.values) ** 2, weights=np.exp(posterior.final.log_weights)
    )
    np.testing.assert_allclose(
        posterior.diagnostics["additive"], (LENGTH - 1) * squared, rtol=1e-10
    )


def test_a_stream_past_a_diffuse_start_scores_no_first_state():
    engine, diffuse = sk.SMC(16, additive=sk.Score()), as_arrays(sk.models.LocalLevel(1.0, 1.0))
    engine.check_steps(diffuse, None, begun=True)
    with pytest.raises(errors.SsmkitError, match="diffuse"):
        engine.check_steps(diffuse, None, begun=False)


def grows(model, x_before, x, y, u):
    return x if x_before is None else jnp.stack([x, x])


def fails(model, x_before, x, y, u):
    return x_before + x


def forgets_what_is_missing(model, x_before, x, y, u):
    return x * y


@pytest.mark.parametrize(
    "additive, error, words",
    [
        (squares, errors.OptionError, "AdditiveFunctional"),
        (functional(squares, "exact"), errors.OptionError, "backward_mcmc"),
        (functional(squares, "backward", num_draws=0), errors.OptionError, "num_draws"),
        (functional(squares, "backward", num_moves=1.5), errors.OptionError, "num_moves"),
        (functional(grows, "backward"), errors.ShapeError, "time zero"),
        (functional(fails, "backward"), errors.ModelError, "x_before"),
        (functional(forgets_what_is_missing, "genealogy"), errors.NonFiniteError, "isnan"),
    ],
)
def test_what_cannot_be_carried_is_named(additive, error, words):
    with pytest.raises(error, match=words):
        sk.infer(0, sk.SMC(16, smoother=None, additive=additive), VOLATILITY, RETURNS)
