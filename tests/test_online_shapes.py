"""Online variational inference on every form of data, and what it refuses to be used for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ssmkit as sk
from ssmkit import errors

ENGINE = sk.OnlineVariational(num_steps=0, num_paths=20, value=sk.learned.Polynomial())
RANDOM = np.random.default_rng(5)


class Driven(sk.StateSpaceModel):
    """Counts whose log rate is driven by an input."""

    gain: jax.Array

    def initial(self, u):
        return dist.Normal(jnp.zeros(()), 1.0)

    def transition(self, x, u):
        return dist.Normal(0.9 * x + self.gain * u, 0.2)

    def emission(self, x, u):
        return dist.Poisson(jnp.exp(x))


MODEL = sk.models.LinearGaussian(
    *(np.zeros(2), np.eye(2), 0.9 * np.eye(2), 0.1 * np.eye(2), np.eye(2), 0.5 * np.eye(2))
)
SERIES = [RANDOM.normal(size=(length, 2)) for length in (4, 7)]


def test_series_of_a_ragged_batch_end_where_they_end():
    batch = sk.infer(0, ENGINE, MODEL, SERIES)
    for index, ys in enumerate(SERIES):
        mine, exact = batch[index], sk.infer(0, sk.Kalman(), MODEL, ys)
        np.testing.assert_allclose(mine.log_evidence, exact.log_evidence, atol=1e-8)
        np.testing.assert_allclose(mine.states.mean(), exact.states.mean(), atol=1e-8)
        np.testing.assert_allclose(mine.final.mean(), exact.final.mean(), atol=1e-8)
        flows = [sk.stream(0, e, p) for e, p in ((ENGINE, mine), (sk.Kalman(), exact))]
        assert flows[0].time == flows[1].time
        beliefs = [flow.update(np.ones(2)) for flow in flows]
        np.testing.assert_allclose(beliefs[0].mean(), beliefs[1].mean(), atol=1e-8)
        np.testing.assert_allclose(beliefs[0].cov(), beliefs[1].cov(), atol=1e-8)
    assert "carries" not in batch.parts


def test_a_batch_is_its_members():
    ys = RANDOM.normal(size=(3, 5, 2))
    batch = sk.infer(0, ENGINE, MODEL, ys, batched=True)
    exact = sk.infer(0, sk.Kalman(), MODEL, ys, batched=True)
    np.testing.assert_allclose(batch.filtered.mean(), exact.filtered.mean(), atol=1e-8)
    np.testing.assert_allclose(batch.log_evidence, exact.log_evidence, atol=1e-8)


def test_counts_that_are_driven_by_inputs():
    """Beside a particle filter, which is consistent; inputs that are left out are seen."""
    us = np.sin(np.arange(30.0))
    model = Driven(0.5)
    ys = np.array(sk.simulate(2, model, 30, us=us).observations)
    engine = dataclasses.replace(ENGINE, num_steps=20, num_paths=200)
    found = sk.infer(0, engine, model, ys, us)
    runs = [sk.infer(s, sk.SMC(2000, smoother=None), model, ys, us) for s in range(4)]
    evidences = np.array([float(run.log_evidence) for run in runs])
    error = np.hypot(evidences.std() / 2, float(found.log_evidence_se))
    assert float(found.log_evidence) < evidences.mean() + 4 * error
    without = sk.infer(0, engine, Driven(0.0), ys, us)
    assert found.log_evidence > without.log_evidence + 4 * without.log_evidence_se
    means = np.mean([np.array(run.filtered.mean()) for run in runs], axis=0)
    std = np.array(runs[0].filtered.std())
    assert np.max(np.abs(np.array(found.filtered.mean()) - means) / std) < 0.5


def test_one_observation_is_enough():
    ys = SERIES[0][:1]
    found, exact = (sk.infer(0, e, MODEL, ys) for e in (ENGINE, sk.Kalman()))
    np.testing.assert_allclose(found.log_evidence, exact.log_evidence, atol=1e-8)
    np.testing.assert_allclose(found.states.mean(), exact.states.mean(), atol=1e-8)


def test_single_precision_stays_single():
    model = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), MODEL)
    found = sk.infer(0, ENGINE, model, SERIES[1].astype(np.float32))
    exact = sk.infer(0, sk.Kalman(), MODEL, SERIES[1])
    assert {a.dtype for a in jax.tree.leaves(found.parts["carry"])} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found.log_evidence, exact.log_evidence, atol=1e-3)
    np.testing.assert_allclose(found.states.mean(), exact.states.mean(), atol=1e-3)


def test_a_stream_of_a_fit_with_a_diffuse_start_learns():
    def program():
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        return sk.models.LocalLevel(scale, 1.0)

    ys = np.cumsum(RANDOM.normal(size=30))
    fit = sk.infer(0, sk.GradientFit(sk.Kalman()), program, ys)
    flow = sk.stream(0, ENGINE, fit)
    before = float(flow.params["scale"])
    for y in 3 * np.cumsum(RANDOM.normal(size=12)):
        belief = flow.update(y)
    assert np.isfinite(belief.mean())
    assert float(flow.params["scale"]) != before


def test_steps_that_do_not_shrink_follow_what_drifts():
    """The noise grows fivefold half-way: steps that shrink have nearly stopped by then."""

    def level(size, noise):
        stay = 0.9 * np.eye(1)
        return sk.models.LinearGaussian(
            np.zeros(1), np.eye(1), stay, size * np.eye(1), np.eye(1), noise * jnp.eye(1)
        )

    def program():
        return level(1.0, numpyro.param("noise", 1.0, constraint=dist.constraints.positive))

    early, late = (sk.simulate(3, level(1.0, v), 1500).observations for v in (1.0, 25.0))
    ys = np.concatenate([early, late])

    def learned(ascent):
        engine = dataclasses.replace(ENGINE, ascent=ascent)
        path = sk.infer(0, engine, program, ys).diagnostics["online noise"]
        return np.log(np.array(path)[[1499, -1]])

    shrinking = learned(sk.StochasticAscent(power=1.0))
    constant = learned(sk.StochasticAscent(power=0.0))
    # a constant rate forgets within some hundred steps, whose estimate is as noisy as that
    np.testing.assert_allclose(constant, np.log([1.0, 25.0]), atol=0.5)
    np.testing.assert_allclose(shrinking[0], 0.0, atol=0.5)
    assert shrinking[1] < np.log(25.0) - 1


@pytest.mark.parametrize(
    "engine", [sk.GradientFit(ENGINE), sk.NUTS(ENGINE)], ids=["gradient", "nuts"]
)
def test_its_slope_in_the_parameters_is_not_offered(engine):
    """What is carried is detached, so that the derivative of the running bound is another one."""

    def program():
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        return sk.models.LinearGaussian(
            *(np.zeros(1), np.eye(1), np.eye(1), scale * jnp.eye(1), np.eye(1), np.eye(1))
        )

    with pytest.raises(errors.EngineError, match="wrong slope"):
        sk.infer(0, engine, program, np.zeros((5, 1)))
