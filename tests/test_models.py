"""The model zoo: laws against formulas, stationary moments, log joints by hand, bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from scipy.integrate import solve_ivp

import ssmkit as sk
from ssmkit import models
from ssmkit.errors import DataError, ModelError, ParameterError, ShapeError
from ssmkit.models import (
    AdditiveGaussian,
    ChaoticNetwork,
    Diffuse,
    DiscreteHMM,
    GaussianDrift,
    Growth,
    HodgkinHuxley,
    LinearGaussian,
    Lorenz63,
    MultivariateStochasticVolatility,
    Pendulum,
    PoissonCounts,
    SingularNormal,
    StochasticVolatility,
    log_joint,
    simulate,
)
from ssmkit.models.base import simulate_series
from ssmkit.models.hodgkin_huxley import rates

KEY = jax.random.key(0)
STAY = np.array([[0.9, 0.1], [0.2, 0.8]])


def within(sample, expected, errors=5.0):
    """The mean of independent numbers is as expected, within their Monte Carlo error."""
    sample = np.asarray(sample, float)
    error = sample.std(axis=0) / np.sqrt(len(sample))
    np.testing.assert_array_less(np.abs(sample.mean(axis=0) - expected), errors * error + 1e-12)


def matrices(**changes):
    arrays = {
        "initial_mean": np.array([1.0, -1.0]),
        "initial_cov": np.array([[2.0, 0.3], [0.3, 1.0]]),
        "transition_matrix": np.array([[0.9, 0.2], [0.0, 0.7]]),
        "transition_cov": np.array([[0.5, 0.1], [0.1, 0.4]]),
        "emission_matrix": np.array([[1.0, 0.5]]),
        "emission_cov": np.array([[0.3]]),
    }
    return arrays | changes


def varying():
    rng = np.random.default_rng(0)
    return LinearGaussian(
        **matrices(
            transition_matrix=rng.normal(size=(4, 2, 2)),
            emission_matrix=rng.normal(size=(4, 1, 2)),
            emission_bias=rng.normal(size=(4, 1)),
            transition_bias=np.array([0.1, 0.2]),
            transition_input=rng.normal(size=(2, 3)),
            emission_input=rng.normal(size=(4, 1, 3)),
        )
    )


def assets(**changes):
    arrays = {"mean": [0.3, -1.0], "persistence": [0.9, -0.5], "scale": [0.4, 0.6]}
    return MultivariateStochasticVolatility(**(arrays | {"beta": [0.5, 2.0]} | changes))


ZOO = {
    "linear": lambda: LinearGaussian(**matrices()),
    "volatility": lambda: StochasticVolatility(-1.0, 0.9, 0.3),
    "volatilities": assets,
    "drift": lambda: GaussianDrift(0.7, 1.3),
    "neuron": lambda: HodgkinHuxley(13.0),
    "pendulum": Pendulum,
    "lorenz": lambda: Lorenz63(observed=(0, 2)),
    "network": lambda: ChaoticNetwork.random(0, 3),
    "growth": Growth,
    "counts": lambda: PoissonCounts(1.0, 0.8, 0.3),
    "walk of counts": lambda: PoissonCounts(1.0, 1.0, 0.1, initial_scale=0.5),
    "hmm": lambda: DiscreteHMM.normal([0.5, 0.5], STAY, [0.0, 3.0], [1.0, 2.0]),
    "additive": lambda: AdditiveGaussian(jnp.sin, bend, 0.3, 0.5, jnp.zeros(2), 1.0),
}


def bend(x, u):
    return x[0] ** 2


@pytest.mark.parametrize("name", ZOO)
def test_log_joint_is_the_sum_of_its_terms(name):
    model = ZOO[name]()
    xs, ys = simulate(1, model, 4)
    assert xs.dtype in (jnp.float64, jnp.int32, jnp.int64)
    assert np.all(np.isfinite(np.asarray(ys, float)))
    value, expected = both_log_joints(model, xs, ys)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


@eqx.filter_jit
def both_log_joints(model, xs, ys):
    by_hand = model.initial(None).log_prob(xs[0])
    for t in range(4):
        law = model.at(t).transition(xs[t - 1], None)
        by_hand += law.log_prob(xs[t]) if t else 0.0
        by_hand += model.at(t).emission(xs[t], None).log_prob(ys[t])
    return log_joint(model, xs, ys), by_hand


@pytest.mark.parametrize("name", ["linear", "counts", "hmm", "volatilities", "drift", "neuron"])
def test_models_keep_float32(name):
    model = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32) if eqx.is_inexact_array_like(a) else a, ZOO[name]()
    )
    x = jnp.zeros(model.initial(None).event_shape, jnp.float32 if name != "hmm" else int)

    def leaves(x):
        laws = [model.initial(None), model.transition(x, None), model.emission(x, None)]
        return jax.tree.leaves(laws) + [law.mean for law in laws]

    assert {leaf.dtype for leaf in jax.eval_shape(leaves, x)} == {jnp.dtype("float32")}


def test_simulation_is_one_stream_a_series():
    model = StochasticVolatility(-1.0, 0.9, 0.3)
    many = simulate(0, model, 5, num_series=3)
    assert many.states.shape == many.observations.shape == (3, 5)
    assert len(np.unique(np.asarray(many.states))) == 15


def test_volatility_is_stationary_with_the_moments_of_the_formula():
    mean, persistence, scale = -0.5, 0.8, 0.6
    variance = scale**2 / (1 - persistence**2)
    model = StochasticVolatility(mean, persistence, scale)
    xs, ys = simulate(0, model, 6, num_series=20_000)
    within(xs, np.full(6, mean))
    within((xs - mean) ** 2, np.full(6, variance))
    within((xs[:, 0] - mean) * (xs[:, 3] - mean), persistence**3 * variance)
    within(ys**2, np.full(6, np.exp(mean + variance / 2)), errors=6)


def test_volatilities_are_their_formulas_asset_by_asset():
    model = assets()
    mean, phi, scale, beta = (np.asarray(leaf) for leaf in jax.tree.leaves(model))
    xs, ys = simulate(0, model, 4)
    means = np.concatenate([mean[None], mean + phi * (xs[:-1] - mean)])  # x_0 ~ N(mean, scale^2)
    states = scipy.stats.norm(means, scale).logpdf(xs).sum()
    returns = scipy.stats.norm(0.0, beta * np.exp(np.asarray(xs) / 2)).logpdf(ys)
    np.testing.assert_allclose(log_joint(model, xs, ys), states + returns.sum(), rtol=1e-10)
    gaps = np.array([[1, 1], [1, 0], [0, 0], [0, 1]], bool)
    seen = np.where(gaps, returns, 0.0).sum()
    holes = jnp.where(gaps, ys, jnp.nan)
    np.testing.assert_allclose(log_joint(model, xs, holes), states + seen, rtol=1e-10)


def test_mean_and_beta_of_volatilities_are_one_parameter():
    shift = np.array([0.7, -0.4])
    model = assets()
    other = assets(mean=model.mean + shift, beta=model.beta * np.exp(-shift / 2))
    (xs, ys), (moved, same) = simulate(0, model, 30), simulate(0, other, 30)
    np.testing.assert_allclose(moved, xs + shift, rtol=1e-10)
    np.testing.assert_allclose(same, ys, rtol=1e-10)


def test_drift_seen_at_its_end_has_the_law_of_the_formula():
    drift, scale = 0.7, 1.3
    for steps in (1, 6):
        ys = jnp.full(steps, jnp.nan).at[-1].set(2.5)
        found = sk.log_evidence(KEY, sk.ExtendedKalman(), GaussianDrift(drift, scale), ys)
        law = scipy.stats.norm((steps + 1) * drift, scale * np.sqrt(steps + 1))
        np.testing.assert_allclose(found, law.logpdf(2.5), rtol=1e-10)


def test_drift_has_the_lookahead_and_the_proposal_of_the_formula():
    """Step by step from the end: transition x lookahead = proposal x lookahead of one step more."""
    drift, scale, y, before = 0.7, 1.3, 2.5, -0.4
    model = GaussianDrift(drift, scale)
    x = jnp.linspace(-3.0, 3.0, 5)

    def lookahead(n, x):
        return scipy.stats.norm(x + n * drift, scale * np.sqrt(n)).logpdf(y)

    emission = jax.vmap(lambda x: model.emission(x, None).log_prob(y))(x)
    np.testing.assert_allclose(emission, lookahead(1, x), rtol=1e-10)
    transition = jax.vmap(model.transition(jnp.array(before), None).log_prob)(x)
    for n in (1, 2, 7):
        mean, width = (n * before + y) / (n + 1), scale * np.sqrt(n / (n + 1))
        split = scipy.stats.norm(mean, width).logpdf(x) + lookahead(n + 1, before)
        np.testing.assert_allclose(transition + lookahead(n, x), split, rtol=1e-10)


def test_counts_have_the_log_normal_moments():
    mean, persistence, scale = 0.5, 0.7, 0.4
    variance = scale**2 / (1 - persistence**2)
    ys = simulate(0, PoissonCounts(mean, persistence, scale), 4, num_series=20_000).observations
    rate = np.exp(mean + variance / 2)
    within(ys, np.full(4, rate))
    within(ys[:, 0] * ys[:, 2], rate**2 * np.exp(persistence**2 * variance))


def test_linear_gaussian_moments_follow_the_recursion():
    us = np.random.default_rng(1).normal(size=(4, 3))
    model = varying()
    xs, ys = simulate(0, model, 4, us, num_series=20_000)
    mean, cov = np.asarray(model.initial_mean), np.asarray(model.initial_cov)
    for t in range(4):
        if t:
            a = np.asarray(model.transition_matrix[t])
            mean = a @ mean + [0.1, 0.2] + np.asarray(model.transition_input) @ us[t]
            cov = a @ cov @ a.T + np.asarray(model.transition_cov)
        within(xs[:, t], mean)
        centred = np.asarray(xs[:, t]) - mean
        within(np.einsum("ni,nj->nij", centred, centred), cov)
        h = np.asarray(model.emission_matrix[t])
        expected = h @ mean + model.emission_bias[t] + model.emission_input[t] @ us[t]
        within(ys[:, t], expected)
        within((ys[:, t] - expected) ** 2, h @ cov @ h.T[:, 0] + 0.3)


def test_linear_gaussian_at_slices_what_varies():
    model = varying()
    assert model.time_varying and model.num_steps == 4
    slice_ = model.at(2)
    assert not slice_.time_varying and slice_.num_steps is None and slice_.at(1) is slice_
    np.testing.assert_array_equal(slice_.transition_matrix, model.transition_matrix[2])
    np.testing.assert_array_equal(slice_.emission_input, model.emission_input[2])
    np.testing.assert_array_equal(slice_.transition_cov, model.transition_cov)
    traced = jax.jit(lambda t: model.at(t).emission_matrix)(2)
    np.testing.assert_array_equal(traced, model.emission_matrix[2])
    with pytest.raises(ModelError, match="time 4"):
        model.at(4)
    assert not LinearGaussian(**matrices()).time_varying


def test_singular_covariances_are_seen_and_kept_through_jit():
    singular = LinearGaussian(
        **matrices(transition_cov=np.array([[1.0, 2.0], [2.0, 4.0]]), initial_cov=np.zeros((2, 2)))
    )
    assert singular.singular == ("initial_cov", "transition_cov")
    law = singular.transition(jnp.zeros(2), None)
    assert isinstance(law, SingularNormal) and isinstance(singular.initial(None), SingularNormal)
    np.testing.assert_allclose(law.covariance_matrix, [[1.0, 2.0], [2.0, 4.0]], atol=1e-12)
    xs = simulate(0, singular, 3).states
    np.testing.assert_allclose(xs[0], singular.initial_mean)
    step = xs[1] - singular.transition_matrix @ xs[0]
    np.testing.assert_allclose(step[1], 2 * step[0], rtol=1e-9)

    def kind(cov, **options):
        found = []

        def build(cov):
            model = LinearGaussian(**matrices(transition_cov=cov), **options)
            found.append(type(model.transition(jnp.zeros(2), None)))
            return model.transition_matrix

        jax.jit(build)(cov)
        return found[0]

    assert kind(jnp.zeros((2, 2))) is dist.MultivariateNormal  # the value is not known inside jit
    assert kind(jnp.zeros((2, 2)), singular=["transition_cov"]) is SingularNormal


def test_emission_without_noise_and_diffuse_start():
    exact = LinearGaussian(**matrices(emission_cov=np.zeros((1, 1))))
    assert exact.emission(jnp.ones(2), None).base_dist.scale.tolist() == [0.0]
    flat = LinearGaussian(**matrices(), initial_directions=np.eye(2)[:, :1])
    law = flat.initial(None)
    assert isinstance(law, Diffuse) and law.directions.shape == (2, 1)
    np.testing.assert_allclose(law.factor @ law.factor.T, flat.initial_cov, rtol=1e-12)


def bad_linear(**changes):
    return lambda: LinearGaussian(**matrices(**changes))


BAD = {
    "flat matrix": (bad_linear(transition_matrix=np.ones(2)), ShapeError, r"\(D, D\)"),
    "sizes": (bad_linear(emission_matrix=np.ones((1, 3))), ShapeError, "initial_mean has D=2"),
    "scalar mean": (bad_linear(initial_mean=0.0), ShapeError, r"expected: shape \(D,\)"),
    "steps": (
        bad_linear(transition_cov=np.ones((5, 2, 2)) * np.eye(2), emission_bias=np.zeros((4, 1))),
        ShapeError,
        "T=5",
    ),
    "constant": (bad_linear(initial_cov=np.ones((3, 2, 2))), ShapeError, "initial_cov"),
    "indefinite": (
        bad_linear(transition_cov=np.array([[1.0, 2.0], [2.0, 1.0]])),
        ParameterError,
        "transition_cov is not a covariance",
    ),
    "asymmetric": (
        bad_linear(initial_cov=np.array([[1.0, 0.5], [0.0, 1.0]])),
        ParameterError,
        "initial_cov is not a covariance",
    ),
    "nan": (bad_linear(emission_cov=np.array([[np.nan]])), ParameterError, "emission_cov"),
    "common noise": (
        bad_linear(emission_matrix=np.eye(2), emission_cov=np.ones((2, 2))),
        ParameterError,
        "not diagonal",
    ),
    "names": (
        lambda: LinearGaussian(**matrices(), state_names=["level"]),
        ShapeError,
        "2 names",
    ),
    "persistence": (lambda: StochasticVolatility(0.0, 1.0, 1.0), ParameterError, "persistence"),
    "scale": (lambda: StochasticVolatility(0.0, 0.5, 0.0), ParameterError, "scale must be pos"),
    "vector": (lambda: StochasticVolatility(np.zeros(2), 0.5, 1.0), ShapeError, "mean"),
    "assets": (lambda: assets(beta=[1.0]), ShapeError, r"beta \(1,\)"),
    "shared": (lambda: assets(mean=0.0), ShapeError, r"jnp.full\(D, value\)"),
    "one asset": (lambda: assets(persistence=[0.9, -1.0]), ParameterError, "persistence"),
    "no returns": (lambda: assets(beta=[1.0, 0.0]), ParameterError, "beta must be positive"),
    "drifts": (lambda: GaussianDrift(np.zeros(2)), ShapeError, "drift"),
    "still": (lambda: GaussianDrift(1.0, 0.0), ParameterError, "scale must be positive"),
    "currents": (lambda: HodgkinHuxley(np.ones(2)), ShapeError, "current"),
    "channel": (lambda: HodgkinHuxley(1.0, -1.0), ParameterError, "sodium_conductance"),
    "no time": (lambda: HodgkinHuxley(1.0, time_step=0.0), ParameterError, "time_step"),
    "walk": (lambda: PoissonCounts(0.0, 1.0, 1.0), ParameterError, "initial_scale"),
    "weights": (lambda: ChaoticNetwork(np.ones((2, 3))), ShapeError, "square"),
    "freedom": (
        lambda: ChaoticNetwork(np.eye(2), freedom=0.0),
        ParameterError,
        "freedom must be positive",
    ),
    "coordinates": (lambda: Lorenz63(observed=(3,)), ParameterError, "observed"),
    "rows": (
        lambda: DiscreteHMM.poisson([0.5, 0.5], [[0.9, 0.2], [0.2, 0.8]], [1.0, 2.0]),
        ParameterError,
        "transition_probs",
    ),
    "laws": (
        lambda: DiscreteHMM.poisson([0.5, 0.5], STAY, [1.0, 2.0, 3.0]),
        ShapeError,
        "one law for each state",
    ),
    "noise": (
        lambda: AdditiveGaussian(jnp.sin, bend, np.ones(3), 1.0, np.zeros(2), 1.0),
        ShapeError,
        "transition_noise",
    ),
    "negative": (
        lambda: AdditiveGaussian(jnp.sin, bend, -1.0, 1.0, np.zeros(2), 1.0),
        ParameterError,
        "transition_noise must not be negative",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    build, error, text = BAD[name]
    with pytest.raises(error, match=text) as caught:
        build()
    assert "got:" in str(caught.value) and "fix:" in str(caught.value)


def test_inputs_that_are_missing_or_do_not_fit_are_named():
    model = varying().at(0)
    with pytest.raises(DataError, match="none were given"):
        model.transition(jnp.zeros(2), None)
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        model.emission(jnp.zeros(2), jnp.zeros(2))


def test_models_are_built_from_traced_parameters():
    def value(scale):
        hmm = DiscreteHMM.normal(jnp.ones(2) / 2, STAY, scale * jnp.array([0.0, 1.0]), scale)
        built = [
            StochasticVolatility(scale, 0.5 * scale, scale).initial(None).scale,
            LinearGaussian(**matrices(transition_cov=scale * jnp.eye(2))).transition_cov[0, 0],
            hmm.emission(1, None).mean,
            Lorenz63(rho=scale).flow(jnp.ones(3))[1],
            assets(beta=scale * jnp.ones(2)).emission(jnp.ones(2), None).variance[0],
            GaussianDrift(scale, scale).initial(None).log_prob(2.0),
            HodgkinHuxley(scale, scale).flow(jnp.ones(4))[0],
            Pendulum(diffusion=scale).transition(jnp.ones(2), None).scale_tril[0, 0],
        ]
        return sum(built)

    assert np.isfinite(jax.jit(jax.grad(value))(1.0))


def test_pendulum_noise_is_integrated_white_noise():
    dt, q = 0.1, 2.0
    law = Pendulum(time_step=dt, diffusion=q).transition(jnp.array([0.3, 1.0]), None)
    expected = q * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
    np.testing.assert_allclose(law.covariance_matrix, expected, rtol=1e-12)
    np.testing.assert_allclose(law.mean, [0.3 + 0.1, 1.0 - 9.81 * np.sin(0.3) * 0.1])


def test_lorenz_flow_is_the_ode_to_fourth_order():
    start = np.array([1.0, 2.0, 25.0])
    model = Lorenz63()
    exact = solve_ivp(
        lambda t, x: np.asarray(model.field(jnp.asarray(x))), (0, 0.1), start, rtol=1e-9, atol=1e-9
    ).y[:, -1]

    def error(substeps):
        flow = Lorenz63(time_step=0.1, num_substeps=substeps).flow(jnp.asarray(start))
        return np.abs(flow - exact).max()

    assert error(8) < 1e-4
    assert 10 < error(4) / error(8) < 25  # halving the step divides the error by about 2^4
    assert Lorenz63(observed=[2, 0]).observation_names == ("c", "a")


def euler_step(x, current):
    """One step of the source's neuron, in the words of its papers."""
    v, (n, m, h) = 10 * x[0], 1 / (1 + np.exp(-x[1:]))
    dv = current - 120 * m**3 * h * (v - 50) - 20 * n**4 * (v + 80) - 0.3 * (v + 55.4)
    alpha_n = 0.01 * (v + 55) / (1 - np.exp(-(v + 55) / 10))
    alpha_m = 0.1 * (v + 35) / (1 - np.exp(-(v + 35) / 10))
    alpha_h = 0.07 * np.exp(-(v + 50) / 20)
    beta_n, beta_m = 0.125 * np.exp(-(v + 65) / 80), 4 * np.exp(-(v + 65) / 18)
    beta_h = 1 / (1 + np.exp(-(v + 35) / 10))
    gates = [(n, alpha_n, beta_n), (m, alpha_m, beta_m), (h, alpha_h, beta_h)]
    gates = [g + 0.02 * (alpha * (1 - g) - beta * g) for g, alpha, beta in gates]
    gates = np.clip(gates, 1e-5, 1 - 1e-5)
    return np.array([(v + 0.02 * dv) / 10, *np.log(gates / (1 - gates))])


def test_neuron_makes_the_euler_step_of_the_source():
    model = HodgkinHuxley(13.0)
    states = np.random.default_rng(0).normal([-4.5, -1.0, -1.0, 0.0], [4.0, 2.0, 3.0, 2.0], (40, 4))
    states[0] = [-14.0, 12.0, 2.0, 14.0]  # the step closes gate m altogether; n and h are open
    expected = [euler_step(x, 13.0) for x in states]
    assert np.isclose(expected[0][2], np.log(1e-5 / (1 - 1e-5)))
    np.testing.assert_allclose(jax.vmap(model.flow)(states), expected, rtol=1e-9)
    law = model.transition(jnp.asarray(states[1]), None)
    np.testing.assert_allclose(law.mean, expected[1], rtol=1e-9)
    widths = np.array([0.3, 0.1, 0.1, 0.1]) * np.sqrt(0.02)
    np.testing.assert_allclose(law.variance, widths**2, rtol=1e-9)
    seen = model.emission(jnp.asarray(states[1]), None)
    np.testing.assert_allclose([seen.mean, seen.variance], [states[1][0], 0.25], rtol=1e-9)


def test_neuron_starts_about_rest():
    start = HodgkinHuxley(13.0).initial(None)
    opening, closing = rates(-65.0)
    gates = jax.nn.sigmoid(start.mean[1:])
    np.testing.assert_allclose(opening * (1 - gates), closing * gates, rtol=1e-10)
    assert float(start.mean[0]) == -6.5
    np.testing.assert_allclose(start.variance, [6.25, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(("gate", "voltage", "limit"), [(0, -55.0, 0.1), (1, -35.0, 1.0)])
def test_rates_of_the_neuron_are_smooth_where_they_are_nought_over_nought(gate, voltage, limit):
    def opening(v):
        return rates(v)[0][gate]

    # z / (1 - exp(-z)) = 1 + z/2 + z^2/12 - ..., with z a tenth of the voltage
    derivatives = [opening, jax.grad(opening), jax.grad(jax.grad(opening))]
    found = [float(f(voltage)) for f in derivatives]
    np.testing.assert_allclose(found, [limit, limit / 20, limit / 600], rtol=1e-12)
    for z in np.array([-0.0101, -0.0099, -1e-7, 1e-7, 0.0099, 0.0101]):
        expected = limit * z / -np.expm1(-z)
        np.testing.assert_allclose(opening(voltage + 10 * z), expected, rtol=1e-12)
    assert np.all(np.isfinite(jax.vmap(jax.grad(opening))(voltage + jnp.linspace(-1.0, 1.0, 201))))


def num_spikes(voltage):
    return np.sum((voltage[:, 1:] > 0) & (voltage[:, :-1] <= 0), axis=1)


def test_neurons_spike_and_their_gradients_are_finite():
    neurons, num_steps = 64, 2001  # 40 ms
    states, ys = simulate(0, HodgkinHuxley(13.0), num_steps, num_series=neurons)
    voltage = 10 * np.asarray(states[:, 250:, 0])  # the start is 25 mV wide
    assert voltage.min() > -90 and 30 < voltage.max() < 60
    spikes = num_spikes(voltage)
    assert 1 <= spikes.min() and spikes.max() <= 5 and 2 < spikes.mean() < 3
    inhibited = simulate(0, HodgkinHuxley(-20.0), num_steps, num_series=neurons).states
    assert num_spikes(10 * np.asarray(inhibited[:, 250:, 0])).mean() < 0.2

    ys = jnp.where(jnp.arange(num_steps) % 50 == 0, ys, jnp.nan)

    def joint(current, states, ys):
        return log_joint(HodgkinHuxley(current), states, ys)

    slopes = jax.vmap(jax.value_and_grad(joint, argnums=(0, 1)), in_axes=(None, 0, 0))
    value, (score, slope) = jax.jit(slopes)(13.0, states, ys)
    assert all(np.all(np.isfinite(a)) for a in (value, score, slope))
    within(score, 0.0)  # the score has mean zero under its own model


def test_gradient_of_a_whole_path_of_the_neuron_is_finite():
    def mean_voltage(current, key):
        return simulate_series(key, HodgkinHuxley(current), 2001).states[:, 0].mean()

    slope = jax.jit(jax.vmap(jax.grad(mean_voltage), in_axes=(None, 0)))
    slopes = slope(13.0, jax.random.split(KEY, 64))
    assert np.all(np.isfinite(slopes)) and np.mean(slopes) > 0  # current depolarises
    flow = jax.vmap(jax.jacfwd(HodgkinHuxley(13.0).flow))
    assert np.all(np.isfinite(flow(jnp.array([[1e4, 50.0, -50.0, 0.0], [-1e4, -50.0, 50.0, 0.0]]))))


def test_growth_knows_the_time():
    model = Growth()
    assert model.time_varying and model.num_steps is None
    mean = jax.jit(lambda t: model.at(t).transition(jnp.array(2.0), None).mean)(7)
    np.testing.assert_allclose(mean, 1.0 + 10.0 + 8 * np.cos(1.2 * 7), rtol=1e-12)


def test_hmm_visits_states_as_its_chain():
    model = DiscreteHMM.categorical([0.3, 0.7], STAY, [[0.6, 0.4, 0.0], [0.1, 0.1, 0.8]])
    xs, ys = simulate(0, model, 4, num_series=20_000)
    assert jnp.issubdtype(xs.dtype, jnp.integer)
    at_two = np.array([0.3, 0.7]) @ STAY @ STAY
    within(xs[:, 2], at_two[1])
    within(ys[:, 2] == 2, at_two[1] * 0.8)
    within((xs[:, 2] == 0) & (xs[:, 3] == 1), at_two[0] * 0.1)


def test_time_varying_hmm():
    chain = np.stack([STAY, STAY.T / STAY.T.sum(1, keepdims=True), np.eye(2)])
    model = DiscreteHMM([0.5, 0.5], chain, dist.Normal(jnp.arange(2.0), 1.0))
    assert model.num_steps == 3 and model.time_varying and model.num_states == 2
    np.testing.assert_array_equal(model.at(2).transition(1, None).probs, [0.0, 1.0])


FAMILIES = {
    "scalar": (lambda: dist.Normal(jnp.arange(3.0), 2.0), scipy.stats.norm(2.0, 2.0)),
    "gamma": (lambda: dist.Gamma(jnp.arange(1.0, 4.0), 1.0), scipy.stats.gamma(3.0)),
    "logits": (lambda: dist.Bernoulli(logits=jnp.arange(3.0)), None),
    "counts": (lambda: dist.NegativeBinomial2(jnp.arange(1.0, 4.0), 5.0), None),
    "expanded": (lambda: dist.Normal(0.0, 1.0).expand((3,)), scipy.stats.norm()),
    "vector": (lambda: dist.Normal(jnp.arange(6.0).reshape(3, 2), 1.0).to_event(1), None),
    "covariance": (
        lambda: dist.MultivariateNormal(jnp.arange(6.0).reshape(3, 2), 4 * jnp.eye(2)),
        None,
    ),
    "student": (lambda: dist.MultivariateStudentT(4.0, jnp.ones((3, 2)), jnp.eye(2)), None),
    "mixture": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(probs=jnp.ones((3, 2)) / 2),
            dist.Normal(jnp.arange(6.0).reshape(3, 2), 1.0),
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_hmm_emission_is_one_law_of_the_batch(name):
    build, reference = FAMILIES[name]
    laws = build()
    model = DiscreteHMM(np.ones(3) / 3, np.eye(3), laws)
    y = jnp.ones(laws.event_shape, int if laws.support.is_discrete else float)
    law = model.emission(2, None)
    assert (law.batch_shape, law.event_shape) == ((), laws.event_shape)

    @jax.jit
    def scores():
        states = jax.vmap(lambda k: model.emission(k, None).log_prob(y))(jnp.arange(3))
        return states, model.emission(2, None).log_prob(y), laws.log_prob(y)

    each, last, everyone = scores()
    np.testing.assert_allclose(each, everyone, rtol=1e-12)
    np.testing.assert_allclose(last, everyone[2], rtol=1e-12)
    if reference is not None:
        np.testing.assert_allclose(last, reference.logpdf(1.0), rtol=1e-12)


def test_hmm_names_a_family_it_cannot_take_apart():
    laws = dist.TransformedDistribution(
        dist.Normal(jnp.zeros(2), 1.0), dist.transforms.AffineTransform(0.0, 2.0)
    )
    with pytest.raises(ModelError, match="TransformedDistribution"):
        DiscreteHMM([0.5, 0.5], STAY, laws).emission(0, None)


def shift(x, gain=2.0):
    return gain * x


def test_additive_gaussian_calls_functions_with_or_without_inputs():
    network = eqx.nn.Linear(2, 2, key=KEY)
    model = AdditiveGaussian(network, bend, 0.1, 0.2, jnp.zeros(2), jnp.array([1.0, 2.0]))
    x = jnp.array([0.5, -0.5])
    np.testing.assert_allclose(model.transition(x, None).mean, network(x))
    scalar = AdditiveGaussian(shift, lambda x, u: x + u, 0.1, 0.2, 0.0, 1.0)
    assert float(scalar.transition(jnp.array(3.0), 1.0).mean) == 6.0
    assert float(scalar.emission(jnp.array(3.0), 1.0).mean) == 4.0
    slope = eqx.filter_jit(eqx.filter_grad(lambda m: m.transition(x, None).log_prob(x)))
    assert np.all(np.asarray(slope(model).transition_function.weight) != 0)


def test_additive_gaussian_noise_is_deviations_or_a_covariance():
    cov = np.array([[2.0, 0.5], [0.5, 1.0]])
    x = jnp.zeros(2)

    def transition(noise):
        return AdditiveGaussian(jnp.sin, bend, noise, 1.0, x, cov).transition(x, None)

    np.testing.assert_allclose(transition(2.0).variance, [4.0, 4.0])
    np.testing.assert_allclose(transition(np.array([1.0, 3.0])).variance, [1.0, 9.0])
    np.testing.assert_allclose(transition(cov).covariance_matrix, cov, rtol=1e-12)
    assert isinstance(transition(np.array([1.0, 0.0])), SingularNormal)
    assert isinstance(transition(np.ones((2, 2))), SingularNormal)
    with pytest.raises(ParameterError, match="zero for a scalar state"):
        AdditiveGaussian(shift, shift, 0.0, 1.0, 0.0, 1.0)
    with pytest.raises(ShapeError, match="must return an array like the state"):
        AdditiveGaussian(bend, bend, 1.0, 1.0, x, 1.0).transition(x, None)


def test_every_exported_name_is_there():
    assert sorted(models.__all__) == sorted(set(models.__all__))
    for name in models.__all__:
        assert getattr(models, name).__doc__
