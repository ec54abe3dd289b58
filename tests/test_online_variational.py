"""Online variational inference: exact where it can be, a bound elsewhere, and unbiased slopes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from linear_reference import FULL as MODEL
from linear_reference import exact_increments, found_increments, program

import ssmkit as sk
from ssmkit import errors
from ssmkit.learned.backward import Filter, Kernel, Moves, moved
from ssmkit.learned.regression import powers
from ssmkit.learned.starts import LinearisedStart
from ssmkit.models.base import as_arrays
from ssmkit.objectives.online_elbo import Past, log_terms, path_of, reward, surrogate, targets
from ssmkit.smc.recipes import Step

LENGTH = 9
RANDOM = np.random.default_rng(11)
YS = np.array(sk.simulate(3, MODEL, LENGTH).observations)
GAPPY = YS.copy()
GAPPY[0, 1] = GAPPY[4] = GAPPY[7, 2] = np.nan
ENGINE = sk.OnlineVariational(num_steps=5, num_paths=20, num_samples=8)


class Tanh(sk.StateSpaceModel):
    """A nonlinear model with heavy tails."""

    gain: jax.Array

    def initial(self, u):
        return dist.Normal(jnp.zeros(2), 1.0).to_event(1)

    def transition(self, x, u):
        turned = jnp.array([[0.6, 0.8], [-0.8, 0.6]]) @ x
        return dist.Normal(self.gain * jnp.tanh(turned), 0.4).to_event(1)

    def emission(self, x, u):
        return dist.StudentT(3.0, x, 0.5).to_event(1)


CURVED = as_arrays(Tanh(1.5))
CURVED_YS = np.array(sk.simulate(5, CURVED, 40).observations)


def step_at(t, ys=YS):
    return Step(t, jnp.asarray(ys[t]), None, None)


def terms_at(t):
    return lambda before, x: log_terms(MODEL, step_at(t), before, x)


def wrong_family():
    """Filters and a kernel that belong to nothing."""
    draw = lambda *shape: jnp.asarray(RANDOM.normal(size=shape))  # noqa: E731
    factor = lambda: jnp.tril(0.3 * draw(2, 2)) + jnp.eye(2)  # noqa: E731
    first, second = Filter(draw(2), factor()), Filter(draw(2), factor())
    unit = jnp.linalg.inv(second.factor)
    kernel = Kernel(draw(2), draw(2), draw(2, 2), factor(), unit, factor(), None)
    moves = Moves(draw(2), 0.2 * draw(2, 2), draw(2), 0.2 * draw(2, 2), 0.2 * draw(2, 2), None)
    return first, (second, kernel), moves


@pytest.mark.parametrize("ys", [YS, GAPPY], ids=["whole", "gaps"])
@pytest.mark.parametrize("num_steps", [0, 5])
def test_linear_gaussian_models_are_exact(ys, num_steps):
    engine = dataclasses.replace(ENGINE, num_steps=num_steps)
    exact, found = sk.infer(0, sk.Kalman(), MODEL, ys), sk.infer(1, engine, MODEL, ys)
    np.testing.assert_allclose(found.log_evidence, exact.log_evidence, atol=1e-8)
    np.testing.assert_allclose(
        found.diagnostics["online_log_evidence"], exact.log_evidence, atol=1e-8
    )
    assert found.log_evidence_se < 1e-8  # the bound does not vary over paths
    np.testing.assert_allclose(found.log_likelihood, exact.log_likelihood, atol=1e-8)
    for name in ("filtered", "states"):
        mine, theirs = getattr(found, name), getattr(exact, name)
        np.testing.assert_allclose(mine.mean(), theirs.mean(), atol=1e-8)
        np.testing.assert_allclose(mine.cov(), theirs.cov(), atol=1e-8)


def test_the_reward_is_the_same_at_every_state():
    """For exact filters and kernels it is the one-step log likelihood, not only in the mean."""
    exact = sk.infer(0, sk.Kalman(), MODEL, YS)
    start = LinearisedStart()
    last, moves = start.first(MODEL, step_at(0), None, full=True)
    filter = last[0]
    for t in range(1, 4):
        family, moves = start.later(MODEL, step_at(t), filter, moves)
        past = Past(filter, lambda x: jnp.zeros(3))
        states = jnp.asarray(3.0 * RANDOM.normal(size=(20, 2, 2)))
        values = jax.vmap(
            lambda pair, t=t, past=past, family=family: reward(
                terms_at(t), past, family, (pair[0], pair[1])
            )
        )(states)
        np.testing.assert_allclose(values, exact.log_likelihood[t], atol=1e-10)
        filter = family[0]


@pytest.mark.parametrize("path_gradient", [False, True])
def test_the_surrogate_has_the_slope_of_the_whole_bound(path_gradient):
    """With the exact slope of the past, draw by draw: nothing that was detached is missed."""
    first, start, moves = wrong_family()

    def past_value(x):
        return reward(terms_at(0), None, (first, None), (None, x))

    past = Past(first, lambda x: jnp.append(jax.grad(past_value)(x), past_value(x)))

    def whole(moves, noise, scored):
        family = moved(start, moves)
        before, x = path_of(family, noise)
        filter, kernel = jax.lax.stop_gradient(family) if scored else family
        own = filter.log_density(x) + kernel.log_density(before, x)
        seen = terms_at(0)(None, before) + terms_at(1)(before, x)
        return seen - own  # the past's filter drops out of the bound

    for noise in jnp.asarray(RANDOM.normal(size=(5, 2, 2))):
        mine = jax.grad(
            lambda m, noise=noise: surrogate(
                terms_at(1), past, start, m, noise, path_gradient=path_gradient
            )
        )(moves)
        exact = jax.grad(whole)(moves, noise, path_gradient)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)
        value = surrogate(terms_at(1), past, start, moves, noise, path_gradient=False)
        np.testing.assert_allclose(value, whole(moves, noise, False), atol=1e-10)


def test_what_is_left_out_of_the_path_gradient_has_mean_zero():
    first, start, moves = wrong_family()
    past = Past(first, lambda x: jnp.append(jnp.sin(x), jnp.sum(x)))
    noise = jnp.asarray(RANDOM.normal(size=(20_000, 2, 2)))

    def slope(noise, path_gradient):
        run = lambda m: surrogate(  # noqa: E731
            terms_at(1), past, start, m, noise, path_gradient=path_gradient
        )
        return jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(jax.grad(run)(moves))])

    gap = jax.vmap(lambda e: slope(e, True) - slope(e, False))(noise)
    error = jnp.std(gap, axis=0) / jnp.sqrt(noise.shape[0])
    assert jnp.all(jnp.abs(jnp.mean(gap, axis=0)) < 4.5 * error + 1e-12)
    assert jnp.max(error) > 1e-3  # the two differ, draw by draw


def test_without_a_past_the_slope_is_that_of_one_step():
    """With nothing carried the bound is AELBO-2, to the bit."""
    first, start, moves = wrong_family()
    past = Past(first, lambda x: jnp.zeros(3))
    noise = jnp.asarray(RANDOM.normal(size=(2, 2)))

    def one_step(moves):
        family = moved(start, moves)
        return reward(terms_at(1), past, family, path_of(family, noise))

    mine = jax.grad(lambda m: surrogate(terms_at(1), past, start, m, noise, path_gradient=False))(
        moves
    )
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(jax.grad(one_step)(moves)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_targets_are_the_slope_and_value_of_the_recursion():
    first, start, moves = wrong_family()
    family = moved(start, moves)

    def past_value(x):
        return reward(terms_at(0), None, (first, None), (None, x))

    past = Past(first, lambda x: jnp.append(jax.grad(past_value)(x), past_value(x)))
    noise, x = jnp.asarray(RANDOM.normal(size=2)), jnp.asarray(RANDOM.normal(size=2))

    def value(x):
        before = family[1].draw(x, noise)
        return past_value(before) + reward(terms_at(1), past, family, (before, x))

    found = targets(terms_at(1), past, family, x, noise)
    np.testing.assert_allclose(found[-1], value(x), atol=1e-10)
    np.testing.assert_allclose(found[:-1], jax.grad(value)(x), atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bound_is_below_the_evidence_and_near(seed):
    ys = np.array(sk.simulate(seed, CURVED, 40).observations)
    many = sk.infer(0, sk.SMC(num_particles=20_000, smoother=None), CURVED, ys)
    engine = dataclasses.replace(ENGINE, num_steps=50, num_samples=32, num_paths=500)
    found = sk.infer(seed, engine, CURVED, ys)
    error = float(np.hypot(found.log_evidence_se, many.log_evidence_se))
    gap = float(many.log_evidence - found.log_evidence)
    assert -4 * error < gap < 3.0 + 4 * error  # 0.08 nats a step at most
    spread = np.sqrt(np.mean((found.filtered.mean() - many.filtered.mean()) ** 2))
    assert spread < 0.25 * float(np.mean(many.filtered.std()))


def test_what_is_carried_and_optimised_makes_the_bound_better():
    best = dataclasses.replace(ENGINE, num_steps=50, num_samples=32, num_paths=500)
    engines = {
        "best": best,
        "network": dataclasses.replace(best, kernel="network", num_steps=20),
        "start": dataclasses.replace(best, num_steps=0),
        "source": sk.OnlineVariational.as_published(num_steps=50, num_paths=500),
    }
    found = {name: sk.infer(2, e, CURVED, CURVED_YS) for name, e in engines.items()}
    values = {name: float(p.log_evidence) for name, p in found.items()}
    assert values["best"] > values["start"] + 1
    assert values["network"] > values["start"] + 1
    assert values["best"] > values["source"]
    assert isinstance(found["network"].states.marginals, sk.Particles)


def test_an_independent_kernel_is_a_product_of_filters():
    """Its bound in closed form: expectations of a quadratic under independent normal laws."""
    engine = dataclasses.replace(ENGINE, kernel="independent", value=None, num_paths=4000)
    found = sk.infer(0, engine, MODEL, YS)
    means, covs = np.array(found.filtered.mean()), np.array(found.filtered.cov())
    np.testing.assert_allclose(found.states.mean(), means, atol=1e-12)
    np.testing.assert_allclose(found.states.cov(), covs, atol=1e-12)
    start, start_cov = (np.array(a) for a in (MODEL.initial_mean, MODEL.initial_cov))
    slope, noise = np.array(MODEL.transition_matrix), np.array(MODEL.transition_cov)
    emission, error = np.array(MODEL.emission_matrix), np.array(MODEL.emission_cov)

    def expected(gap, spread, cov):
        """Mean log density of a normal law whose argument has a mean gap and a covariance."""
        inverse = np.linalg.inv(cov)
        size = gap @ inverse @ gap + np.trace(inverse @ spread)
        return -0.5 * (size + np.linalg.slogdet(2 * np.pi * cov)[1])

    bound = expected(means[0] - start, covs[0], start_cov)
    for t in range(LENGTH):
        gap = YS[t] - emission @ means[t]
        bound += expected(gap, emission @ covs[t] @ emission.T, error)
        bound += 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covs[t])[1]
        if t:
            spread = covs[t] + slope @ covs[t - 1] @ slope.T
            bound += expected(means[t] - slope @ means[t - 1], spread, noise)
    assert abs(float(found.log_evidence) - bound) < 4.5 * float(found.log_evidence_se)
    exact = sk.infer(0, sk.Kalman(), MODEL, YS).log_evidence
    assert bound < exact - 0.5  # the kernels are what is missing


def test_regressions_find_what_they_can_hold():
    z = jnp.asarray(RANDOM.normal(size=(200, 3)))
    quadratic = lambda a: jnp.array([a[0] * a[1] - a[2] ** 2 + 3.0, a[0] - 2 * a[1]])  # noqa: E731
    values = jax.vmap(quadratic)(z)
    far = jnp.array([8.0, -7.0, 9.0])
    key = jax.random.key(0)
    found = sk.learned.Polynomial(2, ridge=0.0).fit(key, z, values, None)
    np.testing.assert_allclose(found(far), quadratic(far), atol=1e-8)
    constant = sk.learned.KernelRidge(200).fit(key, z, jnp.full((200, 1), 41.0), None)
    np.testing.assert_allclose(constant(far), 41.0, atol=1e-8)
    found = sk.learned.KernelRidge(200, ridge=0.1, degree=0, held_out=0.0).fit(key, z, values, None)
    square = np.sum((np.array(z)[:, None] - np.array(z)) ** 2, axis=-1)
    width = float(found.bandwidth)
    assert 0.5 < width / np.median(np.sqrt(square[np.triu_indices(200, 1)])) < 2
    gram = np.exp(-0.5 * square / width**2)
    level = np.array(values).mean(0)
    weights = np.linalg.solve(gram + 0.1 * np.eye(200), np.array(values) - level)
    expected = gram[7] @ weights + level
    np.testing.assert_allclose(found(z[7]), expected, atol=1e-8)
    assert powers(z[0], 2).shape == (9,)


def test_draws_that_are_held_out_keep_noise_from_being_carried():
    """As many coordinates as draws: what is fitted to noise predicts nothing, and is left out."""
    key, other = jax.random.split(jax.random.key(0))
    half = jax.random.normal(key, (64, 80))
    z = jnp.concatenate([half, -half])
    signal = lambda a: jnp.array([0.0, 3.0 * a[0]])  # noqa: E731 - one line
    values = jax.vmap(signal)(z) + jax.random.normal(other, (128, 2))
    fresh = jax.random.normal(jax.random.key(1), (500, 80))
    for part in (sk.learned.KernelRidge(128), sk.learned.Polynomial(1, held_out=0.25)):
        errors_of = []
        for share in (0.0, 0.25):
            found = dataclasses.replace(part, held_out=share).fit(key, z, values, None)
            gap = jax.vmap(found)(fresh) - jax.vmap(signal)(fresh)
            errors_of.append(jnp.mean(gap**2, axis=0))
        assert errors_of[1][0] < 0.25 * errors_of[0][0]
        assert errors_of[1][1] < 9.0  # which is what carrying nothing makes


def test_increments_are_those_of_recursive_maximum_likelihood():
    """With the parameters held, against differences of the exact score."""
    ys, exact = exact_increments(60)
    found = found_increments(dataclasses.replace(ENGINE, num_steps=0), ys)
    for mine, theirs in zip(found.T, exact.T, strict=True):
        assert np.corrcoef(mine, theirs)[0, 1] > 0.99
        error = (mine - theirs).std() / np.sqrt(len(ys))
        assert abs((mine - theirs).mean()) < 4 * error + 0.02 * theirs.std()


def test_a_stream_takes_the_steps_of_infer():
    flow = sk.stream(1, ENGINE, CURVED, run_length=1000)
    beliefs = [flow.update(y) for y in CURVED_YS[:4]]
    whole = sk.infer(1, ENGINE, CURVED, CURVED_YS[:4])
    np.testing.assert_allclose(
        np.stack([b.mean() for b in beliefs]), whole.filtered.mean(), atol=1e-8
    )
    online = whole.diagnostics["online_log_evidence"]
    np.testing.assert_allclose(flow.log_evidence, online, atol=1e-8)
    bytes_of = lambda: sum(a.nbytes for a in jax.tree.leaves(flow._stepper.seen.state))  # noqa: E731
    before, size = flow.update(np.full(2, np.nan)), bytes_of()
    after = flow.update(CURVED_YS[5])
    assert bytes_of() == size
    assert np.all(np.isfinite(after.mean())) and np.all(before.std() > 0)
    assert flow.predict(3).observations.mean().shape == (3, 2)


def test_a_stream_goes_on_learning_after_it_was_saved(tmp_path):
    engine = dataclasses.replace(ENGINE, num_steps=0)
    ys = np.array(RANDOM.normal(size=(12, 1)))
    posterior = sk.infer(0, engine, program, ys)
    learned = {name: float(value) for name, value in posterior.params.mean().items()}
    assert learned["persistence"] != 0.5
    flow = sk.stream(0, engine, posterior)
    assert "program" in repr(flow) and "learning" in repr(flow)
    path = flow.save(tmp_path / "learning.stream")
    again = sk.load_stream(path, using=[program])
    for y in ys[:3]:
        assert np.array_equal(flow.update(y).mean(), again.update(y).mean())
    params = flow._stepper.seen.state.carry.learning.params
    assert float(params["persistence"]) != learned["persistence"]
    assert float(flow.params["noise"]) == pytest.approx(np.exp(float(params["noise"])))
    faster = sk.stream(0, dataclasses.replace(engine, num_samples=4), posterior)
    assert faster.update(ys[0]).mean() == pytest.approx(again.update(ys[0]).mean(), abs=1.0)
    with pytest.raises(errors.NotComputed, match="no parameters"):
        _ = sk.stream(0, engine, CURVED).params
    started = sk.stream(0, engine, sk.infer(0, sk.Kalman(), MODEL, YS))
    exact = sk.stream(0, sk.Kalman(), sk.infer(0, sk.Kalman(), MODEL, YS))
    np.testing.assert_allclose(started.update(YS[0]).mean(), exact.update(YS[0]).mean(), atol=1e-8)


@pytest.mark.parametrize("engine", [ENGINE, sk.RecursiveLikelihood(sk.Kalman())])
def test_a_stream_of_what_was_applied_to_new_data_learns_on(engine):
    """Parameters were held on the new data, so that nothing of their score was carried."""
    if isinstance(engine, sk.OnlineVariational):
        engine = dataclasses.replace(engine, num_steps=0)
    ys = RANDOM.normal(size=(12, 1))
    held = sk.infer(0, engine, program, ys).apply(ys[:6], key=1)
    flow = sk.stream(0, engine, held)
    before = {name: float(value) for name, value in held.params.mean().items()}
    for y in ys:
        belief = flow.update(y)
    assert np.isfinite(belief.mean())
    assert float(flow.params["noise"]) != before["noise"]


class Positive(Tanh):
    """A state that is not any real number."""

    def transition(self, x, u):
        return dist.LogNormal(x, 1.0).to_event(1)


@pytest.mark.parametrize(
    ("changes", "model", "error", "match"),
    [
        ({"num_steps": -1}, CURVED, errors.OptionError, "num_steps"),
        ({"ascent": sk.StochasticAscent(power=0.3)}, CURVED, errors.OptionError, "power"),
        ({"ascent": "adam"}, CURVED, errors.OptionError, "ascent says how"),
        ({"ascent": sk.StochasticAscent(burn_in=2.5)}, CURVED, errors.OptionError, "burn_in"),
        (
            {"ascent": sk.StochasticAscent(averaging_from=-1)},
            CURVED,
            errors.OptionError,
            "averaging",
        ),
        ({"ascent": sk.StochasticAscent(rate=-1.0)}, CURVED, errors.OptionError, "rate"),
        ({"filter": "round"}, CURVED, errors.OptionError, "filter"),
        ({"kernel": "round"}, CURVED, errors.OptionError, "kernel"),
        ({"value": 3}, CURVED, errors.OptionError, "value must be a regression"),
        ({"start": sk.learned.PredictedStart()}, CURVED, errors.OptionError, "independent"),
        ({}, Positive(1.0), errors.ModelError, "real numbers"),
        ({}, sk.models.LocalLevel(1.0, 1.0), errors.ImproperStartError, "diffuse"),
        (
            {},
            sk.models.LinearGaussian(
                *(np.zeros(2), np.eye(2), np.eye(2), np.diag([1.0, 0.0]), np.eye(2), np.eye(2))
            ),
            errors.SingularTransitionError,
            "density",
        ),
    ],
)
def test_what_it_cannot_serve_is_refused_by_name(changes, model, error, match):
    with pytest.raises(error, match=match):
        ys = np.zeros(5) if isinstance(model, sk.models.LocalLevel) else np.zeros((5, 2))
        sk.infer(0, dataclasses.replace(ENGINE, **changes), model, ys)


def test_parameters_are_not_learned_from_a_batch():
    with pytest.raises(errors.EngineError, match="batch"):
        sk.infer(0, ENGINE, program, np.zeros((2, 5, 1)), batched=True)
