"""What the particle methods are compared on: two models, their true answers, and plain recursions.

Stochastic volatility has one state, so that forward and backward recursions on a grid give the true
evidence and smoothed moments; the linear Gaussian model has them by the Kalman filter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import kalman
import numpy as np

import ssmkit as sk

MEAN, PERSISTENCE, SCALE = -1.0, 0.97, 0.2
STATIONARY = SCALE / np.sqrt(1 - PERSISTENCE**2)
NODES = 601


class Truth(NamedTuple):
    """Log evidence; smoothed mean of the states and of their squared steps, over time."""

    log_evidence: float
    mean: float
    roughness: float


class Recursion(NamedTuple):
    """A bootstrap filter written by hand: arrays and the functions that a step is made of.

    ``start(normals)`` and ``move(x, normals)`` act on the whole cloud, ``score(x, y)`` gives ``N``
    log densities; all take the parameters first.
    """

    parameters: Any
    ys: np.ndarray
    shape: tuple[int, ...]
    start: Callable[..., Any]
    move: Callable[..., Any]
    score: Callable[..., Any]


def volatility_data(T: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise, x, ys = rng.normal(size=(T, 2)), MEAN, np.empty(T)
    for t in range(T):
        x = MEAN + PERSISTENCE * (x - MEAN) + (SCALE if t else STATIONARY) * noise[t, 0]
        ys[t] = np.exp(x / 2) * noise[t, 1]
    return ys


def volatility_truth(ys: np.ndarray) -> Truth:
    """By the trapezium rule, forwards and backwards, on nodes six standard deviations wide."""
    nodes = MEAN + STATIONARY * np.linspace(-6, 6, NODES)
    width = nodes[1] - nodes[0]
    ahead = MEAN + PERSISTENCE * (nodes - MEAN)
    steps = width * _normal_density(nodes[None, :] - ahead[:, None], SCALE)  # from, to
    emissions = _normal_density(ys[:, None], np.exp(nodes / 2))
    filtered, log_evidence = [], 0.0
    belief = width * _normal_density(nodes - MEAN, STATIONARY)
    for t, emission in enumerate(emissions):
        belief = (filtered[-1] @ steps if t else belief) * emission
        log_evidence += np.log(belief.sum())
        filtered.append(belief / belief.sum())
    squares = (nodes[None, :] - nodes[:, None]) ** 2
    future, means, roughness = np.ones(NODES), [], []
    for t in reversed(range(len(ys))):
        smoothed = filtered[t] * future
        means.append(smoothed @ nodes / smoothed.sum())
        if t:
            pairs = filtered[t - 1][:, None] * steps * (emissions[t] * future)
            roughness.append((pairs * squares).sum() / pairs.sum())
            future = steps @ (emissions[t] * future)
            future = future / future.max()
    return Truth(log_evidence, float(np.mean(means)), float(np.mean(roughness)))


def _normal_density(x: Any, scale: Any) -> np.ndarray:
    return np.exp(-0.5 * (x / scale) ** 2) / (np.sqrt(2 * np.pi) * scale)


def volatility(ys: np.ndarray) -> Recursion:
    """Stochastic volatility by hand."""
    parameters = (jnp.asarray(MEAN), jnp.asarray(PERSISTENCE), jnp.asarray(SCALE))

    def start(parameters: Any, z: Any) -> Any:
        mean, persistence, scale = parameters
        return mean + scale / jnp.sqrt(1 - persistence**2) * z

    def move(parameters: Any, x: Any, z: Any) -> Any:
        mean, persistence, scale = parameters
        return mean + persistence * (x - mean) + scale * z

    def score(parameters: Any, x: Any, y: Any) -> Any:
        return -0.5 * (y**2 * jnp.exp(-x) + x + jnp.log(2 * jnp.pi))

    return Recursion(parameters, ys, (), start, move, score)


def linear_gaussian(problem: kalman.Problem) -> Recursion:
    """A linear Gaussian model by hand; factors are made once, before the recursion."""
    p = problem
    parameters = tuple(jnp.asarray(a) for a in p[:-1])

    def start(parameters: Any, z: Any) -> Any:
        mean, cov = parameters[:2]
        return mean + z @ jnp.linalg.cholesky(cov).T

    def move(parameters: Any, x: Any, z: Any) -> Any:
        _, _, F, Q, _, _ = parameters
        return x @ F.T + z @ jnp.linalg.cholesky(Q).T

    def score(parameters: Any, x: Any, y: Any) -> Any:
        *_, H, R = parameters
        factor = jnp.linalg.cholesky(R)
        gaps = (y - x @ H.T) @ jnp.linalg.inv(factor).T
        constant = jnp.sum(jnp.log(jnp.diagonal(factor))) + len(y) * jnp.log(2 * jnp.pi) / 2
        return -0.5 * jnp.sum(gaps**2, axis=1) - constant

    return Recursion(parameters, p.ys, p.mean.shape, start, move, score)


def linear_model(problem: kalman.Problem) -> Any:
    return sk.models.LinearGaussian(*(jnp.asarray(a) for a in problem[:-1]))


def linear_truth(problem: kalman.Problem) -> float:
    key, ys = jax.random.key(0), jnp.asarray(problem.ys)
    return float(sk.log_evidence(key, sk.Kalman(), linear_model(problem), ys))


def hand_step(r: Recursion, carry: Any, parameters: Any, key: Any, t: Any, y: Any) -> Any:
    """Select below half the particles, systematically; move; weigh, to weights of mean one."""
    x, log_weights, total = carry
    count = len(log_weights)
    select_key, noise_key = jax.random.split(jax.random.fold_in(key, t))
    weights = jnp.exp(log_weights)

    def resample() -> Any:
        ends = jnp.ceil(jnp.cumsum(weights) - jax.random.uniform(select_key)).astype(jnp.int32)
        ancestors = jnp.cumsum(jnp.zeros(count, jnp.int32).at[ends].add(1, mode="drop"))
        return x[jnp.minimum(ancestors, count - 1)], jnp.zeros_like(log_weights)

    few = jnp.sum(weights) ** 2 <= 0.5 * count * jnp.sum(weights**2)
    x, log_weights = jax.lax.cond(few, resample, lambda: (x, log_weights))
    x = r.move(parameters, x, jax.random.normal(noise_key, x.shape))
    return _weigh(r, parameters, x, log_weights, total, y)


def _weigh(r: Recursion, parameters: Any, x: Any, log_weights: Any, total: Any, y: Any) -> Any:
    log_weights = log_weights + r.score(parameters, x, y)
    top = jnp.max(log_weights)
    gain = top + jnp.log(jnp.mean(jnp.exp(log_weights - top)))
    return x, log_weights - gain, total + gain


def hand_start(r: Recursion, parameters: Any, key: Any, y: Any, count: int) -> Any:
    x = r.start(parameters, jax.random.normal(jax.random.fold_in(key, 0), (count, *r.shape)))
    return _weigh(r, parameters, x, jnp.zeros(count), jnp.zeros(()), y)


def by_hand(r: Recursion, count: int) -> Callable[[int], Any]:
    """The log evidence as a function of a seed."""

    def log_evidence(key: Any, parameters: Any, ys: Any) -> Any:
        def body(carry: Any, t: Any) -> Any:
            return hand_step(r, carry, parameters, key, t, ys[t]), None

        begin = hand_start(r, parameters, key, ys[0], count)
        return jax.lax.scan(body, begin, jnp.arange(1, len(ys)))[0][2]

    run = partial(jax.jit(log_evidence), parameters=r.parameters, ys=jnp.asarray(r.ys))
    return lambda seed: run(jax.random.key(seed))
