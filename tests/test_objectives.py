"""Objectives: theorems on the twisted filter's evidence, and gradients against exact ones."""

from functools import cache, partial
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
from ssmkit.engines.alternating import REST, TWIST, Task, begin, take_steps
from ssmkit.learned.pieces import Pieces, sweepable
from ssmkit.learned.reading import Scale, Setting, setting_of
from ssmkit.models.base import as_arrays
from ssmkit.models.programs import build, constrain, free_sites, unconstrain
from ssmkit.objectives.sweep import sweep
from ssmkit.smc import feynman_kac
from ssmkit.smc.feynman_kac import Recipe
from ssmkit.smc.filter import ParticleFilter
from ssmkit.smc.proposals import from_law, own_law
from ssmkit.smc.resampling import SCHEMES, selector
from ssmkit.validation import as_target

# What is proved here does not depend on versions.
pytestmark = pytest.mark.study

KEY = jax.random.key(0)


class Walk(sk.StateSpaceModel):
    """A state with a memory, seen through as much noise."""

    persistence: Any = 0.7

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(self.persistence * x, 0.8)

    def emission(self, x, u):
        return dist.Normal(x, 1.2)


def series_of(ys):
    ys = jnp.asarray(ys)
    return ys, None, ~jnp.isnan(ys)


WALK = as_arrays(Walk())
SHORT = series_of([0.5, 1.4, jnp.nan, -0.3, 0.8])
LENGTH = 10
LAST = series_of(jnp.full(LENGTH, jnp.nan).at[-1].set(11.0))


def drift(a):
    return sk.models.GaussianDrift(jnp.asarray(a), jnp.asarray(1.0))


@cache
def setting(name):
    model, series = {"walk": (WALK, SHORT), "drift": (drift(0.5), LAST)}[name]
    measure = jax.jit(lambda m, s: setting_of(KEY, m, s, jnp.float64)[3:5])
    return Setting(model, len(series[0]), None, *measure(model, series), jnp.float64)


def made(builder, name="walk", seed=1):
    return None if builder is None else builder.build(jax.random.key(seed), setting(name))


class Loud(eqx.Module):
    """The same twist with more to say."""

    inner: Any
    factor: float = 8.0

    def read(self, model, ys, us, mask):
        return self.inner.read(model, ys, us, mask)

    def log_twist(self, model, x, features):
        return self.factor * self.inner.log_twist(model, x, features)


def louder(twist):
    """It says something: over the states its values spread by 0.4 nats, the wrong way or not."""
    features = twist.read(WALK, *SHORT)
    xs = jnp.linspace(-1.5, 1.5, 9)
    each = jax.vmap(lambda x, f: twist.log_twist(WALK, x, f), (0, None))
    values = jax.vmap(each, (None, 0))(xs, features)
    return Loud(twist, 0.4 / jnp.mean(jnp.std(values, axis=1)))


@eqx.filter_jit
def runs(keys, model, pieces, series, count, options):
    """Finished runs, one a key: log evidence, history and log twists."""

    def one(key):
        how = {"num_particles": count, "scheme": "systematic", "threshold": 0.5} | options
        done = sweep(key, model, pieces, series, **how)
        return done.log_evidence, done.report, done.log_twists

    return jax.vmap(one)(keys)


# Unbiased, whatever the twist.


def every_choice(choice):
    """Scheme and threshold as traced numbers."""
    scheme, threshold = choice

    def draw(key, weights):
        return jax.lax.switch(scheme.astype(int), list(SCHEMES.values()), key, weights)

    def criterion(weights):
        return 1 / jnp.sum(weights**2) <= threshold * weights.shape[0] * (1 + 1e-9)

    return selector(draw, criterion)


CHOICES = jnp.array([(0, 0.0), *((s, t) for s in range(len(SCHEMES)) for t in (0.5, 1.0))])
SUM = learned.Sum(learned.Quadratic(4), learned.Network(8, depth=1))
ANY = {
    "recurrent": (learned.Twist(learned.Recurrent(4), learned.Quadratic(8)), None),
    "windowed": (
        learned.Twist(learned.Windowed(2), learned.Network(8)),
        learned.Gaussian(learned.Windowed(1), 8),
    ),
    "per step": (learned.Twist(learned.PerStep(3), SUM), learned.PerStepGaussian()),
    "induced": (learned.Twist(learned.Recurrent(4), SUM), learned.Induced(1)),
    "alone": (
        learned.Twist(learned.PerStep(3), learned.Network(8)),
        learned.Gaussian(learned.Recurrent(4), 8, product=False),
    ),
}


def ratios(pieces, count=32, num_runs=3000, select=every_choice):
    """``Ẑ / Z`` under all choices ``(choices, runs)``, from one compilation."""
    of = sweepable(pieces, WALK, SHORT, jnp.float64)
    keys = jax.random.split(KEY, num_runs)

    def one(key, choice):
        loop = ParticleFilter(of.recipe, select(choice), count, jnp.float64)
        return loop.run_steps(key, of.steps, of.length, keep=False)[0].log_evidence

    each = jax.vmap(one, (0, None))
    values = jax.jit(lambda c: jax.lax.map(lambda x: each(keys, x), c))(CHOICES)
    exact = sk.log_evidence(KEY, sk.ExtendedKalman(), WALK, *SHORT)
    return np.exp(np.asarray(values) - float(exact))


@pytest.mark.parametrize("name", ANY)
def test_the_evidence_is_unbiased_whatever_the_twist(name):
    """Random networks that are clearly wrong; all schemes, at thresholds 0, ½ and 1."""
    twist, proposal = ANY[name]
    pieces = Pieces(louder(made(twist)), made(proposal, seed=2))
    found = ratios(pieces)
    error = found.std(axis=1) / np.sqrt(found.shape[1])
    assert error.max() <= 0.03
    assert np.all(np.abs(found.mean(axis=1) - 1) < 4 * error)


def twist_kept(choice):
    """A planted fault: the twist is used for the selection and not divided out."""

    def select(key, particles, log_weights, ahead, s):
        return every_choice(choice)(key, particles, log_weights + ahead, None, s)

    return select


def test_a_twist_that_is_not_divided_out_is_seen():
    pieces = Pieces(louder(made(ANY["recurrent"][0])), None)
    found = ratios(pieces, select=twist_kept)[1:]
    error = found.std(axis=1) / np.sqrt(found.shape[1])
    assert np.all(np.abs(found.mean(axis=1) - 1) > 5 * error)


class Shifted(eqx.Module):
    """A twist, plus a number for each time that does not look at the state."""

    inner: Any
    numbers: Any

    def read(self, model, ys, us, mask):
        return self.inner.read(model, ys, us, mask), self.numbers

    def log_twist(self, model, x, features):
        return self.inner.log_twist(model, x, features[0]) + features[1]


class Constant(eqx.Module):
    """A number for each time."""

    numbers: Any

    def read(self, model, ys, us, mask):
        return self.numbers

    def log_twist(self, model, x, features):
        return features


NUMBERS = jnp.array([3.0, -2.0, 40.0, 0.5, -7.0])
KEYS = jax.random.split(KEY, 20)


def same(a, b):
    """Log evidence, weights, ancestors and states."""
    np.testing.assert_allclose(a[0], b[0], atol=1e-10)
    np.testing.assert_allclose(a[1].log_weights, b[1].log_weights, atol=1e-9)
    np.testing.assert_array_equal(a[1].ancestors, b[1].ancestors)
    np.testing.assert_allclose(a[1].states, b[1].states, atol=1e-10)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_what_does_not_look_at_the_state_changes_nothing(threshold):
    """And a twist of such numbers alone is none: the bound is that of FIVO."""
    twist = louder(made(ANY["recurrent"][0]))
    options = {"threshold": threshold, "scheme": "multinomial"}
    given = (SHORT, 8, options)
    plain = runs(KEYS, WALK, Pieces(twist, None), *given)
    same(plain, runs(KEYS, WALK, Pieces(Shifted(twist, NUMBERS), None), *given))
    none = runs(KEYS, WALK, Pieces(None, None), *given)
    same(none, runs(KEYS, WALK, Pieces(Constant(NUMBERS), None), *given))
    assert np.abs(plain[0] - none[0]).max() > 0.05  # the twist itself changes something


def test_without_a_selection_the_twist_cancels():
    """Importance weighting of whole paths, for any twist; and with one particle as well."""
    twist, proposal = ANY["windowed"]
    pieces = Pieces(louder(made(twist)), made(proposal))
    never, always = {"threshold": 0.0}, {"threshold": 1.0}
    for count, options in ((8, never), (1, always)):
        twisted = runs(KEYS, WALK, pieces, SHORT, count, options)
        plain = runs(KEYS, WALK, Pieces(None, pieces.proposal), SHORT, count, options)
        np.testing.assert_allclose(twisted[0], plain[0], atol=1e-12)
    loss = lambda o, p: jax.jit(partial(o.loss, model=WALK, pieces=p, series=SHORT))(KEY)[0]  # noqa: E731
    importance = loss(objectives.IWAE(num_particles=8), pieces)
    bound = loss(objectives.SIXO(num_particles=8, threshold=0.0), pieces)
    np.testing.assert_allclose(importance, bound, atol=1e-12)


def test_objectives_are_minus_the_evidence_of_one_run():
    pieces = Pieces(made(ANY["recurrent"][0]), None)
    objective = objectives.SIXO(num_particles=8)
    loss, told = objective.loss(KEY, WALK, pieces, SHORT)
    run = runs(KEY[None], WALK, pieces, SHORT, 8, {"scheme": "multinomial"})
    np.testing.assert_allclose(-loss, run[0][0], atol=1e-12)
    np.testing.assert_allclose(told["bound"], -loss, atol=1e-12)
    target = np.asarray(jax.nn.softmax(run[1].log_weights[0] + run[2][0], axis=1))
    sizes = 1 / np.sum(target**2, axis=1)
    np.testing.assert_allclose(told["smallest_ess"], sizes.min(), rtol=1e-9)


def test_the_twist_goes_with_the_ancestor_by_hand():
    """Two particles with log twists ∓1, one selection, in which both follow the second."""
    nothing = lambda *given: jnp.zeros(())  # noqa: E731
    recipe = Recipe(
        init=nothing, log_weight_0=nothing, propose=lambda noise, before, s: before,
        log_weight=nothing, log_lookahead=lambda before, s: before,
    )  # fmt: skip

    def select(key, particles, log_weights, ahead, s):
        choose = lambda threshold: selector(lambda k, w: jnp.array([1, 1]), threshold)(  # noqa: E731
            key, particles, log_weights, ahead, s
        )
        return jax.tree.map(lambda a, b: jnp.where(s == 4, a, b), choose(1.0), choose(0.0))

    begin = feynman_kac.first(recipe, KEY, 2, 0, pin=lambda x, s: jnp.array([-1.0, 1.0]))
    times = lambda t: t  # noqa: E731
    cloud, report = feynman_kac.scan(recipe, select, KEY, begin, times, 10, keep=True)
    expected = np.log((np.e + 1 / np.e) / 2) - 1
    np.testing.assert_allclose(cloud.log_evidence, expected, rtol=1e-12)
    np.testing.assert_array_equal(report.resampled, np.arange(10) == 4)
    np.testing.assert_array_equal(cloud.particles, [1.0, 1.0])


# Gradients of bounds.


class Best(eqx.Module):
    """The optimal proposal of the drift diffusion, moved aside."""

    aside: Any = 0.0

    def read(self, model, ys, us, mask):
        return LENGTH - jnp.arange(LENGTH), jnp.full(LENGTH, ys[-1])

    def draw(self, model, before, s, beyond, dtype):
        n, y = s.read.proposal

        def law():
            past = 0.0 if before is None else before
            return dist.Normal((n * past + y) / (n + 1) + self.aside, jnp.sqrt(n / (n + 1)))

        return from_law(law, lambda: own_law(model, before, s), dtype)


def slopes(objective, pieces, num_runs, a=0.5, batches=10):
    """Derivatives of the bound by the drift, one a run."""

    def one(key):
        return jax.grad(lambda a: -objective.loss(key, drift(a), pieces, LAST)[0])(a)

    keys = jax.random.split(KEY, (batches, num_runs // batches))
    return np.asarray(jax.jit(lambda k: jax.lax.map(jax.vmap(one), k))(keys)).ravel()


def mean_and_error(values):
    return values.mean(), values.std() / np.sqrt(values.size)


def test_at_the_optimum_the_biased_gradient_is_the_score():
    """Where all weights are equal nothing is lost with the choice of ancestors."""
    pieces = Pieces(made(learned.Analytic(1), "drift"), Best())
    found, error = mean_and_error(slopes(objectives.SIXO(threshold=1.0), pieces, 20_000))
    assert abs(found - 5.5) < 4 * error  # y − 11 a
    assert error < 0.05


def test_the_score_makes_it_the_gradient_of_the_bound():
    """By finite differences of the bound; without it the gradient is far off."""
    pieces = Pieces(None, Best())
    score = objectives.FIVO(threshold=1.0, gradient="score")
    found, error = mean_and_error(slopes(score, pieces, 60_000))
    biased, small = mean_and_error(slopes(objectives.FIVO(threshold=1.0), pieces, 60_000))
    options = {"threshold": 1.0, "scheme": "multinomial"}
    keys, step = jax.random.split(jax.random.key(3), 60_000), 0.1
    ahead, behind = (
        np.asarray(runs(keys, drift(0.5 + h), pieces, LAST, 4, options)[0]) for h in (step, -step)
    )
    exact, slack = mean_and_error((ahead - behind) / (2 * step))
    assert abs(exact - 8.10) < 4 * slack + 0.02  # known from elsewhere
    assert slack < 0.05
    assert abs(found - exact) < 4 * np.hypot(error, slack)
    assert abs(biased - 4.74) < 4 * small + 0.02
    assert exact - biased > 20 * np.hypot(small, slack)


def test_a_score_needs_independent_ancestors_on_a_fixed_schedule():
    for options in ({"scheme": "systematic", "threshold": 1.0}, {"threshold": 0.5}):
        with pytest.raises(sk.errors.OptionError, match="drawn independently"):
            objectives.SIXO(gradient="score", **options).check()
    with pytest.raises(sk.errors.OptionError, match="unknown gradient"):
        objectives.FIVO(gradient="exact").check()
    objectives.SIXO(gradient="score", threshold=1.0).check()


def test_the_gradient_goes_through_the_state_that_the_twist_is_asked_with():
    class Stopped(eqx.Module):
        inner: Any

        def read(self, model, ys, us, mask):
            return self.inner.read(jax.lax.stop_gradient(model), ys, us, mask)

        def log_twist(self, model, x, features):
            fixed = jax.lax.stop_gradient((model, x))
            return self.inner.log_twist(*fixed, features)

    twist = made(learned.Twist(learned.Windowed(1), learned.Network(8)), "drift")
    sixo = objectives.SIXO(threshold=1.0)
    through, stopped = (
        slopes(sixo, Pieces(t, None), 20, batches=1) for t in (twist, Stopped(twist))
    )
    assert np.isfinite(through).all()
    assert np.all(np.abs(through - stopped) > 1e-6)


# Twists by other ways than telling pairs apart.


class Tilted(eqx.Module):
    """A twist, tilted in the state."""

    inner: Any
    slope: Any

    def read(self, model, ys, us, mask):
        return self.inner.read(model, ys, us, mask)

    def log_twist(self, model, x, features):
        return self.inner.log_twist(model, x, features) + self.slope * x


@cache
def exact():
    """The best twist and the proposal that it induces."""
    return made(learned.Analytic(1)), made(learned.Induced(1))


def tilted(pair, slope):
    return Pieces(Tilted(pair[0], slope), pair[1])


MANY = jax.tree.map(lambda a: a[None], SHORT)


def test_the_recursion_holds_for_the_best_twist_alone():
    """With the proposal that it induces one draw is enough, and nothing is left."""
    pair = exact()
    objective = objectives.LeastSquares(num_particles=8, num_draws=1, batch_size=1)
    rest = jax.jit(lambda slope: objective.loss(KEY, WALK, tilted(pair, slope), MANY)[0])
    assert rest(0.0) < 1e-20
    assert rest(0.3) > 1e-3


def test_there_is_no_contrast_at_the_best_twist():
    """Its gradient vanishes there in the mean, and points back from elsewhere."""
    pair = exact()
    objective = objectives.Contrastive(batch_size=8, num_particles=16)

    @jax.jit
    @jax.vmap
    def slopes(key):
        def one(slope):
            return objective.loss(key, WALK, tilted(pair, slope), MANY)[0]

        return jax.vmap(jax.grad(one))(jnp.array([-0.5, 0.0, 0.5]))

    found = np.asarray(slopes(jax.random.split(KEY, 100)))
    mean, error = found.mean(axis=0), found.std(axis=0) / 10
    assert abs(mean[1]) < 4 * error[1]
    assert mean[0] < -10 * error[0] and mean[2] > 10 * error[2]


# Wake-sleep.


HMM_YS = jnp.array([-1.3, 0.4, 0.2, 1.6, -0.2, 0.9, -0.8])
THETA = jnp.array([0.8, -0.5, -0.7, 1.1, 0.3])


def chain(theta):
    """Two states; persistence, places and start by their logits."""
    moves = jax.nn.softmax(jnp.stack([jnp.stack([theta[0], 0.0]), jnp.stack([theta[1], 0.0])]))
    start = jax.nn.softmax(jnp.stack([theta[4], 0.0]))
    return sk.models.DiscreteHMM.normal(start, moves, theta[2:4], jnp.array([0.9, 0.7]))


def pair_probabilities(theta):
    """Of states at t − 1 and t given what was seen up to t, and the logs that they weigh."""
    model = chain(theta)
    seen = jax.vmap(lambda y: model.emission_law.log_prob(y))(HMM_YS)
    log_moves, belief = jnp.log(model.transition_probs), jnp.log(model.initial_probs) + seen[0]
    fixed = lambda logits: jax.lax.stop_gradient(jax.nn.softmax(logits.ravel()))  # noqa: E731
    total = fixed(belief) @ belief
    for t in range(1, len(HMM_YS)):
        pair = jax.nn.log_softmax(belief)[:, None] + log_moves + seen[t]
        total = total + fixed(pair) @ (log_moves + seen[t]).ravel()
        belief = jax.scipy.special.logsumexp(pair, axis=0)
    return total


def test_wake_sleep_follows_the_score_with_smoothing_weights_and_another_thing_without():
    """NAS-X: Fisher's identity. NASMC: the same with filtering weights, which is not the score."""
    twist = learned.Analytic(1).build(
        KEY, Setting(chain(THETA), 7, None, *hmm_scales(), jnp.float64)
    )

    def slopes(objective, twist):
        def one(key):
            series = (HMM_YS, None, None)

            def value(theta):
                return -objective.loss(key, chain(theta), Pieces(twist, None), series)[0]

            return jax.grad(value)(THETA)

        found = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 200)))
        return found.mean(axis=0), found.std(axis=0) / np.sqrt(200)

    exact_log = lambda t: sk.log_evidence(KEY, sk.ForwardBackward(), chain(t), HMM_YS)  # noqa: E731
    score, filtering = (jax.jit(jax.grad(f))(THETA) for f in (exact_log, pair_probabilities))
    smooth, error = slopes(objectives.NASX(num_particles=1000), twist)
    assert np.all(np.abs(smooth - score) < 4 * error + 2e-3)
    plain, error = slopes(objectives.NASMC(num_particles=1000), None)
    assert np.all(np.abs(plain - filtering) < 4 * error + 2e-3)
    assert np.abs(plain - score).max() > 20 * error.max()


def hmm_scales():
    measure = jax.jit(lambda m: setting_of(KEY, m, (HMM_YS, None, None), jnp.float64)[4])
    observation = measure(chain(THETA))
    return Scale(jnp.zeros(1), jnp.ones(1), 2), observation


def test_wake_sleep_pulls_a_proposal_towards_the_smoothing_law():
    """Moved aside by δ the slope of the inclusive divergence is the sum of δ over variances."""
    twist = made(learned.Analytic(1), "drift")
    objective = objectives.NASX(num_particles=500, threshold=1.0, scheme="systematic")
    n = LENGTH - np.arange(LENGTH)

    @jax.jit
    def found(aside):
        def one(key):
            loss = lambda a: objective.loss(key, drift(0.5), Pieces(twist, Best(a)), LAST)[0]  # noqa: E731
            return jax.grad(loss)(aside)

        return jax.vmap(one)(jax.random.split(KEY, 100))

    for aside in (0.0, 0.2):
        values, error = mean_and_error(np.asarray(found(aside)))
        exact = aside * np.sum((n + 1) / n)
        assert abs(values - exact) < 4 * error + 5e-3


# Who learns what.


def fitted_drift():
    return sk.models.GaussianDrift(numpyro.param("drift", 0.0))


def learner_of(objective, twist, proposal, target=fitted_drift):
    """A task, and a learner that has taken no step."""
    target = as_target(target)
    sites = free_sites(target)
    params = unconstrain(sites, {name: site.value for name, site in sites.items()})
    model = as_arrays(build(target, constrain(sites, params)))
    place = setting("drift")._replace(model=model)
    pieces = Pieces(
        *(None if b is None else b.build(jax.random.key(i), place)
          for i, b in enumerate((twist, proposal)))
    )  # fmt: skip
    series = jax.tree.map(lambda a: a[None], LAST)
    ratio = objectives.DensityRatio(batch_size=8, optimizer=sk.optimizer(optax.sgd, 0.1))
    task = Task(target, series, KEY, objective, ratio, (10, 10))
    return task, begin(task, params, pieces)


def changed(a, b):
    """Whether any number differs."""
    pairs = zip(*(jax.tree.leaves(eqx.filter(t, eqx.is_array)) for t in (a, b)), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("kind", ["SIXO", "NASX"])
def test_each_block_moves_its_own_part_only(kind):
    """The bound moves parameters and proposal, never the twist; simulations move the twist."""
    objective = getattr(objectives, kind)(num_particles=4, batch_size=1)
    task, start = learner_of(
        objective,
        learned.Twist(learned.Windowed(1), learned.Quadratic(4)),
        learned.Gaussian(learned.Windowed(1), 4),
    )
    rest, _ = take_steps(task, start, REST, jnp.asarray(2))
    assert not changed(rest.twist, start.twist)
    assert changed(rest.proposal, start.proposal) and changed(rest.params, start.params)
    assert not changed(rest.proposal.scale, start.proposal.scale)
    twist, told = take_steps(task, start, TWIST, jnp.asarray(2))
    assert changed(twist.twist, start.twist) and not changed(twist.twist.scale, start.twist.scale)
    assert not changed((twist.params, twist.proposal), (start.params, start.proposal))
    assert set(told) == {"classifier_loss", "classifier_floor"}
    assert int(rest.skipped) == int(twist.skipped) == 0
    np.testing.assert_array_equal(twist.steps, [2, 0])


def test_steps_do_not_depend_on_how_they_are_cut():
    objective = objectives.FIVO(batch_size=1, optimizer=sk.optimizer(optax.sgd, 1e-3))
    task, start = learner_of(objective, None, None)
    whole, _ = take_steps(task, start, REST, jnp.asarray(4))
    part, _ = take_steps(task, start, REST, jnp.asarray(1))
    part, _ = take_steps(task, part, REST, jnp.asarray(3))
    assert not changed(whole.params, part.params)


class Blows(objectives.FIVO):
    """A loss that is not finite on some steps."""

    def loss(self, key, model, pieces, series):
        bad = jax.random.bernoulli(key)
        return jnp.where(bad, jnp.nan, 1.0) * model.drift, {"bound": model.drift}


def test_a_step_whose_gradient_is_not_finite_is_left_out():
    task, start = learner_of(Blows(batch_size=1), None, None)
    after, _ = take_steps(task, start, REST, jnp.asarray(20))
    assert 0 < int(after.skipped) < 20
    assert np.isfinite(after.params["drift"]) and changed(after.params, start.params)


# Weights that vanish, and observations that are not there.


class Strip(sk.StateSpaceModel):
    """Observations outside the strip around the state are impossible."""

    scale: Any

    def initial(self, u):
        return dist.Normal(0.0, self.scale)

    def transition(self, x, u):
        return dist.Normal(x, self.scale)

    def emission(self, x, u):
        return dist.Uniform(x - 2, x + 2)


@pytest.mark.parametrize("kind", ["SIXO", "NASX"])
def test_dead_particles_harm_no_gradient_but_their_own(kind):
    """Some weights zero: finite. All of them: log Ẑ = −∞, and other series do not notice."""
    objective = getattr(objectives, kind)(num_particles=8, threshold=0.5)
    twist = made(learned.Twist(learned.Windowed(1), learned.Quadratic(4)))
    pieces = Pieces(twist, None)
    ys = jnp.array(
        [[0.1, 1.9, 2.5, 2.4, 2.0], [0.1, 0.2, 90.0, 0.3, 0.1], [0.0, 0.5, 0.1, 0.2, 0.4]]
    )

    def value(scale, key, y):
        loss, told = objective.loss(key, Strip(scale), pieces, (y, None, None))
        return loss, told["bound"]

    slope = jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True), (None, 0, 0)))
    keys = jax.random.split(KEY, 3)
    (losses, bounds), found = slope(jnp.array(1.0), keys, ys)
    assert np.isneginf(bounds[1]) and np.isfinite(bounds[::2]).all()
    assert np.isfinite(found[::2]).all() and np.isfinite(losses[::2]).all()
    alone = slope(jnp.array(1.0), keys[::2], ys[::2])
    np.testing.assert_allclose(alone[1], found[::2], rtol=1e-9)
    weights = runs(keys[:1], Strip(jnp.array(1.0)), pieces, (ys[0], None, None), 8, {})
    log_evidence, report, _ = weights
    assert np.isneginf(report.log_weights).any() and np.isfinite(log_evidence).all()


def test_one_step_and_nothing_observed():
    """A prediction has the evidence one, exactly, with any twist."""
    nothing = (jnp.full(5, jnp.nan), None, jnp.zeros(5, bool))
    twist = louder(made(ANY["recurrent"][0]))
    for proposal in (None, learned.Induced(1)):
        pieces = Pieces(twist, made(proposal))
        found = runs(KEYS, WALK, pieces, nothing, 8, {"threshold": 1.0})[0]
        np.testing.assert_allclose(found, 0.0, rtol=0, atol=1e-14)
    one = (jnp.array([0.4]), None, None)
    found = np.asarray(runs(KEYS, WALK, Pieces(None, made(learned.Induced(1))), one, 8, {})[0])
    exact = sk.log_evidence(KEY, sk.ExtendedKalman(), WALK, one[0])
    np.testing.assert_allclose(found, exact, atol=1e-10)


OBJECTIVES = ("SIXO", "FIVO", "IWAE", "NASMC", "NASX")


def test_missing_observations_poison_no_gradient():
    """Of parameters, twist and proposal; and what stands in a gap is not looked at."""
    twist, proposal = ANY["recurrent"][0], learned.Gaussian(learned.Recurrent(4), 8)
    pieces = Pieces(made(twist), made(proposal))
    arrays, rest = eqx.partition(pieces, eqx.is_inexact_array)
    ys, us, mask = SHORT

    @jax.jit
    def slopes(ys):
        def value(given, kind):
            persistence, arrays = given
            objective = getattr(objectives, kind)(num_particles=4)
            series = (ys, us, mask)
            return objective.loss(KEY, Walk(persistence), eqx.combine(arrays, rest), series)[0]

        given = (jnp.array(0.7), arrays)
        return [jax.grad(partial(value, kind=kind))(given) for kind in OBJECTIVES]

    missing, filled = slopes(ys), slopes(jnp.nan_to_num(ys, nan=5.0))
    for a, b in zip(missing, filled, strict=True):
        leaves = jax.tree.leaves(a)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert float(a[0]) != 0.0
        for x, y in zip(leaves, jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)


def test_the_classifier_has_a_gradient_with_gaps():
    twist = made(ANY["recurrent"][0])
    arrays, rest = eqx.partition(twist, eqx.is_inexact_array)
    series = jax.tree.map(lambda a: a[None], SHORT)

    @jax.jit
    @jax.grad
    def slope(arrays):
        pieces = Pieces(eqx.combine(arrays, rest), None)
        return objectives.DensityRatio().loss(KEY, WALK, pieces, series)[0]

    leaves = jax.tree.leaves(slope(arrays).head)
    assert all(np.isfinite(a).all() for a in leaves) and any(np.any(a != 0) for a in leaves)
