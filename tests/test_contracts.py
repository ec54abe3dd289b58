"""What every state engine claims, over a dictionary of engines and models.

A row is an engine, a model it serves and a short series. For each row one batched run over all
patterns of missing data, one run of a shorter series, one forecast and one compiled gradient are
shared by the tests.
"""

import dataclasses
from functools import cached_property
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest

import ssmkit as sk
from ssmkit.engines import optimise
from ssmkit.engines.objective import Objective

LENGTH, SHORT = 8, 5
NOISE = np.random.default_rng(11)
TIMES = np.arange(LENGTH)


class Driven(sk.StateSpaceModel):
    """A scalar state pushed by inputs; the usual way to write a model."""

    scale: Any
    slope: Any

    def initial(self, u):
        return dist.Normal(0.3 * u, 2 * self.scale)

    def transition(self, x, u):
        return dist.Normal(self.slope * x + u, self.scale)

    def emission(self, x, u):
        return dist.Normal(x - 0.5 * u, 0.7 * self.scale)


class Bent(sk.StateSpaceModel):
    """Nonlinear in both steps; inputs are a dictionary of arrays of different shapes."""

    spread: Any
    noise: Any
    seen: Any

    def initial(self, u):
        return dist.Normal(jnp.zeros_like(self.spread), self.spread).to_event(1)

    def transition(self, x, u):
        mean = jnp.stack([x[0] + 0.3 * jnp.sin(x[1]) + u["push"][0], 0.8 * x[1]])
        return dist.Normal(mean, self.noise).to_event(1)

    def emission(self, x, u):
        mean = jnp.stack([x[0] + 0.1 * x[1] ** 2, jnp.sin(x[0]) + u["shift"] + x[1]])
        return dist.Normal(mean, self.seen).to_event(1)


class Wave(Driven):
    """Nonlinear and scalar."""

    def transition(self, x, u):
        return dist.Normal(x + self.slope * jnp.sin(x) + u, self.scale)

    def emission(self, x, u):
        return dist.Normal(x + 0.1 * x**2, 0.7 * self.scale)


class Weather(sk.StateSpaceModel):
    """A finite state whose transitions depend on inputs; two counts a step."""

    start: Any
    logits: Any
    rates: Any

    def initial(self, u):
        return dist.Categorical(logits=self.start)

    def transition(self, x, u):
        return dist.Categorical(logits=self.logits[x] * (1 + u))

    def emission(self, x, u):
        return dist.Poisson(self.rates[x]).to_event(1)


def linear(length=None, **options):
    """Two states, two observations with correlated noise; with ``length`` time is in front."""
    arrays = {
        "transition_matrix": np.array([[0.8, 0.3], [-0.2, 0.7]]),
        "transition_cov": np.array([[0.5, 0.1], [0.1, 0.3]]),
        "emission_matrix": np.array([[1.0, 0.2], [0.5, -1.0]]),
        "emission_cov": np.array([[0.6, 0.4], [0.4, 0.5]]),
        "transition_bias": np.array([0.1, -0.2]),
    }
    if length is not None:
        arrays = {k: np.stack([a] * length) for k, a in arrays.items()}
    start = np.array([0.5, -0.5]), np.array([[1.0, 0.2], [0.2, 2.0]])
    return sk.models.LinearGaussian(*start, **arrays, **options)


def finite(length=None):
    """Three states that emit pairs."""
    stay = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    means = np.array([[-1.0, 0.0], [0.5, 1.0], [1.5, -1.0]])
    stay = stay if length is None else np.stack([stay] * length)
    return sk.models.DiscreteHMM.normal(np.array([0.5, 0.3, 0.2]), stay, means, 0.8)


DRIVEN = Driven(jnp.array(0.8), jnp.array(0.9))
WAVE = Wave(jnp.array(0.5), jnp.array(0.4))
LEVEL = sk.models.LocalLevel(jnp.array(0.5), jnp.array(1.5))
BENT = Bent(jnp.array([1.0, 0.5]), jnp.array([0.3, 0.4]), jnp.array([0.4, 0.3]))
WEATHER = Weather(
    jnp.array([0.2, -0.1]),
    jnp.array([[1.0, -1.0], [-0.5, 0.5]]),
    jnp.array([[2.0, 5.0], [4.0, 1.0]]),
)
PUSH = NOISE.normal(size=LENGTH)
BENT_INPUTS = {"push": 0.3 * PUSH[:, None], "shift": 0.2 * NOISE.normal(size=LENGTH)}
PAIRS, COUNTS = NOISE.normal(size=(LENGTH, 2)), NOISE.poisson(3, size=(LENGTH, 2))
SCALARS = NOISE.normal(size=LENGTH)


class Row(NamedTuple):
    """One engine at work; ``state`` and ``kind`` are the state's event shape and the evidence."""

    engine: Any
    model: Any
    ys: np.ndarray
    us: Any
    state: tuple
    kind: str = "exact"


SQUARE_ROOT = sk.Kalman(form="square_root")
ROWS = {
    "kalman-linear": Row(sk.Kalman(), linear(), PAIRS, None, (2,)),
    "kalman-diffuse": Row(sk.Kalman(), LEVEL, SCALARS, None, (1,)),
    "kalman-own": Row(sk.Kalman(), DRIVEN, SCALARS, PUSH, ()),
    "square_root-diffuse": Row(SQUARE_ROOT, LEVEL, SCALARS, None, (1,)),
    "extended-own": Row(sk.ExtendedKalman(), WAVE, SCALARS, PUSH, (), "approximate"),
    "iterated-own": Row(
        sk.ExtendedKalman(iterations=3), BENT, PAIRS, BENT_INPUTS, (2,), "approximate"
    ),
    "unscented-own": Row(sk.UnscentedKalman(), BENT, PAIRS, BENT_INPUTS, (2,), "approximate"),
    "finite": Row(sk.ForwardBackward(num_forecast_draws=4), finite(), PAIRS, None, ()),
    "finite-own": Row(sk.ForwardBackward(num_forecast_draws=4), WEATHER, COUNTS, PUSH, ()),
}


def patterns(event):
    """Name to what is observed ``(T, *event)``."""
    late = (TIMES >= SHORT).reshape((-1,) + (1,) * len(event))
    everything = np.ones((LENGTH, *event), bool)
    rows, first, last, coordinates = (everything.copy() for _ in range(4))
    rows[[1, 4, 5]], first[0], last[-1] = False, False, False
    coordinates.reshape(LENGTH, -1)[[0, 2, 3, 7], -1] = False
    return {
        "none": everything,
        "rows": rows,
        "coordinates": coordinates,
        "first": first,
        "last": last,
        "tail": everything & ~late,
        "everything": ~everything,
    }


class Work:
    """The runs of one row, each made once."""

    def __init__(self, row):
        self.row = row
        self.patterns = patterns(row.ys.shape[1:])
        self.count = len(self.patterns)
        masks = np.stack(list(self.patterns.values()))
        ys = np.stack([row.ys] * self.count)
        if np.issubdtype(ys.dtype, np.integer):
            self.ys, self.observed = ys, masks
        else:
            self.ys, self.observed = np.where(masks, ys, np.nan), None

    def index(self, pattern):
        return list(self.patterns).index(pattern)

    def repeat(self, tree, count):
        return jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * count), tree)

    @cached_property
    def batch(self):
        us = self.repeat(self.row.us, self.count)
        return sk.infer(
            0, self.row.engine, self.row.model, self.ys, us, self.observed, batched=True
        )

    def early(self):
        cut = jax.tree.map(lambda a: a[:SHORT], (self.row.ys, self.row.us))
        return sk.infer(0, self.row.engine, self.row.model, *cut)

    @cached_property
    def short(self):
        return self.early()

    @cached_property
    def forecast(self):
        us = jax.tree.map(lambda a: a[SHORT:], self.row.us)
        return sk.forecast(1, self.short, LENGTH - SHORT, us)

    @cached_property
    def direction(self):
        """A direction in the space of the model's parameters."""
        leaves, structure = jax.tree.flatten(eqx.filter(self.row.model, eqx.is_array))
        draw = np.random.default_rng(3)
        return jax.tree.unflatten(structure, [draw.uniform(0.1, 1, a.shape) for a in leaves])

    @cached_property
    def pure(self):
        """Values and gradients ``(3, patterns)`` of the pure evidence at three models."""
        arrays, static = eqx.partition(self.row.model, eqx.is_array)
        moved = [
            jax.tree.map(lambda a, d, h=h: a + h * d, arrays, self.direction)
            for h in (-STEP, 0.0, STEP)
        ]
        models = jax.tree.map(lambda *a: jnp.repeat(jnp.stack(a), self.count, 0), *moved)
        ys = jnp.tile(self.ys, (3,) + (1,) * (self.ys.ndim - 1))
        seen = None if self.observed is None else jnp.tile(self.observed, (3, 1, 1))
        key, us = jax.random.key(0), jax.tree.map(jnp.asarray, self.row.us)

        def value(model, y, observed):
            full = eqx.combine(model, static)
            return sk.log_evidence(key, self.row.engine, full, y, us, observed)

        values, gradients = jax.jit(jax.vmap(jax.value_and_grad(value)))(models, ys, seen)
        fold = lambda a: np.asarray(a).reshape(3, self.count, *a.shape[1:])  # noqa: E731
        return fold(values), jax.tree.map(fold, gradients)


STEP = 1e-5


@pytest.fixture(scope="module", params=ROWS)
def work(request):
    return Work(ROWS[request.param])


def numbers(belief):
    """The arrays that make up a belief, with names."""
    if isinstance(belief, sk.Categorical):
        return {"probabilities": belief.probabilities()}
    if isinstance(belief, sk.Particles):
        return {"values": belief.values, "log_weights": belief.log_weights}
    return {"mean": belief.mean(), "cov": belief.cov()}


def same(found, expected, rtol=1e-9, atol=1e-9):
    found, expected = numbers(found), numbers(expected)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=atol, err_msg=name)


def cut(belief, *index):
    return jax.tree.map(lambda a: a[index], belief)


BELIEFS = ("predicted", "filtered")


# Evidence.


def test_log_likelihoods_sum_to_the_log_evidence(work):
    terms = np.asarray(work.batch.log_likelihood)
    assert terms.shape == (work.count, LENGTH)
    np.testing.assert_allclose(terms.sum(axis=1), work.batch.log_evidence, rtol=1e-10, atol=1e-10)


def test_what_the_evidence_is_is_said(work):
    assert work.short.evidence_kind == work.row.kind
    assert work.short.evidence_of == "data given parameters"
    assert f"({work.row.kind}, of data given parameters)" in repr(work.short)


def test_nothing_observed_is_no_evidence(work):
    np.testing.assert_array_equal(work.batch.log_likelihood[work.index("everything")], 0.0)
    assert float(work.batch.log_evidence[work.index("everything")]) == 0.0


@pytest.mark.parametrize("work", ["finite-own"], indirect=True)
def test_what_is_masked_is_not_looked_at(work):
    """Other numbers where nothing was observed change nothing."""
    other = np.where(work.observed, work.ys, 7)
    us = work.repeat(work.row.us, work.count)
    again = sk.infer(0, work.row.engine, work.row.model, other, us, work.observed, batched=True)
    np.testing.assert_array_equal(again.log_likelihood, work.batch.log_likelihood)


# The gradient of a loop is what takes longest to compile: one row for each way to compute it.
SCORED = ["kalman-diffuse", "iterated-own", "unscented-own", "finite-own"]


@pytest.mark.parametrize("work", SCORED, indirect=True)
def test_the_pure_evidence_is_that_of_infer(work):
    """Under jit, vmap over models and series, and a gradient."""
    values, _ = work.pure
    np.testing.assert_allclose(values[1], work.batch.log_evidence, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seen", [None, (), (2,)], ids=["nan", "rows", "coordinates"])
@pytest.mark.parametrize("name", ["kalman-linear", "finite"])
def test_gaps_take_no_memory_and_those_of_both_kinds_count(name, seen):
    """Traced data, of which any entry may be missing, by nan and by ``observed``."""
    row, key = ROWS[name], jax.random.key(0)
    ys = np.where(patterns((2,))["coordinates"], PAIRS, np.nan)
    observed = None if seen is None else patterns(seen)["rows"]
    run = jax.jit(lambda y, o: sk.log_evidence(key, row.engine, row.model, y, None, o))
    expected = sk.infer(key, row.engine, row.model, ys, observed=observed).log_evidence
    np.testing.assert_allclose(run(ys, observed), expected, rtol=1e-12)

    def size(length):
        y = jax.ShapeDtypeStruct((length, 2), ys.dtype)
        o = None if seen is None else jax.ShapeDtypeStruct((length, *seen), bool)
        return run.lower(y, o).compile().memory_analysis().temp_size_in_bytes

    assert size(10_000) == size(1000)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_data_may_be_closed_over(value):
    row, key = ROWS["kalman-linear"], jax.random.key(0)
    ys = jnp.asarray(PAIRS).at[1, 0].set(value)
    inside = jax.jit(lambda model: sk.log_evidence(key, row.engine, model, ys))(row.model)
    expected = sk.log_evidence(key, row.engine, row.model, ys)
    np.testing.assert_allclose(inside, expected, rtol=1e-12)


@pytest.mark.parametrize("work", SCORED, indirect=True)
def test_gradients_are_finite_and_those_of_finite_differences(work):
    values, gradients = work.pure
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
    slopes = sum(
        np.sum((g[1] * d).reshape(work.count, -1), axis=1)
        for g, d in zip(*map(jax.tree.leaves, (gradients, work.direction)), strict=True)
    )
    differences = (values[2] - values[0]) / (2 * STEP)
    np.testing.assert_allclose(slopes, differences, rtol=2e-6, atol=2e-6)
    assert np.all(np.abs(slopes[: work.index("everything")]) > 1e-3)
    assert slopes[work.index("everything")] == 0.0


# Missing data.


@pytest.mark.parametrize("pattern", ["rows", "first", "last", "tail", "everything"])
def test_a_missing_step_is_exactly_a_prediction_step(work, pattern):
    observed = work.patterns[pattern].reshape(LENGTH, -1)
    missing = np.flatnonzero(~observed.any(axis=1))
    assert missing.size
    row = work.index(pattern)
    np.testing.assert_array_equal(work.batch.log_likelihood[row, missing], 0.0)
    filtered, predicted = (numbers(cut(getattr(work.batch, n), row)) for n in BELIEFS[::-1])
    for name in filtered:
        np.testing.assert_array_equal(filtered[name][missing], predicted[name][missing])


@pytest.mark.parametrize("pattern", ["rows", "coordinates", "first", "last", "tail"])
def test_beliefs_use_all_that_is_there_and_nothing_else(work, pattern):
    """Before the first gap nothing differs from the full data; after it something does."""
    observed = work.patterns[pattern].reshape(LENGTH, -1)
    gap = int(np.flatnonzero(~observed.all(axis=1))[0])
    full, row = work.index("none"), work.index(pattern)
    for name in BELIEFS:
        belief = getattr(work.batch, name)
        end = gap + (name == "predicted")
        same(cut(belief, row, slice(end)), cut(belief, full, slice(end)))
    seen = numbers(cut(work.batch.filtered, row, gap))
    whole = numbers(cut(work.batch.filtered, full, gap))
    assert any(np.abs(seen[n] - whole[n]).max() > 1e-6 for n in seen)


@pytest.mark.parametrize("work", [n for n, r in ROWS.items() if r.ys.ndim > 1], indirect=True)
def test_one_missing_coordinate_leaves_the_others(work):
    """Dropping the whole row would leave the prediction as it was."""
    row = work.index("coordinates")
    part = ~work.patterns["coordinates"].all(axis=1)
    filtered, predicted = (numbers(cut(getattr(work.batch, n), row)) for n in BELIEFS[::-1])
    for name in ("cov",) if "cov" in filtered else ("probabilities",):
        moved = np.abs(filtered[name] - predicted[name]).reshape(LENGTH, -1).max(axis=1)
        assert np.all(moved[part] > 1e-3)
    assert np.all(np.abs(work.batch.log_likelihood[row]) > 1e-3)


def test_trailing_gaps_are_the_forecast(work):
    tail = work.index("tail")
    same(cut(work.batch.predicted, tail, slice(SHORT, None)), work.forecast.states)
    same(cut(work.batch.states.marginals, tail, slice(SHORT, None)), work.forecast.states)
    if isinstance(work.forecast.observations, sk.Gaussian):
        ahead = cut(work.batch.predicted_observations, tail, slice(SHORT, None))
        same(ahead, work.forecast.observations)
    same(cut(work.batch.final, tail), cut(work.forecast.states, -1))


# Shapes, batches, options.


def test_shapes(work):
    event, state = work.row.ys.shape[1:], work.row.state
    for posterior, lead in ((work.short, (SHORT,)), (work.batch, (work.count, LENGTH))):
        for name in (*BELIEFS, "states"):
            belief = getattr(posterior, name)
            belief = belief.marginals if name == "states" else belief
            assert belief.event_shape == state
            for key, array in numbers(belief).items():
                tail = {"mean": state, "cov": (max(1, *state, 1),) * 2}.get(key, array.shape[-1:])
                assert array.shape == lead + tail
        assert posterior.log_likelihood.shape == lead
        assert posterior.log_evidence.shape == lead[:-1]
        assert next(iter(numbers(posterior.final).values())).shape[: len(lead) - 1] == lead[:-1]
        assert posterior.states.log_weights.shape == (1,)
    assert work.short.states.sample(0, 3).shape == (3, SHORT, *state)
    assert work.forecast.observations.event_shape == event
    table = work.short.filtered.to_frame()
    assert len(table) == SHORT and np.isfinite(table.to_numpy()).all()


def test_a_batch_agrees_with_its_members(work):
    """Series ``tail`` of the batch ends where the shorter run does."""
    tail = work.index("tail")
    for name in BELIEFS:
        same(cut(getattr(work.batch, name), tail, slice(SHORT)), getattr(work.short, name))
    same(cut(work.batch.states.marginals, tail, slice(SHORT)), work.short.states.marginals)
    np.testing.assert_allclose(work.batch.log_evidence[tail], work.short.log_evidence, rtol=1e-10)
    one = work.batch[tail]
    assert not one.is_batch and one.data.ys.shape == work.row.ys.shape
    np.testing.assert_array_equal(one.log_evidence, work.batch.log_evidence[tail])
    same(one.filtered, cut(work.batch.filtered, tail))


def test_the_same_key_gives_the_same_bits(work):
    again = work.early()
    for name, part in work.short.parts.items():
        for a, b in zip(*map(jax.tree.leaves, (part, again.parts[name])), strict=True):
            np.testing.assert_array_equal(a, b)
    draws = [p.states.sample(jax.random.key(3), 50) for p in (work.short, again)]
    np.testing.assert_array_equal(*draws)
    assert not np.array_equal(again.states.sample(4, 50), draws[0])


@pytest.mark.parametrize("work", ["kalman-diffuse", "extended-own", "finite-own"], indirect=True)
def test_keeping_only_the_end_changes_no_number(work):
    ys, us = jax.tree.map(lambda a: a[:SHORT], (work.row.ys, work.row.us))
    final = sk.infer(0, work.row.engine, work.row.model, ys, us, keep="final")
    np.testing.assert_allclose(final.log_evidence, work.short.log_evidence, rtol=1e-12)
    same(final.final, work.short.final, rtol=1e-12)
    same(work.short.final, cut(work.short.filtered, -1), rtol=1e-12)
    later = jax.tree.map(lambda a: a[SHORT:], work.row.us)
    ahead = sk.forecast(1, final, LENGTH - SHORT, later)
    same(ahead.states, work.forecast.states, rtol=1e-12)


# Ragged batches, with dates.


DATES = pd.date_range("1990-01-31", periods=LENGTH, freq="ME")


@pytest.mark.parametrize("keep", ["all", "final"])
@pytest.mark.parametrize("work", ["kalman-diffuse", "finite-own"], indirect=True)
def test_ragged_batches_agree_with_their_members(work, keep):
    row = work.row
    short_us = jax.tree.map(lambda a: a[:SHORT], row.us)
    us = None if row.us is None else [row.us, short_us]
    batch = sk.infer(0, row.engine, row.model, [row.ys, row.ys[:SHORT]], us, keep=keep)
    one, alone = batch[1], work.short
    np.testing.assert_allclose(one.log_evidence, alone.log_evidence, rtol=1e-10)
    same(one.final, alone.final)
    later = jax.tree.map(lambda a: a[SHORT:], row.us)
    same(sk.forecast(1, one, LENGTH - SHORT, later).states, work.forecast.states)
    assert one.data.ys.shape[0] == SHORT
    if keep == "final":
        with pytest.raises(sk.errors.NotComputed):
            _ = one.filtered
        return
    for name in BELIEFS:
        same(getattr(one, name), getattr(alone, name))
    same(one.states.marginals, alone.states.marginals)
    np.testing.assert_allclose(one.log_likelihood, alone.log_likelihood, rtol=1e-9, atol=1e-10)
    paths = [p.states.sample(5, 6) for p in (one, alone)]
    assert paths[0].shape == (6, SHORT, *row.state)
    np.testing.assert_allclose(*paths, rtol=1e-8, atol=1e-8)
    if isinstance(alone.final, sk.Categorical):
        np.testing.assert_array_equal(one.states.most_likely(), alone.states.most_likely())
    assert [len(p.filtered.to_frame()) for p in batch] == [LENGTH, SHORT]


def test_dates_and_names_stay_with_their_series():
    years = pd.date_range("2001-12-31", periods=SHORT, freq="YE")
    series = [pd.Series(SCALARS, DATES, name="a"), pd.Series(SCALARS[:SHORT], years, name="a")]
    batch = sk.infer(0, sk.Kalman(), LEVEL, series)
    for posterior, dates in ((batch[0], DATES), (batch[1], years)):
        for belief in (posterior.filtered, posterior.states, posterior.predicted_observations):
            assert belief.to_frame().index.equals(dates)
        assert posterior.final.to_frame().index.equals(dates[-1:])
        ahead = sk.forecast(0, posterior, 2).to_frame().index
        assert ahead.equals(pd.date_range(dates[-1], periods=3, freq=dates.freq)[1:])


@pytest.mark.parametrize("work", ["kalman-own"], indirect=True)
def test_a_new_series_is_applied_with_its_own_dates(work):
    ys = pd.Series(work.row.ys[:SHORT], DATES[:SHORT])
    us = jax.tree.map(lambda a: a[:SHORT], work.row.us)
    found = work.short.apply(ys, us)
    np.testing.assert_allclose(found.log_evidence, work.short.log_evidence, rtol=1e-10)
    same(found.filtered, work.short.filtered)
    assert found.states.to_frame().index.equals(DATES[:SHORT])


# Parameters that change with time, and inputs.


class Changing(Driven):
    """Parameters with time in front, served through ``at``."""

    def at(self, t):
        return Driven(self.scale[t], self.slope[t])


VARYING = {
    "kalman-linear": lambda: linear(SHORT),
    "kalman-own": lambda: Changing(jnp.full(SHORT, 0.8), jnp.full(SHORT, 0.9)),
    "finite": lambda: finite(SHORT),
}


@pytest.mark.parametrize("work", VARYING, indirect=True)
def test_equal_parameters_at_all_times_are_constant_ones(work):
    name = next(n for n, row in ROWS.items() if row is work.row)
    ys, us = jax.tree.map(lambda a: a[:SHORT], (work.row.ys, work.row.us))
    model = VARYING[name]()
    assert model.time_varying
    varying = sk.infer(0, work.row.engine, model, ys, us)
    np.testing.assert_allclose(varying.log_evidence, work.short.log_evidence, rtol=1e-11)
    for belief in BELIEFS:
        same(getattr(varying, belief), getattr(work.short, belief))
    same(varying.states.marginals, work.short.states.marginals)


def test_the_entry_at_t_leads_into_the_state_at_t():
    """The first entry of a transition array is unused, and the others are used at their time."""
    base, key = linear(SHORT), jax.random.key(0)

    @jax.jit
    @jax.vmap
    def value(bias):
        model = eqx.tree_at(lambda m: m.transition_bias, base, bias)
        return sk.log_evidence(key, sk.Kalman(), model, PAIRS[:SHORT])

    bias = base.transition_bias
    values = np.asarray(value(jnp.stack([bias, *(bias.at[t].add(5.0) for t in range(SHORT))])))
    assert values[1] == values[0]
    assert np.all(np.abs(values[2:] - values[0]) > 1e-3) and len(set(values)) == SHORT


def test_inputs_are_parameters_that_change_with_time():
    us = PUSH[:SHORT]
    one = np.ones((1, 1))
    driven = sk.infer(0, sk.Kalman(), DRIVEN, SCALARS[:SHORT], us)
    baked = sk.models.LinearGaussian(
        np.array([0.3 * us[0]]), 1.6**2 * one, 0.9 * one, 0.8**2 * one, one, 0.56**2 * one,
        transition_bias=us[:, None], emission_bias=-0.5 * us[:, None],
    )  # fmt: skip
    other = sk.infer(0, sk.Kalman(), baked, SCALARS[:SHORT, None])
    np.testing.assert_allclose(driven.log_evidence, other.log_evidence, rtol=1e-10)
    mean = other.states.mean()[:, 0]
    np.testing.assert_allclose(driven.states.mean(), mean, rtol=1e-9, atol=1e-10)


# float32.


def as_float32(tree):
    def cast(a):
        is_float = eqx.is_array_like(a) and jnp.issubdtype(jnp.result_type(a), jnp.floating)
        return jnp.asarray(a, jnp.float32) if is_float else a

    return jax.tree.map(cast, tree)


SINGLE = ["kalman-diffuse", "unscented-own", "finite"]


@pytest.mark.parametrize("work", SINGLE, indirect=True)
def test_float32_stays_float32_and_close(work):
    row = work.row
    ys, us, later = (
        jax.tree.map(lambda a: np.asarray(a, np.float32), t)
        for t in (row.ys[:SHORT], *(jax.tree.map(lambda a, s=s: a[s], row.us) for s in CUTS))
    )
    posterior = sk.infer(0, row.engine, as_float32(row.model), ys, us)
    ahead = sk.forecast(1, posterior, LENGTH - SHORT, later)
    for name, part in {**posterior.parts, "forecast": ahead}.items():
        for leaf in jax.tree.leaves(part):
            if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
                assert leaf.dtype == jnp.float32, name
    assert posterior.states.sample(0, 2).dtype in (jnp.float32, jnp.int32, jnp.int64)
    close = {"rtol": 2e-4, "atol": 2e-4}
    np.testing.assert_allclose(posterior.log_evidence, work.short.log_evidence, rtol=1e-4)
    same(posterior.filtered, work.short.filtered, **close)
    same(posterior.states.marginals, work.short.states.marginals, **close)
    same(ahead.states, work.forecast.states, **close)


CUTS = (slice(SHORT), slice(SHORT, None))


# One trace per shape.

TRACES = []


@dataclasses.dataclass(frozen=True, repr=False)
class Counted(sk.Kalman):
    """Notes every trace of what it is asked for."""

    def infer(self, *args):
        TRACES.append("infer")
        return super().infer(*args)

    def log_evidence(self, *args):
        TRACES.append("log_evidence")
        return super().log_evidence(*args)

    def forecast(self, *args):
        TRACES.append("forecast")
        return super().forecast(*args)


def traced(run):
    TRACES.clear()
    result = run()
    return result, list(TRACES)


def test_infer_and_forecast_trace_once_a_shape():
    def run(level, noise, ys, engine=None):
        model = sk.models.LocalLevel(level, noise)
        posterior = sk.infer(0, Counted() if engine is None else engine, model, ys)
        return sk.forecast(1, posterior, 2)

    assert traced(lambda: run(1.0, 2.0, SCALARS))[1] == ["infer", "forecast"]
    dated = pd.Series(SCALARS, DATES)
    for again in (
        lambda: run(3.0, 0.5, SCALARS + 1),
        lambda: run(3.0, 2.0, jnp.asarray(SCALARS)),
        lambda: run(1.0, 2.0, dated),  # dates are not shapes
        lambda: run(1.0, 2.0, SCALARS, Counted(form="auto")),  # engines are equal when built alike
    ):
        assert traced(again)[1] == []


BUILT = []


def counted_sgd(rate):
    BUILT.append(rate)
    return optax.sgd(rate)


def program(scale):
    level = numpyro.param("level", 1.0, constraint=dist.constraints.positive)
    return sk.models.LocalLevel(level * scale, 1.0)


def test_a_fit_compiles_its_steps_once():
    """In chunks, from several starts, and again for other data, dates and bound arrays."""
    optimizer = sk.optimizer(counted_sgd, 1e-3)
    engine = sk.GradientFit(Counted(), optimizer, num_starts=2, max_steps=60, tolerance=1e-12)
    chunks = []

    def run(ys, scale):
        BUILT.clear()
        target = sk.program(program, jnp.asarray(scale))
        options = {"progress": False, "callback": lambda done: chunks.append(done["step"]) or False}
        return sk.infer(0, engine, target, ys, **options)

    fit, _ = traced(lambda: run(SCALARS, 1.0))
    assert len(chunks) > 4  # more than one chunk for each of two starts
    assert len(BUILT) == 2 + 1  # once for each start, once for the only trace
    for ys, scale in ((SCALARS + 1, 2.0), (pd.Series(SCALARS, DATES), 0.5)):
        other, traces = traced(lambda ys=ys, scale=scale: run(ys, scale))
        assert len(BUILT) == 2 and traces == []
    assert float(other.params["level"].item()) != float(fit.params["level"].item())


def test_a_chunk_of_the_default_optimiser_ends_with_the_types_it_began_with():
    """Another dtype, or a weak type, would compile the second chunk anew."""
    target = sk.program(program, jnp.array(1.0))
    data, key = sk.posterior.Data(jnp.asarray(SCALARS)), jax.random.key(0)
    engine = sk.GradientFit(sk.Kalman())
    objective = Objective(engine.evidence, target, data, key, False)
    run = optimise._begin(engine, {"level": jnp.zeros(())})
    after = eqx.filter_eval_shape(optimise._advance, engine, objective, run, jnp.asarray(1))
    before = eqx.filter_eval_shape(lambda: run)
    kinds = [
        [(a.shape, a.dtype, a.weak_type) for a in jax.tree.leaves(eqx.filter(tree, is_shape))]
        for tree in (before, after)
    ]
    assert kinds[0] == kinds[1]


def is_shape(leaf):
    return isinstance(leaf, jax.ShapeDtypeStruct)


def test_simulations_trace_once_a_shape():
    traces = []

    class Noted(Driven):
        def emission(self, x, u):
            traces.append(1)
            return super().emission(x, u)

    sk.simulate(0, Noted(1.0, 0.5), 4, PUSH[:4])
    first = len(traces)
    sk.simulate(1, Noted(2.0, 0.9), 4, PUSH[4:])
    sk.simulate(jax.random.key(2), Noted(2.0, 0.9), 4, jnp.asarray(PUSH[:4]))
    assert first > 0 and len(traces) == first


# Fits: what a parameter engine adds to these contracts.


def test_a_fit_of_a_batch_keeps_the_evidence_of_each_series():
    optimizer = sk.optimizer(counted_sgd, 1e-3)
    engine = sk.GradientFit(sk.Kalman(), optimizer, num_starts=1, max_steps=3)
    ys = [SCALARS, SCALARS[:SHORT]]
    fit = sk.infer(0, engine, sk.program(program, jnp.array(1.0)), ys, progress=False)
    assert fit.log_evidence.shape == (2,)
    objective = fit.diagnostics["objectives"][0]
    np.testing.assert_allclose(fit.log_evidence.sum(), objective, rtol=1e-9)
    for b in range(2):
        total = float(fit[b].log_likelihood.sum())
        assert float(fit[b].log_evidence) == pytest.approx(total, rel=1e-9)
