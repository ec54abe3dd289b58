"""Bad input: a named error that says what was got, what was expected and how to mend it.

Everything in the tables is refused on the host: an engine that is asked to run fails the test.
"""

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest

import ssmkit as sk
from ssmkit import errors
from ssmkit.engines import nuts, optimise, states
from ssmkit.models.programs import build

KALMAN = sk.Kalman()
LENGTH = 8
YS = np.linspace(-1.0, 1.0, LENGTH)
US = np.linspace(0.0, 1.0, LENGTH)
COUNTS = np.arange(LENGTH) % 3
LEVEL = sk.models.LocalLevel(1.0, 1.0)
HALF = jnp.full((2, 2), 0.5)
HMM = sk.models.DiscreteHMM.poisson(HALF[0], HALF, jnp.array([1.0, 5.0]))
POSITIVE = dist.constraints.positive


def linear(size=1, length=None, **options):
    eye = jnp.eye(size)
    matrix = eye if length is None else jnp.stack([eye] * length)
    return sk.models.LinearGaussian(jnp.zeros(size), eye, matrix, eye, eye, eye, **options)


class Driven(sk.StateSpaceModel):
    """Nonlinear; its transition uses the input, so that ``us=None`` fails in it."""

    scale: Any = 1.0

    def initial(self, u):
        return dist.Normal(0.0, 2.0)

    def transition(self, x, u):
        return dist.Normal(0.5 * x + jnp.cos(u), self.scale)  # the user's line

    def emission(self, x, u):
        return dist.Normal(x**2 / 20, 1.0)


class Leftover(Driven):
    def emission(self, x, u):
        return dist.Normal(x * jnp.ones(3), 1.0)


class NoDistribution(Driven):
    def emission(self, x, u):
        return x + 1


class Grown(Driven):
    def transition(self, x, u):
        return dist.Normal(jnp.ones(2) * x, 1.0).to_event(1)


class Broken(Driven):
    def emission(self, x, u):
        return dist.Normal(jnp.ones(2) @ jnp.ones(3), 1.0)  # the user's other line


class Unfinished(sk.StateSpaceModel):
    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(x, 1.0)


class Simplex(sk.StateSpaceModel):
    """Its emission has no marginals for single coordinates."""

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(x, 1.0)

    def emission(self, x, u):
        return dist.Dirichlet(jnp.exp(x) * jnp.ones(3))


class Heavy(Simplex):
    """Linear, but not Gaussian."""

    def emission(self, x, u):
        return dist.StudentT(5.0, x, 1.0)


class Trembling(Simplex):
    """Gaussian with a linear mean, but the noise depends on the state."""

    def emission(self, x, u):
        return dist.Normal(x, 1.0 + x**2)


@dataclass(frozen=True)
class Nothing:
    """An object that is no engine."""


def point_program():
    return sk.models.LocalLevel(numpyro.param("level", 1.0, constraint=POSITIVE), 1.0)


def prior_program():
    return sk.models.LocalLevel(numpyro.sample("level", dist.HalfNormal(1.0)), 1.0)


def fixed_program():
    return sk.models.LocalLevel(1.0, 1.0)


def indefinite_program():
    return linear(2), numpyro.param("unused", 1.0)


def needs_data(scale):
    return sk.models.LocalLevel(scale, 1.0)


class Case(NamedTuple):
    """What is done, the class of the error, and phrases that its text must hold in this order."""

    call: Any
    error: type
    phrases: tuple


def infer(target=LEVEL, ys=YS, *args, key=0, engine=KALMAN, **options):
    return lambda: sk.infer(key, engine, target, ys, *args, **options)


def simplex_rows():
    ys = np.full((LENGTH, 3), 1 / 3)
    ys[2, 1] = np.nan
    return ys


FIT, DRAW = sk.GradientFit(KALMAN), sk.NUTS(KALMAN)
BAD_COV = jnp.array([[1.0, 2.0], [2.0, 1.0]])
BEFORE_A_RUN = {
    # keys
    "no key": Case(
        lambda: sk.infer(KALMAN, LEVEL, YS, None),
        errors.RandomKeyError,
        ("got: Kalman", "expected: a typed key, or an integer", "fix: jax.random.key(0)"),
    ),
    "key None": Case(infer(key=None), errors.RandomKeyError, ("got: NoneType",)),
    "key True": Case(infer(key=True), errors.RandomKeyError, ("got: bool",)),
    "old-style key": Case(
        infer(key=jax.random.PRNGKey(0)),
        errors.RandomKeyError,
        ("old-style", "got: uint32 array of shape (2,)", "fix: jax.random.wrap_key_data(key)"),
    ),
    "batch of keys": Case(
        infer(key=jax.random.split(jax.random.key(0), 3)),
        errors.RandomKeyError,
        ("several keys", "got: shape (3,)", "expected: one key", "fix: key[0]"),
    ),
    # engines and options
    "engine class": Case(
        infer(engine=sk.Kalman), errors.EngineError, ("the class Kalman", "fix: sk.Kalman()")
    ),
    "no engine": Case(
        infer(engine=Nothing()), errors.EngineError, ("got: Nothing", "an engine such as")
    ),
    "engine and model swapped": Case(
        infer(engine=LEVEL, target=KALMAN), errors.EngineError, ("must be an engine",)
    ),
    "keep misspelt": Case(
        infer(keep="al"), errors.OptionError, ("keep", "got: 'al'", "expected: ('all', 'final')")
    ),
    "form misspelt": Case(
        infer(engine=sk.Kalman(form="sqrt")),
        errors.OptionError,
        ("got: 'sqrt'", "expected: ['auto', 'covariance', 'square_root']"),
    ),
    "option that is not there": Case(infer(keeep="all"), TypeError, ("keeep",)),
    "engine option that is not there": Case(
        lambda: sk.Kalman(square_root=True), TypeError, ("square_root",)
    ),
    "no iterations": Case(
        infer(linear(), YS[:, None], engine=sk.ExtendedKalman(iterations=0)),
        errors.OptionError,
        ("iterations", "got: 0", "expected: ≥ 1"),
    ),
    "sigma points collapse": Case(
        infer(linear(), YS[:, None], engine=sk.UnscentedKalman(alpha=0.0)),
        errors.OptionError,
        ("sigma points", "got: alpha=0.0", "expected: alpha > 0"),
    ),
    "no starts": Case(
        infer(point_program, engine=sk.GradientFit(KALMAN, num_starts=0)),
        errors.OptionError,
        ("num_starts", "got: 0"),
    ),
    "no chains": Case(
        infer(prior_program, engine=sk.NUTS(KALMAN, num_chains=0)),
        errors.OptionError,
        ("num_chains", "got: 0"),
    ),
    "bare optax object": Case(
        infer(point_program, engine=sk.GradientFit(KALMAN, optimizer=optax.adam(1e-2))),
        errors.OptionError,
        ("bare optax object", "got: GradientTransformation", "fix: sk.optimizer(optax.adam, 1e-2)"),
    ),
    "optimizer of a lambda": Case(
        lambda: sk.optimizer(lambda: optax.adam(1e-2)),
        errors.OptionError,
        ("its factory", "expected: a named function", "fix: sk.optimizer(optax.adam"),
    ),
    "optimizer of an object": Case(
        lambda: sk.optimizer(optax.adam(1e-2)), errors.OptionError, ("its factory",)
    ),
    "learned under an engine that does not learn": Case(
        infer(learned={"level": 0.0}), errors.OptionError, ("does not learn", "drop learned=")
    ),
    "learned of another program": Case(
        infer(point_program, engine=FIT, learned={"slope": 0.0}),
        errors.OptionError,
        ("learned does not fit", "got: values for ['slope']", "values for ['level']", "fix: "),
    ),
    # targets
    "model class": Case(
        infer(sk.models.LocalLevel),
        errors.EngineError,
        ("got: the class LocalLevel", "expected: an instance of", "fix: LocalLevel(...)"),
    ),
    "no target": Case(infer(3.0), errors.EngineError, ("got: float", "expected: an instance of")),
    "program without a model": Case(
        infer(indefinite_program, engine=FIT),
        errors.ModelError,
        ("must return a model", "got: tuple", "fix: end the program"),
    ),
    "program without its data": Case(
        infer(needs_data),
        errors.ParameterError,
        ("cannot be called", "got: 0 data arguments", "expected: needs_data(scale)"),
    ),
    "program that is no function": Case(
        lambda: sk.program(3.0), errors.ParameterError, ("a program is a function", "got: float")
    ),
    # the parameter rule
    "free sites under a state engine": Case(
        infer(point_program),
        errors.ParameterError,
        ("free sites: level", "got: program(point_program)", "sk.GradientFit(evidence=sk.Kalman()"),
    ),
    "nothing to learn in a model": Case(
        infer(engine=FIT),
        errors.EngineError,
        ("nothing to learn", "got: a model", "fix: sk.infer(key, sk.Kalman(), model, ys)"),
    ),
    "nothing to learn in a program": Case(
        infer(fixed_program, engine=FIT),
        errors.EngineError,
        ("nothing to learn", "got: a program without free sites"),
    ),
    "nothing to draw": Case(infer(engine=DRAW), errors.EngineError, ("sk.NUTS has nothing",)),
    "param under NUTS": Case(
        infer(point_program, engine=DRAW),
        errors.ParameterError,
        ("level has no prior", "got: numpyro.param sites: ['level']", 'numpyro.sample("level"'),
    ),
    "evidence is no state engine": Case(
        infer(point_program, engine=sk.GradientFit(DRAW)),
        errors.EngineError,
        ("needs a state engine", "got: sk.NUTS", "fix: sk.GradientFit(evidence=sk.Kalman())"),
    ),
    "evidence is a class": Case(
        infer(point_program, engine=sk.GradientFit(sk.Kalman)),
        errors.EngineError,
        ("needs a state engine", "fix: sk.GradientFit(evidence=sk.Kalman())"),
    ),
    "missing site": Case(
        lambda: build(sk.program(point_program), {}),
        errors.ParameterError,
        ("'level' has no value", "fix: check the spelling"),
    ),
    "misspelt site": Case(
        lambda: build(sk.program(point_program), {"level": jnp.ones(()), "levle": jnp.ones(())}),
        errors.ParameterError,
        ("no site named 'levle'", "expected: values for ['level']"),
    ),
    "misspelt site with a prior": Case(
        lambda: build(sk.program(prior_program), {"levle": jnp.ones(())}),
        errors.ParameterError,
        ("'level' has no value", "got: values for ['levle']"),
    ),
    # observations
    "empty": Case(
        infer(ys=YS[:0]), errors.DataError, ("ys is empty", "got: shape (0,)", "(T, *observation)")
    ),
    "empty list": Case(infer(ys=[]), errors.DataError, ("ys is empty",)),
    "one number": Case(infer(ys=1.0), errors.DataError, ("too few axes", "got: shape ()")),
    "batch of one axis": Case(
        infer(ys=YS, batched=True),
        errors.DataError,
        ("too few axes", "expected: (B, T, *observation) with batched=True"),
    ),
    "text": Case(infer(ys=np.array(["1", "2"])), errors.DataError, ("real numbers", "got: dtype")),
    "complex": Case(infer(ys=1j * YS), errors.DataError, ("got: dtype complex128",)),
    "integers with missing": Case(
        infer(HMM, np.array([1, None, 3], dtype=object), engine=sk.ForwardBackward()),
        errors.DataError,
        ("integers with missing values?", "integers with observed=", "fix: ys.astype(float)"),
    ),
    "scalars for vectors": Case(
        infer(linear()),
        errors.ShapeError,
        ("LinearGaussian.emission", "got: ys of shape (8,)", "(1,)", "fix: ys[:, None]"),
    ),
    "vectors for scalars": Case(
        infer(ys=YS[:, None]),
        errors.ShapeError,
        ("got: ys of shape (8, 1)", "expected: observations of shape ()", "fix: ys[:, 0]"),
    ),
    "(50, 100) is not guessed at": Case(
        infer(ys=np.zeros((50, 100))),
        errors.ShapeError,
        ("got: ys of shape (50, 100)", "expected: observations of shape ()", "fix: batched=True"),
    ),
    "a batch of vectors is not guessed at": Case(
        infer(linear(2), np.zeros((5, LENGTH, 2))),
        errors.ShapeError,
        ("got: ys of shape (5, 8, 2)", "fix: batched=True"),
    ),
    "wrong number of coordinates": Case(
        infer(linear(2), np.zeros((LENGTH, 3))),
        errors.ShapeError,
        ("observations of shape (3,)", "expected: observations of shape (2,)"),
    ),
    "ragged with other coordinates": Case(
        infer(linear(2), [np.zeros((4, 2)), np.zeros((4, 3))]),
        errors.ShapeError,
        ("same coordinates", "[(2,), (3,)]", "expected: one shape"),
    ),
    "series in a list, one observed": Case(
        infer(ys=[YS, YS], observed=np.ones(LENGTH, bool)),
        errors.ShapeError,
        ("observed must be a list", "expected: 2 entries"),
    ),
    "series in a list, one input": Case(
        infer(Driven(), [YS, YS], [US]), errors.ShapeError, ("us must be a list",)
    ),
    # masks
    "observed too short": Case(
        infer(observed=np.ones(LENGTH - 1, bool)),
        errors.ShapeError,
        ("observed", "got: bool of shape (7,)", "expected: booleans of shape (8,)", "fix: "),
    ),
    "observed of numbers": Case(
        infer(observed=np.ones(LENGTH)), errors.ShapeError, ("got: float64 of shape (8,)",)
    ),
    "observed of the wrong coordinates": Case(
        infer(linear(2), np.zeros((LENGTH, 2)), observed=np.ones((LENGTH, 1), bool)),
        errors.ShapeError,
        ("got: bool of shape (8, 1)", "(8,) (whole rows) or (8, 2)"),
    ),
    "coordinates missing where there are no marginals": Case(
        infer(Simplex(), simplex_rows(), engine=sk.ExtendedKalman()),
        errors.MissingDataError,
        ("single coordinates are missing", "fix: mark the whole row"),
    ),
    # inputs
    "us too short": Case(
        infer(Driven(), YS, US[:-1]),
        errors.ShapeError,
        ("got: us of shape (7,), ys with (8,)", "expected: us with leading axes (8,)", "fix: "),
    ),
    "us of the batch too short": Case(
        infer(Driven(), np.zeros((2, LENGTH)), US, batched=True),
        errors.ShapeError,
        ("expected: us with leading axes (2, 8)",),
    ),
    "nan in us": Case(
        infer(Driven(), YS, np.where(US > 0.5, np.nan, US)),
        errors.DataError,
        ("us holds nan", "got: nan at (4,)", "expected: finite inputs", "fix: "),
    ),
    "other dates in us": Case(
        infer(
            Driven(),
            pd.Series(YS, pd.date_range("2000", periods=LENGTH, freq="YS")),
            pd.Series(US, pd.date_range("2001", periods=LENGTH, freq="YS")),
        ),
        errors.DataError,
        ("different dates", "fix: us.reindex(ys.index)"),
    ),
    "no us": Case(
        infer(Driven()),
        errors.ModelError,
        ("Driven.transition failed at ", "test_errors.py:", "# the user's line", "fix: the model"),
    ),
    "no us for a model of the library": Case(
        infer(linear(transition_input=jnp.ones((1, 1))), YS[:, None]),
        errors.DataError,
        ("LinearGaussian uses inputs", "got: us=None", "fix: infer(key, engine, model, ys, us)"),
    ),
    # models
    "failing method": Case(
        infer(Broken(), YS, US),
        errors.ModelError,
        ("Broken.emission failed at ", "test_errors.py:", "# the user's other line", "got: Type"),
    ),
    "method that is missing": Case(
        infer(Unfinished()),
        errors.ModelError,
        ("has no method emission", "expected: a method emission(self, x, u)", "fix: def emission"),
    ),
    "method without a distribution": Case(
        infer(NoDistribution(), YS, US),
        errors.ModelError,
        ("must return a distribution", "expected: a numpyro distribution", "fix: dist.Normal"),
    ),
    "leftover batch shape": Case(
        infer(Leftover(), YS, US),
        errors.ModelError,
        ("several distributions", "Normal with batch shape (3,)", "fix: add .to_event(1)"),
    ),
    "event shape of the transition": Case(
        infer(Grown(), YS, US),
        errors.ShapeError,
        ("transition and initial disagree", "got: transition (2,), initial ()"),
    ),
    "parameters for other steps": Case(
        infer(linear(length=5), YS[:, None]),
        errors.ShapeError,
        ("another number of steps", "got: parameters for 5 steps, 8 observations"),
    ),
    "indefinite covariance": Case(
        lambda: sk.models.LinearGaussian(
            jnp.zeros(2), jnp.eye(2), jnp.eye(2), BAD_COV, jnp.eye(2), jnp.eye(2)
        ),
        errors.ParameterError,
        ("transition_cov is not a covariance", "got: an indefinite", "expected: ", "fix: "),
    ),
    "negative variance": Case(
        lambda: sk.models.LocalLevel(-1.0, 1.0),
        errors.ParameterError,
        ("level_variance must not be negative", "got: -1.0", "expected: a number ≥ 0", "fix: "),
    ),
    # engine × model
    "nonlinear under Kalman": Case(
        infer(Driven(), YS, US),
        errors.EngineError,
        ("sk.Kalman() is exact", "got: emission has a mean", "fix: sk.ExtendedKalman()"),
    ),
    "not Gaussian under Kalman": Case(
        infer(Heavy()), errors.EngineError, ("got: emission returned StudentT", "fix: ")
    ),
    "noise that depends on the state under Kalman": Case(
        infer(Trembling()), errors.EngineError, ("got: emission has noise that depends on x",)
    ),
    "finite state under Kalman": Case(
        infer(HMM, COUNTS),
        errors.EngineError,
        ("needs a real-valued state", "got: initial law Categorical", "fix: sk.ForwardBackward()"),
    ),
    "real state under ForwardBackward": Case(
        infer(engine=sk.ForwardBackward()),
        errors.EngineError,
        ("needs a finite state", "expected: a numpyro Categorical", "fix: sk.Kalman()"),
    ),
    "diffuse under ExtendedKalman": Case(
        infer(engine=sk.ExtendedKalman()),
        errors.ImproperStartError,
        ("needs a proper start", "got: initial(u) returned sk.Diffuse", "fix: sk.Kalman()"),
    ),
    "diffuse under UnscentedKalman": Case(
        infer(engine=sk.UnscentedKalman()), errors.ImproperStartError, ("needs a proper start",)
    ),
    "diffuse under simulate": Case(
        lambda: sk.simulate(0, LEVEL, 3), errors.ImproperStartError, ("cannot be sampled",)
    ),
    "emission that does not move": Case(
        infer(sk.models.StochasticVolatility(-1.0, 0.9, 0.2), engine=sk.ExtendedKalman()),
        errors.EngineError,
        ("would learn nothing", "expected: an emission whose mean depends on x"),
    ),
    "the start of a program is checked": Case(
        infer(point_program, YS[:, None], engine=FIT), errors.ShapeError, ("fix: ys[:, 0]",)
    ),
    "the engine of a program is checked": Case(
        infer(point_program, engine=sk.NUTS(sk.ExtendedKalman())),
        errors.ImproperStartError,
        ("sk.ExtendedKalman() needs a proper start",),
    ),
    # tracers
    "ys traced": Case(
        lambda: jax.jit(lambda ys: sk.infer(0, KALMAN, LEVEL, ys).log_evidence)(YS),
        errors.TracerError,
        ("sk.infer was called inside jit", "got: traced values", "fix: call it outside, or use"),
    ),
    "model traced": Case(
        lambda: jax.grad(
            lambda v: sk.infer(0, KALMAN, sk.models.LocalLevel(v, 1.0), YS).log_evidence
        )(1.0),
        errors.TracerError,
        ("sk.log_evidence",),
    ),
    "observed traced": Case(
        lambda: jax.jit(lambda m: sk.infer(0, KALMAN, LEVEL, YS, observed=m).log_evidence)(
            np.ones(LENGTH, bool)
        ),
        errors.TracerError,
        ("sk.infer",),
    ),
    "key traced": Case(
        lambda: jax.vmap(lambda k: sk.infer(k, KALMAN, LEVEL, YS).log_evidence)(
            jax.random.split(jax.random.key(0), 2)
        ),
        errors.TracerError,
        ("sk.infer",),
    ),
    # the pure evidence and simulate
    "evidence of an engine without one": Case(
        lambda: sk.log_evidence(jax.random.key(0), DRAW, LEVEL, YS),
        errors.EngineError,
        ("no evidence of its own", "expected: a state engine", "fix: sk.Kalman()"),
    ),
    "no steps": Case(
        lambda: sk.simulate(0, linear(), 0), errors.OptionError, ("num_steps", "got: 0")
    ),
    "simulate past the inputs": Case(
        lambda: sk.simulate(0, Driven(), LENGTH + 1, US),
        errors.ShapeError,
        ("got: num_steps=9", "(8,)", "expected: one entry per step"),
    ),
    "simulate past the parameters": Case(
        lambda: sk.simulate(0, linear(length=5), 6), errors.ShapeError, ("got: num_steps=6",)
    ),
}


@pytest.fixture
def no_run(monkeypatch):
    """Whatever would compile an engine fails instead."""

    def never(*args, **kwargs):
        pytest.fail("the engine was about to run")

    monkeypatch.setattr(states, "_infer", never)
    monkeypatch.setattr(optimise, "_advance", never)
    monkeypatch.setattr(nuts.NUTS, "_sample", never)


def expect(case):
    with pytest.raises(case.error) as caught:
        case.call()
    text = str(caught.value)
    place = 0
    for phrase in case.phrases:
        found = text.find(phrase, place)
        assert found >= 0, f"{phrase!r} is not (at its place) in:\n{text}"
        place = found + len(phrase)
    return text


@pytest.mark.parametrize("name", BEFORE_A_RUN)
def test_refused_before_anything_is_compiled(name, no_run):
    expect(BEFORE_A_RUN[name])


def test_the_guard_sees_a_run(no_run):
    with pytest.raises(pytest.fail.Exception, match="about to run"):
        sk.infer(0, KALMAN, LEVEL, YS)


@pytest.mark.parametrize("name", ["no us", "failing method"])
def test_the_line_of_the_user_is_the_right_one(name):
    case = BEFORE_A_RUN[name]
    method = Driven.transition if name == "no us" else Broken.emission
    lines, first = inspect.getsourcelines(method)
    assert f"test_errors.py:{first + len(lines) - 1}: `return dist.Normal" in expect(case)


def test_every_error_is_also_a_builtin_one():
    for name, error in vars(errors).items():
        if inspect.isclass(error) and error.__module__ == errors.__name__ and name != "SsmkitError":
            if name.endswith("Warning"):
                assert issubclass(error, UserWarning), name
                continue
            assert issubclass(error, errors.SsmkitError), name
            builtin = [b for b in error.__mro__ if b.__module__ == "builtins"]
            assert builtin[0] is not Exception, name


# Parameters that are only known inside a run: found as a non-finite evidence.


class Spoiled(sk.StateSpaceModel):
    """Its variance turns negative at step 3, which no check of shapes can see."""

    start: Any = 1.0

    def initial(self, u):
        return dist.Normal(0.0, self.start)

    def transition(self, x, u):
        return dist.Normal(x, jnp.sqrt(1.0 - 2.0 * (u >= 3)))

    def emission(self, x, u):
        return dist.Normal(x, 1.0)


STEPS = np.arange(LENGTH)


def test_non_finite_run_raises_and_says_the_step():
    with pytest.raises(errors.NonFiniteError) as caught:
        sk.infer(0, KALMAN, Spoiled(), YS, STEPS)
    text = str(caught.value)
    for phrase in ("not finite from step t=3 on", "got: log evidence nan", "expected: finite"):
        assert phrase in text
    assert "fix: look for an indefinite covariance" in text and "throw=False" in text


def test_non_finite_run_is_flagged_when_asked_for():
    posterior = sk.infer(0, KALMAN, Spoiled(), YS, STEPS, throw=False)
    assert posterior.diagnostics["finite"] is False
    assert posterior.diagnostics["first_bad_step"] == 3
    assert np.isfinite(posterior.log_likelihood[:3]).all()


def test_non_finite_series_of_a_batch_is_found():
    us = np.stack([np.zeros(LENGTH), STEPS])
    with pytest.raises(errors.NonFiniteError, match="t=3"):
        sk.infer(0, KALMAN, Spoiled(), np.stack([YS, YS]), us, batched=True)


def test_impossible_data_are_named():
    never = sk.models.DiscreteHMM.categorical(HALF[0], HALF, [[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(errors.NonFiniteError, match="t=2"):
        sk.infer(0, sk.ForwardBackward(), never, np.array([0, 0, 1, 0]))


def test_indefinite_covariance_inside_a_fit():
    # ``singular=()`` is what a model knows inside jit: nothing about values
    def indefinite():
        off = numpyro.param("off", 2.0)
        cov = jnp.eye(2) + off * jnp.array([[0.0, 1.0], [1.0, 0.0]])
        eye = jnp.eye(2)
        return sk.models.LinearGaussian(jnp.zeros(2), eye, eye, cov, eye, eye, singular=())

    engine = sk.GradientFit(KALMAN, sk.optimizer(optax.sgd, 1e-3), num_starts=1, max_steps=2)
    with pytest.raises(errors.NonFiniteError, match="not finite at any start") as caught:
        sk.infer(0, engine, indefinite, np.zeros((4, 2)), progress=False)
    assert "got: 1 starts" in str(caught.value)
    assert "fix: give the program start values inside the model's range" in str(caught.value)


# A posterior says what it cannot do.


@pytest.fixture(scope="module")
def posterior():
    return sk.infer(0, KALMAN, LEVEL, YS, keep="final")


@pytest.fixture(scope="module")
def driven():
    model = linear(transition_input=jnp.ones((1, 1)))
    return sk.infer(0, KALMAN, model, YS[:, None], US[:, None], keep="final")


@pytest.mark.parametrize("name", ["states", "filtered", "predicted", "log_likelihood", "params"])
def test_what_was_not_computed_is_named(posterior, name):
    with pytest.raises(errors.NotComputed, match=f"{name} was not computed by") as caught:
        getattr(posterior, name)
    assert "fix: " in str(caught.value)
    assert ('keep="all"' in str(caught.value)) == (name != "params")


def test_forecasts_that_cannot_be(posterior, driven):
    batch = sk.infer(0, KALMAN, LEVEL, np.stack([YS, YS]), batched=True, keep="final")
    varying = sk.infer(0, KALMAN, linear(length=LENGTH), YS[:, None], keep="final")
    bad = np.array([[1.0], [np.nan]])
    cases = (
        Case(lambda: sk.forecast(0, batch, 2), errors.EngineError, ("batch", "posterior[0]")),
        Case(
            lambda: sk.forecast(0, varying, 2),
            errors.EngineError,
            ("end with the data", "LinearGaussian with 8 steps", "fix: "),
        ),
        Case(lambda: sk.forecast(0, posterior, 0), errors.OptionError, ("num_steps", "got: 0")),
        Case(
            lambda: sk.forecast(0, driven, 2),
            errors.DataError,
            ("future inputs are missing", "expected: us with leading axis 2"),
        ),
        Case(
            lambda: sk.forecast(0, posterior, 2, np.ones((2, 1))),
            errors.DataError,
            ("made without us", "expected: us=None"),
        ),
        Case(
            lambda: sk.forecast(0, driven, 2, np.ones((3, 1))),
            errors.ShapeError,
            ("us does not fit the forecast", "got: (3, 1)", "expected: (2, 1)"),
        ),
        Case(lambda: sk.forecast(0, driven, 2, bad), errors.DataError, ("us holds nan",)),
        Case(lambda: sk.forecast(LEVEL, posterior, 2), errors.RandomKeyError, ("got: LocalLevel",)),
        Case(
            lambda: jax.vmap(lambda k: sk.forecast(k, posterior, 2).observations.mean())(
                jax.random.split(jax.random.key(0), 2)
            ),
            errors.TracerError,
            ("sk.forecast was called inside",),
        ),
        Case(lambda: posterior[0], errors.EngineError, ("one series, not a batch",)),
        Case(lambda: batch[2], IndexError, ("series 2 of 2",)),
        Case(lambda: posterior.apply(YS[:, None]), errors.ShapeError, ("fix: ys[:, 0]",)),
    )
    for case in cases:
        expect(case)


def test_float64_data_in_float32_get_one_notice():
    enabled = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.warns(UserWarning, match="jax_enable_x64") as caught:
            sk.infer(0, KALMAN, sk.models.LocalLevel(1.0, 1.0), YS, keep="final")
    finally:
        jax.config.update("jax_enable_x64", enabled)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # at the user's call
