"""Refitting the last kernels: one bound and its slope, whatever the window."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import quadratic_values as closed
from linear_reference import FULL as MODEL
from linear_reference import exact_increments, found_increments, program, scalar
from test_online_exactness import WRONG, Askew, exact_bound

import ssmkit as sk
from ssmkit import errors
from ssmkit.engines.online_learning import adaptive
from ssmkit.engines.online_window import kept_step
from ssmkit.learned.backward import Filter, Kernel, Moves, moved
from ssmkit.learned.past import Past
from ssmkit.models.base import as_arrays
from ssmkit.objectives.online_elbo import log_terms, surrogate
from ssmkit.objectives.online_window import Span, rolled_value
from ssmkit.smc.recipes import Step

LENGTH = 6
YS = np.array(sk.simulate(3, MODEL, LENGTH).observations)
ENGINE = sk.OnlineVariational(
    num_steps=3, num_paths=20, num_samples=8, value=sk.learned.Polynomial(num_points=64), window=3
)
REFITTED = dataclasses.replace(WRONG, window=3, num_steps=4, num_samples=4, learning_rate=0.02)


class Driven(sk.StateSpaceModel):
    """Counts whose log rate is driven by an input."""

    gain: jax.Array

    def initial(self, u):
        return dist.Normal(0.0 * self.gain, 1.0)

    def transition(self, x, u):
        return dist.Normal(0.9 * x + self.gain * u, 0.3)

    def emission(self, x, u):
        return dist.Poisson(jnp.exp(x))


def wrong_family(seed=1):
    """Filters and kernels of six times that belong to nothing, and moves of the last ones."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape))  # noqa: E731 - one line
    factor = lambda size: jnp.tril(0.2 * draw(LENGTH, 2, 2)) + size * jnp.eye(2)  # noqa: E731
    filters = Filter(0.5 * draw(LENGTH, 2), factor(0.9))
    unit = jnp.linalg.inv(filters.factor)
    kernels = Kernel(
        filters.mean,
        0.3 * draw(LENGTH, 2),
        0.4 * draw(LENGTH, 2, 2),
        factor(0.7),
        unit,
        unit,
        None,
    )
    scale = jnp.tril(0.2 * draw(LENGTH, 2, 2))
    moves = Moves(
        0.3 * draw(LENGTH, 2),
        scale,
        0.3 * draw(LENGTH, 2),
        0.2 * draw(LENGTH, 2, 2),
        scale[::-1],
        None,
    )
    return filters, kernels, moves


FILTERS, KERNELS, MOVES = wrong_family()
STEPS = [kept_step(Step(t, jnp.asarray(YS[t]), None, None)) for t in range(LENGTH)]


def numbers_of(filters, kernels):
    """Filters and kernels as the closed form takes them."""
    filters, kernels = jax.tree.map(np.array, (filters, kernels))
    laws = [(m, f @ f.T) for m, f in zip(filters.mean, filters.factor, strict=True)]
    offsets = kernels.offset - np.einsum("tij,tj->ti", kernels.matrix, kernels.centre)
    back = [
        (matrix, offset, f @ f.T)
        for matrix, offset, f in zip(kernels.matrix, offsets, kernels.factor, strict=True)
    ]
    return laws, back[1:]


@jax.jit
def family_at(moves):
    """Kernels of all times, and the filter of the last, at moves."""
    filters, kernels = jax.vmap(moved)((FILTERS, KERNELS), moves)
    last = jax.tree.map(lambda a: a[-1], filters)
    return last, kernels


def whole_bound(moves):
    """In closed form."""
    last, kernels = family_at(moves)
    join = lambda a, b: jnp.concatenate([a[:-1], b[None]])  # noqa: E731 - one line
    laws, back = numbers_of(jax.tree.map(join, FILTERS, last), kernels)
    return closed.mean_of(closed.values(MODEL, YS, laws, back)[-1], *laws[-1])


def exact_slopes(window=4):
    """Differences of the closed form in the moves of the last kernels and filter."""
    leaves, structure = jax.tree.flatten(MOVES)
    found = []
    for index, leaf in enumerate(leaves):
        slope = np.zeros((window, *leaf.shape[1:]))
        for place in np.ndindex(*slope.shape):
            ends = []
            for sign in (1, -1):
                shifted = np.array(leaf)
                shifted[(LENGTH - window + place[0], *place[1:])] += sign * 1e-5
                moves = [*leaves[:index], shifted, *leaves[index + 1 :]]
                ends.append(whole_bound(jax.tree.unflatten(structure, moves)))
            slope[place] = (ends[0] - ends[1]) / 2e-5
        found.append(slope)
    return found


def past_at(time):
    """The exact value of a time, whose kernels stand at their moves."""
    _, kernels = family_at(MOVES)
    laws, back = numbers_of(FILTERS, kernels)
    matrix, tilt, level = (jnp.asarray(a) for a in closed.values(MODEL, YS, laws, back)[time])
    value = lambda x: tilt @ x - 0.5 * x @ matrix @ x + level  # noqa: E731 - one line
    filter = jax.tree.map(lambda a: a[time], FILTERS)
    return Past(filter, lambda x: jnp.append(jax.grad(value)(x), value(x)))


def rolled(moves, noise, *, window, past, path_gradient):
    """The surrogate of the last steps."""
    last, kernels = family_at(moves)
    steps = jax.tree.map(lambda *a: jnp.stack(a), *STEPS[-window:])
    own = jax.tree.map(lambda a: a[-window:], kernels)
    span = Span(own, steps, jnp.ones(window, bool))
    return rolled_value(MODEL, past, last, span, noise, path_gradient=path_gradient)[0]


@pytest.fixture(scope="module")
def slopes():
    return exact_slopes()


@pytest.mark.parametrize(("window", "path_gradient"), [(1, True), (2, False), (2, True), (4, True)])
def test_slopes_are_those_of_the_whole_bound_whatever_the_window(slopes, window, path_gradient):
    """At exact values, in the mean: of the filter and of every kernel of the window."""
    num_draws, past = 20_000, past_at(LENGTH - 1 - window)

    def one(noise):
        run = lambda m: rolled(  # noqa: E731 - one line
            m, noise, window=window, past=past, path_gradient=path_gradient
        )
        return jax.value_and_grad(run)(MOVES)

    noise = jax.random.normal(jax.random.key(window), (num_draws, window + 1, 2))
    values, found = jax.jit(jax.vmap(one))(noise)
    if not path_gradient or window > 1:
        error = values.std() / np.sqrt(num_draws)
        assert abs(values.mean() - whole_bound(MOVES)) < 4.5 * error
    for slope, exact in zip(jax.tree.leaves(found), slopes, strict=True):
        slope, own = np.array(slope), np.array(slope)[:, -window:]
        error = own.std(axis=0) / np.sqrt(num_draws)
        gap = np.abs(own.mean(axis=0) - exact[-window:])
        assert np.all(gap < 4.5 * error + 1e-7)
        assert np.all(slope[:, :-window] == 0)  # older kernels stay
        assert np.max(np.abs(exact) - 20 * error.max()) > 0  # there is a slope to be found


def test_a_window_of_one_is_the_recursion():
    """Draw by draw, value and slope; and an engine without a window carries none."""
    past, at = past_at(LENGTH - 2), jax.tree.map(lambda a: a[-1], (FILTERS, KERNELS))
    terms = lambda before, x: log_terms(MODEL, STEPS[-1], before, x)  # noqa: E731 - one line

    def both(noise):
        run = lambda m: rolled(m, noise, window=1, past=past, path_gradient=True)  # noqa: E731
        one = lambda m: surrogate(terms, past, at, m, noise, path_gradient=True)  # noqa: E731
        newest = jax.tree.map(lambda a: a[-1], MOVES)
        return jax.value_and_grad(run)(MOVES), jax.value_and_grad(one)(newest)

    noise = np.random.default_rng(0).normal(size=(3, 2, 2))
    (mine, slope), (theirs, exact) = jax.jit(jax.vmap(both))(noise)
    np.testing.assert_allclose(mine, theirs, atol=1e-10)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a[:, -1], b, atol=1e-10)
    assert sk.OnlineVariational(window=1) == sk.OnlineVariational()
    alone, wide = (carried_by(sk.OnlineVariational(window=w), MODEL, YS[0]) for w in (1, 2))
    assert alone.window is None and wide.window.filters.mean.shape == (1, 2)


def carried_by(engine, model, y, u=None):
    """Shapes and types of what is carried after two steps; nothing is computed."""
    key = jax.random.key(0)

    def two(y):
        first = engine.first(key, model, y, u, None)[0]
        return engine.advance(key, model, first, jnp.asarray(1), y, u, None)[0]

    return jax.eval_shape(two, y)


def test_linear_gaussian_models_stay_exact():
    """Gaps, inputs, steps that differ, and series that end before the window is full."""
    random = np.random.default_rng(4)
    move = np.array(MODEL.transition_matrix) * random.uniform(0.5, 1.2, (7, 1, 1))
    parts = ("initial_mean", "initial_cov", "transition_cov", "emission_matrix", "emission_cov")
    kept = {name: np.array(getattr(MODEL, name)) for name in parts}
    push = random.normal(size=(2, 1))
    model = sk.models.LinearGaussian(**kept, transition_matrix=move, transition_input=push)
    series = [random.normal(size=(length, 3)) for length in (2, 7)]
    series[1][0, 1] = series[1][2] = series[1][4, 2] = np.nan
    us = [random.normal(size=(len(ys), 1)) for ys in series]
    exact, found = (sk.infer(0, e, model, series, us) for e in (sk.Kalman(), ENGINE))
    np.testing.assert_allclose(found.log_evidence, exact.log_evidence, atol=1e-8)
    online = found.parts["run"]["online_log_evidence"][0]
    np.testing.assert_allclose(online, exact.log_evidence, atol=1e-8)
    for index in (0, 1):
        mine, theirs = found[index], exact[index]
        np.testing.assert_allclose(mine.log_likelihood, theirs.log_likelihood, atol=1e-8)
        np.testing.assert_allclose(mine.states.mean(), theirs.states.mean(), atol=1e-8)
        np.testing.assert_allclose(mine.states.cov(), theirs.states.cov(), atol=1e-8)


@pytest.fixture(scope="module")
def runs():
    return [sk.infer(seed, REFITTED, MODEL, YS) for seed in range(24)]


def test_the_running_bound_is_that_of_fresh_paths(runs):
    """Of a family that is wrong and refitted: each run has kernels, whose bound is known."""
    exact = np.array([exact_bound(run, LENGTH) for run in runs])
    assert exact.std() > 1e-3  # the kernels have moved
    gaps = np.array([run.diagnostics["online_log_evidence"] for run in runs]) - exact
    assert abs(gaps.mean()) < 3 * gaps.std(ddof=1) / np.sqrt(len(runs))
    fresh = np.array([run.log_evidence - bound for run, bound in zip(runs, exact, strict=True)])
    fresh = fresh / np.array([run.log_evidence_se for run in runs])
    assert np.max(np.abs(fresh)) < 4.5
    sums = [np.sum(run.log_likelihood) for run in runs]
    np.testing.assert_allclose(sums, gaps + exact, atol=1e-8)


def test_a_stream_refits_as_infer_does(runs, tmp_path):
    whole = runs[0]
    flow = sk.stream(0, REFITTED, MODEL, lag=3)
    beliefs = [flow.update(y) for y in YS[:2]]
    assert flow.smoothed().mean().shape == (2, 2)
    again = sk.load_stream(flow.save(tmp_path / "window.stream"), using=[Askew])
    beliefs += [again.update(y) for y in YS[2:]]
    means = np.stack([belief.mean() for belief in beliefs])
    np.testing.assert_allclose(means, whole.filtered.mean(), atol=1e-8)
    online = whole.diagnostics["online_log_evidence"]
    np.testing.assert_allclose(again.log_evidence, online, atol=1e-8)
    np.testing.assert_allclose(again.smoothed().mean(), whole.states.mean()[-4:], atol=1e-8)
    np.testing.assert_allclose(again.smoothed().cov(), whole.states.cov()[-4:], atol=1e-8)
    # a step that is of no use stays in the window as one with nothing observed
    flow.update(np.full(3, np.inf))
    flow.update(np.array([np.nan, 0.1, 0.2]))
    assert int(flow.diagnostics["skipped"]) == 1
    assert np.isfinite(flow.log_evidence)
    later = sk.stream(0, REFITTED, whole)
    np.testing.assert_array_equal(later.update(YS[0]).mean().shape, (2,))


def test_refits_raise_a_bound_that_was_fitted_too_shortly():
    """Chaotic networks, from the source's start; paired by data."""
    models = [as_arrays(sk.models.ChaoticNetwork.random(seed, 2)) for seed in range(4)]
    ys = [jnp.asarray(sk.simulate(s, m, 12).observations) for s, m in enumerate(models)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *models)

    def bounds(window):
        engine = sk.OnlineVariational.as_published(
            kernel="linear", num_steps=20, learning_rate=0.03, num_paths=200, window=window
        )

        def one(key, model, ys):
            parts = engine.infer(key, model, ys, None, None, "all")
            return parts["log_evidence"], parts["log_evidence_se"]

        keys = jax.random.split(jax.random.key(1), 4)
        return np.array(jax.jit(jax.vmap(one))(keys, stacked, jnp.stack(ys)))

    alone, refitted = bounds(1), bounds(3)
    assert np.all(refitted[0] - alone[0] > 4.5 * np.hypot(alone[1], refitted[1]))


def test_increments_are_those_of_recursive_maximum_likelihood():
    """The score is rolled back along the same paths; with the parameters held."""
    ys, exact = exact_increments(60)
    value = sk.learned.Polynomial(num_points=256)
    found = found_increments(dataclasses.replace(ENGINE, num_steps=0, value=value), ys)
    for mine, theirs in zip(found.T, exact.T, strict=True):
        assert np.corrcoef(mine, theirs)[0, 1] > 0.99
        error = (mine - theirs).std() / np.sqrt(len(ys))
        assert abs((mine - theirs).mean()) < 4 * error + 0.02 * theirs.std()


def test_parameters_follow_the_exact_score_and_without_a_past_stay_behind():
    """Recursive maximum likelihood on the same streams; AELBO-2 is further away, in pairs."""
    length, num_streams = 400, 24
    streams = [sk.simulate(seed, scalar(0.95, 1.0), length) for seed in range(num_streams)]
    ys = jnp.stack([jnp.asarray(stream.observations) for stream in streams])
    model, ascent = adaptive(sk.program(program)), sk.StochasticAscent(rate=0.03)
    keys = jax.random.split(jax.random.key(1), num_streams)

    def path(engine):
        run = lambda key, y: engine.infer(key, model, y, None, None, "all")["steps"]  # noqa: E731
        told = jax.jit(jax.vmap(run))(keys, ys)
        noise, persistence = np.log(told["online noise"]), told["online persistence"]
        return np.stack([noise, persistence], axis=-1)

    exact = path(sk.RecursiveLikelihood(sk.Kalman(), ascent))
    value = sk.learned.Polynomial(num_points=256)
    engine = sk.OnlineVariational(num_steps=0, num_paths=2, value=value, ascent=ascent)
    whole = np.abs(path(engine) - exact).mean(axis=1)
    short = np.abs(path(dataclasses.replace(engine, value=None, score=None)) - exact).mean(axis=1)
    error = lambda a: a.std(axis=0, ddof=1) / np.sqrt(num_streams)  # noqa: E731 - one line
    assert np.all(whole.mean(axis=0) + 4.5 * error(whole) < 0.1)
    assert np.all(whole.max(axis=0) < 0.1)
    further = short - whole
    assert np.all(further.mean(axis=0) > 3 * error(further))


def test_what_is_carried_has_one_form_wherever_it_begins():
    """After steps, and at a belief; of counts, parameters and inputs; in the type of the model."""
    engine = dataclasses.replace(ENGINE, kernel="network", num_steps=1)
    nothing, counts = jnp.zeros(()), as_arrays(Driven(0.5))
    scalar_belief = sk.Gaussian(nothing, nothing + 1, ())
    vector_belief = sk.Gaussian(jnp.zeros(1), jnp.eye(1), (1,))
    rows = (
        (counts, scalar_belief, jnp.asarray(2), nothing),
        (adaptive(sk.program(program)), vector_belief, YS[0, :1], None),
    )
    forms = []
    for model, belief, y, u in rows:
        begin = lambda model, belief, u: engine.begin(  # noqa: E731 - one line
            jax.random.key(0), model, belief, nothing, u
        )
        begun = jax.eval_shape(begin, model, belief, u)
        forms.append((carried_by(engine, model, y, u), begun))
    for stepped, begun in forms:
        alike = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)  # noqa: E731
        assert alike(stepped) == alike(begun)
    model, y = jax.tree.map(lambda a: jnp.asarray(a, np.float32), (MODEL, YS[0]))
    leaves = jax.tree.leaves(carried_by(engine, model, y))
    assert {a.dtype for a in leaves if a.dtype.kind == "f"} == {np.dtype(np.float32)}
    single = jax.tree.map(lambda a: jnp.asarray(a, np.float32), counts)
    carried_by(engine, single, jnp.asarray(2), jnp.zeros((), np.float32))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"window": 0}, "window is no number"),
        ({"window": 2.0}, "window is no number"),
        ({"value": sk.learned.RecursiveMonteCarlo(50)}, "value and score cannot be refitted"),
        ({"score": sk.learned.RecursiveMonteCarlo(50)}, "value and score cannot be refitted"),
        ({"kernel": "independent", "value": None}, "kernel cannot be refitted"),
        ({"amortised": sk.learned.Amortised()}, "amortised cannot be refitted"),
    ],
)
def test_what_a_window_cannot_hold_is_refused_by_name(changes, match):
    with pytest.raises(errors.OptionError, match=match):
        sk.infer(0, dataclasses.replace(ENGINE, **changes), MODEL, YS)
