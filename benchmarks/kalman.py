"""One linear Gaussian model, by every library: log likelihood, its gradient, RTS smoother."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from timing import OURS, Contender

import ssmkit as sk

PEERS = ("dynamax", "statsmodels", "cuthbert", "filterpy")
FILTERPY_STEPS = 1000
GAPS = "ssmkit, gaps allowed"
VALUE, GRADIENT, SMOOTHER = "log likelihood", "gradient", "smoother"


class Problem(NamedTuple):
    """A model as plain arrays, and data from it; ``x_0 ~ N(mean, cov)`` emits ``y_0``."""

    mean: np.ndarray
    cov: np.ndarray
    transition: np.ndarray
    transition_cov: np.ndarray
    emission: np.ndarray
    emission_cov: np.ndarray
    ys: np.ndarray

    def short(self, length: int) -> "Problem":
        return self._replace(ys=self.ys[:length])


class Answers(NamedTuple):
    """Functions of no arguments: value, gradient (None where there is none), smoother."""

    value: Callable[[], Any]
    gradient: Callable[[], Any] | None
    smoother: Callable[[], tuple[Any, Any]]


def make_problem(T: int, D: int = 4, M: int = 2, seed: int = 0) -> Problem:
    """A stable rotation, seen through a random matrix; the data are simulated from it."""
    rng = np.random.default_rng(seed)
    F = 0.95 * np.linalg.qr(rng.normal(size=(D, D)))[0]
    H = rng.normal(size=(M, D))
    Q, R = 0.1 * np.eye(D), 0.3 * np.eye(M)
    x, ys = rng.normal(size=D), np.empty((T, M))
    for t in range(T):
        x = x if t == 0 else F @ x + np.sqrt(0.1) * rng.normal(size=D)
        ys[t] = H @ x + np.sqrt(0.3) * rng.normal(size=M)
    return Problem(np.zeros(D), np.eye(D), F, Q, H, R, ys)


def ours(problem: Problem, gaps: bool = False) -> Answers:
    """Gradients are in all arrays of the model: 70 numbers for D=4, M=2, biases included.

    Without ``gaps`` this is what every fit and every `infer` runs when the host has seen that
    nothing is missing, which is all that the other libraries in jax can do. With ``gaps`` it is
    ``sk.log_evidence`` under jit, where the data are traced and any of them may be missing.
    """
    *arrays, ys = problem
    D, M = len(problem.mean), ys.shape[1]
    model = sk.models.LinearGaussian(*arrays, np.zeros(D), np.zeros(M))
    fields, static = eqx.partition(model, eqx.is_array)
    key, engine, ys = jax.random.key(0), sk.Kalman(), jnp.asarray(ys)

    def log_evidence(fields: Any, ys: jax.Array) -> jax.Array:
        model = eqx.combine(fields, static)
        if gaps:
            return sk.log_evidence(key, engine, model, ys)
        return engine.log_evidence(key, model, ys, None, None)

    def smooth(fields: Any, ys: jax.Array) -> Any:
        mask = jnp.isfinite(ys) if gaps else None
        parts = engine.infer(key, eqx.combine(fields, static), ys, None, mask, "all")
        marginals = parts["states"][0]
        return marginals.mean(), marginals.cov()

    compiled = [jax.jit(f) for f in (log_evidence, jax.grad(log_evidence), smooth)]
    return Answers(*(partial(f, fields, ys) for f in compiled))


def dynamax(problem: Problem) -> Answers:
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM, lgssm_filter, lgssm_smoother

    p = problem
    params, _ = LinearGaussianSSM(len(p.mean), p.ys.shape[1]).initialize(
        jax.random.PRNGKey(0),
        initial_mean=jnp.asarray(p.mean),
        initial_covariance=jnp.asarray(p.cov),
        dynamics_weights=jnp.asarray(p.transition),
        dynamics_covariance=jnp.asarray(p.transition_cov),
        emission_weights=jnp.asarray(p.emission),
        emission_covariance=jnp.asarray(p.emission_cov),
    )
    ys = jnp.asarray(p.ys)

    def log_likelihood(params: Any, ys: jax.Array) -> jax.Array:
        return lgssm_filter(params, ys).marginal_loglik

    def smooth(params: Any, ys: jax.Array) -> Any:
        found = lgssm_smoother(params, ys)
        return found.smoothed_means, found.smoothed_covariances

    value, gradient = jax.jit(log_likelihood), jax.jit(jax.grad(log_likelihood))
    smoother = jax.jit(smooth)
    return Answers(
        lambda: value(params, ys), lambda: gradient(params, ys), lambda: smoother(params, ys)
    )


def statsmodels(problem: Problem) -> Answers:
    from statsmodels.tsa.statespace.kalman_filter import MEMORY_CONSERVE
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    p = problem

    def build() -> Any:
        model = KalmanSmoother(k_endog=p.ys.shape[1], k_states=len(p.mean), k_posdef=len(p.mean))
        model.bind(np.ascontiguousarray(p.ys))
        model["design"], model["obs_cov"] = p.emission, p.emission_cov
        model["transition"], model["state_cov"] = p.transition, p.transition_cov
        model["selection"] = np.eye(len(p.mean))
        model.initialize_known(p.mean, p.cov)
        return model

    lean, full = build(), build()
    lean.set_conserve_memory(MEMORY_CONSERVE)

    def smooth() -> tuple[Any, Any]:
        found = full.smooth()
        return found.smoothed_state.T, np.moveaxis(found.smoothed_state_cov, -1, 0)

    return Answers(lambda: lean.loglike(), None, smooth)


def cuthbert(problem: Problem) -> Answers:
    """A state before the first observation is part of its convention: step 0 leaves it alone."""
    from cuthbert.filtering import filter as run_filter
    from cuthbert.gaussian import kalman
    from cuthbert.smoothing import smoother as run_smoother

    D, M = len(problem.mean), problem.ys.shape[1]
    c, d, one = jnp.zeros(D), jnp.zeros(M), jnp.eye(D)
    times = jnp.arange(len(problem.ys))
    arrays = tuple(jnp.asarray(a) for a in problem)

    def both(arrays: Any) -> Any:
        mean, cov, F, Q, H, R, ys = arrays
        chol_Q, chol_R = jnp.linalg.cholesky(Q), jnp.linalg.cholesky(R)

        def dynamics(t: Any) -> Any:
            return jnp.where(t == 0, one, F), c, jnp.where(t == 0, 0.0, chol_Q)

        def observation(t: Any) -> Any:
            return H, d, chol_R, ys[t]

        start = (mean, jnp.linalg.cholesky(cov))
        model = kalman.build_filter(*start, dynamics, observation)
        return run_filter(model, times, model.init_prepare()), kalman.build_smoother(dynamics)

    def log_likelihood(arrays: Any) -> jax.Array:
        return both(arrays)[0].log_normalizing_constant[-1]

    def smooth(arrays: Any) -> Any:
        filtered, rule = both(arrays)
        found = run_smoother(rule, filtered, times)
        return found.mean[1:], (found.chol_cov @ found.chol_cov.mT)[1:]

    value, smoother = jax.jit(log_likelihood), jax.jit(smooth)
    return Answers(lambda: value(arrays), None, lambda: smoother(arrays))


def filterpy(problem: Problem) -> Answers:
    from filterpy.kalman import KalmanFilter

    p = problem

    def build() -> Any:
        model = KalmanFilter(dim_x=len(p.mean), dim_z=p.ys.shape[1])
        model.x, model.P = p.mean.copy(), p.cov.copy()
        model.F, model.Q, model.H, model.R = (
            p.transition,
            p.transition_cov,
            p.emission,
            p.emission_cov,
        )
        return model

    def value() -> float:
        model, total = build(), 0.0
        for t, y in enumerate(p.ys):
            if t:
                model.predict()
            model.update(y)
            total += model.log_likelihood
        return total

    def smooth() -> tuple[Any, Any]:
        model = build()
        means, covs, _, _ = model.batch_filter(p.ys, update_first=True)
        found = model.rts_smoother(means, covs)
        return found[0], found[1]

    return Answers(value, None, smooth)


BUILDERS = {
    "dynamax": dynamax,
    "statsmodels": statsmodels,
    "cuthbert": cuthbert,
    "filterpy": filterpy,
}


def installed() -> dict[str, bool]:
    """Which peers are there."""
    return {name: importlib.util.find_spec(name) is not None for name in PEERS}


def disagreement(problem: Problem) -> dict[str, float]:
    """Largest relative difference of each installed peer from us, over value and smoother."""
    mine = ours(problem)
    reference = [np.asarray(a) for a in (mine.value(), *mine.smoother())]
    found = {}
    for name, present in installed().items():
        if not present:
            continue
        theirs = BUILDERS[name](problem)
        answers = [np.asarray(a) for a in (theirs.value(), *theirs.smoother())]
        found[name] = max(
            float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(a))))
            for a, b in zip(reference, answers, strict=True)
        )
    return found


def contenders(problem: Problem) -> dict[str, list[Contender]]:
    """Who does what, ours first."""
    answers = {OURS: ours(problem), GAPS: ours(problem, gaps=True)}
    scale = max(1.0, len(problem.ys) / FILTERPY_STEPS)
    for name, present in installed().items():
        shorter = problem.short(FILTERPY_STEPS) if name == "filterpy" else problem
        if present:
            answers[name] = BUILDERS[name](shorter)
    remarks = {"filterpy": f"measured at T={min(FILTERPY_STEPS, len(problem.ys))}, scaled"}

    def line(name: str, work: str) -> Contender:
        run = getattr(answers[name], work) if name in answers else None
        if name != "filterpy" or run is None:
            return Contender(name, run)
        return Contender(name, run, scale, remarks[name])

    everyone = (OURS, GAPS, *PEERS)
    return {
        VALUE: [line(name, "value") for name in everyone],
        GRADIENT: [line(name, "gradient") for name in (OURS, GAPS, "dynamax")],
        SMOOTHER: [line(name, "smoother") for name in everyone],
    }
