"""The engine: what it learns serves other series, and what it cannot do it refuses by name."""

import warnings
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import ssmkit as sk
from ssmkit import learned, objectives
from ssmkit.errors import DataError, LearningWarning, ModelError, OptionError

QUIET = {"progress": False}
YS = jnp.array([0.4, -1.2, jnp.nan, 0.9, 1.3, -0.2, -0.8, 0.5])
TWIST = learned.Twist(learned.Recurrent(4), learned.Quadratic(8))
BOUND = objectives.SIXO(num_particles=4, steps=3, batch_size=2)
RATIO = objectives.DensityRatio(batch_size=8, steps=5)


class Walk(sk.StateSpaceModel):
    """A state with a memory, seen through noise."""

    persistence: Any = 0.9

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(self.persistence * x, 0.6)

    def emission(self, x, u):
        return dist.Normal(x, 0.7)


def program():
    return Walk(numpyro.param("persistence", 0.5))


def engine(**options):
    """A small one; what it learns is of no use, and that is not what is asked."""
    small = {
        "num_particles": 16, "twist": TWIST, "objective": BOUND, "twist_learning": RATIO,
        "rounds": 2, "num_paths": 20, "smoother": None, "proposal": learned.Induced(1),
    }  # fmt: skip
    return sk.SIXO(**small | options)


def run(target=None, ys=YS, *given, options=None, **how):
    """A run whose twist may have learned nothing."""
    target = Walk() if target is None else target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LearningWarning)
        return sk.infer(0, engine(**options or {}), target, ys, *given, **QUIET | how)


@cache
def fitted():
    """A program, with a proposal to learn."""
    options = {"proposal": learned.Gaussian(learned.Windowed(1), 8), "smoother": "backward"}
    return run(program, options=options)


# What comes out.


@pytest.fixture(scope="module")
def smoothed():
    """Runs with the exact twist on a linear Gaussian model, and what Kalman says."""
    model = sk.models.LinearGaussian(
        np.zeros(2), np.eye(2), [[0.8, 0.3], [-0.2, 0.7]], [[0.5, 0.1], [0.1, 0.3]],
        [[1.0, 0.5]], [[0.4]],
    )  # fmt: skip
    ys = np.array([0.5, 1.5, np.nan, -0.4, 0.7, -1.2])[:, None]
    options = {"num_particles": 200, "num_paths": 400, "rounds": 1, "smoother": "backward"}
    pieces = {"twist": learned.Analytic(1), "proposal": learned.Induced(1)}
    exact = sk.SIXO(**pieces, objective=BOUND, **options)
    first = sk.infer(0, exact, model, ys, **QUIET)
    posteriors = [
        sk.infer(seed, exact, model, ys, learned=first.learned, **QUIET) for seed in range(12)
    ]
    return posteriors, sk.infer(0, sk.Kalman(), model, ys)


def test_smoothed_and_filtered_means_are_those_of_kalman(smoothed):
    posteriors, kalman = smoothed
    for name in ("states", "filtered", "predicted"):
        for moment in ("mean", "std"):
            found = np.stack([getattr(getattr(p, name), moment)() for p in posteriors])
            error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
            away = found.mean(axis=0) - getattr(getattr(kalman, name), moment)()
            # eleven degrees of freedom, and twelve numbers; a share of 1/N besides
            assert np.all(np.abs(away) < 5.5 * error + 5e-3)
    for posterior in posteriors:
        np.testing.assert_allclose(posterior.log_evidence, kalman.log_evidence, atol=1e-9)
        assert posterior.evidence_kind == "unbiased"


def test_a_learned_twist_and_proposal_leave_the_evidence_unbiased_and_make_it_tight():
    """On the drift, where a filter that does not look ahead is far off."""
    ys = np.full(10, np.nan)
    ys[-1] = 11.0
    model = sk.models.GaussianDrift(0.0)
    exact = sk.infer(0, sk.ExtendedKalman(), model, ys).log_evidence
    twist = learned.Twist(learned.Windowed(1), learned.Quadratic(16))
    ratio = objectives.DensityRatio(steps=1500)
    options = {"twist": twist, "twist_learning": ratio, "rounds": 1, "num_particles": 64}
    first = run(model, ys, options=options)
    values = [first.log_evidence]
    for seed in range(1, 4):
        again = sk.infer(seed, engine(**options), model, ys, learned=first.learned, **QUIET)
        values.append(again.log_evidence)
    plain = [sk.infer(seed, sk.SMC(64, smoother=None), model, ys).log_evidence for seed in range(4)]
    away, off = (np.sqrt(np.mean((np.array(v) - exact) ** 2)) for v in (values, plain))
    assert away < 0.8 and off > 3 * away  # an outlier by 3.3 deviations
    history = first.diagnostics["history"]
    assert history["classifier_loss"][-1] < 0.67
    assert history["classifier_floor"].shape == history["held_out_bound"].shape == (1,)


def test_the_effective_number_is_that_of_the_target_which_the_particles_follow():
    """Under the exact twist all particles count, and few of them do for the filter."""
    ys = np.full(10, np.nan)
    ys[-1] = 11.0
    options = {"twist": learned.Analytic(1), "rounds": 1, "num_particles": 64}
    posterior = run(sk.models.GaussianDrift(0.0), ys, options=options)
    cloud = posterior.diagnostics
    np.testing.assert_allclose(cloud["twisted_ess"], 64.0, rtol=1e-6)
    assert cloud["ess"].min() < 10 and sk.diagnose(posterior).cloud_warnings
    assert not any("effective" in text or "k-hat" in text for text in posterior.summary().warnings)


def test_parameters_are_learned_and_said():
    posterior = fitted()
    value = float(np.asarray(posterior.params["persistence"]).ravel()[0])
    assert value != 0.5 and np.isfinite(value)
    np.testing.assert_allclose(posterior.model.persistence, value, rtol=1e-12)
    assert "persistence" in repr(posterior.summary())
    assert posterior.diagnostics["rounds"] == 2 and not posterior.diagnostics["interrupted"]
    assert posterior.states.mean().shape == (8,)


def test_ascending_the_bound_finds_the_drift_of_many_series():
    """The maximum is known: the mean of the last observations over T + 1."""
    rng = np.random.default_rng(0)
    ys = np.full((20, 4), np.nan)
    ys[:, -1] = 5 * 0.8 + np.sqrt(5.0) * rng.normal(size=20)

    def drifting():
        return sk.models.GaussianDrift(numpyro.param("drift", 0.0))

    bound = objectives.SIXO(
        num_particles=4, steps=150, batch_size=18, optimizer=sk.optimizer(optax.adam, 0.02)
    )
    options = {"twist": learned.Analytic(1), "objective": bound, "rounds": 1}
    posterior = run(drifting, ys, batched=True, options=options)
    found = float(np.asarray(posterior.params["drift"]).ravel()[0])
    # of ten or more series a tenth is held out; to two steps of the optimiser
    assert abs(found - ys[:18, -1].mean() / 5) < 0.04


# What was learned goes on.


def test_what_was_learned_serves_other_series_without_learning():
    first = fitted()
    options = {"proposal": learned.Gaussian(learned.Windowed(1), 8), "smoother": "backward"}
    again = sk.infer(0, engine(**options), program, YS, learned=first.learned, **QUIET)
    assert np.asarray(again.log_evidence) == np.asarray(first.log_evidence)
    np.testing.assert_array_equal(again.states.mean(), first.states.mean())
    np.testing.assert_array_equal(again.params["persistence"], first.params["persistence"])
    other = sk.infer(1, engine(**options), program, YS[:5], learned=first.learned, **QUIET)
    assert other.states.mean().shape == (5,)
    applied = first.apply(YS[:5], key=1)
    np.testing.assert_array_equal(applied.log_evidence, other.log_evidence)


def test_a_saved_posterior_goes_on(tmp_path):
    first = fitted()
    loaded = sk.load_posterior(first.save(tmp_path / "learned"), using=[program, Walk])
    assert np.asarray(loaded.log_evidence) == np.asarray(first.log_evidence)
    options = {"proposal": learned.Gaussian(learned.Windowed(1), 8), "smoother": "backward"}
    same = [
        sk.infer(3, engine(**options), program, YS[:6], learned=p.learned, **QUIET).log_evidence
        for p in (first, loaded)
    ]
    assert same[0] == same[1]


def test_forecasts_and_exports():
    first = fitted()
    ahead = sk.forecast(1, first, num_steps=3)
    assert ahead.observations.mean().shape == (3,) and np.isfinite(ahead.observations.std()).all()
    tree = first.to_arviz()
    assert "persistence" in tree["fixed_parameters"]  # a point is no draw


def test_what_belongs_to_another_run_is_refused():
    first = fitted()
    other = learned.Twist(learned.Windowed(2), learned.Quadratic(8))
    gaussian = learned.Gaussian(learned.Windowed(1), 8)

    def again(target=program, given=first.learned, **options):
        return sk.infer(0, engine(**options), target, YS, learned=given, **QUIET)

    with pytest.raises(OptionError, match=r"another twist(.|\n)*Windowed"):
        again(twist=other, proposal=gaussian)
    with pytest.raises(OptionError, match="another proposal"):
        again()
    with pytest.raises(OptionError, match=r"does not fit the program(.|\n)*persistence"):
        again(Walk(), proposal=gaussian)
    with pytest.raises(OptionError, match="not of this engine"):
        again(given={"twist": 1})
    with pytest.raises(OptionError, match="does not learn"):
        sk.infer(0, sk.SMC(), Walk(), YS, learned=first.learned)


PER_STEP = {
    "twist": {"twist": learned.Twist(learned.PerStep(2), learned.Quadratic(4))},
    "proposal": {"proposal": learned.PerStepGaussian()},
}


@pytest.mark.parametrize("name", PER_STEP)
def test_what_is_learned_for_each_step_serves_one_series_only(name):
    options = PER_STEP[name]
    first = run(options=options)
    assert np.isfinite(first.log_evidence)
    with pytest.raises(OptionError, match=f"the {name} was learned for each step"):
        sk.infer(0, engine(**options), Walk(), YS, learned=first.learned, **QUIET)
    with pytest.raises(OptionError, match="with several series"):
        sk.infer(0, engine(**options), Walk(), YS[None], batched=True, **QUIET)
    window = {"twist_learning": objectives.DensityRatio(window=4)}
    with pytest.raises(OptionError, match="with a window"):
        sk.infer(0, engine(**options | window), Walk(), YS, **QUIET)


# What it takes.


def test_batches_and_ragged_batches():
    """Padding changes nothing: each member is what it is by itself."""
    first = run()
    both = [YS, YS[:5]]
    ragged = sk.infer(4, engine(), Walk(), both, learned=first.learned, **QUIET)
    longer = [YS, YS[:5], jnp.concatenate([YS, YS])]
    padded = sk.infer(4, engine(), Walk(), longer, learned=first.learned, **QUIET)
    assert ragged.log_evidence.shape == (2,) and np.isfinite(ragged.log_evidence).all()
    assert padded.log_evidence.shape == (3,)
    np.testing.assert_allclose(padded.log_evidence[:2], ragged.log_evidence, atol=1e-10)
    learnt = run(ys=both)
    assert np.isfinite(learnt.log_evidence).all() and learnt.log_evidence.shape == (2,)


def test_counts_and_gaps_in_them():
    model = sk.models.PoissonCounts(mean=1.0, persistence=0.8, scale=0.6)
    ys = np.array([3, 0, 7, 2, 1, 4])
    observed = np.array([True, True, False, True, True, True])
    posterior = run(model, ys, None, observed)
    other = np.where(observed, ys, 50)
    filled = run(model, other, None, observed, learned=posterior.learned)
    assert np.asarray(posterior.log_evidence) == np.asarray(filled.log_evidence)
    big = sk.infer(0, sk.SMC(20_000, smoother=None), model, ys, None, observed)
    options = {"twist": learned.Analytic(), "rounds": 1, "num_particles": 500}
    exact = run(model, ys, None, observed, options=options)
    error = np.hypot(big.log_evidence_se, exact.log_evidence_se)
    assert abs(exact.log_evidence - big.log_evidence) < 4.5 * error


def test_finite_states():
    """The exact twist leaves no error; a learned one is asked with indicators."""
    model = sk.models.DiscreteHMM.normal([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], [-1.0, 1.0], 0.8)
    exact = sk.infer(0, sk.ForwardBackward(), model, YS)
    bound = objectives.NASX(num_particles=4, steps=2)
    found = run(model, options={"twist": learned.Analytic(), "objective": bound, "rounds": 1})
    np.testing.assert_allclose(found.log_evidence, exact.log_evidence, atol=1e-9)
    posterior = run(model, options={"objective": bound, "smoother": "backward"})
    assert abs(posterior.log_evidence - exact.log_evidence) < 2.0
    assert jnp.issubdtype(posterior.filtered.values.dtype, jnp.integer)


def test_single_precision_stays_single():
    model = Walk(jnp.float32(0.9))
    ys = jnp.asarray(YS, jnp.float32)

    class Single(Walk):
        def initial(self, u):
            return dist.Normal(jnp.float32(0.0), jnp.float32(1.0))

    posterior = run(Single(model.persistence), ys)
    arrays = jax.tree.leaves(eqx.filter(posterior.learned.pieces, eqx.is_inexact_array))
    assert arrays and all(a.dtype == jnp.float32 for a in arrays)
    assert posterior.log_evidence.dtype == posterior.filtered.values.dtype == jnp.float32
    assert np.isfinite(posterior.log_evidence)


def test_one_step_is_served_without_a_twist_only():
    with pytest.raises(DataError, match=r"too short for a twist(.|\n)*twist=None"):
        run(ys=YS[:1])
    posterior = run(ys=YS[:1], options={"twist": None})
    exact = sk.infer(0, sk.ExtendedKalman(), Walk(), YS[:1])
    np.testing.assert_allclose(posterior.log_evidence, exact.log_evidence, atol=1e-9)


@pytest.mark.parametrize("kind", ["FIVO", "IWAE", "NASMC", "NASX"])
def test_every_objective_learns(kind):
    objective = getattr(objectives, kind)(num_particles=4, steps=3, batch_size=1)
    gaussian = learned.Gaussian(learned.Windowed(1), 4)
    posterior = run(program, options={"objective": objective, "proposal": gaussian})
    assert posterior.params["persistence"] != 0.5
    assert ("classifier_loss" in posterior.diagnostics["history"]) == objective.uses_twist
    assert posterior.diagnostics["skipped_steps"] == 0


# How learning ends.


def test_a_callback_ends_it():
    seen = []

    def stop(told):
        seen.append(told)
        return len(seen) == 2

    posterior = run(options={"rounds": 6}, callback=stop)
    assert posterior.diagnostics["rounds"] == 2 and posterior.diagnostics["interrupted"]
    assert seen[1]["round"] == 2.0 and {"held_out_bound", "classifier_loss"} <= set(seen[0])


def test_patience_ends_it_and_the_best_round_counts():
    """Steps down the bound and not up: the first round is the best."""
    down = objectives.SIXO(num_particles=16, steps=5, optimizer=sk.optimizer(optax.sgd, -0.02))
    options = {"rounds": 8, "patience": 2, "objective": down, "twist": None, "proposal": None}
    seen = []
    posterior = run(program, options=options, callback=seen.append)
    bounds = posterior.diagnostics["history"]["held_out_bound"]
    assert len(bounds) == len(seen) == 3 and np.argmax(bounds) == 0
    one = run(program, options=options | {"rounds": 1})
    assert posterior.params["persistence"] == one.params["persistence"]
    last = run(program, options=options | {"rounds": 3, "patience": None})
    assert posterior.params["persistence"] != last.params["persistence"]


def test_a_classifier_that_learned_nothing_warns():
    """What comes later says nothing of a state that has no memory."""

    class Forgets(Walk):
        def transition(self, x, u):
            return dist.Normal(0.0 * x, 1.0)

    with pytest.warns(LearningWarning, match=r"learned nothing(.|\n)*log 2"):
        posterior = sk.infer(0, engine(rounds=1), Forgets(), YS, **QUIET)
    assert any("learned nothing" in text for text in posterior.diagnostics["warnings"])


# Errors.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"twist": 3}, "twist is no builder"),
        ({"twist": learned.Twist}, "twist is no builder"),
        ({"proposal": sk.Linearised()}, "proposal is no builder"),
        ({"objective": None}, "objective"),
        ({"objective": "SIXO"}, "objective is no objective"),
        ({"objective": objectives.SIXO}, "objective is no objective"),
        ({"twist_learning": 1}, "twist_learning is no objective"),
        ({"rounds": 0}, "rounds is too small"),
        ({"num_particles": 1}, "sk.SIXO: num_particles"),
        ({"resampling": "sistematic"}, "unknown resampling"),
        ({"smoother": "ffbs"}, "unknown smoother"),
        (
            {"objective": objectives.SIXO(gradient="score", scheme="systematic", threshold=1.0)},
            "drawn independently",
        ),
        ({"objective": objectives.FIVO(gradient="true")}, "unknown gradient"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(OptionError, match=words):
        sk.infer(0, engine(**options), Walk(), YS, **QUIET)


def test_models_that_it_cannot_serve():
    singular = sk.models.AdditiveGaussian(
        jnp.tanh, jnp.sum, np.array([1.0, 0.0]), 1.0, np.zeros(2), 1.0
    )
    for options in (
        {"proposal": learned.Gaussian(learned.Windowed(1), 4)},
        {"objective": objectives.NASX(), "proposal": None},
        {"smoother": "backward"},
    ):
        with pytest.raises(sk.errors.SingularTransitionError):
            sk.infer(0, engine(**options), singular, YS, **QUIET)
    computed = {"twist": learned.Analytic(2), "rounds": 1}
    assert np.isfinite(run(singular, YS, options=computed).log_evidence)  # proposed as it asks for
    with pytest.raises(sk.errors.ImproperStartError):
        sk.infer(0, engine(), sk.models.LocalLevel(1.0, 1.0), YS, **QUIET)

    class Unsampled(dist.Normal):
        def sample(self, key, sample_shape=()):
            raise NotImplementedError

    class Silent(Walk):
        def emission(self, x, u):
            return Unsampled(x, 1.0)

    with pytest.raises(ModelError, match="cannot be sampled: emission"):
        sk.infer(0, engine(), Silent(), YS, **QUIET)

    class Heavy(Walk):
        def transition(self, x, u):
            return dist.StudentT(4.0, x, 1.0)

    with pytest.raises(ModelError, match="Gaussian transition"):
        sk.infer(0, engine(), Heavy(), YS, **QUIET)
    gaussian = learned.Gaussian(learned.Windowed(1), 4, product=False)
    alone = {"twist": None, "proposal": gaussian, "rounds": 1}
    assert np.isfinite(run(Heavy(), options=alone).log_evidence)


def test_a_dead_cloud_says_when():
    class Strip(Walk):
        def emission(self, x, u):
            return dist.Uniform(x - 3, x + 3)

    ys = jnp.array([0.1, 0.2, 90.0, 0.3])
    options = {"twist": None, "proposal": None}
    with pytest.raises(sk.errors.NonFiniteError, match=r"t=2(.|\n)*every particle"):
        run(Strip(), ys, options=options)
    posterior = run(Strip(), ys, options=options, throw=False)
    assert np.isneginf(posterior.log_evidence)
    assert posterior.diagnostics["first_bad_step"] == 2


def test_it_shows_as_it_was_called():
    assert repr(sk.SIXO()) == "sk.SIXO(num_particles=256)"
    assert sk.SIXO() == sk.SIXO() and hash(sk.SIXO()) == hash(sk.SIXO())
