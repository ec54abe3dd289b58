"""The claims of state engines, for those that draw: with one key, or in law.

The runs with different gaps share their key, so that they share their noise: what differs between
them is what was observed.
"""

from functools import cached_property

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from test_contracts import (
    BENT,
    BENT_INPUTS,
    COUNTS,
    DATES,
    DRIVEN,
    LENGTH,
    PAIRS,
    PUSH,
    SCALARS,
    SHORT,
    WEATHER,
    Row,
    as_float32,
    linear,
    patterns,
)

import ssmkit as sk

COUNT = 32
ROWS = {
    "bootstrap": Row(sk.SMC(COUNT, num_paths=8), DRIVEN, SCALARS, PUSH, (), "unbiased"),
    "guided": Row(
        sk.SMC(COUNT, proposal=sk.Linearised(), smoother="genealogy"),
        linear(),
        PAIRS,
        None,
        (2,),
        "unbiased",
    ),
    "auxiliary": Row(
        sk.SMC(COUNT, lookahead="mean", smoother="fixed_lag", lag=2),
        BENT,
        PAIRS,
        BENT_INPUTS,
        (2,),
        "unbiased",
    ),
    "finite": Row(
        sk.SMC(COUNT, smoother="backward_mcmc", num_paths=8, threshold=1.0),
        WEATHER,
        COUNTS,
        PUSH,
        (),
        "unbiased",
    ),
    "ensemble": Row(
        sk.EnsembleKalman(COUNT, "stochastic", inflation=1.1),
        BENT,
        PAIRS,
        BENT_INPUTS,
        (2,),
        "approximate",
    ),
}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


class Work:
    """The runs of one row, each made once."""

    def __init__(self, row):
        self.row = row
        self.patterns = patterns(row.ys.shape[1:])

    @cached_property
    def runs(self):
        """Pattern to posterior, all with one key; the mask is given, so all compile alike."""
        row, runs = self.row, {}
        for name, observed in self.patterns.items():
            if observed.all():
                continue
            ys = row.ys
            if np.issubdtype(ys.dtype, np.floating):
                ys = np.where(observed, ys, np.nan)
            runs[name] = sk.infer(0, row.engine, row.model, ys, row.us, observed)
        return runs

    @cached_property
    def whole(self):
        return sk.infer(0, self.row.engine, self.row.model, self.row.ys, self.row.us)


@pytest.fixture(scope="module", params=ROWS)
def work(request):
    return Work(ROWS[request.param])


def weights(belief):
    return np.asarray(jax.nn.softmax(belief.log_weights, axis=-1))


def missing_rows(work, pattern):
    observed = work.patterns[pattern].reshape(LENGTH, -1)
    return np.flatnonzero(~observed.any(axis=1))


def test_log_likelihoods_sum_to_the_log_evidence(work):
    for posterior in (work.whole, *work.runs.values()):
        total = np.sum(posterior.log_likelihood)
        np.testing.assert_allclose(total, posterior.log_evidence, **CLOSE)
    assert work.whole.evidence_kind == work.row.kind
    assert work.row.kind in repr(work.whole)


def test_nothing_observed_is_no_evidence(work):
    np.testing.assert_allclose(work.runs["everything"].log_likelihood, 0.0, atol=1e-12)


@pytest.mark.parametrize("pattern", ["rows", "first", "last", "tail", "everything"])
def test_a_missing_step_is_exactly_a_prediction_step(work, pattern):
    run, missing = work.runs[pattern], missing_rows(work, pattern)
    assert missing.size
    np.testing.assert_allclose(run.log_likelihood[missing], 0.0, atol=1e-12)
    # a proposal's predictions are draws of their own
    if getattr(work.row.engine, "proposal", None) is None:
        np.testing.assert_array_equal(run.filtered.values[missing], run.predicted.values[missing])
    found, expected = weights(run.filtered)[missing], weights(run.predicted)[missing]
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("pattern", ["rows", "coordinates", "first", "last", "tail"])
def test_beliefs_use_all_that_is_there_and_nothing_else(work, pattern):
    """Before the first gap nothing differs from the full data; at it something does."""
    observed = work.patterns[pattern].reshape(LENGTH, -1)
    gap = int(np.flatnonzero(~observed.all(axis=1))[0])
    run = work.runs[pattern]
    for name in ("filtered", "predicted"):
        found, expected = getattr(run, name), getattr(work.whole, name)
        np.testing.assert_allclose(found.values[:gap], expected.values[:gap], **CLOSE)
        np.testing.assert_allclose(weights(found)[:gap], weights(expected)[:gap], **CLOSE)
    # the optimal proposal moves the particles and leaves the weights alone
    moved = np.abs(weights(run.filtered)[gap] - weights(work.whole.filtered)[gap]).max()
    moved += np.abs(run.filtered.values[gap] - work.whole.filtered.values[gap]).max()
    assert moved > 1e-6


@pytest.mark.parametrize("work", ["guided", "finite", "ensemble"], indirect=True)
def test_one_missing_coordinate_leaves_the_others(work):
    run, observed = work.runs["coordinates"], work.patterns["coordinates"]
    part = ~observed.reshape(LENGTH, -1).all(axis=1)
    moved = np.abs(weights(run.filtered) - weights(run.predicted)).max(axis=1)
    if work.row.kind == "approximate":  # an ensemble has no weights
        moved = np.abs(run.filtered.values - run.predicted.values).max(axis=(1, 2))
    moved[0] = 1.0  # the optimal proposal makes equal weights at first
    assert np.all(moved[part] > 1e-6)
    assert np.all(np.abs(run.log_likelihood) > 1e-3)


@pytest.mark.parametrize("work", ["bootstrap", "finite"], indirect=True)
def test_what_is_masked_is_not_looked_at(work):
    row, observed = work.row, work.patterns["rows"]
    other = np.where(observed, row.ys, 7).astype(row.ys.dtype)
    again = sk.infer(0, row.engine, row.model, other, row.us, observed)
    np.testing.assert_array_equal(again.log_likelihood, work.runs["rows"].log_likelihood)


def test_shapes(work):
    run, state = work.whole, work.row.state
    for belief in (run.filtered, run.predicted, run.states.marginals):
        assert belief.values.shape[0] == LENGTH and belief.event_shape == state
        assert belief.values.shape[2:] == state
    if work.row.engine.smoother == "fixed_lag":
        with pytest.raises(sk.errors.NotComputed, match="whole paths"):
            run.states.sample(0, 3)
    else:
        assert run.states.sample(0, 3).shape == (3, LENGTH, *state)
    assert run.final.values.shape == (COUNT, *state)
    if work.row.kind == "unbiased":
        for name in ("ess", "unique_ancestors", "resampled"):
            assert run.diagnostics[name].shape == (LENGTH,)
        ess = run.diagnostics["ess"]
        assert 1 <= ess.min() <= ess.max() <= COUNT * (1 + 1e-9)
    us = None if work.row.us is None else jax.tree.map(lambda a: a[:3], work.row.us)
    ahead = sk.forecast(1, run, 3, us)
    assert ahead.states.values.shape == (3, COUNT, *state)
    assert ahead.observations.event_shape == work.row.ys.shape[1:]


def test_the_same_key_gives_the_same_bits(work):
    again = sk.infer(0, work.row.engine, work.row.model, work.row.ys, work.row.us)
    for name, part in work.whole.parts.items():
        for a, b in zip(*map(jax.tree.leaves, (part, again.parts[name])), strict=True):
            np.testing.assert_array_equal(a, b)
    other = sk.infer(1, work.row.engine, work.row.model, work.row.ys, work.row.us)
    assert not np.array_equal(other.filtered.values, again.filtered.values)


@pytest.mark.parametrize("work", ["bootstrap", "guided", "ensemble"], indirect=True)
def test_the_pure_evidence_is_that_of_infer(work):
    """Under jit, with gaps, and many models at once; the key is that of the verb."""
    from ssmkit import keys

    row = work.row
    ys = jnp.stack([jnp.asarray(row.ys), jnp.where(work.patterns["rows"], row.ys, jnp.nan)])
    key = keys.purpose(jax.random.key(0), "time")
    run = jax.jit(jax.vmap(lambda y: sk.log_evidence(key, row.engine, row.model, y, row.us)))
    expected = [work.whole.log_evidence, work.runs["rows"].log_evidence]
    np.testing.assert_allclose(run(ys), expected, rtol=1e-9)
    final = sk.infer(0, row.engine, row.model, row.ys, row.us, keep="final")
    np.testing.assert_allclose(final.log_evidence, work.whole.log_evidence, rtol=1e-12)
    if row.kind == "unbiased":
        assert np.isfinite(final.log_evidence_se) or final.diagnostics["surviving_ancestors"] < 5


@pytest.mark.parametrize("work", ["bootstrap", "guided", "ensemble"], indirect=True)
def test_ragged_batches_have_members_of_their_own_length(work):
    row = work.row
    us = None if row.us is None else [row.us, jax.tree.map(lambda a: a[:SHORT], row.us)]
    batch = sk.infer(0, row.engine, row.model, [row.ys, row.ys[:SHORT]], us)
    one = batch[1]
    assert one.states.mean().shape == (SHORT, *row.state)
    assert one.states.sample(0, 4).shape == (4, SHORT, *row.state)
    np.testing.assert_allclose(np.sum(one.log_likelihood), one.log_evidence, **CLOSE)
    np.testing.assert_array_equal(one.final.values, one.filtered.values[-1])
    if row.kind == "unbiased":
        assert one.diagnostics["ess"].shape == (SHORT,)
    assert not np.array_equal(batch[0].filtered.values[:SHORT], one.filtered.values)
    later = jax.tree.map(lambda a: a[SHORT:], row.us)
    ahead = sk.forecast(1, one, LENGTH - SHORT, later)
    assert np.isfinite(ahead.observations.mean()).all()


@pytest.mark.parametrize("work", ["bootstrap", "guided", "ensemble"], indirect=True)
def test_float32_stays_float32(work):
    row = work.row
    cast = lambda t: jax.tree.map(lambda a: np.asarray(a, np.float32), t)  # noqa: E731
    run = sk.infer(0, row.engine, as_float32(row.model), cast(row.ys), cast(row.us))
    for name, part in run.parts.items():
        for leaf in jax.tree.leaves(part):
            if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                assert leaf.dtype == jnp.float32, name
    ahead = sk.forecast(1, run, 2, jax.tree.map(lambda a: cast(a)[:2], row.us))
    assert ahead.states.values.dtype == jnp.float32
    assert ahead.observations.values.dtype == jnp.float32
    assert np.isfinite(run.log_evidence)


def test_dates_names_tables_and_files(work, tmp_path):
    row = work.row
    if row.ys.ndim > 1:
        ys = pd.DataFrame(row.ys, DATES, columns=["a", "b"])
    else:
        ys = pd.Series(row.ys, DATES, name="a")
    run = sk.infer(0, row.engine, row.model, ys, row.us)
    assert run.filtered.to_frame().index.equals(DATES)
    assert ("±" in repr(run)) == (row.kind == "unbiased") and run.summary() is not None
    path = run.save(tmp_path / "run.ssm")
    again = sk.load_posterior(path, using=[type(row.model)])
    np.testing.assert_array_equal(again.filtered.values, run.filtered.values)
    assert again.engine == run.engine
    if row.kind == "unbiased":
        np.testing.assert_array_equal(again.log_evidence_se, run.log_evidence_se)


def test_arviz_gets_equally_weighted_paths():
    import arviz

    row = ROWS["bootstrap"]
    engine = sk.SMC(2000, num_paths=2000)
    run = sk.infer(0, engine, row.model, row.ys, row.us)
    tree = run.to_arviz(num_draws=2000)
    name = next(iter(tree["posterior"].data_vars))
    table = arviz.summary(tree, var_names=[name], round_to="none")
    error = np.asarray(table["mcse_mean"]) + np.asarray(run.states.std()) / np.sqrt(2000)
    assert np.all(np.abs(np.asarray(table["mean"]) - run.states.mean()) < 4 * error)


def test_parameters_that_change_with_time_are_served():
    """Equal at all times they change nothing; another value at one time changes what follows."""
    engine = sk.SMC(COUNT, smoother="backward", num_paths=4)
    constant = sk.infer(0, engine, linear(), PAIRS)
    varying = linear(LENGTH)
    same = sk.infer(0, engine, varying, PAIRS)
    np.testing.assert_allclose(same.log_likelihood, constant.log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(same.states.mean(), constant.states.mean(), rtol=1e-9)
    moved = eqx.tree_at(
        lambda m: m.transition_bias, varying, varying.transition_bias.at[4].add(1.0)
    )
    other = sk.infer(0, engine, moved, PAIRS)
    np.testing.assert_allclose(other.log_likelihood[:4], same.log_likelihood[:4], rtol=1e-10)
    assert abs(other.log_likelihood[4] - same.log_likelihood[4]) > 1e-3
    with pytest.raises(sk.errors.EngineError, match="end with the data"):
        sk.forecast(1, same, 2)


def test_many_parameters_at_once():
    """Weighted draws of the parameters: a filter each, and beliefs that are mixed."""
    from ssmkit.engines.options import RunOptions
    from ssmkit.engines.states import run_states
    from ssmkit.series import as_data

    row = ROWS["bootstrap"]
    models = jax.tree.map(lambda a: jnp.stack([a, 1.5 * a, 0.5 * a]), row.model)
    data = as_data(row.ys, row.us, None, batched=False)
    log_weights = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    parts = run_states(row.engine, jax.random.key(0), models, data, RunOptions(), log_weights)
    assert parts["log_evidence"].shape == (3,)
    assert parts["filtered"].values.shape == (LENGTH, 3 * COUNT)
    shares = weights(parts["filtered"]).reshape(LENGTH, 3, COUNT).sum(axis=2)
    np.testing.assert_allclose(shares, np.broadcast_to([0.2, 0.3, 0.5], shares.shape), rtol=1e-9)
    assert parts["states"].sample(jax.random.key(1), 5).shape == (5, LENGTH)
