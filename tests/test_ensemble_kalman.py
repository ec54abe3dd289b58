"""The ensemble Kalman filter: its algebra to rounding, its limit by Monte Carlo error."""

import dense
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from test_contracts import BENT, BENT_INPUTS, DRIVEN, PAIRS, PUSH, SCALARS
from test_gaussian_filter import linear

import ssmkit as sk
from ssmkit import errors, keys
from ssmkit.beliefs import Gaussian
from ssmkit.kalman import ensemble
from ssmkit.kalman.ensemble import _perturbations
from ssmkit.kalman.ensemble_smoother import smooth
from ssmkit.smc.recipes import steps_of

LENGTH, RUNS = 6, 30
NOISE = np.random.default_rng(17)
GAPS = NOISE.normal(size=(LENGTH, 2)) * 2
GAPS[1, 0] = GAPS[3] = GAPS[4, 1] = np.nan
UPDATES = ("square_root", "stochastic")
condition = jax.jit(ensemble.condition)


# The algebra of one analysis.


def forecast_ensemble(count=30, size=4, width=3, rank=3):
    """Members, a linear emission and its noise of some rank, an observation."""
    rng = np.random.default_rng(5)
    members = rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + 1.0
    matrix = rng.normal(size=(width, size))
    spread = rng.normal(size=(width, rank))
    return members, matrix, spread @ spread.T, rng.normal(size=width) * 3


def kalman_update(members, matrix, noise, y, mask):
    """Mean, covariance and log likelihood of the Kalman update of the ensemble's moments."""
    matrix, noise, y = matrix[mask], noise[np.ix_(mask, mask)], y[mask]
    mean, cov = members.mean(0), np.cov(members.T)
    scatter = matrix @ cov @ matrix.T + noise
    gain = np.linalg.solve(scatter, matrix @ cov).T
    log_likelihood = stats.multivariate_normal(matrix @ mean, scatter).logpdf(y)
    innovation = y - matrix @ mean
    return mean + gain @ innovation, cov - gain @ matrix @ cov, log_likelihood, gain


MASKS = {"all": [0, 1, 2], "two": [0, 2], "one": [1]}


@pytest.mark.parametrize("rank", [3, 1], ids=["full", "singular noise"])
@pytest.mark.parametrize("mask", MASKS)
def test_the_square_root_has_the_moments_of_the_kalman_update(mask, rank):
    """Analysed sample covariance = (I - KH) P, to rounding; missing coordinates drop out."""
    members, matrix, noise, y = forecast_ensemble(rank=rank)
    seen = np.isin(np.arange(3), MASKS[mask])
    mean, cov, log_likelihood, _ = kalman_update(members, matrix, noise, y, seen)
    arguments = members @ matrix.T, noise, np.where(seen, y, np.nan), jnp.asarray(seen)
    transform, found = condition(*map(jnp.asarray, arguments))
    after = transform(members)
    np.testing.assert_allclose(after.mean(0), mean, atol=1e-10)
    np.testing.assert_allclose(np.cov(after.T), cov, atol=1e-10)
    np.testing.assert_allclose(found, log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(transform.right.sum(0), 0.0, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
def test_perturbed_members_each_take_the_kalman_update(mask):
    members, matrix, noise, y = forecast_ensemble()
    seen = np.isin(np.arange(3), MASKS[mask])
    mean, _, log_likelihood, gain = kalman_update(members, matrix, noise, y, seen)
    factors = jnp.broadcast_to(np.linalg.cholesky(noise), (30, 3, 3))
    perturbations = _perturbations(jax.random.key(1), factors, 30)
    arguments = members @ matrix.T, noise, np.where(seen, y, np.nan), jnp.asarray(seen)
    transform, found = condition(*map(jnp.asarray, arguments), perturbations)
    innovations = (y - members @ matrix.T - perturbations)[:, seen]
    np.testing.assert_allclose(transform(members), members + innovations @ gain.T, atol=1e-10)
    np.testing.assert_allclose(transform(members).mean(0), mean, atol=1e-10)
    np.testing.assert_allclose(found, log_likelihood, rtol=1e-10)


def test_perturbations_have_mean_zero_and_the_noise_of_the_emission():
    count = 40_000
    stds = jnp.array([0.5, 2.0])
    lower = jnp.array([[1.0, 0.0], [0.8, 0.3]])
    for factors, cov in ((stds, jnp.diag(stds**2)), (lower, lower @ lower.T)):
        drawn = _perturbations(jax.random.key(0), factors[None], count)
        np.testing.assert_allclose(drawn.mean(0), 0.0, atol=1e-12)
        size = np.sqrt(np.outer(np.diag(cov), np.diag(cov)) / count)
        assert np.all(np.abs(np.cov(drawn.T) - cov) < 5 * np.sqrt(2) * size)
        each = jnp.broadcast_to(factors, (count, *factors.shape))
        again = _perturbations(jax.random.key(0), each, count)
        np.testing.assert_allclose(again, drawn, rtol=1e-12, atol=1e-12)
    few = _perturbations(jax.random.key(0), jnp.ones((2, 10_000)), 2)  # of two, the mean is half
    np.testing.assert_allclose(np.mean(few**2) * 2, 2.0, rtol=5 * np.sqrt(2 / 10_000))


class Louder(sk.StateSpaceModel):
    """Correlated noise that grows with the state."""

    lower: jax.Array

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(x, 1.0)

    def emission(self, x, u):
        return dist.MultivariateNormal(jnp.stack([x, -x]), scale_tril=self.lower * (1 + x**2))


def test_noise_that_depends_on_the_state_counts_in_the_mean_over_members():
    lower = jnp.array([[1.0, 0.0], [0.8, 0.3]])
    engine, y = sk.EnsembleKalman(12), jnp.array([0.5, 1.0])
    (carry, told) = engine.first(jax.random.key(0), Louder(lower), y, None, None)
    x = told["predicted"].values
    means = jnp.stack([x, -x], axis=1)
    expected = condition(means, lower @ lower.T * jnp.mean((1 + x**2) ** 2), y)
    np.testing.assert_allclose(told["log_likelihood"], expected[1], rtol=1e-12)
    np.testing.assert_allclose(carry.members, expected[0](x[:, None])[:, 0], rtol=1e-9)


# The limit of many members.


MODELS = {
    "correlated": (linear(correlated=True, size=4), GAPS, None),
    "singular": (linear(singular=True, size=3, seed=3), GAPS, None),
    "inputs": (linear(correlated=True, size=2, seed=1), GAPS, NOISE.normal(size=(LENGTH, 2))),
    "scalars": (DRIVEN, np.where(np.arange(8) == 2, np.nan, SCALARS), PUSH),
}


def many_runs(engine, model, ys, us, count=RUNS):
    """Moments of beliefs by runs with different keys, by name; runs lead."""
    ys, us = jnp.asarray(ys), jax.tree.map(jnp.asarray, us)

    def one(key):
        parts = engine.infer(key, model, ys, us, ~jnp.isnan(ys), "all")
        marginals, paths = parts["states"]
        found = {"evidence": parts["log_evidence"], "likelihood": parts["log_likelihood"]}
        beliefs = {n: parts[n] for n in ("predicted", "filtered", "predicted_observations")}
        for name, belief in (beliefs | {"smoothed": marginals}).items():
            found |= {f"{name} mean": belief.mean(), f"{name} cov": belief.cov()}
        flat = jnp.moveaxis(paths.states, 0, 1).reshape(engine.num_particles, -1)
        return found | {"path": jnp.cov(flat.T)}

    return jax.jit(lambda k: jax.lax.map(one, k))(jax.random.split(jax.random.key(2), count))


def exact(model, ys, us):
    kalman = sk.infer(0, sk.Kalman(), model, ys, us)
    found = {"evidence": kalman.log_evidence, "likelihood": kalman.log_likelihood}
    for name in ("predicted", "filtered", "predicted_observations"):
        belief = getattr(kalman, name)
        found |= {f"{name} mean": belief.mean(), f"{name} cov": belief.cov()}
    found |= {"smoothed mean": kalman.states.mean(), "smoothed cov": kalman.states.cov()}
    seen = np.reshape(ys, (len(ys), -1))
    law = dense.joint(model, len(ys), us)
    split = law.split
    return found | {"path": dense.condition(law, seen, ~np.isnan(seen)).cov[:split, :split]}


@pytest.fixture(scope="module")
def runs():
    """Estimates by many runs, and the truth; each is made once."""
    made = {}

    def make(name, update, count=1000):
        engine = sk.EnsembleKalman(count, update)
        if name not in made:
            made[name] = exact(*MODELS[name])
        if (name, engine) not in made:
            made[name, engine] = many_runs(engine, *MODELS[name])
        return made[name, engine], made[name]

    return make


@pytest.mark.parametrize(
    ("name", "update"),
    [
        *(("correlated", update) for update in UPDATES),
        ("singular", "square_root"),
        ("inputs", "stochastic"),
        ("scalars", "square_root"),
    ],
)
def test_many_members_agree_with_kalman(runs, name, update):
    """Beliefs, evidence and the covariance of whole paths, within five standard errors."""
    found, expected = runs(name, update)
    for part, value in expected.items():
        each = np.asarray(found[part])
        # the bias is of order 1/N, and a spread of the runs that is zero to rounding is allowed
        error = each.std(0, ddof=1) / np.sqrt(RUNS) + 1e-3 * np.abs(value).max() + 1e-9
        assert np.all(np.abs(each.mean(0) - value) < 5 * error), part


def test_errors_shrink_with_the_root_of_the_number_of_members(runs):
    (many, expected), (few, _) = (runs("correlated", "stochastic", n) for n in (1000, 62))
    for name, value in expected.items():
        ratio = np.sqrt(np.mean((few[name] - value) ** 2) / np.mean((many[name] - value) ** 2))
        assert 2.6 < ratio < 6.2, (name, ratio)  # four, up to the error of thirty runs


# The smoother.


@pytest.fixture(scope="module")
def history():
    """Reports of one run on some data, always with the same noise."""
    model, ys, us = MODELS["inputs"]
    us = jnp.asarray(us)

    @jax.jit
    def run(ys):
        steps = steps_of(ys, us, ~jnp.isnan(ys))
        kernel = sk.EnsembleKalman(20).filter(model, steps(0))
        return ensemble.run(kernel, jax.random.key(4), steps, LENGTH, keep=True)[1]

    return lambda data=ys: run(jnp.asarray(data))


def test_a_fixed_lag_is_the_smoother_of_the_data_up_to_there(history):
    """What differs between runs is which observations were seen."""
    lagged, ys = smooth(history(), 2), MODELS["inputs"][1]
    for t in range(LENGTH):
        early = np.where(np.arange(LENGTH)[:, None] <= t + 2, ys, np.nan)
        whole = smooth(history(early), None)
        np.testing.assert_allclose(lagged.states[t], whole.states[t], rtol=1e-9, atol=1e-11)
    with pytest.raises(errors.NotComputed, match="whole paths"):
        lagged.sample(jax.random.key(0), 3)


def test_lags_go_from_the_filter_to_the_smoother(history):
    steps = history()
    whole = smooth(steps, None)
    np.testing.assert_array_equal(smooth(steps, 0).states, steps.filtered)
    np.testing.assert_allclose(smooth(steps, 50).states, whole.states, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(whole.states[-1], steps.filtered[-1])
    np.testing.assert_array_equal(whole.until(2).states, whole.states[:2])


def test_paths_are_members(history):
    paths = smooth(history(), None)
    drawn = np.asarray(paths.sample(jax.random.key(3), 200))
    members = np.moveaxis(np.asarray(paths.states), 0, 1)
    index = [np.flatnonzero((members == path).all((1, 2))) for path in drawn]
    assert all(len(i) == 1 for i in index)
    assert len(np.unique(index)) == 20  # one is left out with probability 1e-3


# Missing data, inflation, streams.

ENGINE = sk.EnsembleKalman(16, "stochastic", inflation=1.5, smoother=None)
HOLES = PAIRS.copy()
HOLES[3:5] = HOLES[1, 0] = np.nan


@pytest.fixture(scope="module")
def inflated():
    return sk.infer(0, ENGINE, BENT, HOLES, BENT_INPUTS)


def test_nothing_observed_is_exactly_a_prediction(inflated):
    """Inflation makes up for what observations do."""
    missing = np.array([3, 4])
    np.testing.assert_array_equal(inflated.log_likelihood[missing], 0.0)
    before, after = inflated.predicted.values, inflated.filtered.values
    np.testing.assert_array_equal(after[missing], before[missing])
    assert np.all(np.abs(after - before).max((1, 2))[[0, 1, 2, 5, 6, 7]] > 1e-3)
    with pytest.raises(errors.NotComputed, match=r"states was not computed by sk.EnsembleKalman"):
        _ = inflated.states


def test_inflation_widens_what_an_observation_leaves(inflated):
    plain = sk.infer(0, sk.EnsembleKalman(16, "stochastic"), BENT, HOLES, BENT_INPUTS)
    narrow, wide = (run.filtered.values[0] for run in (plain, inflated))
    np.testing.assert_allclose(wide.mean(0), narrow.mean(0), rtol=1e-12)
    np.testing.assert_allclose(wide - wide.mean(0), 1.5 * (narrow - narrow.mean(0)), rtol=1e-9)
    np.testing.assert_allclose(plain.log_likelihood[0], inflated.log_likelihood[0], rtol=1e-12)
    assert plain.log_likelihood[1] != inflated.log_likelihood[1]


def test_a_stream_has_the_numbers_of_infer(inflated):
    flow = sk.stream(0, ENGINE, BENT)
    for t, y in enumerate(HOLES):
        belief = flow.update(y, jax.tree.map(lambda a, t=t: a[t], BENT_INPUTS))
        expected = inflated.filtered.values[t]
        np.testing.assert_allclose(belief.values, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(flow.log_evidence, inflated.log_evidence, rtol=1e-12)


def test_a_stream_begins_with_draws_from_a_belief():
    count, cov = 10_000, jnp.array([[2.0, 0.9], [0.9, 1.0]])
    engine, belief = sk.EnsembleKalman(count), Gaussian(jnp.array([1.0, -1.0]), cov, (2,))
    carry = engine.begin(jax.random.key(0), BENT, belief, jnp.array(-3.0), None)
    now = engine.read(BENT, carry, None)
    error = np.sqrt(np.diag(cov) / count)
    assert np.all(np.abs(now["filtered"].mean() - belief.mean()) < 5 * error)
    bound = 5 * np.sqrt(2) * np.outer(error, np.sqrt(np.diag(cov)))
    assert np.all(np.abs(now["filtered"].cov() - cov) < bound)
    assert now["log_evidence"] == -3.0
    assert engine.takes_carry_of(sk.EnsembleKalman(count, "stochastic"))
    assert not engine.takes_carry_of(sk.EnsembleKalman(count - 1))
    assert not engine.takes_carry_of(sk.SMC(count))


# Gradients and types.


def compare_slopes(value, at):
    """A derivative, against finite differences of the same function."""
    run = jax.jit(jax.value_and_grad(value))
    (low, _), (_, slope), (high, _) = (run(jnp.array(at + h)) for h in (-1e-5, 0.0, 1e-5))
    assert np.isfinite(slope) and abs(slope) > 1e-2
    np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-5)


def test_gradients_of_the_evidence_are_those_of_finite_differences():
    """With noise that is held, gaps and an exact observation."""
    matrix, noise = jnp.array([[0.9, 0.2], [-0.1, 0.7]]), jnp.array([[0.5, 0.1], [0.1, 0.3]])
    engine, key = sk.EnsembleKalman(8, "stochastic"), keys.purpose(jax.random.key(0), "time")

    def value(scale):
        model = sk.models.LinearGaussian(
            jnp.zeros(2),
            jnp.eye(2),
            transition_matrix=matrix * scale,
            transition_cov=noise,
            emission_matrix=jnp.eye(2),
            emission_cov=jnp.diag(jnp.array([1.0, 0.0])) * scale,
        )
        return sk.log_evidence(key, engine, model, GAPS)

    compare_slopes(value, 0.8)


@pytest.mark.parametrize("seen", [[True, True, False], [False] * 3], ids=["part", "nothing"])
def test_gradients_of_the_square_root_are_those_of_finite_differences(seen):
    members, matrix, noise, y = map(jnp.asarray, forecast_ensemble(rank=1))

    def value(scale):
        arguments = members @ matrix.T, noise * scale, y, jnp.array(seen)
        transform, log_likelihood = ensemble.condition(*arguments)
        return jnp.sum(jnp.sin(transform(members * scale))) + log_likelihood

    compare_slopes(value, 0.8)


def test_float32_is_close_to_float64_where_observations_are_precise():
    """The innovation covariance is never formed, so half of the digits are not lost with it."""
    members, matrix, _, y = forecast_ensemble()
    arguments, mask = (members @ matrix.T, 1e-7 * np.eye(3), y), jnp.ones(3, bool)
    double = condition(*map(jnp.asarray, arguments), mask)[0](members)
    single = condition(*(jnp.asarray(a, jnp.float32) for a in arguments), mask)[0]
    after = single(jnp.asarray(members, jnp.float32))
    assert after.dtype == jnp.float32
    np.testing.assert_allclose(after, double, atol=3e-4 * np.abs(members).max())


# A benchmark of the literature.


def flow_96(x, h=0.05):
    """One Runge-Kutta step of forty coordinates on a circle."""

    def slope(x):
        return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8.0

    a = slope(x)
    b = slope(x + h / 2 * a)
    c = slope(x + h / 2 * b)
    return x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c))


class Lorenz96(sk.StateSpaceModel):
    """Moves without noise, from a known point; all coordinates are seen with unit variance."""

    start: jax.Array

    def initial(self, u):
        return dist.Normal(self.start, 1.0).to_event(1)

    def transition(self, x, u):
        return dist.Delta(flow_96(x), event_dim=1)

    def emission(self, x, u):
        return dist.Normal(x, 1.0).to_event(1)


@pytest.fixture(scope="module")
def weather():
    """A model that begins where it may be, and what it did."""
    start = 8 + 0.01 * np.random.default_rng(0).normal(size=40)
    model = Lorenz96(jax.lax.fori_loop(0, 500, lambda _, x: flow_96(x), jnp.asarray(start)))
    return model, sk.simulate(1, model, 500)


@pytest.mark.parametrize(
    ("engine", "known"),
    [
        (sk.EnsembleKalman(24, inflation=1.02, smoother=None), 0.18),
        (sk.EnsembleKalman(40, "stochastic", inflation=1.06, smoother=None), 0.22),
    ],
    ids=UPDATES,
)
def test_lorenz_96_is_followed_as_closely_as_is_known(weather, engine, known):
    """Fewer members than coordinates; the errors that Sakov and Oke (2008) and DAPPER report."""
    model, (states, ys) = weather
    belief = sk.infer(2, engine, model, ys).filtered
    error = np.sqrt(np.mean((belief.mean() - states) ** 2, axis=1))[150:].mean()
    assert abs(error - known) < 0.03
    spread = np.sqrt(np.mean(belief.std() ** 2, axis=1))[150:].mean()
    assert 0.8 < spread / error < 1.3


# What is refused.


class Odd(sk.StateSpaceModel):
    """A model with laws of one's choice."""

    start: dist.Distribution = dist.Normal(0.0, 1.0)
    move: object = lambda x: dist.Normal(x, 1.0)
    see: object = lambda x: dist.Normal(x, 1.0)

    def initial(self, u):
        return self.start

    def transition(self, x, u):
        return self.move(x)

    def emission(self, x, u):
        return self.see(x)


def bent_normal(x):
    return dist.TransformedDistribution(dist.Normal(x, 1.0), dist.transforms.SigmoidTransform())


REFUSED = {
    "one member": (sk.EnsembleKalman(1), Odd(), errors.OptionError, "num_particles(.|\n)*≥ 2"),
    "no count": (sk.EnsembleKalman(2.5), Odd(), errors.OptionError, "num_particles"),
    "update": (
        sk.EnsembleKalman(update="etkf"), Odd(), errors.OptionError,
        "unknown update(.|\n)*square_root(.|\n)*stochastic",
    ),
    "smoother": (
        sk.EnsembleKalman(smoother="rts"), Odd(), errors.OptionError,
        "unknown smoother(.|\n)*fixed_lag",
    ),
    "lag": (sk.EnsembleKalman(lag=-1), Odd(), errors.OptionError, "lag"),
    "deflation": (
        sk.EnsembleKalman(inflation=0.9), Odd(), errors.OptionError, "inflation(.|\n)*≥ 1",
    ),
    "nan": (sk.EnsembleKalman(inflation=float("nan")), Odd(), errors.OptionError, "inflation"),
    "diffuse": (
        sk.EnsembleKalman(), sk.models.LocalLevel(1.0, 1.0), errors.ImproperStartError,
        "diffuse start(.|\n)*sk.Kalman",
    ),
    "positive start": (
        sk.EnsembleKalman(), Odd(start=dist.LogNormal(0.0, 1.0)), errors.ModelError,
        "initial LogNormal(.|\n)*logarithm",
    ),
    "positive transition": (
        sk.EnsembleKalman(), Odd(move=lambda x: dist.Gamma(2.0, jnp.exp(x))), errors.ModelError,
        "transition Gamma",
    ),
    "finite": (
        sk.EnsembleKalman(), Odd(start=dist.Bernoulli(0.5)), errors.ModelError,
        "Bernoulli(.|\n)*ForwardBackward",
    ),
    "no mean": (
        sk.EnsembleKalman(), Odd(see=lambda x: dist.Cauchy(x, 1.0)), errors.ModelError,
        "mean and variance(.|\n)*Cauchy",
    ),
    "no variance": (
        sk.EnsembleKalman(), Odd(see=lambda x: dist.StudentT(1.5, x, 1.0)), errors.ModelError,
        "mean and variance(.|\n)*StudentT",
    ),
    "unknown mean": (
        sk.EnsembleKalman(), Odd(see=bent_normal), errors.ModelError,
        "mean and variance(.|\n)*TransformedDistribution",
    ),
    "volatility": (
        sk.EnsembleKalman(), sk.models.StochasticVolatility(-1.0, 0.9, 0.2), errors.EngineError,
        "would learn nothing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_wrong_is_refused_by_name(name):
    engine, model, kind, message = REFUSED[name]
    ys = np.full(3, 0.5)
    with pytest.raises(kind, match=message):
        sk.infer(0, engine, model, ys)
    with pytest.raises(kind, match=message):
        sk.stream(0, engine, model).update(ys[0])


def test_options_are_shown():
    assert repr(sk.EnsembleKalman()) == "sk.EnsembleKalman(num_particles=100, update='square_root')"
