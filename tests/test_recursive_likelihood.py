"""Recursive maximum likelihood: exact scores, the path of a reference, the maximum, streams."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

import ssmkit as sk
from ssmkit import errors
from ssmkit.engines.online_learning import adaptive
from ssmkit.smc.recipes import steps_of

HELD = sk.StochasticAscent(burn_in=10**9)
ASCENT = sk.StochasticAscent(rate=0.05, power=0.6, burn_in=3, clip=2.0)
RANDOM = np.random.default_rng(8)
LENGTH = 30
PAIRS = RANDOM.normal(size=(LENGTH, 2))
PAIRS[0, 1] = PAIRS[4] = PAIRS[9, 0] = PAIRS[-2] = np.nan
COUNTS = RANDOM.poisson(3, size=LENGTH)
PUSH = RANDOM.normal(size=LENGTH)
SEEN = np.ones(LENGTH, bool)
SEEN[[0, 5, 6]] = False
COLOUR = np.array([[1.0, 0.3], [0.3, 0.8]])
EMISSION = np.array([[1.0, 0.2], [0.5, -1.0]])


def linear():
    """Full matrices; one site has a prior."""
    move = numpyro.param("move", jnp.array([[0.8, 0.3], [-0.2, 0.7]]))
    noise = numpyro.param("noise", 0.4, constraint=constraints.positive)
    start = jnp.array([0.5, -0.5])
    push = numpyro.sample("push", dist.HalfNormal(0.7))
    return sk.models.LinearGaussian(
        start, jnp.eye(2), move, push * jnp.eye(2), jnp.asarray(EMISSION), noise * COLOUR
    )


class Wave(sk.StateSpaceModel):
    """Nonlinear, scalar, pushed by inputs."""

    slope: jax.Array
    scale: jax.Array

    def initial(self, u):
        return dist.Normal(self.slope, 1.0)

    def transition(self, x, u):
        return dist.Normal(x + self.slope * jnp.sin(x) + u, 0.3)

    def emission(self, x, u):
        return dist.Normal(x + 0.1 * x**2, self.scale)


def wave():
    scale = numpyro.param("scale", 0.5, constraint=constraints.positive)
    return Wave(numpyro.param("slope", 0.3), scale)


def chain():
    stay = numpyro.param("stay", jnp.array([0.9, 0.8]), constraint=constraints.unit_interval)
    rates = numpyro.param("rates", jnp.array([1.0, 6.0]), constraint=constraints.positive)
    rows = jnp.stack([jnp.stack([stay[0], 1 - stay[0]]), jnp.stack([1 - stay[1], stay[1]])])
    return sk.models.DiscreteHMM.poisson(jnp.array([0.5, 0.5]), rows, rates)


ROWS = {
    "kalman": (sk.Kalman(), linear, PAIRS, None, None),
    "extended": (sk.ExtendedKalman(), wave, PAIRS[:, 0], PUSH, None),
    "finite": (sk.ForwardBackward(), chain, COUNTS, None, SEEN),
}


@pytest.mark.parametrize("name", ROWS)
def test_increments_add_up_to_the_score(name):
    evidence, program, ys, us, observed = ROWS[name]
    engine, model = sk.RecursiveLikelihood(evidence, HELD), adaptive(sk.program(program))
    key, mask = jax.random.key(0), ~np.isnan(ys) if observed is None else observed
    at = steps_of(*jax.tree.map(jnp.asarray, (ys, us, mask)))

    def on(last, t):
        done = engine.step(key, model, last, at(t))[0]
        return done, done.learning.increment

    @jax.jit
    def whole():
        first, one = on(None, 0)
        last, later = jax.lax.scan(on, first, jnp.arange(1, LENGTH))
        return one + jnp.sum(later, axis=0), engine.read(model, last, None)["log_evidence"]

    @jax.jit
    @jax.value_and_grad
    def score(params):
        built = dataclasses.replace(model, params=params).built()
        return sk.log_evidence(key, evidence, built, ys, us, observed)

    found, (value, slope) = whole(), score(model.params)
    np.testing.assert_allclose(found[0], ravel_pytree(slope)[0], atol=1e-8)
    np.testing.assert_allclose(found[1], value, atol=1e-8)
    assert np.abs(ravel_pytree(slope)[0]).min() > 0.01


def by_hand(ys, ascent):
    """Parameters by time, in plain numpy; derivatives by complex steps.

    A filter for each parameter moves on beside the others, with that parameter a tiny imaginary
    step away at all times: the imaginary parts are the slopes of all that is carried.
    """
    step, size = 1e-30, 6
    params = np.concatenate([np.array([0.8, 0.3, -0.2, 0.7]), np.log([0.4]), [np.nan]])
    params[5] = float(adaptive(sk.program(linear)).params["push"])
    filters = [(np.array([0.5, -0.5], complex), np.eye(2, dtype=complex)) for _ in range(size)]
    first, second, count, path = np.zeros(size), np.zeros(size), 0, []
    for t, y in enumerate(ys):
        slopes = np.zeros(size)
        for j in range(size):
            moved = params + 1j * step * (np.arange(size) == j)
            filters[j], value = filtered(moved, *filters[j], y, t)
            slopes[j] = value.imag / step
        # a half-normal law of exp(z) with scale 0.7 has the slope -(exp(z) / 0.7)^2 in z
        slopes[5] += -((np.exp(params[5]) / 0.7) ** 2) / (t + 1)
        slopes *= min(1.0, ascent.clip / np.linalg.norm(slopes)) if slopes.any() else 1.0
        if t >= ascent.burn_in:
            rate = ascent.rate * 10 / (10 + count**ascent.power)
            count += 1
            first, second = 0.9 * first + 0.1 * slopes, 0.999 * second + 0.001 * slopes**2
            root = np.sqrt(second / (1 - 0.999**count)) + 1e-8
            params = params + rate * first / (1 - 0.9**count) / root
        path.append(params)
    return np.array(path)


def filtered(params, mean, cov, y, t):
    """One step of a Kalman filter, and the log density of what is there of ``y``."""
    move, noise, push = params[:4].reshape(2, 2), np.exp(params[4]), np.exp(params[5])
    if t > 0:
        mean, cov = move @ mean, move @ cov @ move.T + push * np.eye(2)
    there = np.flatnonzero(~np.isnan(y))
    if not len(there):
        return (mean, cov), 0j
    seen, gap = EMISSION[there], y[there] - EMISSION[there] @ mean
    spread = seen @ cov @ seen.T + noise * COLOUR[np.ix_(there, there)]
    gain = np.linalg.solve(spread, seen @ cov).T
    value = -0.5 * (gap @ np.linalg.solve(spread, gap) + np.log(np.linalg.det(2 * np.pi * spread)))
    return (mean + gain @ gap, cov - gain @ seen @ cov), value


@pytest.fixture(scope="module")
def learned():
    return sk.infer(0, sk.RecursiveLikelihood(sk.Kalman(), ASCENT), linear, PAIRS)


def unconstrained(values):
    move = np.asarray(values["move"]).reshape(-1, 4)
    rest = [np.log(np.asarray(values[name])).reshape(-1, 1) for name in ("noise", "push")]
    return np.concatenate([move, *rest], axis=1)


def test_the_path_is_that_of_a_reference(learned):
    """Complete matrices, gaps, a prior, a burn-in and gradients that are cut short."""
    found = learned.diagnostics
    path = unconstrained({name: found[f"online {name}"] for name in ("move", "noise", "push")})
    np.testing.assert_allclose(path, by_hand(PAIRS, ASCENT), atol=1e-8)
    np.testing.assert_allclose(unconstrained(learned.params.mean())[0], path[-1], atol=1e-12)
    assert np.ptp(path, axis=0).min() > 0.01 and np.ptp(path[: ASCENT.burn_in]) > 0


def test_a_posterior_has_beliefs_of_the_way_and_of_the_end(learned):
    """Filtered on the way, smoothed at the last parameters; the evidence is the sum of both."""
    assert learned.filtered.mean().shape == learned.predicted.mean().shape == (LENGTH, 2)
    np.testing.assert_allclose(np.sum(learned.log_likelihood), learned.log_evidence, rtol=1e-12)
    fixed = sk.infer(0, sk.Kalman(), learned.model, PAIRS)
    np.testing.assert_allclose(learned.states.mean(), fixed.states.mean(), rtol=1e-12)
    assert np.abs(learned.filtered.mean() - fixed.filtered.mean()).max() > 1e-3
    assert learned.evidence_kind == "approximate"
    assert np.isnan(learned.estimates.standard_errors).all()
    ahead = sk.forecast(0, learned, 3)
    move, last = learned.model.transition_matrix, learned.final.mean().ravel()
    np.testing.assert_allclose(ahead.states.mean()[0], move @ last, rtol=1e-10)
    again = learned.apply(PAIRS[:9])
    np.testing.assert_allclose(again.log_evidence, np.sum(fixed.log_likelihood[:9]), rtol=1e-10)


def level():
    """A state that forgets, seen with noise."""
    persistence = numpyro.param("persistence", 0.5, constraint=constraints.unit_interval)
    noise = numpyro.param("noise", 1.0, constraint=constraints.positive)
    one = jnp.eye(1)
    return sk.models.LinearGaussian(
        jnp.zeros(1), one, persistence * one, 0.3 * one, one, noise * one
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_maximum_of_the_likelihood(seed):
    """Within a standard error by the observed information, from starts that are far off."""
    one = np.eye(1)
    truth = sk.models.LinearGaussian(np.zeros(1), one, 0.8 * one, 0.3 * one, one, 0.4 * one)
    ys = np.asarray(sk.simulate(seed, truth, 6000).observations)
    fit = sk.infer(0, sk.GradientFit(sk.Kalman(), num_starts=1), level, ys, keep="final")
    errors = dict(zip(fit.estimates.names, fit.estimates.standard_errors, strict=True))
    engine = sk.RecursiveLikelihood(sk.Kalman(), sk.StochasticAscent(rate=0.1, power=0.8))
    found = sk.infer(0, engine, level, ys, keep="final").params.mean()
    for name, start in (("persistence", 0.5), ("noise", 1.0)):
        best = fit.params.mean()[name]
        assert abs(start - best) > 10 * errors[name]
        assert abs(found[name] - best) < errors[name]


# Streams.


YS = np.where(np.isnan(PAIRS[:, :1]), 0.3, PAIRS[:, :1])  # gaps are above: fewer programs


@pytest.fixture(scope="module")
def scalar():
    return sk.infer(0, sk.RecursiveLikelihood(sk.Kalman(), ASCENT), level, YS)


def same(one, other):
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-10)


def test_a_stream_takes_the_steps_of_infer(scalar, tmp_path):
    """One by one, in chunks, and from a file, bit for bit."""
    flow = sk.stream(0, scalar.engine, level)
    beliefs = [flow.update(y).mean() for y in YS]
    np.testing.assert_allclose(np.stack(beliefs), scalar.filtered.mean(), rtol=1e-10)
    np.testing.assert_allclose(flow.log_evidence, scalar.log_evidence, rtol=1e-12)
    same(flow.params, scalar.params.mean())
    chunks = sk.stream(0, scalar.engine, level)
    many = chunks.update_many(YS)
    np.testing.assert_allclose(many.mean(), scalar.filtered.mean(), rtol=1e-10)
    again = sk.load_stream(flow.save(tmp_path / "a.stream"), using=[level])
    for y in YS[5:8]:
        assert np.array_equal(again.update(y).mean(), flow.update(y).mean())
    assert all(np.array_equal(again.params[name], value) for name, value in flow.params.items())


def test_a_stream_goes_on_where_its_posterior_ended(scalar):
    """Slopes and moments of the steps come along; to another engine only the belief."""
    first = sk.infer(0, scalar.engine, level, YS[:20])
    flow = sk.stream(0, scalar.engine, first)
    for y in YS[20:]:
        flow.update(y)
    same(flow.params, scalar.params.mean())
    held = sk.stream(0, sk.Kalman(), first)
    np.testing.assert_allclose(held.log_evidence, first.log_evidence)
    kalman = sk.infer(0, sk.Kalman(), first.model, YS[:20])
    fit = dataclasses.replace(first, parts=first.parts | {"carry": kalman.parts["carry"]})
    fit = dataclasses.replace(fit, state_engine=sk.Kalman())
    begun = sk.stream(0, scalar.engine, fit)
    begun.update(YS[20])
    state = begun._stepper.seen.state.carry.learning
    assert state.count == 1 and np.abs(state.increment).max() > 0
    same(begun.params, first.params.mean())  # burn-in


def test_a_bank_learns_each_series_by_itself():
    """A slot that is taken anew learns from the start; a step of no use moves nothing."""
    ascent = sk.StochasticAscent(rate=0.1, burn_in=0)
    engine = sk.RecursiveLikelihood(sk.ForwardBackward(), ascent)
    bank = sk.stream(0, engine, chain, num_series=2)
    bank.update([3, 0])
    bank.update([7, 1])
    bank.update([2, 4], new=[1])
    alone = sk.stream(0, engine, chain)
    alone.update(4)
    np.testing.assert_allclose(bank.params["rates"][1], alone.params["rates"], rtol=1e-12)
    before = alone.params["rates"]
    alone.update(-3)
    assert alone.diagnostics["skipped"] == 1
    assert np.isfinite(alone.params["rates"]).all()
    assert np.abs(alone.params["rates"] - before).max() < 0.5
    assert np.abs(bank.params["rates"][0] - bank.params["rates"][1]).max() > 1e-3


def fixed():
    return sk.models.LocalLevel(1.0, 1.0)


ENGINE = sk.RecursiveLikelihood(sk.Kalman())
REFUSED = {
    "particles": (sk.RecursiveLikelihood(sk.SMC()), linear, "OnlineVariational"),
    "guided": (
        sk.RecursiveLikelihood(sk.GuidedSMC(sk.OnlineVariational())),
        linear,
        "OnlineVariational",
    ),
    "twisted": (sk.RecursiveLikelihood(sk.SIXO()), linear, "OnlineVariational"),
    "variational": (
        sk.RecursiveLikelihood(sk.OnlineVariational()),
        linear,
        "learns the parameters",
    ),
    "class": (sk.RecursiveLikelihood(sk.Kalman), linear, "state engine as evidence"),
    "model": (ENGINE, fixed(), "nothing to learn"),
    "sites": (ENGINE, fixed, "nothing to learn"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_serve_is_refused_by_name(name):
    engine, target, text = REFUSED[name]
    ys = PAIRS if target is linear else PAIRS[:, 0]
    with pytest.raises(errors.EngineError, match=text):
        sk.infer(0, engine, target, ys)
    with pytest.raises(errors.EngineError, match=text):
        sk.stream(0, engine, target)


def test_options_batches_and_fits_of_others_are_refused():
    with pytest.raises(errors.OptionError, match="RecursiveLikelihood: ascent"):
        sk.infer(0, sk.RecursiveLikelihood(sk.Kalman(), None), linear, PAIRS)
    with pytest.raises(errors.EngineError, match="batch"):
        sk.infer(0, ENGINE, linear, np.zeros((2, 5, 2)), batched=True)
    with pytest.raises(errors.EngineError, match="parameters stay"):
        sk.stream(0, ENGINE, sk.infer(0, sk.Kalman(), fixed(), PAIRS[:, 0]))
    with pytest.raises(errors.EngineError, match="learns the parameters itself"):
        sk.infer(0, sk.GradientFit(ENGINE), linear, PAIRS)
