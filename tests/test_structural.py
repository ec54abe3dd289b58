"""Structural components: implied joint laws against known forms, and how components compose."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.linalg
import scipy.signal

from ssmkit.errors import DataError, ImproperStartError, ModelError, ParameterError, ShapeError
from ssmkit.models import (
    AutoRegressive,
    Cycle,
    Diffuse,
    LocalLevel,
    LocalLinearTrend,
    Regression,
    Seasonal,
    SingularNormal,
    Structural,
    simulate,
)
from ssmkit.models.distributions import covariance_of, moments


@eqx.filter_jit
def read(model, u=None):
    """Matrices read off the laws, as a Gaussian engine does."""
    size = len(model.state_names)
    zero = jnp.zeros(size)
    matrix = jax.jacfwd(lambda x: model.transition(x, u).mean)(zero)
    noise = covariance_of(moments(model.transition(zero, u))[1])
    row = jax.jacfwd(lambda x: model.emission(x, u).mean)(zero)
    law = model.initial(u)
    if isinstance(law, Diffuse):
        return matrix, noise, row, law.factor @ law.factor.T, law.directions
    return matrix, noise, row, covariance_of(moments(law)[1]), jnp.zeros((size, 0))


def joint(model, num_steps):
    """Covariance ``(T, T)`` of the signal, and its loading ``(T, q)`` on the flat directions."""
    matrix, noise, row, start, directions = map(np.asarray, read(model))
    blocks = [[None] * num_steps for _ in range(num_steps)]
    cov = start
    for t in range(num_steps):
        ahead = cov
        for s in range(t, num_steps):
            blocks[t][s] = row @ ahead @ row
            blocks[s][t] = blocks[t][s]
            ahead = matrix @ ahead
        cov = matrix @ cov @ matrix.T + noise
    loading = [row @ np.linalg.matrix_power(matrix, t) @ directions for t in range(num_steps)]
    return np.array(blocks), np.array(loading)


def test_autoregression_has_its_autocovariances():
    phi, variance = np.array([1.2, -0.5]), 0.7
    # Yule–Walker by hand: gamma_0, gamma_1, then the recursion
    ratio = phi[0] / (1 - phi[1])
    gamma = [variance / (1 - phi[0] * ratio - phi[1] * (phi[0] * ratio + phi[1]))]
    gamma.append(ratio * gamma[0])
    while len(gamma) < 7:
        gamma.append(phi @ gamma[-1:-3:-1])
    cov, loading = joint(AutoRegressive(phi, variance), 7)
    np.testing.assert_allclose(cov, scipy.linalg.toeplitz(gamma), rtol=1e-10)
    assert loading.shape == (7, 0)


def test_autoregression_of_order_four_against_its_impulse_response():
    phi = np.array([0.5, 0.2, -0.3, 0.1])
    impulse = scipy.signal.lfilter([1.0], np.r_[1.0, -phi], np.eye(1, 2000)[0])
    gamma = [impulse[: 2000 - k] @ impulse[k:] for k in range(6)]
    cov, _ = joint(AutoRegressive(phi, 2.0), 6)
    np.testing.assert_allclose(cov, 2.0 * scipy.linalg.toeplitz(gamma), rtol=1e-9)


def test_partial_autocorrelations_give_stationary_coefficients():
    for seed in range(5):
        partial = np.random.default_rng(seed).uniform(-0.99, 0.99, size=4)
        model = AutoRegressive.from_partial(partial, 1.0)  # refuses what is not stationary
        cov, _ = joint(model, 5)
        # the last partial autocorrelation is the last coefficient of the best predictor
        for order in range(1, 5):
            best = np.linalg.solve(cov[:order, :order], cov[0, 1 : order + 1])
            np.testing.assert_allclose(best[-1], partial[order - 1], rtol=1e-6, atol=1e-8)


def test_damped_cycle_has_a_damped_cosine_for_autocovariance():
    period, damping, variance = 8.0, 0.9, 0.5
    lags = np.arange(9)
    gamma = variance / (1 - damping**2) * damping**lags * np.cos(2 * np.pi * lags / period)
    cov, loading = joint(Cycle(period, damping, variance), 9)
    np.testing.assert_allclose(cov, scipy.linalg.toeplitz(gamma), atol=1e-12)
    assert loading.shape == (9, 0)


def test_undamped_cycle_repeats_and_starts_diffuse():
    cov, loading = joint(Cycle(6, 1.0, 0.0), 12)
    assert np.all(cov == 0) and loading.shape == (12, 2)
    np.testing.assert_allclose(loading[6:], loading[:6], atol=1e-12)
    np.testing.assert_allclose(loading[3:6], -loading[:3], atol=1e-12)


@pytest.mark.parametrize("period", [2, 4, 7])
def test_seasonal_effects_sum_to_noise(period):
    variance, steps = 0.3, 3 * period
    cov, loading = joint(Seasonal(period, variance), steps)
    sums = np.array([np.convolve(row, np.ones(period), "valid") for row in np.eye(steps)]).T
    # whatever the start, sums over a period are independent noise
    np.testing.assert_allclose(sums @ loading, 0, atol=1e-12)
    np.testing.assert_allclose(
        sums @ cov @ sums.T, variance * np.eye(steps - period + 1), atol=1e-10
    )
    assert np.linalg.matrix_rank(loading) == period - 1


def test_level_and_trend_differences_are_noise():
    difference = np.diff(np.eye(8), axis=0)
    cov, loading = joint(LocalLevel(2.0, 5.0), 8)
    np.testing.assert_allclose(difference @ cov @ difference.T, 2.0 * np.eye(7), atol=1e-12)
    np.testing.assert_array_equal(loading, np.ones((8, 1)))
    cov, loading = joint(LocalLinearTrend(2.0, 0.5, 1.0), 8)
    twice = np.diff(np.eye(8), n=2, axis=0)
    # second differences: an MA(1) with variances 2 q_level + q_slope and covariance -q_level
    expected = scipy.linalg.toeplitz([4.5, -2.0, 0, 0, 0, 0])
    np.testing.assert_allclose(twice @ cov @ twice.T, expected, atol=1e-12)
    np.testing.assert_allclose(twice @ loading, 0, atol=1e-12)
    assert np.linalg.matrix_rank(loading) == 2


def test_a_sum_adds_signals_and_noise_variances():
    parts = [
        LocalLinearTrend(1.0, 0.1, 2.0),
        Seasonal(3, 0.4, noise_variance=0.5),
        Cycle(5.0, 0.8, 0.3),
        AutoRegressive([0.5], 0.2),
    ]
    total = sum(parts)
    assert isinstance(total, Structural) and total.parts == tuple(parts)
    np.testing.assert_allclose(total.emission(jnp.zeros(7), None).variance, 2.5)
    cov, loading = joint(total, 6)
    each = [joint(part, 6) for part in parts]
    np.testing.assert_allclose(cov, sum(c for c, _ in each), atol=1e-12)
    np.testing.assert_allclose(loading, np.concatenate([w for _, w in each], axis=1), atol=1e-12)
    names = ("level", "slope", "seasonal1", "seasonal2", "cycle1", "cycle2", "ar1")
    assert total.state_names == names
    rows = total.components()
    assert list(rows) == ["trend", "seasonal", "cycle", "ar"]
    loading = jax.jacfwd(lambda x: total.emission(x, None).mean)(jnp.zeros(7))
    np.testing.assert_array_equal(sum(rows.values()), loading)
    np.testing.assert_array_equal(rows["cycle"], np.eye(7)[4])


def test_regression_reads_its_input():
    us = {"price": jnp.array([2.0, -1.0]), "rain": 3.0}
    model = LocalLevel(1.0, 2.0) + Regression(2, input="price") + Regression(1, input="rain")
    assert model.state_names == ("level", "beta[price,0]", "beta[price,1]", "beta[rain]")
    np.testing.assert_array_equal(read(model, us)[2], [1.0, 2.0, -1.0, 3.0])
    np.testing.assert_array_equal(model.components(us)["price"], [0.0, 2.0, -1.0, 0.0])
    np.testing.assert_array_equal(read(model, us)[1], np.diag([1.0, 0, 0, 0]))
    plain = Regression(2, name="tax")
    assert plain.state_names == ("beta[tax,0]", "beta[tax,1]")
    assert Regression(2).state_names == ("beta[0]", "beta[1]")
    for u, error, text in [
        (None, DataError, "none were given"),
        ({"a": 1.0}, DataError, "keys"),
        (jnp.ones(3), ShapeError, r"\(2,\)"),
    ]:
        with pytest.raises(error, match=text):
            plain.emission(jnp.zeros(2), u)
    with pytest.raises(DataError, match="'price'"):
        model.emission(jnp.zeros(4), jnp.ones(2))


def test_names_must_be_distinct():
    with pytest.raises(ModelError, match="seasonal"):
        Seasonal(4, 1.0) + Seasonal(7, 1.0)
    both = Seasonal(3, 1.0, name="yearly") + Seasonal(2, 1.0, name="weekly")
    assert both.state_names == ("yearly1", "yearly2", "weekly1")
    with pytest.raises(ModelError, match="level"):  # states clash, though components do not
        LocalLevel(1.0) + LocalLinearTrend(1.0, 1.0)
    assert LocalLinearTrend(1.0, 1.0, name="t").state_names == ("t_level", "t_slope")


def kinds(model):
    """Types of the initial law and of the transition, without computing anything."""
    found = []

    def look(x):
        found.extend(type(law) for law in (model.initial(None), model.transition(x, None)))

    jax.eval_shape(look, jnp.ones(len(model.state_names)))
    return tuple(found)


def test_transitions_have_a_density_where_every_state_has_noise():
    model = LocalLevel(1.0, 1.0) + Cycle(5.0, 0.9, 0.5) + AutoRegressive([0.5], 1.0)
    law = jax.jit(lambda: model.transition(jnp.ones(4), None))()
    np.testing.assert_allclose(
        law.log_prob(law.mean), -0.5 * np.sum(np.log(2 * np.pi * np.array([1, 0.5, 0.5, 1])))
    )
    for singular in (
        LocalLinearTrend(1.0, 0.0),
        Seasonal(4, 1.0),
        AutoRegressive([0.5, 0.1], 1.0),
        LocalLevel(1.0) + Seasonal(3, 1.0),
        LocalLevel(0.0) + AutoRegressive([0.5], 1.0),
    ):
        assert kinds(singular)[1] is SingularNormal, singular
    assert kinds(AutoRegressive([0.5], 0.0)) == (SingularNormal, SingularNormal)
    assert kinds(Cycle(5.0, 0.9, 0.5)) == (dist.MultivariateNormal, dist.Independent)
    assert kinds(Cycle(5.0, 1.0, 0.5)) == (Diffuse, dist.Independent)


def test_values_are_decided_when_the_model_is_built():
    model = LocalLinearTrend(1.0, 0.0)
    arrays = jax.tree.map(jnp.asarray, model)
    assert jax.tree.structure(arrays) == jax.tree.structure(model)
    kinds = []

    @jax.jit
    def draw(model, key):
        law = model.transition(jnp.array([1.0, 0.5]), None)
        kinds.append(type(law))
        return law.sample(key)

    assert draw(arrays, jax.random.key(0))[1] == 0.5
    assert kinds == [SingularNormal]


def test_gradients_are_finite_also_at_zero_variances():
    def value(v):
        model = LocalLinearTrend(v[0], v[1], v[2]) + Cycle(5.0, v[3], v[0])
        model = model + AutoRegressive(v[3:], v[2]) + Seasonal(3, v[1])
        x = jnp.ones(7)
        factors = [moments(law)[1] for law in (model.transition(x, None), model.emission(x, None))]
        return sum(jnp.sum(f) for f in factors) + jnp.sum(model.initial(None).factor)

    slopes = jax.jit(jax.grad(value))
    assert np.all(np.isfinite(slopes(jnp.array([0.0, 0.0, 0.0, 0.5]))))
    v, step = jnp.array([1.0, 2.0, 0.5, 0.6]), 1e-6
    at = jax.jit(value)
    numeric = [(at(v + step * e) - at(v - step * e)) / (2 * step) for e in jnp.eye(4)]
    np.testing.assert_allclose(slopes(v), numeric, rtol=1e-6)
    assert np.isnan(float(jax.jit(lambda s: LocalLevel(s).equation().noise[0])(-1.0)))


def test_models_are_diffuse_until_given_a_start():
    model = LocalLevel(1.0, 0.1) + Seasonal(3, 0.2)
    with pytest.raises(ImproperStartError):
        simulate(0, model, 3)
    cov = np.array([[4.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.0]])
    proper = model.with_initial([10.0, 1.0, -1.0], cov)
    np.testing.assert_allclose(read(proper)[3], cov, rtol=1e-12)
    assert proper.state_names == model.state_names
    paths = simulate(0, proper, 5, num_series=4000).observations
    matrix, noise, row, start, _ = map(np.asarray, read(proper))
    mean, total = jnp.array([10.0, 1.0, -1.0]), start
    for t in range(5):
        variance = row @ total @ row + 0.1
        error = 5 / np.sqrt(4000)
        assert abs(paths[:, t].mean() - row @ mean) < error * np.sqrt(variance)
        assert abs(paths[:, t].var() / variance - 1) < error * np.sqrt(2)
        mean, total = matrix @ mean, matrix @ total @ matrix.T + noise
    variances = LocalLevel(1.0).with_initial([0.0], [9.0])
    assert kinds(variances) == (dist.MultivariateNormal, dist.Independent)
    assert float(read(variances)[3][0, 0]) == 9.0
    for build, error in [
        (lambda: model.with_initial([1.0], [1.0]), ShapeError),
        (lambda: model.with_initial(np.zeros(3), -np.eye(3)), ParameterError),
        (lambda: proper + Cycle(5.0, 0.9, 1.0), ModelError),
    ]:
        with pytest.raises(error):
            build()


BAD = {
    "variance": (lambda: LocalLevel(-1.0, 1.0), ParameterError, "level_variance"),
    "vector": (lambda: LocalLevel(np.ones(2), 1.0), ShapeError, "level_variance"),
    "period": (lambda: Seasonal(4.5, 1.0), ParameterError, "Cycle for other periods"),
    "damping": (lambda: Cycle(5.0, 1.1, 1.0), ParameterError, "explodes"),
    "roots": (lambda: AutoRegressive([0.5, 0.5], 1.0), ParameterError, "from_partial"),
    "order": (lambda: AutoRegressive(0.5, 1.0), ShapeError, r"\(p,\)"),
    "inputs": (lambda: Regression(0), ParameterError, "num_inputs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    build, error, text = BAD[name]
    with pytest.raises(error, match=text):
        build()


def test_float32_parameters_stay_float32():
    one = jnp.float32(1.0)
    model = LocalLinearTrend(one, one, one) + Seasonal(3, one) + Cycle(one * 5, one / 2, one)
    model = model + AutoRegressive(jnp.array([0.5], jnp.float32), one)
    model = eqx.tree_at(lambda m: [p.noise_variance for p in m.parts], model, [one] * 4)
    x = jnp.zeros(7, jnp.float32)

    def leaves(x):
        laws = [model.initial(None), model.transition(x, None), model.emission(x, None)]
        return jax.tree.leaves(laws) + [law.mean for law in laws]

    assert {leaf.dtype for leaf in jax.eval_shape(leaves, x)} == {jnp.dtype("float32")}
