"""Recursive Monte Carlo in online variational inference, beside values in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadratic_values as closed
from jax.flatten_util import ravel_pytree
from linear_reference import FULL as MODEL
from linear_reference import exact_increments, found_increments, program

import ssmkit as sk
from ssmkit.engines.online_learning import adaptive
from ssmkit.engines.online_series import run_series
from ssmkit.learned.backward import Filter, Kernel, moved, still
from ssmkit.learned.past import CloudPast
from ssmkit.objectives.online_elbo import log_terms, path_of, reward, surrogate
from ssmkit.smc.recipes import Step

YS = np.array(sk.simulate(3, MODEL, 6).observations)
VALUE = sk.learned.RecursiveMonteCarlo(num_points=40)
ENGINE = sk.OnlineVariational(num_steps=5, num_paths=20, num_samples=8, value=VALUE, score=VALUE)


def test_where_the_family_is_exact_so_is_the_value():
    """The reward is a constant: no weights can spoil it, and the weights' slope moves nothing."""
    ys = YS.copy()
    ys[0, 1] = ys[3] = np.nan
    exact, found = sk.infer(0, sk.Kalman(), MODEL, ys), sk.infer(1, ENGINE, MODEL, ys)
    online = found.diagnostics["online_log_evidence"]
    np.testing.assert_allclose(online, exact.log_evidence, atol=1e-8)
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood, atol=1e-8)
    np.testing.assert_allclose(found.states.mean(), exact.states.mean(), atol=1e-8)


def laws_of(told, kernels, index):
    """Filters and kernels of one run, as the closed form takes them."""
    means, stds = np.array(told.filter.mean[index]), np.array(told.filter.factor[index])
    filters = [(mean, np.diag(std**2)) for mean, std in zip(means, stds, strict=True)]
    at = jax.tree.map(lambda a: np.array(a[index]), kernels)
    offsets = at.offset - np.einsum("tij,tj->ti", at.matrix, at.centre)
    covs = [np.diag(std**2) for std in at.factor]
    return filters, list(zip(at.matrix, offsets, covs, strict=True))


def test_values_of_a_wrong_family_are_those_of_the_closed_form():
    """Independent coordinates where the posterior has none: the error falls as the root of N."""
    num_runs = 12

    def errors_of(num_points):
        value = sk.learned.RecursiveMonteCarlo(num_points)
        engine = sk.OnlineVariational(
            filter="diagonal", num_steps=0, num_paths=2, value=value, antithetic=False
        )
        series = (jnp.asarray(YS), None, None)
        run = jax.jit(jax.vmap(lambda key: run_series(engine, key, MODEL, series, "each")))
        last, (told, kernels) = run(jax.random.split(jax.random.key(num_points), num_runs))
        filters, laws = laws_of(told, kernels, 0)  # the family is computed: one for all keys
        exact = closed.values(MODEL, YS, filters, laws)[-1]
        mean, cov = filters[-1]
        cloud = jax.tree.map(lambda a: np.array(a[:, -1]), told.carried.value)
        states = mean + cloud.points * np.sqrt(np.diag(cov))
        mine = cloud.values[..., 0] + np.array(last.elbo[0])[:, None]
        gaps = mine - closed.value_at(exact, states)
        return gaps, np.array(last.elbo[0]) - closed.mean_of(exact, mean, cov), exact

    few, many = errors_of(50), errors_of(800)
    size = [np.sqrt(np.mean(gaps**2)) for gaps, *_ in (few, many)]
    assert 2.5 < size[0] / size[1] < 6.5  # 4
    assert size[1] < 0.05
    for gaps, bounds, exact in (few, many):
        assert np.abs(exact[0]).max() > 0.1  # the value is not flat
        error = bounds.std() / np.sqrt(num_runs)
        assert abs(bounds.mean()) < 4.5 * error + 3 / gaps.shape[1]


def test_the_bias_of_the_weights_is_of_the_order_of_one_over_the_cloud():
    r"""To first order \(-\mathrm{E}_q[w^2 (f - \mu)] / N\), by quadrature."""
    filter = Filter(jnp.zeros(1), jnp.ones(1))
    flat = jnp.zeros(1)
    kernel = Kernel(flat, 0.8 + flat, jnp.eye(1), 0.6 + flat, 1 + flat, 0.6 + flat, None)
    x, num_points, num_clouds = jnp.array([0.3]), 40, 40_000

    def one(key):
        states = jax.random.normal(key, (num_points, 1))
        past = CloudPast(filter, states, jnp.sin(states))
        return past.average(lambda before, carried: carried[0] + before[0], kernel, x, None)

    found = np.array(jax.vmap(one)(jax.random.split(jax.random.key(0), num_clouds)))
    grid = np.linspace(-8, 8, 4001)
    step = grid[1] - grid[0]
    prior = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    target = np.exp(-0.5 * ((grid - 1.1) / 0.6) ** 2) / (0.6 * np.sqrt(2 * np.pi))
    value = np.sin(grid) + grid
    mean = np.sum(target * value) * step
    bias = -np.sum(target**2 / prior * (value - mean)) * step / num_points
    error = found.std() / np.sqrt(num_clouds)
    assert abs(bias) > 10 * error
    assert abs(found.mean() - mean - bias) < 0.15 * abs(bias) + 4 * error


@pytest.mark.parametrize("path_gradient", [False, True])
def test_the_slope_through_the_weights_is_that_of_the_whole_bound(path_gradient):
    """In the mean, of a family that is wrong; beside the slope along paths of the kernel."""
    eye, flat = jnp.eye(2), jnp.zeros(2)
    first, second = Filter(flat, 1.2 * eye), Filter(flat + 0.3, 0.8 * eye)
    kernel = Kernel(second.mean, flat - 0.2, 0.4 * eye, 0.6 * eye, eye / 0.8, 0.6 * eye, None)
    start, moves = (second, kernel), still(second, None)
    at = lambda t: Step(t, jnp.asarray(YS[t]), None, None)  # noqa: E731
    terms = lambda before, x: log_terms(MODEL, at(1), before, x)  # noqa: E731
    begun = lambda x: log_terms(MODEL, at(0), None, x) - first.log_density(x)  # noqa: E731

    def weighed(key):
        cloud_key, key = jax.random.split(key)
        states = jax.vmap(first.draw)(jax.random.normal(cloud_key, (1000, 2)))
        past = CloudPast(first, states, jax.vmap(begun)(states)[:, None])
        noise = jax.random.normal(key, (2, 2))
        run = lambda m: surrogate(terms, past, start, m, noise, path_gradient=path_gradient)  # noqa: E731
        return ravel_pytree(jax.grad(run)(moves))[0]

    def along(key):
        noise = jax.random.normal(key, (2, 2))

        def whole(moves):
            family = moved(start, moves)
            before, x = path_of(family, noise)
            return begun(before) + reward(terms, CloudPast(first, None, None), family, (before, x))

        return ravel_pytree(jax.grad(whole)(moves))[0]

    found, exact = (
        np.array(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(i), count)))
        for i, (one, count) in enumerate(((weighed, 600), (along, 40_000)))
    )
    error = np.hypot(*(a.std(axis=0) / np.sqrt(len(a)) for a in (found, exact)))
    assert np.all(np.abs(found.mean(axis=0) - exact.mean(axis=0)) < 4.5 * error + 1e-12)
    assert np.max(np.abs(exact.mean(axis=0)) / (error + 1e-12)) > 20  # there is a slope to be found


def test_increments_are_those_of_recursive_maximum_likelihood():
    """With the parameters held, against differences of the exact score; more draws, less error."""
    ys, exact = exact_increments(60)
    size = []
    for num_points in (30, 480):
        value = sk.learned.RecursiveMonteCarlo(num_points)
        gap = found_increments(dataclasses.replace(ENGINE, num_steps=0, value=value), ys) - exact
        error = gap.std(axis=0) / np.sqrt(len(ys))
        assert np.all(np.abs(gap.mean(axis=0)) < 4 * error + 0.02 * exact.std(axis=0))
        size.append(np.sqrt(np.mean(gap**2, axis=0)) / exact.std(axis=0))
    assert np.all(size[1] < 0.14)  # a correlation of 0.99
    assert np.all(size[1] < 0.5 * size[0])


def test_a_stream_learns_as_infer_does_and_goes_on_after_it_was_saved(tmp_path):
    engine = dataclasses.replace(ENGINE, num_steps=2, ascent=sk.StochasticAscent(burn_in=1))
    ys = np.random.default_rng(1).normal(size=(6, 1)).astype(np.float32)
    flow = sk.stream(1, engine, program)
    for y in ys[:4]:
        flow.update(y)
    whole = sk.infer(1, engine, program, ys[:4])
    for name, value in whole.params.mean().items():
        np.testing.assert_allclose(flow.params[name], value, rtol=1e-6)
    again = sk.load_stream(flow.save(tmp_path / "cloud.stream"), using=[program])
    for y in ys[4:]:
        assert np.array_equal(flow.update(y).mean(), again.update(y).mean())
    assert float(flow.params["noise"]) != 0.2
    belief = sk.Gaussian(jnp.zeros(1), jnp.eye(1), (1,))
    model = adaptive(sk.program(program))
    begun = engine.begin(jax.random.key(0), model, belief, jnp.zeros(()), None)
    alike = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    assert alike(begun) == alike(flow._stepper.seen.state.carry)


def test_single_precision_stays_single_where_a_network_weighs_the_cloud():
    engine = dataclasses.replace(ENGINE, kernel="network", num_steps=2)
    model = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), MODEL)
    found = sk.infer(0, engine, model, YS.astype(np.float32)[:3])
    assert {a.dtype for a in jax.tree.leaves(found.parts["carry"])} == {np.dtype(np.float32)}
    assert np.isfinite(found.log_evidence)
