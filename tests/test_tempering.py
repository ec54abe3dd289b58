"""Tempering on the Feynman–Kac loop: normalising constants and moments that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy import stats

import ssmkit as sk
from ssmkit.smc import annealing
from ssmkit.smc.kernels import bridge

# What is proved here does not depend on versions.
pytestmark = pytest.mark.study

KERNELS = {"random walk": sk.smc.random_walk(), "hamiltonian": sk.smc.hamiltonian(3)}
LADDER = jnp.linspace(0.0, 1.0, 6) ** 1.5
SCALES = jnp.array([0.5, 0.8])
CENTRE = jnp.array([1.5, -0.5])


def sample(key):
    return jax.random.normal(key, (2,))


def log_start(x):
    return jnp.sum(norm.logpdf(x))


def gaussian(x):
    return -0.5 * jnp.sum(((x - CENTRE) / SCALES) ** 2)


def bimodal(x):
    """Two hills of unequal weight; a constant that is neither one nor that of the Gaussian."""
    low = jnp.sum(norm.logpdf(x, -1.5, 0.5)) + jnp.log(0.3)
    return 1.0 + jnp.logaddexp(low, jnp.sum(norm.logpdf(x, 1.5, 0.5)) + jnp.log(0.7))


LOG_Z = {gaussian: jnp.log(2 * jnp.pi * jnp.prod(SCALES)), bimodal: 1.0}


def replicate(log_end, seed=0, num_runs=2000, **options):
    """Many independent runs."""
    options = {"num_particles": 16, "temperatures": LADDER, "step_size": 0.7} | options
    options = {"kernel": sk.smc.random_walk()} | options

    def one(key):
        return sk.smc.temper(key, sample, log_start, log_end, **options)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num_runs))


def ratios(runs, log_z):
    return np.exp(np.asarray(runs.log_evidence) - float(log_z))


def at_most(share):
    """The criterion that a number as threshold stands for; here the number may be traced."""
    return lambda weights: jnp.sum(weights) ** 2 / jnp.sum(weights**2) <= share * weights.size


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("log_end", LOG_Z)
def test_the_evidence_is_unbiased_whenever_it_resamples(log_end, kernel):
    shares = jnp.array([0.0, 0.5, 1.01])  # never, sometimes, always
    all_runs = jax.vmap(
        lambda share: replicate(log_end, kernel=KERNELS[kernel], threshold=at_most(share))
    )(shares)
    assert all_runs.kind == "unbiased"
    for i in range(3):
        runs = jax.tree.map(lambda a, i=i: a[i], all_runs)
        ratio = ratios(runs, LOG_Z[log_end])
        error = ratio.std(ddof=1) / np.sqrt(ratio.size)
        assert error < 0.03
        assert abs(ratio.mean() - 1) < 4 * error
        # the weighted particles are right too: E[Z f] = Z π(f), here for the first coordinate
        weights = np.exp(np.asarray(runs.log_weights)) * ratio[:, None]
        moment = (weights * np.asarray(runs.particles)[..., 0]).mean(axis=1)
        expected = 1.5 if log_end is gaussian else 0.6
        assert abs(moment.mean() - expected) < 4 * moment.std() / np.sqrt(moment.size)


def test_a_kernel_that_does_not_leave_its_target_invariant_is_seen(monkeypatch):
    """Both faults act on every particle alike; each would be a wrong normalising constant."""
    right = KERNELS["random walk"]

    def always(key, place, log_densities, temperature, step_size):
        return right.step(key, place, lambda x: (0.0 * x[0], 0.0 * x[0]), temperature, step_size)

    def astray(key, place, log_densities, temperature, step_size):
        x = place.x + step_size * jax.random.normal(key, place.x.shape)
        return right.init(x, log_densities), jnp.ones(())

    for step in (always, astray):
        ratio = ratios(replicate(gaussian, kernel=right._replace(step=step)), LOG_Z[gaussian])
        error = ratio.std(ddof=1) / np.sqrt(ratio.size)
        assert not abs(ratio.mean() - 1) < 8 * error


def test_the_error_falls_as_one_over_the_root_of_the_particles():
    spreads = []
    for count in (32, 512):
        runs = replicate(gaussian, num_runs=400, num_particles=count)
        spreads.append(np.std(runs.log_evidence))
        # the lineage's standard error of a single run agrees with the spread over runs
        typical = np.nanmedian(runs.log_evidence_se)
        assert 0.6 < typical / spreads[-1] < 1.6
    ratio = spreads[0] / spreads[1]
    # each spread is known to 1 / sqrt(2 × 400)
    assert abs(np.log(ratio / 4)) < 4 * np.sqrt(2 / 800) + 0.1


@pytest.fixture(scope="module")
def adapted():
    options = {"num_particles": 2000, "temperatures": None, "max_steps": 40}
    options |= {"kernel": sk.smc.hamiltonian(3), "num_moves": 3}
    options |= {"target_ess": 0.95, "step_size": 3.0}
    return replicate(bimodal, num_runs=8, **options)


def test_adapted_temperatures_reach_the_end(adapted):
    assert adapted.kind == "consistent"
    steps = np.asarray(adapted.num_steps)
    assert np.all((steps > 5) & (steps < 30))
    for row, count in zip(np.asarray(adapted.temperatures), steps, strict=True):
        assert row[0] == 0 and np.all(np.diff(row[: count + 1]) > 0) and np.all(row[count:] == 1)
    rates = np.asarray(adapted.acceptance_rates)
    reached = np.arange(rates.shape[1]) <= steps[:, None]
    assert np.isfinite(rates[:, 1:][reached[:, 1:]]).all() and np.isnan(rates[~reached]).all()
    # the step size, which began far too long, follows the acceptance
    last = rates[np.arange(8), steps]
    assert np.all(abs(last - 0.8) < 0.15)
    # large clouds: the bias of adapting is below the noise
    ratio = ratios(adapted, LOG_Z[bimodal])
    assert abs(ratio.mean() - 1) < 4 * max(ratio.std(ddof=1), 0.02) / np.sqrt(8)


def test_each_adapted_step_keeps_the_share_that_was_asked_for(adapted):
    """Resampled particles weigh the same, so that after one step the share is the effective one."""
    ess = np.asarray(adapted.ess)
    np.testing.assert_allclose(ess[:, 1] / 2000, 0.95, atol=1e-6)


def test_a_second_run_with_the_adapted_schedule_is_unbiased(adapted):
    pilot = jax.tree.map(lambda a: a[0], adapted)
    end = int(pilot.num_steps) + 3  # steps behind the end do no harm
    schedule = {"temperatures": pilot.temperatures[:end], "step_size": pilot.step_sizes[:end]}
    runs = replicate(bimodal, kernel=sk.smc.hamiltonian(3), num_moves=3, **schedule)
    assert pilot.temperatures[end - 3] == 1
    ratio = ratios(runs, LOG_Z[bimodal])
    assert runs.kind == "unbiased"
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(ratio.size)


def move_many(kernel, temperature, step_size, num_draws=20_000, num_moves=5):
    """Exact draws from the bridge between two normals, and where the kernel takes them."""
    precision = (1 - temperature) + temperature / SCALES**2
    mean = temperature * CENTRE / SCALES**2 / precision
    draw_key, move_key = jax.random.split(jax.random.key(1))
    start = mean + jax.random.normal(draw_key, (num_draws, 2)) / jnp.sqrt(precision)

    def one(key, x):
        def move(place, key):
            return kernel.step(key, place, log_densities, temperature, step_size)

        place = kernel.init(x, log_densities)
        place, rates = jax.lax.scan(move, place, jax.random.split(key, num_moves))
        return place, jnp.mean(rates)

    def log_densities(x):
        return log_start(x), gaussian(x)

    place, rates = jax.jit(jax.vmap(one))(jax.random.split(move_key, num_draws), start)
    return (mean, 1 / jnp.sqrt(precision)), start, place, rates


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_kernels_leave_the_bridge_invariant(kernel, temperature):
    (mean, std), start, place, rates = move_many(KERNELS[kernel], temperature, 0.6)
    assert 0.2 < float(jnp.mean(rates)) < 0.999
    moved = np.asarray((place.x - mean) / std)
    assert np.mean(np.any(np.asarray(place.x != start), axis=1)) > 0.5
    for j in range(2):
        assert stats.kstest(moved[:, j], "norm").pvalue > 1e-4
    assert abs(np.mean(moved[:, 0] * moved[:, 1])) < 4 / np.sqrt(len(moved))
    # what is remembered is what stands there
    np.testing.assert_allclose(
        place.log_densities[:, 1], jax.vmap(gaussian)(place.x), rtol=1e-6, atol=1e-6
    )
    if place.gradients is not None:
        expected = jax.vmap(jax.grad(gaussian))(place.x)
        np.testing.assert_allclose(place.gradients[:, 1], expected, rtol=1e-6, atol=1e-6)


def test_short_leapfrogs_are_always_accepted():
    kernel = sk.smc.hamiltonian(3)
    rejected = [
        1 - float(jnp.mean(move_many(kernel, 0.6, size, num_moves=1)[3]))
        for size in (0.4, 0.2, 0.02)
    ]
    assert rejected[0] > rejected[1] > rejected[2]
    assert rejected[2] < 1e-4
    # the error of the energy of the leapfrog is of second order in the step
    assert 3 < rejected[0] / rejected[1] < 5.5


def test_a_step_size_for_each_coordinate():
    _, start, place, _ = move_many(KERNELS["random walk"], 0.6, jnp.array([0.5, 0.0]))
    moved = np.asarray(place.x - start)
    assert np.all(moved[:, 1] == 0) and np.any(moved[:, 0] != 0)


def test_any_pytree_moves_and_any_pytree_rides_along():
    def draw(key):
        return {"a": sample(key)[0], "b": sample(key)}

    def density(x):
        return norm.logpdf(x["a"]) + log_start(x["b"])

    def end(x):
        return density(x) - 0.5 * (x["a"] - 1.0) ** 2

    run = sk.smc.temper(
        jax.random.key(0),
        draw,
        density,
        end,
        num_particles=50,
        temperatures=jnp.linspace(0.0, 1.0, 4),
        threshold=1.0,
        rider=lambda x: {"start": x["b"]},
        kernel=sk.smc.random_walk(),
        num_moves=8,
    )
    assert run.particles["b"].shape == run.riders["start"].shape == (50, 2)
    # riders are selected with their particles: fewer starts than particles are left
    assert len(np.unique(run.riders["start"], axis=0)) < 50
    assert not np.any(np.all(np.asarray(run.particles["b"] == run.riders["start"]), axis=1))


def test_a_density_with_a_hard_wall():
    """Where the end is impossible, particles die and none walks there."""

    def half(x):
        return jnp.where(x[0] > 0, log_start(x), -jnp.inf)

    runs = replicate(half, num_runs=500, temperatures=jnp.linspace(0.0, 1.0, 4), threshold=1.0)
    assert np.all(np.asarray(runs.particles)[..., 0] > 0)
    ratio = ratios(runs, jnp.log(0.5))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(ratio.size)
    adapted = replicate(half, num_runs=2, temperatures=None, num_particles=100, max_steps=10)
    assert np.isfinite(adapted.log_evidence).all()


def test_an_end_that_does_not_count_may_be_impossible():
    pair = jnp.array([-jnp.inf, 2.0])
    assert bridge(pair, 1.0) == 2.0
    assert bridge(pair[::-1], 0.0) == 2.0
    assert bridge(pair, 0.5) == -jnp.inf


def test_selection_looks_at_the_new_temperature(monkeypatch):
    """Without the look-ahead it would see the weights of the step before: noisier, not wrong."""
    right = annealing.Recipe
    options = {"threshold": 1.0, "temperatures": jnp.array([0.0, 0.3, 1.0]), "step_size": 0.01}
    good = np.std(replicate(gaussian, **options).log_weights)
    monkeypatch.setattr(
        annealing, "Recipe", lambda **parts: right(**parts | {"log_lookahead": None})
    )
    assert good < 1e-6 < np.std(replicate(gaussian, **options).log_weights)


@pytest.mark.parametrize(
    "options", [{"num_particles": 1}, {"num_moves": 0}, {"max_steps": 0}, {"target_ess": 1.0}]
)
def test_impossible_options_are_refused(options):
    (name,) = options
    with pytest.raises(sk.errors.OptionError, match=name):
        sk.smc.temper(jax.random.key(0), sample, log_start, gaussian, **options)
