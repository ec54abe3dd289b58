"""Twists: exact ones make the evidence exact, and all of them look into the future only."""

import dataclasses
import math
from functools import cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import ssmkit as sk
from ssmkit import learned, objectives
from ssmkit.engines.alternating import TWIST, Task, begin, take_steps
from ssmkit.learned.pieces import Pieces, sweepable
from ssmkit.learned.reading import Scale, Setting, remains, setting_of
from ssmkit.learned.twists import read_series
from ssmkit.models.base import as_arrays
from ssmkit.objectives.density_ratio import pair_logits, simulate_like
from ssmkit.objectives.sweep import sweep
from ssmkit.smc.filter import ParticleFilter
from ssmkit.smc.recipes import Proposed, chooser
from ssmkit.smc.resampling import SCHEMES, selector

# What is proved here does not depend on versions.
pytestmark = pytest.mark.study

KEY = jax.random.key(0)


@jax.jit
def scales(model, series):
    setting = setting_of(KEY, model, series, jnp.float64)
    return setting.state, setting.observation


class Case(NamedTuple):
    """A model, and one series as the loop takes it."""

    model: Any
    series: tuple
    exact: Any

    @property
    def log_evidence(self):
        run = jax.jit(lambda m, s: sk.log_evidence(KEY, self.exact, m, *s))
        return float(run(self.model, self.series))

    @property
    def setting(self):
        ys, us, _ = self.series
        u = jax.tree.map(lambda a: a[0], us)
        return Setting(self.model, len(ys), u, *scales(self.model, self.series), jnp.float64)


def with_gaps(ys):
    return jnp.asarray(ys), ~jnp.isnan(jnp.asarray(ys))


def drift(a=1.0, y=11.0, length=10):
    """The drift diffusion, seen at the end only."""
    ys, mask = with_gaps(jnp.full(length, jnp.nan).at[-1].set(y))
    model = as_arrays(sk.models.GaussianDrift(a))
    return Case(model, (ys, None, mask), sk.ExtendedKalman())


def linear(length=7):
    """Three states, two observations, inputs, whole and partial gaps, matrices that change."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape)  # noqa: E731
    half = draw(3, 3)
    noise = draw(2, 2)
    model = sk.models.LinearGaussian(
        draw(3),
        np.eye(3) + 0.2 * half @ half.T,
        0.4 * draw(length, 3, 3),
        0.5 * np.eye(3) + 0.1 * half @ half.T,
        draw(2, 3),
        0.3 * np.eye(2) + 0.1 * noise @ noise.T,
        transition_bias=draw(3),
        transition_input=draw(3, 2),
        emission_input=draw(2, 2),
    )
    us = jnp.asarray(draw(length, 2))
    ys = draw(length, 2)
    ys[3] = np.nan
    ys[5, 0] = np.nan
    ys, mask = with_gaps(ys)
    return Case(as_arrays(model), (ys, us, mask), sk.Kalman())


def finite():
    """Three states, one of which cannot follow another; a gap."""
    rows = [[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.3, 0.0, 0.7]]
    start = [0.5, 0.3, 0.2]
    model = as_arrays(sk.models.DiscreteHMM.normal(start, rows, [-1.0, 0.5, 2.0], [0.7, 1.0, 0.8]))
    ys, mask = with_gaps([-1.2, 0.3, 0.9, 2.2, np.nan, 1.7, -0.4, -1.0, 0.6])
    return Case(model, (ys, None, mask), sk.ForwardBackward())


drift, linear, finite = cache(drift), cache(linear), cache(finite)
CASES = {"drift": drift, "linear": linear, "finite": finite}


def analytic(case, iterations=1):
    return learned.Analytic(iterations).build(KEY, case.setting)


def induced(case, iterations=1):
    """One step finds the mode of a quadratic."""
    return learned.Induced(iterations).build(KEY, case.setting)


def run(key, case, pieces, count, **options):
    how = {"num_particles": count, "scheme": "systematic", "threshold": 0.5} | options
    return sweep(key, case.model, pieces, case.series, **how)


@eqx.filter_jit
def jitted(key, case, pieces, count, options):
    done = run(key, case, pieces, count, **options)
    return done.log_evidence, done.report, done.log_twists


@eqx.filter_jit
def evidences(keys, case, pieces, count, options):
    """Log evidence of many runs."""
    return jax.vmap(lambda k: run(k, case, pieces, count, **options).log_evidence)(keys)


# The exact twist.


def every_choice(choice):
    """Scheme and threshold as traced numbers."""
    scheme, threshold = choice

    def draw(key, weights):
        return jax.lax.switch(scheme.astype(int), list(SCHEMES.values()), key, weights)

    def criterion(weights):
        return 1 / jnp.sum(weights**2) <= threshold * weights.shape[0] * (1 + 1e-9)

    return selector(draw, criterion)


CHOICES = jnp.array([(0, 0.0), *((s, t) for s in range(len(SCHEMES)) for t in (0.5, 1.0))])


def of_all_choices(case, pieces, count, num_keys=3):
    """Log evidence of runs under every scheme and threshold, from one compilation."""
    of = sweepable(pieces, case.model, case.series, jnp.float64)

    def one(key, choice):
        loop = ParticleFilter(of.recipe, every_choice(choice), count, jnp.float64)
        return loop.run_steps(key, of.steps, of.length, keep=False)[0].log_evidence

    each = jax.vmap(one, (0, None))
    keys = jax.random.split(KEY, num_keys)
    return np.asarray(jax.jit(lambda c: jax.lax.map(lambda x: each(keys, x), c))(CHOICES))


@pytest.mark.parametrize("count", [4, 64])
@pytest.mark.parametrize("name", CASES)
def test_the_exact_twist_and_its_proposal_leave_no_variance(name, count):
    case = CASES[name]()
    found = of_all_choices(case, Pieces(analytic(case), induced(case)), count)
    np.testing.assert_allclose(found, case.log_evidence, rtol=0, atol=1e-9)


def test_without_either_of_them_there_is_variance():
    case = drift()
    for pieces in (Pieces(None, induced(case)), Pieces(analytic(case), None)):
        assert of_all_choices(case, pieces, 4).std(axis=1).min() > 1e-3


def test_one_particle_is_enough_and_the_plain_filter_is_as_far_off_as_computed():
    """The mean over runs with one particle is known in closed form."""
    case, steps = drift(), 10
    exact, *_ = jitted(KEY, case, Pieces(analytic(case), induced(case)), 1, {})
    assert abs(float(exact) - case.log_evidence) < 1e-9
    for a, y, expected in ((1.0, 11.0, -3.801), (0.0, 5.0, -15.165), (0.0, 11.0, -58.801)):
        here = drift(a, y)
        keys = jax.random.split(KEY, 20_000)
        found = np.asarray(evidences(keys, here, Pieces(None, None), 1, {})) - here.log_evidence
        away = y - (steps + 1) * a
        gap = 0.5 * (math.log(steps + 1) - (away**2 + steps) + away**2 / (steps + 1))
        assert abs(gap - expected) < 1e-3
        assert abs(found.mean() - gap) < 4 * found.std() / np.sqrt(found.size)


def test_the_twist_of_the_drift_is_the_density_of_what_comes():
    """Up to a constant; with the coefficients of the closed form."""
    case = drift(0.5, 4.0)
    xs = jnp.linspace(-3.0, 8.0, 5)
    values = table(analytic(case), case, xs)
    features = jax.jit(analytic(case).read)(case.model, *case.series)
    for t in range(1, 10):
        n = 10 - t + 1  # steps from x_{t-1} to the observation
        expected = dist.Normal(xs + n * 0.5, np.sqrt(n)).log_prob(4.0)
        np.testing.assert_allclose(values[t], expected, atol=1e-10)
        np.testing.assert_allclose(features.matrix[t], [[1 / n]], rtol=1e-10)
        np.testing.assert_allclose(features.slope[t], [(4.0 - n * 0.5) / n], atol=1e-10)


def test_the_messages_of_finite_states_are_backward_probabilities():
    case = finite()
    ys, _, mask = case.series
    features = analytic(case).read(case.model, *case.series)
    for t in (1, 4, 5, len(ys) - 1):
        rest = (ys[t:], None, mask[t:])
        for state in range(3):
            here = sk.models.DiscreteHMM(
                case.model.transition_probs[state],
                case.model.transition_probs,
                case.model.emission_law,
            )
            exact = sk.log_evidence(KEY, sk.ForwardBackward(), here, *rest)
            np.testing.assert_allclose(features[t, state], exact, atol=1e-10)


def test_around_a_path_it_serves_models_that_are_not_linear():
    """A Laplace approximation: not exact, and far better than none."""
    model = as_arrays(sk.models.StochasticVolatility(-1.0, 0.95, 0.3))
    rng = np.random.default_rng(3)
    ys = jnp.asarray(0.6 * rng.normal(size=40) * np.exp(0.3 * rng.normal(size=40)))
    case = Case(model, (ys, None, None), None)
    keys = jax.random.split(KEY, 50)

    def spread(pieces):
        return np.asarray(evidences(keys, case, pieces, 16, {})).std()

    proposal = induced(case, 2)
    twisted = spread(Pieces(analytic(case, 10), proposal))
    assert twisted < 0.25 * spread(Pieces(None, proposal))


def test_a_twist_in_closed_form_needs_a_gaussian_transition():
    class Heavy(sk.StateSpaceModel):
        def initial(self, u):
            return dist.Normal(0.0, 1.0)

        def transition(self, x, u):
            return dist.StudentT(4.0, x, 1.0)

        def emission(self, x, u):
            return dist.Normal(x, 1.0)

    case = Case(Heavy(), (jnp.zeros(5), None, None), None)
    with pytest.raises(sk.errors.ModelError, match="Gaussian transition"):
        analytic(case)


# Coordinates that have nothing to do with each other.


class Loaded(sk.StateSpaceModel):
    """Independent walks, seen through a matrix, or one by one where there is none."""

    loading: Any
    factor: Any = None

    def initial(self, u):
        return dist.Normal(jnp.zeros(3), 1.0).to_event(1)

    def transition(self, x, u):
        mean = jnp.roll(0.7 * x, 1)
        if self.factor is not None:
            return dist.MultivariateNormal(mean, scale_tril=self.factor)
        return dist.Normal(mean, jnp.array([0.5, 1.0, 0.2])).to_event(1)

    def emission(self, x, u):
        mean = x if self.loading is None else self.loading @ x
        return dist.Normal(mean, jnp.exp(0.5 * x)).to_event(1)


def loaded(loading=None, factor=None):
    ys = np.random.default_rng(2).normal(size=(6, 3))
    ys[2], ys[4, 1] = np.nan, np.nan
    ys, mask = with_gaps(ys)
    return Case(as_arrays(Loaded(loading, factor)), (ys, None, mask), None)


def test_what_joins_coordinates_is_found_whatever_the_parameters():
    """An identity joins nothing today, and may when it has been learned."""
    assert induced(loaded()).apart
    for case in (loaded(jnp.eye(3)), loaded(factor=jnp.eye(3)), finite()):
        assert not induced(case).apart


def proposed(case, head, apart):
    """Draws, their log ratios, and the log ratio of a state that was not drawn."""
    twist = None
    if head is not None:
        twist = learned.Twist(learned.Windowed(2), head).build(KEY, case.setting)
    pieces = Pieces(twist, dataclasses.replace(induced(case, 2), apart=apart))

    @jax.jit
    def at(t, before):
        of = sweepable(pieces, case.model, case.series, jnp.float64)
        choice = of.choose(before, of.steps(t))
        return choice.draw(jnp.array([0.3, -1.0, 0.6])), choice.log_ratio(jnp.arange(3.0))

    return at(3, jnp.ones(3)), at(4, jnp.ones(3))


@pytest.mark.parametrize("head", [None, learned.Quadratic(4, diagonal=True), learned.Quadratic(4)])
def test_diagonals_alone_give_the_same_proposal(head):
    """And a twist that joins coordinates takes whole matrices."""
    found, dense = (jax.tree.leaves(proposed(loaded(), head, apart)) for apart in (True, False))
    for a, b in zip(found, dense, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11)


# What a twist may look at.


ENCODERS = {
    "recurrent": learned.Recurrent(5),
    "window of one": learned.Windowed(1),
    "window of two": learned.Windowed(2),
}
HEADS = {
    "quadratic": learned.Quadratic(8),
    "diagonal": learned.Quadratic(8, diagonal=True),
    "network": learned.Network(8),
    "sum": learned.Sum(learned.Quadratic(4), learned.Network(8, depth=1)),
}


@eqx.filter_jit
def _table(twist, model, series, xs):
    reading = read_series(twist, model, series)
    each = jax.vmap(lambda t, x: reading.log_twist(x, reading.at(t)), (None, 0))
    return jax.vmap(each, (0, None))(jnp.arange(len(reading.remains)), xs)


def table(twist, case, xs, series=None):
    """Log twists ``(T, n)`` of states at every time."""
    return np.asarray(_table(twist, case.model, case.series if series is None else series, xs))


def seen_by(encoder, there, t):
    """The times at which the twist of time ``t`` has read something."""
    ahead = [s for s in range(t, len(there)) if there[s]]
    return ahead[: encoder.length] if isinstance(encoder, learned.Windowed) else ahead


@pytest.mark.parametrize("make", [linear, finite])
@pytest.mark.parametrize("name", [*ENCODERS, "analytic"])
def test_an_observation_is_read_from_its_own_time_on_backwards(name, make):
    """What is read at t is put on x_{t-1}: y_t counts, and y_{t-1} does not."""
    case = make()
    ys, us, mask = case.series
    builder = learned.Analytic(iterations=1)
    if name != "analytic":
        builder = learned.Twist(ENCODERS[name], learned.Network(8))
    twist = builder.build(KEY, case.setting)
    states = jax.random.normal(KEY, (4, 3)) if make is linear else jnp.arange(3)
    before = table(twist, case, states)
    there = np.asarray(mask.reshape(len(ys), -1).any(axis=1))
    says = np.asarray(remains(ys, mask)) if make is linear else there  # inputs speak in gaps
    for s in np.flatnonzero(there):
        other = jnp.where(mask[s], ys[s] + 0.3, ys[s])
        after = table(twist, case, states, (ys.at[s].set(other), us, mask))
        moved = np.any(after != before, axis=1)
        encoder = ENCODERS.get(name)
        expected = [s in seen_by(encoder, says, t) for t in range(len(ys))]
        np.testing.assert_array_equal(moved[1:], expected[1:])  # the first is of no state
    gap = int(np.flatnonzero(~there)[0])
    other = table(twist, case, states, (ys.at[gap].set(9.0), us, mask))
    np.testing.assert_array_equal(other, before)


def test_the_loop_asks_the_state_before_with_what_is_read_from_now_on():
    case = drift()
    twist = learned.Twist(learned.Windowed(1), learned.Network(8)).build(KEY, case.setting)
    pieces = Pieces(twist, induced(case))
    xs = jnp.array([0.3, 2.0])
    values = table(twist, case, xs)
    of = sweepable(pieces, case.model, case.series, jnp.float64)

    @jax.jit
    def asked(t, x):
        return of.recipe.log_lookahead(Proposed(x, jnp.zeros(())), of.steps(t))

    for t in range(1, 10):
        np.testing.assert_allclose([asked(t, x) for x in xs], values[t], atol=1e-12)
    _, report, twists = jitted(KEY, case, pieces, 4, {})
    for t in range(9):
        expected = table(twist, case, report.states[t])[t + 1]
        np.testing.assert_allclose(twists[t], expected, atol=1e-12)
    assert np.all(twists[-1] == 0)
    assert np.all(np.abs(twists[:-1]) > 0)


def test_the_end_and_the_start_have_no_twist():
    """What is learned for time 0 is of no state, and nothing is asked behind the last time."""
    case = drift()
    builder = learned.Twist(learned.PerStep(3), learned.Network(8))
    twist = builder.build(KEY, case.setting)
    pieces = lambda t: Pieces(t, induced(case))  # noqa: E731

    @jax.jit
    def value(table):
        other = eqx.tree_at(lambda t: t.encoder.table, twist, table)
        return run(KEY, case, pieces(other), 4, scheme="multinomial", threshold=1.0).log_evidence

    rows = twist.encoder.table
    moved = [float(value(rows.at[t].add(1.0))) != float(value(rows)) for t in range(10)]
    assert moved == [False, *[True] * 9]
    reading = read_series(twist, case.model, case.series)
    assert float(reading.log_twist(jnp.array(3.0), reading.at(10))) == 0.0
    # seen from the last but one time everything is known, behind the last observation nothing
    short = (case.series[0].at[-1].set(jnp.nan).at[4].set(2.0), None, jnp.arange(10) == 4)
    twists = table(twist, case, jnp.array([0.5, 2.0]), short)
    assert np.all(twists[1:5] != 0) and np.all(twists[5:] == 0)


def padded(case, extra):
    """The series with ``extra`` steps behind it, at which nothing is observed."""

    def longer(a):
        return jnp.concatenate([a, jnp.full((extra, *a.shape[1:]), 7.0).astype(a.dtype)])

    ys, us, mask = case.series
    mask = jnp.concatenate([mask, jnp.zeros((extra, *mask.shape[1:]), bool)])
    return case._replace(series=(longer(ys), jax.tree.map(longer, us), mask))


def linear_of_one_matrix():
    one, two = jnp.ones((3, 2)), jnp.ones((2, 2))
    model = sk.models.LinearGaussian(
        jnp.zeros(3), jnp.eye(3), 0.4 * jnp.eye(3), jnp.eye(3), one.T, jnp.eye(2),
        transition_input=one, emission_input=two,
    )  # fmt: skip
    return linear()._replace(model=as_arrays(model))


@pytest.mark.parametrize("make", [drift, linear_of_one_matrix])
def test_padding_changes_no_twist(make):
    """Not even with inputs behind the last observation."""
    case = make()
    longer, length = padded(case, 6), len(case.series[0])
    states = jax.random.normal(KEY, (4,) if make is drift else (4, 3))
    for name in ("recurrent", "window of two", "analytic"):
        twist = analytic(case)
        if name != "analytic":
            twist = learned.Twist(ENCODERS[name], learned.Network(8)).build(KEY, case.setting)
        values = table(twist, longer, states)
        np.testing.assert_allclose(values[:length], table(twist, case, states), atol=1e-12)
        assert np.all(values[length:] == 0)


def test_padding_changes_no_evidence():
    """Where ancestors are drawn all the same."""
    case = drift()
    twist = learned.Twist(ENCODERS["recurrent"], learned.Network(8)).build(KEY, case.setting)
    found = [
        jitted(KEY, c, Pieces(twist, None), 6, {"threshold": 1.0}) for c in (case, padded(case, 6))
    ]
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-10)
    np.testing.assert_allclose(found[0][1].states, found[1][1].states[:10], rtol=0, atol=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_heads_answer_with_one_number(head):
    """And concave quadratics are concave, with the matrix they promise."""
    case = linear()
    twist = learned.Twist(learned.Windowed(1), HEADS[head]).build(KEY, case.setting)
    reading = read_series(twist, case.model, case.series)
    known = reading.at(2)
    value = lambda x: reading.log_twist(x, known)  # noqa: E731
    assert value(jnp.ones(3)).shape == ()
    curvature = np.asarray(jax.hessian(value)(jnp.ones(3)))
    if head in ("quadratic", "diagonal"):
        assert np.linalg.eigvalsh(curvature).max() <= 1e-12
        np.testing.assert_allclose(curvature, jax.hessian(value)(jnp.zeros(3)), atol=1e-12)
    scaled = curvature * np.outer(twist.scale.deviation, twist.scale.deviation)
    off = np.abs(scaled - np.diag(np.diag(scaled))).max()
    assert (off < 1e-12) == (head == "diagonal")


def test_finite_states_are_indicators_and_features_are_clipped():
    case = finite()
    setting = case.setting
    assert setting.state.num_categories == 3 and setting.state.size == 3
    np.testing.assert_array_equal(setting.state(jnp.array(2)), [0.0, 0.0, 1.0])
    twist = learned.Twist(learned.Windowed(1), learned.Quadratic(4)).build(KEY, setting)
    values = table(twist, case, jnp.arange(3))
    assert values.shape == (9, 3) and np.isfinite(values).all()
    scale = Scale(jnp.array([1.0]), jnp.array([2.0]))
    np.testing.assert_allclose(scale.clipped(jnp.array(1e6)), [10.0])
    np.testing.assert_allclose(scale(jnp.array(5.0)), [2.0])


def test_scales_are_those_of_the_model_and_the_data():
    """Constant entries have scale one, and what is missing does not count."""
    case = drift(0.0, 500.0)
    setting = case.setting
    assert abs(float(setting.state.mean[0])) < 1.0
    assert 1.0 < float(setting.state.deviation[0]) < 4.0
    assert float(setting.observation.deviation[0]) > 10.0  # 500 is among them
    flat = case._replace(series=(jnp.full(10, jnp.nan), None, jnp.zeros(10, bool)))
    assert np.isfinite(flat.setting.observation.deviation).all()


def test_what_remains():
    mask = jnp.array([True, False, True, False])
    np.testing.assert_array_equal(remains(jnp.zeros(4), mask), [True, True, True, False])
    np.testing.assert_array_equal(remains(jnp.zeros((2, 3)), None), [True, True])


def test_what_is_learned_for_each_step_serves_no_other_length():
    case = drift()
    twist = learned.Twist(learned.PerStep(3)).build(KEY, case.setting)
    with pytest.raises(sk.errors.ShapeError, match="10 steps"):
        run(KEY, drift(length=7), Pieces(twist, None), 4)


# Learning a twist by telling pairs apart.


class Classifier(eqx.Module):
    """The best one for the drift: log p(y | x) − log p(y), at a drift of its own."""

    length: int

    def read(self, model, ys, us, mask):
        return jnp.arange(len(ys)), jnp.full(len(ys), ys[-1])

    def log_twist(self, model, x, features):
        t, y = features
        n, a = self.length - t + 1, model.drift
        alone = dist.Normal((self.length + 1) * a, jnp.sqrt(self.length + 1.0)).log_prob(y)
        return dist.Normal(x + n * a, jnp.sqrt(n)).log_prob(y) - alone


FLOORS = [0.6811, 0.6675, 0.6520, 0.6347, 0.6143, 0.5901, 0.5603, 0.5239, 0.4730]


def batch_of(case):
    return jax.tree.map(lambda a: a[None], case.series)


def test_the_best_classifier_has_the_known_floor():
    """At each time, and in the mean; and what it believes to lose is what it loses."""
    case = drift(0.7, -4.0)
    objective = objectives.DensityRatio(batch_size=20_000)
    classifier = Classifier(10)
    given = KEY, case.model, classifier, batch_of(case)
    pieces = Pieces(classifier, None)
    positive, negative, counts = map(np.asarray, jax.jit(lambda: pair_logits(*given, objective))())
    assert positive.shape == (20_000, 9) and negative.shape == (4, 20_000, 9) and counts.all()
    # a mean over the negatives of one series: they share its observation
    terms = 0.5 * np.logaddexp(0, -positive) + 0.5 * np.logaddexp(0, negative).mean(axis=0)
    # other simulations are shared too: errors are a little larger than those of independent ones
    error = terms.std(axis=0) / np.sqrt(len(terms))
    assert np.all(np.abs(terms.mean(axis=0) - FLOORS) < 6 * error + 5e-5)
    information = 0.5 * np.log(11 / np.arange(10, 1, -1))
    error = positive.std(axis=0) / np.sqrt(len(positive))
    assert np.all(np.abs(positive.mean(axis=0) - information) < 4.5 * error)
    loss, told = jax.jit(lambda: objective.loss(KEY, case.model, pieces, given[-1]))()
    assert abs(float(loss) - 0.5996) < 6 * terms.mean(axis=1).std() / np.sqrt(len(terms))
    assert abs(float(told["classifier_floor"]) - float(loss)) < 5e-3
    np.testing.assert_allclose(loss, terms.mean(), rtol=1e-12)


def test_one_that_says_nothing_loses_log_two():
    case = drift()

    class Silent(Classifier):
        def log_twist(self, model, x, features):
            return jnp.zeros(())

    given = {"pieces": Pieces(Silent(10), None), "series": batch_of(case)}
    loss = jax.jit(partial(objectives.DensityRatio().loss, **given))
    loss, _ = loss(KEY, case.model)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-12)


def test_simulated_series_have_gaps_inputs_and_windows_of_the_data():
    case = linear_of_one_matrix()
    ys, us, mask = batch_of(case)
    simulate = jax.jit(simulate_like, static_argnums=(3, 4))
    states, (simulated, inputs, there) = simulate(KEY, case.model, (ys, us, mask), 5, None)
    assert states.shape == (5, 7, 3) and simulated.shape == (5, 7, 2)
    assert np.isfinite(simulated).all()  # no data were looked at
    np.testing.assert_array_equal(there, jnp.broadcast_to(mask, there.shape))
    np.testing.assert_array_equal(inputs, jnp.broadcast_to(us, inputs.shape))
    _, (simulated, inputs, there) = simulate(KEY, case.model, (ys, us, mask), 50, 3)
    assert simulated.shape == (50, 3, 2)
    starts = {tuple(np.asarray(row).ravel()) for row in there}
    windows = {tuple(np.asarray(mask[0, s : s + 3]).ravel()) for s in range(5)}
    assert starts == windows


def test_a_learned_classifier_comes_near_the_best():
    """In loss, in curvature, and in how tight the evidence becomes."""
    case = drift()
    start = learned.Twist(learned.Windowed(1), learned.Quadratic(32)).build(KEY, case.setting)
    ratio = objectives.DensityRatio()
    task = Task(case.model, batch_of(case), KEY, objectives.SIXO(), ratio, (6000, 0))
    learner, _ = take_steps(task, begin(task, {}, Pieces(start, None)), TWIST, jnp.array(6000))
    twist = learner.twist
    objective = objectives.DensityRatio(batch_size=20_000)
    given = batch_of(case)
    losses = eqx.filter_jit(lambda t: objective.loss(KEY, case.model, Pieces(t, None), given)[0])
    gained = float(losses(twist)) - float(losses(Classifier(10)))  # on the same simulations
    assert 0 < gained < 0.01
    for t in range(2, 10):
        n, step = 10 - t + 1, 1.5
        values = table(twist, case, t + step * jnp.array([-1.0, 0.0, 1.0]))[t]
        curvature = (values[0] - 2 * values[1] + values[2]) / step**2
        assert abs(curvature * n + 1) < 0.5

    def gap(pieces):
        values = evidences(jax.random.split(KEY, 2000), case, pieces, 4, {"threshold": 1.0})
        return float(np.mean(values)) - case.log_evidence

    assert abs(gap(Pieces(twist, induced(case)))) < 0.03
    assert gap(Pieces(None, induced(case))) < -0.1


def test_builders_are_configurations():
    """Hashable and equal when built alike: engines that hold them are static."""
    for kind in (learned.Twist, learned.Analytic, learned.Induced, learned.Gaussian):
        assert kind() == kind() and hash(kind()) == hash(kind())
        with pytest.raises(dataclasses.FrozenInstanceError):
            kind().size = 3


def test_a_proposal_that_leaves_the_twist_out_asks_the_observation_alone():
    """It is the linearised one; the twist selects, and the evidence stays unbiased."""
    case = linear()
    blind = learned.Induced(1, sees_twist=False).build(KEY, case.setting)
    pieces = Pieces(analytic(case), blind)

    @eqx.filter_jit
    def draws(noises):
        of = sweepable(pieces, case.model, case.series, float)
        rule = chooser(case.model, float, sk.Linearised(1))
        before, s = jnp.zeros(case.setting.state.size), of.steps(2)
        return [jax.vmap(choose(before, s).draw)(noises) for choose in (of.choose, rule)]

    noises = jax.random.normal(KEY, (20, case.setting.state.size))
    for mine, theirs in zip(*map(jax.tree.leaves, draws(noises)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-10)
    values = evidences(jax.random.split(KEY, 2000), case, pieces, 16, {})
    ratios = np.exp(np.asarray(values) - case.log_evidence)
    assert abs(ratios.mean() - 1) < 4.5 * ratios.std() / np.sqrt(len(ratios))
    assert ratios.std() > 1e-3  # of the best proposal it would be nothing
