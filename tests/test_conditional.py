"""Conditional SMC leaves the smoothing law invariant, with five particles."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from dense import condition, joint
from numpyro.diagnostics import effective_sample_size

import ssmkit as sk
from ssmkit.smc import conditional, feynman_kac, reference
from ssmkit.smc.resampling import systematic

# What is proved here does not depend on versions.
pytestmark = pytest.mark.study

MODEL = sk.models.LocalLevel(1.0, 0.5).with_initial([0.5], [1.5])
YS = jnp.array([1.2, -0.8, jnp.nan, 2.5, 2.0, 0.3])
LENGTH = YS.shape[0]
NUM_RUNS = 20_000
LIMIT = 4.5  # of the largest of 27 normal errors: one run in 5000 is beyond it


def law(model, before, y):
    """Between the transition and the observation, and too wide: weights differ a lot."""
    return dist.Normal(0.6 * before + 0.4 * y, 1.2).to_event(1)


def nearer(model, x, y, u):
    return law(model, x, y)


def nearer_start(model, y, u):
    return law(model, jnp.zeros(1), y)


PROPOSAL = sk.Proposal(nearer, nearer_start)
ENGINES = {
    "bootstrap": {},
    "guided": {"proposal": PROPOSAL},
    "auxiliary": {"lookahead": "mean"},
    "guided auxiliary": {"proposal": PROPOSAL, "lookahead": "mean"},
}


@pytest.fixture(scope="module")
def exact():
    """Mean ``(T,)`` and covariance ``(T, T)`` of the path, from one big normal law."""
    seen = condition(joint(MODEL, LENGTH), np.nan_to_num(YS)[:, None], ~np.isnan(YS)[:, None])
    return seen.mean[:LENGTH], seen.cov[:LENGTH, :LENGTH]


def draw(exact, seed, num_runs=NUM_RUNS):
    mean, cov = exact
    paths = np.random.default_rng(seed).multivariate_normal(mean, cov, num_runs)
    return jnp.asarray(paths)[..., None]


def one_step(paths, method, seed=0, model=MODEL, ys=YS, **options):
    """One step of the kernel from each of many independent paths."""
    engine = sk.SMC(**{"num_particles": 5} | options)

    def one(key, path):
        return sk.smc.conditional_smc(key, engine, model, path, ys, method=method)

    keys = jax.random.split(jax.random.key(seed), len(paths))
    return jax.jit(jax.vmap(one))(keys, paths)


def worst_error(paths, exact):
    """Of all means and covariances of independent paths, in Monte Carlo standard errors."""
    mean, cov = exact
    away = np.asarray(paths)[..., 0] - mean
    products = away[:, :, None] * away[:, None, :]
    scale = np.sqrt(len(away))
    of_means = away.mean(axis=0) / (away.std(axis=0) / scale)
    of_products = (products.mean(axis=0) - cov) / (products.std(axis=0) / scale)
    return max(np.abs(of_means).max(), np.abs(of_products).max())


def test_the_reference_itself_is_exact(exact):
    assert worst_error(draw(exact, 0), exact) < LIMIT


def at_most(share):
    """The criterion that a number as threshold stands for; here the number may be traced."""
    return lambda weights: jnp.sum(weights) ** 2 / jnp.sum(weights**2) <= share * weights.size


@pytest.mark.parametrize("method", conditional.METHODS)
@pytest.mark.parametrize("name", ENGINES)
def test_one_step_leaves_the_smoothing_law_invariant(exact, name, method):
    start, shares = draw(exact, 1), jnp.array([0.0, 0.6, 1.01])  # never, sometimes, always
    ends = jax.vmap(
        lambda share: one_step(start, method, threshold=at_most(share), **ENGINES[name]).path
    )(shares)
    for share, end in zip(shares, ends, strict=True):
        assert worst_error(end, exact) < LIMIT
        moved = np.mean(np.asarray(end != start), axis=(0, 2))
        # with selection the past moves too, by five particles in six steps
        assert np.all(moved > 0.3) or share == 0


def test_two_particles_are_enough(exact):
    end = one_step(draw(exact, 2), "ancestor", num_particles=2).path
    assert worst_error(end, exact) < LIMIT


def never_pinned(monkeypatch):
    right = feynman_kac.advance
    monkeypatch.setattr(feynman_kac, "advance", lambda *given: right(*given[:5]))


def no_transition(monkeypatch):
    monkeypatch.setattr(reference, "log_transitions", lambda *given: jnp.zeros(5))


def other_scheme(monkeypatch):
    monkeypatch.setattr(reference, "multinomial", systematic)


def never_swapped(monkeypatch):
    right = reference._redirect
    monkeypatch.setattr(
        reference,
        "_redirect",
        lambda selection, *given: right(selection._replace(resampled=True), *given)._replace(
            resampled=selection.resampled
        ),
    )


def as_drawn(monkeypatch):
    monkeypatch.setattr(conditional, "scored_anew", lambda recipe, model, proposal: recipe)


def no_transition_backward(monkeypatch):
    monkeypatch.setattr(conditional, "log_transitions", lambda *given: jnp.zeros(5))


FAULTS = {
    "the reference is not pinned": (never_pinned, "ancestor", {"threshold": 1.0}),
    "ancestors without the transition": (no_transition, "ancestor", {"threshold": 1.0}),
    "backward without the transition": (no_transition_backward, "backward", {}),
    "systematic selection": (other_scheme, "ancestor", {"threshold": 1.0}),
    "slots do not change places": (never_swapped, "ancestor", {"threshold": 0.3}),
    "the weight of what was drawn": (as_drawn, "ancestor", {"proposal": PROPOSAL}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(exact, fault, monkeypatch):
    plant, method, options = FAULTS[fault]
    plant(monkeypatch)
    end = one_step(draw(exact, 3, 4 * NUM_RUNS), method, **options).path
    assert worst_error(end, exact) > 1.5 * LIMIT


@pytest.mark.parametrize("method", conditional.METHODS)
def test_chains_from_far_off_find_the_smoothing_law(exact, method):
    """Particle Gibbs: eight chains; errors from their own effective sample sizes."""
    engine = sk.SMC(num_particles=8)

    def chain(key):
        def step(path, key):
            path, _ = sk.smc.conditional_smc(key, engine, MODEL, path, YS, method=method)
            return path, path

        return jax.lax.scan(step, jnp.full((LENGTH, 1), 15.0), jax.random.split(key, 1500))[1]

    paths = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(4), 8))
    draws = np.asarray(paths)[:, 100:, :, 0]
    mean, cov = exact
    away = draws - mean
    products = away[..., :, None] * away[..., None, :]
    for values, expected in ((away, 0.0), (products, cov)):
        size = effective_sample_size(values)
        assert np.all(size > 500)
        error = values.std(axis=(0, 1)) / np.sqrt(size)
        assert np.all(abs(values.mean(axis=(0, 1)) - expected) < LIMIT * error)


def test_the_inverse_evidence_is_unbiased(exact):
    """A theorem on the whole run: with x from the smoothing law, E[1 / Z] is one over Z."""
    ends = one_step(draw(exact, 5), "ancestor", num_particles=20)
    true = sk.log_evidence(jax.random.key(0), sk.Kalman(), MODEL, YS)
    ratio = np.exp(float(true) - np.asarray(ends.log_evidence))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(NUM_RUNS)
    assert ratio.std() > 0.05


def test_a_finite_state_and_a_path_that_is_one_state_long():
    rows = jnp.array([[0.8, 0.2], [0.3, 0.7]])
    model = sk.models.DiscreteHMM.poisson(jnp.array([0.4, 0.6]), rows, jnp.array([1.0, 4.0]))
    ys = jnp.array([0, 3, 5, 1])
    exact = sk.infer(0, sk.ForwardBackward(), model, ys).states
    start = exact.sample(1, n=NUM_RUNS)
    for method in conditional.METHODS:
        end = one_step(start, method, model=model, ys=ys, num_particles=3).path
        found, expected = np.asarray(end).mean(axis=0), np.asarray(exact.probabilities())[:, 1]
        assert end.dtype == start.dtype
        assert np.all(abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / NUM_RUNS))
    assert one_step(start[:3, :1], "backward", model=model, ys=ys[:1]).path.shape == (3, 1)


def test_what_cannot_be_conditioned_is_refused_by_name():
    path, key = jnp.zeros((LENGTH, 1)), jax.random.key(0)

    def run(engine=None, model=MODEL, path=path, **options):
        engine = sk.SMC(num_particles=4) if engine is None else engine
        return sk.smc.conditional_smc(key, engine, model, path, YS, **options)

    with pytest.raises(sk.errors.OptionError, match="unknown method"):
        run(method="forward")
    with pytest.raises(sk.errors.OptionError, match="linearised one has no density"):
        run(sk.SMC(proposal=sk.Linearised()))
    with pytest.raises(sk.errors.EngineError, match="needs a particle filter"):
        run(sk.Kalman())
    with pytest.raises(sk.errors.ShapeError, match=r"\(6, 1\)"):
        run(path=path[:, 0])
    with pytest.raises(sk.errors.SingularTransitionError):
        run(model=sk.models.LocalLevel(0.0, 1.0).with_initial([0.0], [1.0]))
