"""Particle Metropolis–Hastings with few particles, against a grid of exact evidences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size

import ssmkit as sk
from ssmkit.engines import adaptive_walk, pseudo_marginal, walks

PRIOR = dist.HalfNormal(2.0)


def level(scale, noise=0.7):
    return sk.models.LocalLevel(scale**2, noise**2).with_initial([0.0], [1.0])


YS = np.asarray(sk.simulate(3, level(0.7), 20).observations)


def program():
    return level(numpyro.sample("scale", PRIOR))


PARTICLES = sk.SMC(num_particles=20, smoother="genealogy")
ENGINE = sk.ParticleMetropolisHastings(
    PARTICLES, num_warmup=500, num_samples=3000, num_particles=20, num_state_draws=8
)
PLAIN = dataclasses.replace(ENGINE, evidence=sk.Kalman(), num_particles=None)


def run(seed, engine=ENGINE, target=program, **options):
    return sk.infer(seed, engine, target, YS, progress=False, **options)


@pytest.fixture(scope="module")
def posteriors():
    return [run(seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def grid():
    """The posterior of the scale by the exact evidence: points and weights."""
    axis = jnp.linspace(0.002, 6.0, 1500)

    def log_density(scale):
        value = sk.log_evidence(jax.random.key(0), sk.Kalman(), level(scale), jnp.asarray(YS))
        return value + PRIOR.log_prob(scale)

    return np.asarray(axis), np.asarray(jax.nn.softmax(jax.jit(jax.vmap(log_density))(axis)))


def errors(draws, grid):
    """Errors of mean and standard deviation, in Monte Carlo standard errors."""
    axis, weights = grid
    mean = weights @ axis
    std = np.sqrt(weights @ (axis - mean) ** 2)
    size = effective_sample_size(draws)
    size_of_squares = effective_sample_size((draws - mean) ** 2)
    kurtosis = weights @ ((axis - mean) / std) ** 4
    return (
        abs(draws.mean() - mean) / (std / np.sqrt(size)),
        abs(draws.std() - std) / (std * np.sqrt((kurtosis - 1) / 4 / size_of_squares)),
    )


@pytest.mark.parametrize("number", [0, 1])
def test_twenty_particles_give_the_exact_posterior(posteriors, grid, number):
    draws = np.asarray(posteriors[number].params["scale"])
    assert effective_sample_size(draws) > 400
    assert max(errors(draws, grid)) < 4
    # the evidence is noisy indeed: this is not an exact evidence in disguise
    assert posteriors[number].diagnostics["log_evidence_std"] > 1


@pytest.mark.study
def test_an_exact_evidence_is_plain_metropolis_hastings(grid):
    posterior = run(0, PLAIN, keep="final")
    assert max(errors(np.asarray(posterior.params["scale"]), grid)) < 4
    report = posterior.diagnostics
    assert report["num_particles"] is None and report["log_evidence_std"] == 0
    assert np.all(abs(report["acceptance_rate"] - 0.44) < 0.1)


@pytest.mark.study
def test_forgetting_the_jacobian_is_seen(grid, monkeypatch):
    right = pseudo_marginal.constrain_in_order
    monkeypatch.setattr(
        pseudo_marginal, "constrain_in_order", lambda *at: (right(*at)[0], jnp.zeros(()))
    )
    # another engine, so that what was compiled before is not taken
    posterior = run(0, dataclasses.replace(PLAIN, num_warmup=501), keep="final")
    assert max(errors(np.asarray(posterior.params["scale"]), grid)) > 8


@pytest.mark.study
def test_computing_the_current_evidence_anew_is_seen(grid, monkeypatch):
    right = adaptive_walk.step

    def anew(key, walk, log_target):
        again = log_target(jax.random.fold_in(key, 9), walk.position)
        return right(key, walk._replace(log_target=again), log_target)

    monkeypatch.setattr(adaptive_walk, "step", anew)
    posterior = run(0, dataclasses.replace(ENGINE, num_warmup=501), keep="final")
    assert max(errors(np.asarray(posterior.params["scale"]), grid)) > 8


def test_the_report_and_the_states(posteriors):
    posterior = posteriors[0]
    report = posterior.diagnostics
    assert posterior.params["scale"].shape == (4, 3000)
    assert report["acceptance_rate"].shape == (4,)
    assert report["max_rhat"] < 1.05 and report["warnings"] == ()
    assert report["num_particles"] == 20 and not report["interrupted"]
    assert posterior.num_state_draws == 8
    assert posterior.states.sample(0, n=5).shape == (5, 20, 1)
    assert posterior.evidence_kind is None
    assert list(posterior.summary().table.index) == ["scale"]
    exported = posterior.to_arviz(num_draws=8)
    assert exported["weighted_posterior"]["scale"].shape == (4, 3000)
    assert set(exported["sample_stats"]) >= {"lp", "acceptance_rate"}


def test_the_acceptance_is_what_was_aimed_at(posteriors):
    aim = adaptive_walk.wanted_acceptance(1, posteriors[0].diagnostics["log_evidence_std"])
    for posterior in posteriors:
        assert np.all(abs(posterior.diagnostics["acceptance_rate"] - aim) < 0.12)
    assert adaptive_walk.wanted_acceptance(2, 0.0) == pytest.approx(0.234)
    # Sherlock et al. (2015): 0.07 at the best length 2.56 and variance 3.28
    assert adaptive_walk.wanted_acceptance(9, np.sqrt(3.283)) == pytest.approx(0.07, abs=0.015)


@pytest.fixture(scope="module")
def chosen():
    few = dataclasses.replace(PARTICLES, num_particles=8)
    engine = dataclasses.replace(ENGINE, evidence=few, num_particles=None, num_samples=500)
    return run(2, engine, keep="final")


def test_the_number_of_particles_follows_from_the_noise(chosen):
    report = chosen.diagnostics
    assert 0.6 < report["log_evidence_std"] < 2
    assert report["num_particles"] > 10
    assert chosen.engine.evidence.num_particles == 8  # of the states


def test_an_interrupt_keeps_the_draws_so_far_whatever_the_chunks(posteriors, monkeypatch):
    monkeypatch.setattr(walks, "next_chunk", lambda length, seconds: 97)
    seen = []

    def callback(report):
        seen.append(report)
        if report["draws"] >= 300:
            raise KeyboardInterrupt

    part = run(0, callback=callback)
    assert part.diagnostics["interrupted"]
    count = seen[-1]["draws"]
    assert 300 <= count < 400
    np.testing.assert_array_equal(part.params["scale"], posteriors[0].params["scale"][:, :count])
    assert part.states.mean().shape == (20, 1)
    assert "interrupted" in repr(part.summary())


def test_without_draws_there_is_nothing_to_keep():
    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(0, callback=interrupt)
    with pytest.raises(sk.errors.NotComputed, match="before there were draws"):
        run(0, callback=lambda report: True)


def test_the_same_key_gives_the_same_draws(posteriors):
    again = run(1)
    np.testing.assert_array_equal(again.params["scale"], posteriors[1].params["scale"])
    assert not np.array_equal(posteriors[0].params["scale"], posteriors[1].params["scale"])


def dependent():
    """Two scales, the second below the first: its support depends on a draw."""
    high = numpyro.sample("high", dist.Gamma(4.0, 4.0))
    low = numpyro.sample("low", dist.Uniform(0.0, high))
    return level(high, low)


def test_two_parameters_one_of_which_bounds_the_other():
    engine = dataclasses.replace(PLAIN, num_samples=4000, thinning=3)
    posterior = run(0, engine, dependent, keep="final")
    high, low = (np.asarray(posterior.params[name]) for name in ("high", "low"))
    assert high.shape == (4, 4000) and np.all(low < high)
    axis = jnp.linspace(0.02, 4.0, 150)
    shares = jnp.linspace(0.005, 0.995, 100)

    def log_density(a, share):
        value = sk.log_evidence(
            jax.random.key(0), sk.Kalman(), level(a, share * a), jnp.asarray(YS)
        )
        return value + dist.Gamma(4.0, 4.0).log_prob(a)

    pairs = [a.ravel() for a in jnp.meshgrid(axis, shares, indexing="ij")]
    weights = np.asarray(jax.nn.softmax(jax.jit(jax.vmap(log_density))(*pairs)))
    first, second = (np.asarray(a) for a in (pairs[0], pairs[0] * pairs[1]))
    assert max(errors(high, (first, weights))) < 4
    assert max(errors(low, (second, weights))) < 4


def test_what_cannot_be_drawn_is_refused_by_name():
    def mixed():
        return level(numpyro.sample("scale", PRIOR), numpyro.param("frozen", 1.0))

    def discrete():
        return level(1.0 + numpyro.sample("number", dist.Poisson(2.0)))

    def impossible():
        scale = numpyro.sample("scale", PRIOR)
        numpyro.factor("never", -jnp.inf)
        return level(scale)

    with pytest.raises(sk.errors.ParameterError, match="frozen"):
        run(0, target=mixed)
    with pytest.raises(sk.errors.ParameterError, match="number is discrete"):
        run(0, target=discrete)
    with pytest.raises(sk.errors.EngineError, match="nothing to learn"):
        run(0, target=level(1.0))
    with pytest.raises(sk.errors.NonFiniteError, match="at any start"):
        run(0, PLAIN, impossible)
    with pytest.raises(sk.errors.OptionError, match="by particles"):
        run(0, dataclasses.replace(PLAIN, num_particles=10))


@pytest.mark.parametrize(
    "name",
    ["num_warmup", "num_samples", "num_chains", "thinning", "num_particles", "num_state_draws"],
)
def test_sizes_that_cannot_work_are_refused(name):
    with pytest.raises(sk.errors.OptionError, match=name):
        run(0, dataclasses.replace(ENGINE, **{name: 0}))


def test_warnings_say_what_is_wrong():
    few = sk.ParticleMetropolisHastings(
        sk.UnscentedKalman(), num_warmup=4, num_samples=4, num_chains=2, num_state_draws=2
    )
    posterior = run(0, few, keep="final")
    text = " ".join(posterior.diagnostics["warnings"])
    assert "approximate evidence" in text and "not mixed" in text
    assert "approximate evidence" in repr(posterior.summary())


def test_engines_are_shown_as_they_are_written():
    assert repr(sk.ParticleMetropolisHastings(sk.Kalman(), num_warmup=10)) == (
        "sk.ParticleMetropolisHastings(evidence=sk.Kalman(), num_warmup=10)"
    )
