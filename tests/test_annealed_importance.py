"""Annealed importance sampling against normalising constants that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmkit.objectives.fab import annealing_end, target_of_end
from ssmkit.smc.annealed_importance import anneal
from ssmkit.smc.kernels import hamiltonian, random_walk

KERNELS = {"hamiltonian": hamiltonian(3), "walk": random_walk()}


def normal(x, centre=0.0):
    return -0.5 * jnp.sum((x - centre) ** 2) - 0.5 * x.size * jnp.log(2 * jnp.pi)


def run(key, *, dim=1, alpha=2.0, count=4, kernel="hamiltonian", gap=1.0, size=2000, threshold=0.0):
    """From N(0, I) to the power of alpha of a law a step away in each coordinate."""

    def log_densities(x):
        log_q = normal(x)
        return log_q, annealing_end(log_q, normal(x, gap), alpha)

    temperatures = jnp.linspace(0, 1, count + 2)[1:-1]
    return anneal(
        key,
        lambda k: jax.random.normal(k, (dim,)),
        log_densities,
        KERNELS[kernel],
        temperatures,
        jnp.full(count, 0.7),
        num_particles=size,
        num_moves=1 if kernel == "hamiltonian" else 4,
        threshold=threshold,
    )


def mean_and_error(log_weights):
    weights = np.exp(np.asarray(log_weights, float))
    return weights.mean(), weights.std(ddof=1) / np.sqrt(weights.size)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dim", "alpha"), [(1, 2.0), (2, 2.0), (2, 1.0), (1, 1.5)])
def test_the_mean_weight_is_the_integral(kernel, dim, alpha):
    """For normal laws a step apart: the log of it is d alpha (alpha - 1) / 2."""
    made = jax.jit(jax.vmap(lambda k: run(k, dim=dim, alpha=alpha, kernel=kernel)))
    drawn = made(jax.random.split(jax.random.key(1), 5))
    mean, error = mean_and_error(drawn.log_weights.ravel())
    truth = np.exp(dim * alpha * (alpha - 1) / 2)
    assert abs(mean - truth) < 4 * error
    # annealing is worth it: most of the variance of plain weights is gone
    plain = np.exp(dim * alpha * (2 * alpha - 1)) - truth**2
    assert np.exp(np.asarray(drawn.log_weights)).var() < 0.4 * plain


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_resampling_leaves_the_evidence_unbiased(threshold):
    found = jax.jit(
        jax.vmap(lambda k: run(k, dim=2, size=50, threshold=threshold).log_evidence)
    )(jax.random.split(jax.random.key(2), 400))  # fmt: skip
    mean, error = mean_and_error(found)
    assert abs(mean - np.exp(2.0)) < 4 * error


def test_a_perfect_start_makes_all_weights_the_constant():
    log_constant = 3.7

    def log_densities(x):
        return normal(x), annealing_end(normal(x), normal(x) + log_constant, 2.0)

    for step in (0.01, 5.0):
        drawn = anneal(
            jax.random.key(0), lambda k: jax.random.normal(k, (2,)), log_densities,
            KERNELS["hamiltonian"], jnp.array([0.3, 0.6]), jnp.full(2, step), num_particles=50,
        )  # fmt: skip
        np.testing.assert_allclose(drawn.log_weights, 2 * log_constant, atol=1e-4)


def test_without_temperatures_it_is_importance_sampling():
    drawn = run(jax.random.key(3), count=0)
    np.testing.assert_array_equal(drawn.first, drawn.log_densities)
    expected = drawn.log_densities[:, 1] - drawn.log_densities[:, 0]
    np.testing.assert_allclose(drawn.log_weights, expected, rtol=1e-6)
    assert drawn.acceptance_rates.shape == (0,)


def test_halfway_to_the_second_power_is_the_target():
    x = jnp.array([0.3, -1.2])
    log_q, log_p = normal(x), normal(x, 1.0) + 2.0
    end = annealing_end(log_q, log_p, 2.0)
    np.testing.assert_allclose(0.5 * log_q + 0.5 * end, log_p, rtol=1e-6)
    np.testing.assert_allclose(target_of_end(log_q, end, 2.0), log_p, rtol=1e-6)


@pytest.mark.parametrize("hole", [jnp.nan, -jnp.inf])
def test_draws_where_nothing_is_count_with_weight_zero(hole):
    """The evidence stays right, where leaving them out would double it."""

    def log_densities(x):
        log_q = normal(x)
        log_p = jnp.where(x[0] > 0, normal(x), hole)
        return log_q, log_p

    def one(key):
        return anneal(
            key, lambda k: jax.random.normal(k, (1,)), log_densities, KERNELS["hamiltonian"],
            jnp.array([0.5]), jnp.array([0.5]), num_particles=1000,
        )  # fmt: skip

    drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), 4))
    weights = np.exp(np.asarray(drawn.log_weights)).ravel()
    assert np.all(np.isfinite(drawn.x))
    assert abs(weights.mean() - 0.5) < 4 * weights.std() / np.sqrt(weights.size)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_leave_a_temperature_invariant(kernel):
    """Started in the law at a temperature, draws stay in it: means and variances."""
    alpha, beta = 2.0, 0.25  # (1 - 2 b) log q + 2 b log p: normal around 2 b, variance one

    def log_densities(x):
        return normal(x), annealing_end(normal(x), normal(x, 1.0), alpha)

    chosen = KERNELS[kernel]

    def one(key):
        start_key, key = jax.random.split(key)
        x = 2 * beta + jax.random.normal(start_key, (1,))

        def move(place, key):
            return chosen.step(key, place, log_densities, beta, 1.1)

        place, acceptance = jax.lax.scan(
            move, chosen.init(x, log_densities), jax.random.split(key, 10)
        )
        return place.x[0], acceptance.mean()

    x, acceptance = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), 4000))
    assert 0.3 < acceptance.mean() < 0.99
    assert abs(x.mean() - 2 * beta) < 4 / np.sqrt(4000)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / 4000)
