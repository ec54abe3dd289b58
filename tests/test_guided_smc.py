"""Particle filters that a variational filter guides: exact where it is, unbiased everywhere."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import ssmkit as sk
from ssmkit import errors
from ssmkit.learned.backward import Filter, Kernel
from ssmkit.learned.forward import forward

GUIDE = sk.OnlineVariational(num_steps=0, num_paths=20, value=sk.learned.Polynomial())
ENGINE = sk.GuidedSMC(GUIDE, num_particles=20, num_paths=50)
RANDOM = np.random.default_rng(3)
MODEL = sk.models.LinearGaussian(
    np.array([0.5, -0.5]),
    np.array([[1.0, 0.2], [0.2, 2.0]]),
    np.array([[0.8, 0.3], [-0.2, 0.7]]),
    np.array([[0.5, 0.1], [0.1, 0.3]]),
    np.array([[1.0, 0.2], [0.5, -1.0]]),
    np.array([[0.6, 0.4], [0.4, 0.5]]),
)
YS = np.array(sk.simulate(3, MODEL, 8).observations)


def joint(filter, kernel):
    """Mean and covariance of the state before and the state."""
    slope, cov = np.array(kernel.matrix), np.array(filter.factor @ filter.factor.T)
    noise = np.array(kernel.factor @ kernel.factor.T)
    mean = np.concatenate([kernel.mean(filter.mean), filter.mean])
    cross = slope @ cov
    return mean, np.block([[slope @ cov @ slope.T + noise, cross], [cross.T, cov]])


def test_the_proposal_is_the_other_conditional_of_the_joint_law():
    draw = lambda *shape: jnp.asarray(RANDOM.normal(size=shape))  # noqa: E731
    factor = lambda: jnp.tril(0.3 * draw(3, 3)) + jnp.eye(3)  # noqa: E731
    filter = Filter(draw(3), factor())
    kernel = Kernel(draw(3), draw(3), draw(3, 3), factor(), jnp.eye(3), factor(), None)
    law = forward(filter, kernel)
    mean, cov = joint(filter, kernel)
    gain = cov[3:, :3] @ np.linalg.inv(cov[:3, :3])
    before = np.array(draw(3))
    np.testing.assert_allclose(
        law.mean + law.matrix @ (before - law.centre),
        mean[3:] + gain @ (before - mean[:3]),
        atol=1e-10,
    )
    left = cov[3:, 3:] - gain @ cov[:3, 3:]
    np.testing.assert_allclose(law.factor @ law.factor.T, left, atol=1e-10)


@pytest.mark.parametrize("filter", ["full", "diagonal"])
def test_it_is_the_best_proposal_of_linear_gaussian_models(filter):
    """The gain of a step then depends on the state before alone, not on the state drawn."""
    engine = dataclasses.replace(ENGINE, guide=dataclasses.replace(GUIDE, filter=filter))
    noises = jnp.asarray(RANDOM.normal(size=(50, 2)))

    @jax.jit
    def run(ys):
        prepared = engine.prepare(MODEL, (ys, None, None))
        s = prepared.steps(4)
        choose = prepared.choose(jnp.array([0.3, -0.4]), s)
        x, ratio = jax.vmap(choose.draw)(noises)
        seen = jax.vmap(lambda x: MODEL.emission(x, None).log_prob(s.y))(x)
        return ratio + seen, ratio, jax.vmap(choose.log_ratio)(x)

    gain, ratio, again = run(YS)
    assert (jnp.std(gain) < 1e-8) == (filter == "full")
    np.testing.assert_allclose(again, ratio, atol=1e-10)


class Tailed(sk.StateSpaceModel):
    """Heavy tails, of which some coordinates are missing."""

    def initial(self, u):
        return dist.Normal(jnp.zeros(2), 1.0).to_event(1)

    def transition(self, x, u):
        return dist.Normal(jnp.sin(x) + 0.3 * x[::-1], 0.5).to_event(1)

    def emission(self, x, u):
        return dist.StudentT(3.0, x, 0.3).to_event(1)


@pytest.mark.parametrize("widening", [1.0, 1.5])
def test_the_evidence_is_unbiased_and_less_noisy(widening):
    model = Tailed()
    ys = np.array(sk.simulate(1, model, 12).observations)
    ys[3, 0] = ys[5] = np.nan
    many = sk.SMC(50_000, smoother=None)
    values = [sk.infer(s, many, model, ys, keep="final").log_evidence for s in range(4)]
    truth, error = np.mean(values), np.std(values) / 2
    engine = dataclasses.replace(ENGINE, widening=widening, smoother=None)
    runs = sk.replicate_evidence(0, sk.infer(0, engine, model, ys), 400)
    plain = sk.replicate_evidence(0, sk.infer(0, sk.SMC(20, smoother=None), model, ys), 400)
    ratios = np.exp(runs.values - truth)
    assert abs(ratios.mean() - 1) < 4 * (ratios.std() / 20 + error)
    # with 400 runs each, a ratio of variances is known to 10 % and more
    assert runs.per_run_std < plain.per_run_std / 1.2


def test_beliefs_are_those_of_kalman():
    engine = dataclasses.replace(ENGINE, num_particles=4000)
    found, exact = sk.infer(0, engine, MODEL, YS), sk.infer(0, sk.Kalman(), MODEL, YS)
    std = np.array(exact.filtered.std())
    gap = np.array(found.filtered.mean() - exact.filtered.mean()) / std
    assert np.max(np.abs(gap)) < 4.5 / np.sqrt(0.5 * 4000)
    assert abs(float(found.log_evidence - exact.log_evidence)) < 4.5 * found.log_evidence_se
    paths = np.array(found.states.mean() - exact.states.mean()) / np.array(exact.states.std())
    assert np.max(np.abs(paths)) < 4.5 / np.sqrt(0.5 * engine.num_paths)


def test_a_stream_takes_the_steps_of_infer(tmp_path):
    flow = sk.stream(1, ENGINE, MODEL)
    beliefs = [flow.update(y) for y in YS]
    whole = sk.infer(1, ENGINE, MODEL, YS)
    np.testing.assert_allclose(
        np.stack([b.mean() for b in beliefs]), whole.filtered.mean(), atol=1e-8
    )
    np.testing.assert_allclose(flow.log_evidence, whole.log_evidence, atol=1e-8)
    again = sk.load_stream(flow.save(tmp_path / "guided.stream"))
    assert np.array_equal(again.update(YS[0]).mean(), flow.update(YS[0]).mean())
    assert flow.predict(3).observations.mean().shape == (3, 2)
    on = sk.stream(1, ENGINE, whole)
    assert on.time == len(YS) and np.all(np.isfinite(on.update(YS[0]).mean()))


class Networked(sk.StateSpaceModel):
    """A network moves the state: not all of its leaves are arrays."""

    network: eqx.nn.MLP

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(0.9 * x + self.network(x[None])[0], 0.5)

    def emission(self, x, u):
        return dist.Normal(x, 1.0)


def test_a_model_may_hold_what_is_no_array():
    model = Networked(eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0)))
    engine = dataclasses.replace(ENGINE, smoother=None)
    found = sk.infer(0, engine, model, YS[:, 0])
    plain = sk.infer(0, sk.SMC(4000, smoother=None), model, YS[:, 0])
    error = np.hypot(float(found.log_evidence_se), float(plain.log_evidence_se))
    assert abs(float(found.log_evidence - plain.log_evidence)) < 4.5 * error


@pytest.mark.parametrize(
    ("engine", "model", "error", "match"),
    [
        (sk.GuidedSMC(sk.Kalman()), MODEL, errors.OptionError, "guide"),
        (sk.GuidedSMC(sk.OnlineVariational), MODEL, errors.OptionError, "guide"),
        (sk.GuidedSMC(GUIDE, widening="2"), MODEL, errors.OptionError, "widening"),
        (sk.GuidedSMC(GUIDE, widening=0.0), MODEL, errors.OptionError, "widening"),
        (sk.GuidedSMC(GUIDE, num_particles=1), MODEL, errors.OptionError, "num_particles"),
        (ENGINE, sk.models.LocalLevel(1.0, 1.0), errors.ImproperStartError, "diffuse"),
    ],
)
def test_what_it_cannot_serve_is_refused_by_name(engine, model, error, match):
    with pytest.raises(error, match=match):
        sk.infer(0, engine, model, np.zeros(5) if error is errors.ImproperStartError else YS)
