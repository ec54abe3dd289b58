"""Beliefs against scipy and brute force: moments, quantiles, draws, tables, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

import ssmkit as sk
from ssmkit.beliefs import Categorical, Gaussian, GaussianMixture, Labels, Particles, mix
from ssmkit.errors import NotComputed, RandomKeyError

STEPS, DRAWS = 3, 4000
LEVELS = np.array([0.02, 0.3, 0.5, 0.9])
SEEDS = (0, 1, 2)
# Of standard errors, for the largest of some tens of comparisons over all seeds.
SIGMAS = 4.5
rng = np.random.default_rng(5)


def covariances(*lead, size):
    root = rng.normal(size=(*lead, size, size))
    return root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(size)


MEANS, COVS = rng.normal(size=(STEPS, 2)), covariances(STEPS, size=2)
GAUSSIAN = Gaussian(jnp.asarray(MEANS), jnp.asarray(COVS), (2,))
SCALAR = Gaussian(jnp.asarray(MEANS[:, :1]), jnp.asarray(COVS[:, :1, :1]), ())
MIX_MEANS, MIX_COVS = 3 * rng.normal(size=(4, STEPS, 2)), covariances(4, STEPS, size=2)
MIX_LOG_WEIGHTS = rng.normal(size=4) + 50.0  # unnormalised
MIX_WEIGHTS = np.exp(MIX_LOG_WEIGHTS - 50) / np.exp(MIX_LOG_WEIGHTS - 50).sum()
MIXTURE = GaussianMixture(
    Gaussian(jnp.asarray(MIX_MEANS), jnp.asarray(MIX_COVS), (2,)),
    jnp.asarray(MIX_LOG_WEIGHTS),
    (2,),
)
VALUES, LOG_WEIGHTS = rng.normal(size=(STEPS, 7, 2)), 2 * rng.normal(size=(STEPS, 7)) - 300.0
WEIGHTS = np.exp(LOG_WEIGHTS + 300)
WEIGHTS /= WEIGHTS.sum(axis=-1, keepdims=True)
PARTICLES = Particles(jnp.asarray(VALUES), jnp.asarray(LOG_WEIGHTS), (2,))
PROBABILITIES = rng.dirichlet(np.ones(3), size=STEPS)
PROBABILITIES[0] = (0.0, 0.25, 0.75)
with np.errstate(divide="ignore"):
    CATEGORICAL = Categorical(jnp.asarray(np.log(PROBABILITIES)))
NUMERIC = {"gaussian": GAUSSIAN, "mixture": MIXTURE, "particles": PARTICLES}


def exact_moments(name):
    """Means ``(T, 2)`` and covariances ``(T, 2, 2)`` by the definition."""
    if name == "gaussian":
        return MEANS, COVS
    if name == "mixture":
        weights, centres, within = np.tile(MIX_WEIGHTS, (STEPS, 1)), MIX_MEANS, MIX_COVS
        centres, within = np.swapaxes(centres, 0, 1), np.swapaxes(within, 0, 1)
    else:
        weights, centres, within = WEIGHTS, VALUES, np.zeros((STEPS, 7, 2, 2))
    mean = np.einsum("tk,tki->ti", weights, centres)
    second = np.einsum("tk,tkij->tij", weights, within)
    second += np.einsum("tk,tki,tkj->tij", weights, centres, centres)
    return mean, second - mean[:, :, None] * mean[:, None, :]


def cdf(name, t, i, x):
    """Distribution function of coordinate ``i`` at time ``t``."""
    if name == "gaussian":
        return stats.norm.cdf(x, MEANS[t, i], np.sqrt(COVS[t, i, i]))
    if name == "mixture":
        std = np.sqrt(MIX_COVS[:, t, i, i])
        return MIX_WEIGHTS @ stats.norm.cdf(x, MIX_MEANS[:, t, i], std)
    return WEIGHTS[t] @ (VALUES[t, :, i] <= x)


@pytest.mark.parametrize("name", NUMERIC)
def test_moments_are_those_of_the_definition(name):
    belief, (mean, cov) = NUMERIC[name], exact_moments(name)
    np.testing.assert_allclose(belief.mean(), mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(belief.cov(), cov, rtol=1e-10, atol=1e-12)
    std = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    np.testing.assert_allclose(belief.std(), std, rtol=1e-10)


@pytest.mark.parametrize("name", NUMERIC)
def test_quantiles_invert_the_distribution_function(name):

    def gap(x, t, i, level):
        return cdf(name, t, i, x) - level

    found = np.asarray(NUMERIC[name].quantile(jnp.asarray(LEVELS)))
    assert found.shape == (len(LEVELS), STEPS, 2)
    for level, at_level in zip(LEVELS, found, strict=True):
        for t, i in np.ndindex(STEPS, 2):
            if name == "particles":  # the smallest draw with at least this much mass below
                values = VALUES[t, :, i]
                expected = min(v for v in values if cdf(name, t, i, v) >= level - 1e-12)
                assert at_level[t, i] == expected
            else:
                root = optimize.brentq(gap, -40, 40, (t, i, level), xtol=1e-13)
                np.testing.assert_allclose(at_level[t, i], root, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NUMERIC)
def test_shape_of_levels_comes_first(name):
    belief = NUMERIC[name]
    assert belief.quantile(0.5).shape == (STEPS, 2)
    assert belief.quantile(jnp.full((2, 5), 0.5)).shape == (2, 5, STEPS, 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NUMERIC)
def test_draws_have_the_moments_and_frequencies(name, seed):
    belief, (mean, cov) = NUMERIC[name], exact_moments(name)
    draws = np.asarray(belief.sample(seed, DRAWS))
    assert draws.shape == (DRAWS, STEPS, 2)
    products = (draws - mean)[..., :, None] * (draws - mean)[..., None, :]
    for sample, expected in ((draws, mean), (products, cov)):
        error = sample.std(axis=0) / np.sqrt(DRAWS)
        assert np.all(np.abs(sample.mean(axis=0) - expected) < SIGMAS * error)
    for t, i in np.ndindex(STEPS, 2):
        for x in (mean[t, i] - 0.7, mean[t, i] + 0.2):
            p = cdf(name, t, i, x)
            error = np.sqrt(max(p * (1 - p), 1e-12) / DRAWS)
            assert abs(np.mean(draws[:, t, i] <= x) - p) < SIGMAS * error + 1e-9


@pytest.mark.parametrize("name", ["gaussian", "particles"])
def test_draws_at_different_times_are_independent(name):
    """A belief holds marginals; one noise for all times would look like a path."""
    draws = np.asarray(NUMERIC[name].sample(3, DRAWS))
    correlation = np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]
    assert abs(correlation) < SIGMAS / np.sqrt(DRAWS)


def test_a_draw_of_a_mixture_comes_from_one_component():
    far = np.array([-100.0, 100.0])[:, None, None] * np.ones((2, STEPS, 1))
    parts = Gaussian(jnp.asarray(far), jnp.ones((2, STEPS, 1, 1)), ())
    draws = GaussianMixture(parts, jnp.zeros(2), ()).sample(0, 200)
    signs = np.sign(draws)
    assert np.all(signs == signs[:, :1]) and set(signs[:, 0]) == {-1.0, 1.0}


def test_scalar_events_have_no_axis():
    assert SCALAR.mean().shape == SCALAR.std().shape == (STEPS,)
    assert SCALAR.cov().shape == (STEPS, 1, 1)
    assert SCALAR.sample(0, 5).shape == (5, STEPS)
    np.testing.assert_allclose(SCALAR.quantile(0.3), stats.norm.ppf(0.3, MEANS[:, 0], SCALAR.std()))


def test_particle_quantiles_are_the_inverse_distribution_function_of_numpy():
    values = np.random.default_rng(1).normal(size=(2, 10))
    belief = Particles(jnp.asarray(values), jnp.full((2, 10), -7.0), ())
    levels = np.concatenate([np.arange(11) / 10, [0.05, 0.123, 0.777, 0.999]])  # ties and others
    expected = np.quantile(values, levels, axis=1, method="inverted_cdf")
    np.testing.assert_array_equal(belief.quantile(jnp.asarray(levels)), expected)


def test_particle_order_and_scale_of_weights_do_not_matter():
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    other = Particles(PARTICLES.values[:, order], PARTICLES.log_weights[:, order] + 1000.0, (2,))
    for method in ("mean", "cov", "std"):
        same = getattr(PARTICLES, method)()
        np.testing.assert_allclose(getattr(other, method)(), same, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(other.quantile(0.37), PARTICLES.quantile(0.37))


def test_particles_without_weight_are_never_drawn():
    values = jnp.array([1.0, 2.0, 3.0])
    belief = Particles(values, jnp.array([0.0, -jnp.inf, 0.0]), ())
    assert set(np.asarray(belief.sample(0, 500))) == {1.0, 3.0}
    assert float(belief.mean()) == 2.0 and float(belief.quantile(0.6)) == 3.0


@pytest.mark.parametrize("seed", SEEDS)
def test_categorical_draws_have_their_probabilities(seed):
    np.testing.assert_allclose(CATEGORICAL.probabilities(), PROBABILITIES, rtol=1e-12)
    np.testing.assert_array_equal(CATEGORICAL.mode(), PROBABILITIES.argmax(axis=-1))
    draws = np.asarray(CATEGORICAL.sample(seed, DRAWS))
    assert draws.shape == (DRAWS, STEPS) and np.issubdtype(draws.dtype, np.integer)
    for k in range(3):
        p = PROBABILITIES[:, k]
        error = np.sqrt(p * (1 - p) / DRAWS)
        assert np.all(np.abs(np.mean(draws == k, axis=0) - p) <= SIGMAS * error)


@pytest.mark.parametrize("method", ["mean", "cov", "std", "quantile"])
def test_categories_have_no_moments(method):
    with pytest.raises(NotComputed, match=r"no mean(.|\n)*fix: use .probabilities\(\)"):
        getattr(CATEGORICAL, method)()


# Coordinates that are not identified yet.


def test_infinite_variance_is_said_and_spoils_no_other_coordinate():
    cov = jnp.array([[[2.0, 0.0], [0.0, jnp.inf]]])
    belief = Gaussian(jnp.array([[1.0, 5.0]]), cov, (2,))
    np.testing.assert_array_equal(belief.std(), [[np.sqrt(2.0), np.inf]])
    bounds = belief.quantile(jnp.array([0.1, 0.5, 0.9]))
    np.testing.assert_array_equal(bounds[:, 0, 1], [-np.inf, 5.0, np.inf])
    np.testing.assert_allclose(bounds[:, 0, 0], stats.norm.ppf([0.1, 0.5, 0.9], 1.0, np.sqrt(2)))
    draws = np.asarray(belief.sample(0, DRAWS))
    assert np.isnan(draws[..., 1]).all()  # a flat law has no draws
    assert abs(draws[:, 0, 0].mean() - 1.0) < SIGMAS * np.sqrt(2 / DRAWS)
    assert abs(draws[:, 0, 0].std() - np.sqrt(2)) < SIGMAS * np.sqrt(1 / DRAWS)
    both = mix(jax.tree.map(lambda a: jnp.stack([a, a]), belief), jnp.zeros(2))
    assert np.isinf(both.std()[0, 1]) and np.isfinite(both.std()[0, 0])
    bounds = both.quantile(jnp.array([0.1, 0.5, 0.9]))
    np.testing.assert_array_equal(bounds[:, 0, 1], [-np.inf, 5.0, np.inf])


def test_first_prediction_of_a_diffuse_model():
    posterior = sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1.0, 1.0), jnp.array([0.3, 0.1]))
    assert np.isinf(posterior.predicted.std()[0, 0])
    assert np.isfinite(posterior.filtered.std()).all()
    table = posterior.predicted.to_frame()
    assert table["5%"].iloc[0] == -np.inf and table["95%"].iloc[0] == np.inf


def test_no_variance_is_a_point():
    belief = Gaussian(jnp.array([[2.0]]), jnp.zeros((1, 1, 1)), ())
    np.testing.assert_array_equal(belief.quantile(jnp.array([0.01, 0.99])), [[2.0], [2.0]])
    np.testing.assert_array_equal(belief.sample(0, 3), np.full((3, 1), 2.0))
    np.testing.assert_array_equal(belief.cdf(jnp.array([1.9])), [0.0])
    np.testing.assert_array_equal(belief.cdf(jnp.array([2.0])), [1.0])


# Merging over parameter draws.


def stack(belief, count):
    return jax.tree.map(lambda a: jnp.stack([a] * count), belief)


def test_mix_of_one_draw_is_the_belief():
    merged = mix(stack(GAUSSIAN, 1), jnp.zeros(1))
    assert isinstance(merged, Gaussian)
    np.testing.assert_array_equal(merged.mean(), MEANS)


@pytest.mark.parametrize("belief", [GAUSSIAN, PARTICLES], ids=["gaussian", "particles"])
def test_mix_of_equal_draws_changes_nothing(belief):
    merged = mix(stack(belief, 3), jnp.array([0.0, 1.0, -2.0]))
    for method in ("mean", "cov", "std"):
        expected = getattr(belief, method)()
        np.testing.assert_allclose(getattr(merged, method)(), expected, rtol=1e-9, atol=1e-12)
    levels = jnp.asarray(LEVELS)
    np.testing.assert_allclose(merged.quantile(levels), belief.quantile(levels), rtol=1e-9)


def test_mix_of_gaussians_is_the_mixture():
    merged = mix(MIXTURE.components, MIXTURE.log_weights)
    mean, cov = exact_moments("mixture")
    np.testing.assert_allclose(merged.mean(), mean, rtol=1e-10)
    np.testing.assert_allclose(merged.cov(), cov, rtol=1e-10)


def test_mix_of_particles_weights_draws_within_and_between():
    log_weights = np.array([0.3, -1.2])
    weights = np.exp(log_weights) / np.exp(log_weights).sum()
    values = np.random.default_rng(2).normal(size=(2, STEPS, 7, 2))
    belief = Particles(jnp.asarray(values), jnp.stack([PARTICLES.log_weights] * 2) + 3.0, (2,))
    merged = mix(belief, jnp.asarray(log_weights))
    assert merged.values.shape == (STEPS, 14, 2)
    np.testing.assert_allclose(
        merged.mean(), np.einsum("k,tn,ktni->ti", weights, WEIGHTS, values), rtol=1e-10
    )


def test_mix_of_categories_averages_probabilities():
    others = np.random.default_rng(3).dirichlet(np.ones(3), size=STEPS)
    both = Categorical(jnp.stack([CATEGORICAL.log_probabilities, jnp.log(others)]))
    merged = mix(both, jnp.log(jnp.array([0.2, 0.6])))
    expected = 0.25 * PROBABILITIES + 0.75 * others
    np.testing.assert_allclose(merged.probabilities(), expected, rtol=1e-12)


# Tables.

DATES = pd.date_range("2001-01-31", periods=STEPS, freq="ME")


def test_table_of_vectors_has_dates_and_names():
    table = GAUSSIAN.labelled(Labels(DATES, ("level", "slope"))).to_frame(level=0.8)
    assert table.index.equals(DATES)
    stats_of = ("mean", "std", "10%", "90%")
    assert list(table) == [f"{n} {s}" for n in ("level", "slope") for s in stats_of]
    np.testing.assert_allclose(table["slope mean"], MEANS[:, 1])
    std = np.sqrt(COVS[:, 0, 0])
    np.testing.assert_allclose(table["level 10%"], stats.norm.ppf(0.1, MEANS[:, 0], std))
    np.testing.assert_allclose(table["level 90%"], stats.norm.ppf(0.9, MEANS[:, 0], std))


@pytest.mark.parametrize("name", NUMERIC)
def test_table_without_labels(name):
    table = NUMERIC[name].to_frame()
    assert table.index.name == "time" and list(table.index) == list(range(STEPS))
    assert list(table)[:4] == ["x0 mean", "x0 std", "x0 5%", "x0 95%"]
    np.testing.assert_allclose(table["x1 mean"], NUMERIC[name].mean()[:, 1])


def test_table_of_scalars_has_short_names():
    assert list(SCALAR.labelled(Labels(DATES, ("price",))).to_frame()) == [
        "mean",
        "std",
        "5%",
        "95%",
    ]


def test_table_of_one_time():
    last = jax.tree.map(lambda a: a[-1], SCALAR).labelled(Labels(DATES[-1:]))
    assert last.to_frame().index.equals(DATES[-1:])


def test_table_of_categories():
    table = CATEGORICAL.labelled(Labels(DATES)).to_frame()
    assert list(table) == ["state 0", "state 1", "state 2"] and table.index.equals(DATES)
    np.testing.assert_allclose(table.to_numpy(), PROBABILITIES)
    named = CATEGORICAL.labelled(Labels(None, ("calm", "busy", "storm"))).to_frame()
    assert list(named) == ["calm", "busy", "storm"]


def test_table_of_a_batch_is_refused():
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), SCALAR)
    with pytest.raises(NotComputed, match="of a batch"):
        batch.to_frame()


def test_labels_are_compared_by_content():
    assert Labels(DATES, ("a",)) == Labels(DATES.copy(), ("a",))
    assert hash(Labels(DATES, ("a",))) == hash(Labels(DATES.copy(), ("a",)))
    for other in (Labels(DATES, ("b",)), Labels(None, ("a",)), Labels(DATES + DATES.freq, ("a",))):
        assert Labels(DATES, ("a",)) != other
    assert Labels() == Labels() and Labels(DATES) != "labels"


@pytest.mark.parametrize("belief", [*NUMERIC.values(), CATEGORICAL], ids=[*NUMERIC, "categorical"])
def test_draws_take_keys_and_seeds_and_refuse_the_rest(belief):
    same = [belief.sample(k, 4) for k in (9, jax.random.key(9))]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(belief.sample(10, 4), same[0])
    with pytest.raises(RandomKeyError):
        belief.sample(jax.random.PRNGKey(9), 4)
