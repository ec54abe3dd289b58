"""Particle filters and smoothers against Kalman and a grid; tolerances are Monte Carlo errors."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from grid_reference import stochastic_volatility

import ssmkit as sk
from ssmkit.models.base import as_arrays
from ssmkit.smc.feynman_kac import Selection
from ssmkit.smc.filter import ParticleFilter
from ssmkit.smc.recipes import Step
from ssmkit.smc.resampling import SCHEMES, selector
from ssmkit.smc.weights import log_mean_exp

LENGTH, COUNT = 6, 192
SV = (-0.5, 0.9, 0.6)
RETURNS = np.array([0.4, -2.6, 0.2, 0.9, -0.1, 2.0])
PAIRS = np.array([[0.5, 0.4], [0.9, 0.3], [-0.4, 0.5], [0.1, -0.6], [1.0, 0.4], [0.3, 0.6]])


def linear():
    """Two states, two observations with correlated noise."""
    return sk.models.LinearGaussian(
        np.array([0.5, -0.5]),
        np.array([[1.0, 0.2], [0.2, 2.0]]),
        np.array([[0.8, 0.3], [-0.2, 0.7]]),
        np.array([[0.5, 0.1], [0.1, 0.3]]),
        np.array([[1.0, 0.2], [0.5, -1.0]]),
        np.array([[0.6, 0.4], [0.4, 0.5]]),
    )


def wide(model, x, y, u):
    """A proposal that covers the transition and leans on the observation."""
    moved = model.transition(x, u)
    if moved.event_shape == ():
        return dist.StudentT(5.0, moved.mean + 0.1 * jnp.log(y**2 + 0.1), 0.9)
    return dist.Normal(moved.mean + 0.05 * y, jnp.array([0.73, 0.57])).to_event(1)


def peek(model, x, y, u):
    """A rough look-ahead; its value only moves the effort."""
    return -0.1 * jnp.sum((model.transition(x, u).mean - y) ** 2)


MODELS = {
    "linear": (linear(), PAIRS),
    "volatility": (sk.models.StochasticVolatility(*SV), RETURNS),
}
ENGINES = {
    "bootstrap": sk.SMC(COUNT),
    "linearised": sk.SMC(COUNT, proposal=sk.Linearised()),
    "proposal": sk.SMC(COUNT, proposal=sk.Proposal(wide)),
    "auxiliary": sk.SMC(COUNT, lookahead=peek),
    "guided auxiliary": sk.SMC(COUNT, proposal=sk.Linearised(), lookahead="mean"),
}


@cache
def exact(name):
    model, ys = MODELS[name]
    if name == "linear":
        return float(sk.infer(0, sk.Kalman(), model, ys).log_evidence)
    return stochastic_volatility(*SV, ys).log_evidence


def ratios(name, engine, select, combinations, count):
    """``Ẑ / Z`` of ``count`` runs ``(combinations, count)``; one compilation for all choices."""
    model, ys = as_arrays(MODELS[name][0]), jnp.asarray(MODELS[name][1])
    keys = jax.random.split(jax.random.key(len(name)), count)

    def run(key, choice):
        plain = engine.filter(model, Step(0, ys[0], None, None))
        particle_filter = ParticleFilter(plain.recipe, select(choice), *plain[2:])
        return particle_filter.run(key, (ys, None, None), keep=False)[0].log_evidence

    each = lambda choice: jax.vmap(lambda k: run(k, choice))(keys)  # noqa: E731
    values = jax.jit(lambda c: jax.lax.map(each, c))(combinations)
    return np.exp(np.asarray(values) - exact(name))


def every_choice(choice):
    """Scheme and threshold as traced numbers."""
    scheme, threshold = choice

    def draw(key, weights):
        return jax.lax.switch(scheme.astype(int), list(SCHEMES.values()), key, weights)

    def criterion(weights):
        return 1 / jnp.sum(weights**2) <= threshold * weights.shape[0] * (1 + 1e-9)

    return selector(draw, criterion)


# never to resample is the same under all schemes
CHOICES = jnp.array([(0, 0.0), *((s, t) for s in range(len(SCHEMES)) for t in (0.5, 1.0))])


@pytest.mark.study
@pytest.mark.parametrize("recipe", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_the_evidence_is_unbiased(name, recipe):
    """Under every scheme and at thresholds 0, ½ and 1."""
    found = ratios(name, ENGINES[recipe], every_choice, CHOICES, 3000)
    error = found.std(axis=1) / np.sqrt(found.shape[1])
    assert error.max() <= 0.03
    assert np.all(np.abs(found.mean(axis=1) - 1) < 4 * error)


def without_weights(choice):
    """The field's most repeated bug: without a selection the weights are forgotten."""

    def select(key, particles, log_weights, ahead, s):
        told = every_choice(choice)(key, particles, log_weights, ahead, s)
        return Selection(told.ancestors, jnp.zeros_like(log_weights), told.resampled)

    return select


def lookahead_kept(choice):
    """The look-ahead is used for the selection and not divided out."""

    def select(key, particles, log_weights, ahead, s):
        return every_choice(choice)(key, particles, log_weights + ahead, None, s)

    return select


@pytest.mark.study
@pytest.mark.parametrize(
    ("fault", "recipe"), [(without_weights, "bootstrap"), (lookahead_kept, "auxiliary")]
)
def test_planted_faults_are_seen(fault, recipe):
    found = ratios("volatility", ENGINES[recipe], fault, jnp.array([(0, 0.5), (0, 0.5)]), 3000)[0]
    error = found.std() / np.sqrt(found.size)
    assert abs(found.mean() - 1) > 5 * error


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_thresholds_written_as_numbers_do_the_same(threshold):
    model, ys = MODELS["volatility"]
    engine = sk.SMC(COUNT, threshold=threshold, smoother=None)
    posterior = sk.infer(0, engine, model, ys)
    share = posterior.diagnostics["resampled"][1:].mean()
    assert share == threshold if threshold in (0.0, 1.0) else 0 < share < 1
    plain = engine.filter(as_arrays(model), Step(0, jnp.asarray(ys[0]), None, None))
    choice = every_choice((jnp.array(0), threshold))
    other = ParticleFilter(plain.recipe, choice, *plain[2:])
    from ssmkit import keys

    key = keys.purpose(jax.random.key(0), "time")
    value = other.run(key, (jnp.asarray(ys), None, None), keep=False)[0].log_evidence
    np.testing.assert_allclose(value, posterior.log_evidence, rtol=1e-12)


# Resampling schemes.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_expected_offspring_are_proportional_to_the_weights(scheme):
    """And whoever has no weight has no offspring, also at the ends."""
    raw = np.random.default_rng(1).exponential(size=40) ** 2
    raw[[0, 7, 8, 39]] = 0.0
    weights = jnp.asarray(raw / raw.sum())
    keys = jax.random.split(jax.random.key(2), 20_000)
    draw = jax.jit(jax.vmap(partial(SCHEMES[scheme], weights=weights)))
    ancestors = np.asarray(draw(keys))
    counts = np.stack([np.sum(ancestors == i, axis=1) for i in range(40)], axis=1)
    assert ancestors.min() >= 0 and ancestors.max() < 40
    error = counts.std(axis=0) / np.sqrt(len(keys))
    expected = 40 * np.asarray(weights)
    assert np.all(np.abs(counts.mean(axis=0) - expected) <= 4.5 * error + 1e-12)
    assert counts[:, [0, 7, 8, 39]].sum() == 0
    if scheme in ("systematic", "residual"):
        assert np.all(counts >= np.floor(expected - 1e-9))
    if scheme == "systematic":
        assert np.all(counts <= np.ceil(expected + 1e-9))


def test_equal_weights_keep_everybody_under_low_noise_schemes():
    weights = jnp.full(50, 1 / 50)
    for scheme in ("systematic", "stratified", "residual"):
        found = SCHEMES[scheme](jax.random.key(0), weights)
        np.testing.assert_array_equal(found, np.arange(50))


# Moments.


REPLICATES = 40


def replicated(name, engine, read):
    """What ``read`` takes from posteriors of independent runs."""
    model, ys = as_arrays(MODELS[name][0]), jnp.asarray(MODELS[name][1])

    def one(key):
        return read(engine.infer(key, model, ys, None, None, "all"))

    keys = jax.random.split(jax.random.key(5), REPLICATES)
    return jax.tree.map(np.asarray, jax.jit(lambda k: jax.lax.map(one, k))(keys))


def agree(found, expected):
    """The mean over runs is the exact value, to four standard errors and a small bias of 1/N."""
    error = found.std(axis=0, ddof=1) / np.sqrt(REPLICATES)
    assert np.all(np.abs(found.mean(axis=0) - np.asarray(expected)) < 4 * error + 2e-3)
    return error


SMOOTHERS = {
    "backward": {},
    "backward_mcmc": {"num_moves": 20},
    "genealogy": {},
    "fixed_lag": {"lag": LENGTH},
}


@pytest.mark.study
@pytest.mark.parametrize("smoother", SMOOTHERS)
@pytest.mark.parametrize("name", MODELS)
def test_moments_are_exact(name, smoother):
    options = SMOOTHERS[smoother]
    guide = sk.Linearised() if smoother in ("genealogy", "backward_mcmc") else None
    engine = sk.SMC(1500, proposal=guide, smoother=smoother, num_paths=500, **options)

    def read(parts):
        beliefs = parts["filtered"], parts["predicted"], parts["states"][0]
        return tuple((b.mean(), b.std() ** 2) for b in beliefs)

    filtered, predicted, smoothed = replicated(name, engine, read)
    model, ys = MODELS[name]
    if name == "linear":
        kalman = sk.infer(0, sk.Kalman(), model, ys)
        pairs = zip((filtered, predicted, smoothed), BELIEFS, strict=True)
        for found, belief in pairs:
            agree(found[0], getattr(kalman, belief).mean())
            agree(found[1], getattr(kalman, belief).std() ** 2)
        return
    grid = stochastic_volatility(*SV, ys)
    agree(filtered[0], grid.filtered)
    agree(filtered[1], grid.filtered_variance)
    agree(predicted[0], grid.predicted)
    agree(smoothed[0], grid.smoothed)


BELIEFS = ("filtered", "predicted", "states")


@pytest.mark.study
@pytest.mark.parametrize("smoother", ["backward", "backward_mcmc"])
def test_additive_sums_over_paths(smoother):
    """E of the sum of products of neighbours, which marginals alone do not give."""
    engine = sk.SMC(1000, smoother=smoother, num_moves=20, num_paths=2)

    def read(parts):
        paths = parts["states"][1].sample(jax.random.key(3), 500)
        return jnp.mean(jnp.sum(paths[:, 1:] * paths[:, :-1], axis=(1, 2)))

    found = replicated("linear", engine, read)
    kalman = sk.infer(0, sk.Kalman(), *MODELS["linear"])
    draws = kalman.states.sample(7, 200_000)
    exact_sum = np.sum(np.asarray(draws[:, 1:] * draws[:, :-1]), axis=(1, 2))
    slack = 4 * exact_sum.std() / np.sqrt(len(exact_sum))
    error = found.std(ddof=1) / np.sqrt(REPLICATES)
    assert abs(found.mean() - exact_sum.mean()) < 4 * error + slack


def test_the_default_smoother_keeps_many_first_states():
    """At T = N = 1,000 genealogies keep one or two."""
    model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
    ys = sk.simulate(3, model, 1000).observations
    posterior = sk.infer(1, sk.SMC(1000), model, ys)
    assert len(np.unique(posterior.states.marginals.values[0])) >= 200


@pytest.mark.study
def test_the_error_falls_with_the_root_of_the_number():
    model, ys = as_arrays(MODELS["linear"][0]), jnp.asarray(PAIRS)
    kalman = np.asarray(sk.infer(0, sk.Kalman(), model, PAIRS).filtered.mean())
    sizes, errors = np.array([100, 400, 1600, 6400]), []
    for size in sizes:
        engine = sk.SMC(int(size), smoother=None)

        def one(key, engine=engine):
            return engine.infer(key, model, ys, None, None, "all")["filtered"].mean()

        found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 64))
        errors.append(np.sqrt(np.mean((np.asarray(found) - kalman) ** 2)))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4


# Gradients.


def level(theta):
    """A local level by its log variances, with a proper start."""
    one = jnp.ones((1, 1))
    return sk.models.LinearGaussian(
        jnp.zeros(1), one, 0.9 * one, jnp.exp(theta[0]) * one, one, jnp.exp(theta[1]) * one,
        singular=(),
    )  # fmt: skip


THETA = jnp.array([-0.5, 0.2])
WALK = np.cumsum(np.random.default_rng(4).normal(size=60))[:, None] * 0.5


def gradients(engine, count, length=60):
    ys = jnp.asarray(WALK[:length])

    def value(theta, key):
        return engine.log_evidence(key, level(theta), ys, None, None)

    keys = jax.random.split(jax.random.key(6), count)
    return np.asarray(jax.jit(jax.vmap(jax.grad(value), (None, 0)))(THETA, keys))


def kalman_gradient(length=60):
    ys = jnp.asarray(WALK[:length])
    score = jax.grad(lambda t: sk.log_evidence(jax.random.key(0), sk.Kalman(), level(t), ys))
    return np.asarray(score(THETA))


@pytest.mark.study
@pytest.mark.parametrize("recipe", ["bootstrap", "linearised"])
def test_the_gradient_is_that_of_kalman(recipe):
    engine = sk.SMC(400, proposal=ENGINES[recipe].proposal)
    found, target = gradients(engine, 60), kalman_gradient()
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0) - target) < 4 * error + 0.02 * np.abs(target))


@pytest.mark.study
def test_constant_ancestors_are_seen(monkeypatch):
    """Plain differentiation, which forgets that the choice depends on the parameters."""
    from ssmkit.smc import resampling

    monkeypatch.setattr(resampling, "surrogate", jnp.zeros_like)
    found, target = gradients(sk.SMC(400, threshold=0.5), 60), kalman_gradient()
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.any(np.abs(found.mean(axis=0) - target) > 10 * error)


class Chain(sk.StateSpaceModel):
    """A finite state, which has no gradient of its own."""

    logit: object

    def initial(self, u):
        return dist.Categorical(probs=jnp.array([0.5, 0.5]))

    def transition(self, x, u):
        stay = jnp.where(x == 0, 1.0, -1.0) * self.logit
        return dist.Categorical(logits=jnp.stack([stay, -stay]))

    def emission(self, x, u):
        return dist.Normal(jnp.where(x == 0, -1.0, 1.0), 0.8)


@pytest.mark.study
def test_the_gradient_of_a_discrete_model():
    ys = jnp.array([-1.0, -0.5, 0.3, 1.2, 0.8, -0.9, -1.4, 0.1])

    def value(engine, logit, key):
        return engine.log_evidence(key, Chain(logit), ys, None, None)

    keys = jax.random.split(jax.random.key(0), 200)
    slope = jax.jit(jax.vmap(jax.grad(partial(value, sk.SMC(500))), (None, 0)))
    found = np.asarray(slope(jnp.array(0.7), keys))
    exact_slope = jax.grad(partial(value, sk.ForwardBackward()))(jnp.array(0.7), keys[0])
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - exact_slope) < 4 * error + 0.005
    assert error < 0.05 * abs(exact_slope)


# Standard errors.


@pytest.mark.study
@pytest.mark.parametrize("scheme", ["multinomial", "systematic"])
def test_the_standard_error_is_that_of_replicates(scheme):
    """The relative variance by lineage, averaged over runs, against that over runs."""
    model, ys = as_arrays(MODELS["volatility"][0]), jnp.asarray(RETURNS)
    threshold = 1.0 if scheme == "multinomial" else 0.5
    engine = sk.SMC(500, resampling=scheme, threshold=threshold, smoother=None)

    def one(key):
        parts = engine.infer(key, model, ys, None, None, "final")
        return parts["log_evidence"], parts["log_evidence_se"]

    run = jax.jit(lambda k: jax.lax.map(jax.vmap(one), k))
    keys = jax.random.split(jax.random.key(1), (20, 100))
    values, errors = (np.ravel(a) for a in run(keys))
    relative = np.exp(values - exact("volatility"))
    assert np.isfinite(errors).all()
    ratio = np.mean(errors**2) / relative.var(ddof=1)
    # the relative error of a variance over R runs is about the root of 2 / R
    assert abs(ratio - 1) < 4 * np.sqrt(2 / len(values)) + 0.1
    inside = np.abs(values - exact("volatility")) < 1.96 * errors
    assert 0.92 < inside.mean() < 0.98


def test_without_survivors_there_is_no_standard_error():
    model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
    ys = sk.simulate(3, model, 400).observations
    posterior = sk.infer(1, sk.SMC(50, smoother=None), model, ys)
    assert posterior.diagnostics["surviving_ancestors"] < 5
    assert np.isnan(posterior.log_evidence_se)
    assert "± unknown" in repr(posterior)
    assert "first ancestors" in repr(posterior.summary())


# Noise.


@pytest.mark.parametrize("recipe", ["bootstrap", "linearised", "proposal"])
def test_no_two_particles_share_noise(recipe):
    model, ys = MODELS["volatility"]
    posterior = sk.infer(0, ENGINES[recipe], model, ys)
    for values in np.asarray(posterior.filtered.values):
        assert len(np.unique(values)) == COUNT
    ahead = sk.forecast(1, posterior, 2)
    assert (
        len(np.unique(ahead.states.values))
        == len(np.unique(ahead.observations.values))
        == 2 * COUNT
    )


def test_laws_that_take_a_key_do_not_share_noise():
    class Heavy(sk.StateSpaceModel):
        def initial(self, u):
            return dist.StudentT(4.0, 0.0, 1.0)

        def transition(self, x, u):
            return dist.Gamma(2.0, 1.0 + x**2)

        def emission(self, x, u):
            return dist.Normal(x, 1.0)

    posterior = sk.infer(0, sk.SMC(COUNT), Heavy(), RETURNS)
    for values in np.asarray(posterior.filtered.values):
        assert len(np.unique(values)) == COUNT


# Weights that vanish.


class Strip(sk.StateSpaceModel):
    """Observations outside the strip around the state are impossible."""

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(x, 1.0)

    def emission(self, x, u):
        return dist.Uniform(x - 3, x + 3)


def test_a_dead_cloud_is_a_named_error_that_says_when():
    ys = np.array([0.1, 0.2, 90.0, 0.3])
    with pytest.raises(sk.errors.NonFiniteError, match=r"t=2(.|\n)*particles"):
        sk.infer(0, sk.SMC(100), Strip(), ys)
    posterior = sk.infer(0, sk.SMC(100), Strip(), ys, throw=False)
    assert posterior.diagnostics["first_bad_step"] == 2
    assert np.isneginf(posterior.log_evidence)
    for belief in (posterior.filtered, posterior.predicted, posterior.states):
        assert np.isfinite(belief.mean()).all()
    value = jax.jit(lambda y: sk.log_evidence(jax.random.key(0), sk.SMC(100), Strip(), y))(ys)
    assert np.isneginf(value)


def test_log_mean_exp_of_nothing():
    assert np.isneginf(log_mean_exp(jnp.full(3, -jnp.inf)))
    slope = jax.grad(log_mean_exp)(jnp.array([-jnp.inf, 0.0, 1.0]))
    np.testing.assert_allclose(slope, [0, 1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-12)


# Errors.


def test_the_smoother_shows():
    assert repr(sk.SMC()) == "sk.SMC(num_particles=1000, smoother='backward')"
    assert "smoother=None" in repr(sk.SMC(smoother=None))


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (sk.SMC(0), "num_particles(.|\n)*≥ 2"),
        (sk.SMC(1), "num_particles(.|\n)*≥ 2"),
        (sk.SMC(10.0), "num_particles"),
        (sk.SMC(resampling="sistematic"), "unknown resampling(.|\n)*systematic"),
        (sk.SMC(threshold=3.0), "share of the particles"),
        (sk.SMC(smoother="ffbs"), "unknown smoother(.|\n)*backward"),
        (sk.SMC(lookahead="mode"), "unknown lookahead"),
        (sk.SMC(proposal=wide), "sk.Proposal"),
    ],
)
def test_misspelt_options(engine, words):
    with pytest.raises(sk.errors.OptionError, match=words):
        sk.infer(0, engine, *MODELS["volatility"])


def returns_pair(model, x, y, u):
    return dist.Normal(jnp.zeros(2), 1.0)


def fails(model, x, y, u):
    return dist.Normal(model.nothing, 1.0)


def test_proposals_that_do_not_fit():
    for function, kind in ((returns_pair, sk.errors.ShapeError), (fails, sk.errors.ModelError)):
        engine = sk.SMC(proposal=sk.Proposal(function))
        with pytest.raises(kind, match="proposal's transition function"):
            sk.infer(0, engine, *MODELS["volatility"])


def test_models_that_particles_cannot_serve():
    trend = sk.models.LocalLinearTrend(0.1, 0.1, 1.0)
    with pytest.raises(sk.errors.ImproperStartError):
        sk.infer(0, sk.SMC(100), trend, RETURNS)
    singular = sk.models.AdditiveGaussian(
        jnp.tanh, jnp.sum, np.array([1.0, 0.0]), 1.0, np.zeros(2), 1.0
    )
    with pytest.raises(sk.errors.SingularTransitionError, match="genealogy"):
        sk.infer(0, sk.SMC(100), singular, RETURNS)
    engine = sk.SMC(100, proposal=sk.Linearised(), smoother="genealogy")
    assert np.isfinite(sk.infer(0, engine, singular, RETURNS).log_evidence)
    heavy = Chain(0.5)
    with pytest.raises(sk.errors.ModelError, match="Gaussian transition"):
        sk.infer(0, sk.SMC(100, proposal=sk.Linearised()), heavy, RETURNS)
    with pytest.raises(sk.errors.OptionError, match="has a mean"):
        sk.infer(0, sk.SMC(100, lookahead="mean"), heavy, RETURNS)


# Parameters.


def fitted_volatility():
    positive = dist.constraints.positive
    scale = numpyro.param("scale", 0.5, constraint=positive)
    return sk.models.StochasticVolatility(SV[0], SV[1], scale)


def drawn_volatility():
    return sk.models.StochasticVolatility(*SV[:2], numpyro.sample("scale", dist.HalfNormal(1.0)))


def test_a_noisy_evidence_gives_no_standard_errors_and_no_nuts():
    engine = sk.GradientFit(sk.SMC(50, smoother="genealogy"), num_starts=1, max_steps=3)
    fit = sk.infer(0, engine, fitted_volatility, RETURNS, progress=False)
    assert np.isnan(fit.estimates.standard_errors).all()
    assert any("curvature" in warning for warning in fit.estimates.warnings)
    with pytest.raises(sk.errors.EngineError, match="ParticleMetropolisHastings"):
        sk.infer(0, sk.NUTS(sk.SMC(50)), drawn_volatility, RETURNS)
    with pytest.raises(sk.errors.ParameterError, match="scale"):
        sk.infer(0, sk.SMC(50), drawn_volatility, RETURNS)


def test_exact_evidence_has_no_error_and_approximate_one_no_standard_error():
    model, ys = MODELS["linear"]
    assert float(sk.infer(0, sk.Kalman(), model, ys).log_evidence_se) == 0.0
    bent = sk.models.AdditiveGaussian(jnp.sin, jnp.tanh, 0.5, 0.5, 0.0, 1.0)
    posterior = sk.infer(0, sk.ExtendedKalman(), bent, RETURNS)
    with pytest.raises(sk.errors.NotComputed, match="no Monte Carlo estimate"):
        _ = posterior.log_evidence_se
