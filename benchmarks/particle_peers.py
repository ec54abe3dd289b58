"""Particle filters and backward sampling for stochastic volatility, by every library.

Filters are functions ``seed -> log evidence``, smoothers ``seed -> paths (M, T)``.
"""

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from particle_problems import MEAN, PERSISTENCE, SCALE, STATIONARY

import ssmkit as sk

PEERS = ("cuthbert", "particles")
Seeded = Callable[[int], Any]


def installed() -> dict[str, bool]:
    """Which peers are there."""
    return {name: importlib.util.find_spec(name) is not None for name in PEERS}


def volatility_model() -> Any:
    return sk.models.StochasticVolatility(MEAN, PERSISTENCE, SCALE)


def ours(model: Any, ys: np.ndarray, count: int, dtype: Any = float, gaps: bool = True) -> Seeded:
    """``sk.log_evidence`` under jit: any of the data may be missing, unless ``gaps`` says not."""
    engine = sk.SMC(num_particles=count)
    model = jax.tree.map(lambda a: jnp.asarray(a, dtype), model)

    def log_evidence(key: Any, model: Any, ys: Any) -> Any:
        if gaps:
            return sk.log_evidence(key, engine, model, ys)
        return engine.log_evidence(key, model, ys, None, None)

    run, ys = jax.jit(log_evidence), jnp.asarray(ys, dtype)
    return lambda seed: run(jax.random.key(seed), model, ys)


def our_paths(ys: np.ndarray, count: int, smoother: str, moves: int, num_paths: int) -> Seeded:
    """Backward sampling from the history of a run, which is kept for every seed."""
    engine = sk.SMC(num_particles=count, smoother=smoother, num_moves=moves)
    model, ys = jax.tree.map(jnp.asarray, volatility_model()), jnp.asarray(ys)

    @jax.jit
    def run(key: Any, model: Any, ys: Any) -> Any:
        return engine.infer(key, model, ys, None, None, "all")["states"][1]  # the law of a path

    @jax.jit
    def sample(key: Any, paths: Any) -> Any:
        return paths.sample(key, num_paths)

    history = cache(lambda seed: jax.block_until_ready(run(jax.random.key(seed), model, ys)))
    return lambda seed: sample(jax.random.key(1000 + seed), history(seed))


def cuthbert_rule(count: int) -> Any:
    """The filter, whose steps are given ``(t, y)``.

    A state before the first observation is its convention: the step into time 0 leaves it alone.
    """
    from cuthbert.smc import particle_filter
    from cuthbertlib.resampling import systematic
    from cuthbertlib.resampling.adaptive import ess_decorator

    def start(key: Any) -> Any:
        return MEAN + STATIONARY * jax.random.normal(key)

    def move(key: Any, x: Any, s: Any) -> Any:
        moved = MEAN + PERSISTENCE * (x - MEAN) + SCALE * jax.random.normal(key)
        return jnp.where(s[0] == 0, x, moved)

    def score(before: Any, x: Any, s: Any) -> Any:
        return -0.5 * (s[1] ** 2 * jnp.exp(-x) + x + jnp.log(2 * jnp.pi))

    resample = ess_decorator(systematic.resampling, 0.5)
    return particle_filter.build_filter(start, move, score, count, resample)


def _cuthbert_filter(ys: Any, count: int, key: Any) -> Any:
    from cuthbert.filtering import filter as run_filter

    rule = cuthbert_rule(count)
    start_key, run_key = jax.random.split(key)
    begin = rule.init_prepare(key=start_key)
    return run_filter(rule, (jnp.arange(len(ys)), ys), begin, key=run_key)


def cuthbert(ys: np.ndarray, count: int) -> Seeded:
    def log_evidence(key: Any, ys: Any) -> Any:
        return _cuthbert_filter(ys, count, key).log_normalizing_constant[-1]

    run, ys = jax.jit(log_evidence), jnp.asarray(ys)
    return lambda seed: run(jax.random.key(seed), ys)


def cuthbert_history(ys: np.ndarray, count: int) -> Seeded:
    @jax.jit
    def run(key: Any, ys: Any) -> Any:
        # what it has before the first observation is not among the states that are smoothed
        return jax.tree.map(lambda a: a[1:], _cuthbert_filter(ys, count, key))

    ys = jnp.asarray(ys)
    return cache(lambda seed: jax.block_until_ready(run(jax.random.key(seed), ys)))


def cuthbert_paths(history: Seeded, num_paths: int, moves: int | None) -> Seeded:
    """Exact where ``moves`` is None, else by that many Metropolis moves a step."""
    from cuthbert.smc.backward_sampler import build_smoother
    from cuthbert.smoothing import smoother as run_smoother
    from cuthbertlib.resampling import multinomial
    from cuthbertlib.smc.smoothing import exact_sampling, mcmc

    def log_transition(before: Any, x: Any, t: Any) -> Any:
        gap = (x - MEAN - PERSISTENCE * (before - MEAN)) / SCALE
        return -0.5 * gap**2

    back = exact_sampling.simulate if moves is None else partial(mcmc.simulate, n_steps=moves)
    rule = build_smoother(log_transition, back, multinomial.resampling, num_paths)

    @jax.jit
    def sample(key: Any, filtered: Any) -> Any:
        return run_smoother(rule, filtered, key=key).particles.T

    return lambda seed: sample(jax.random.key(1000 + seed), history(seed))


def particles_filter(ys: np.ndarray, count: int, **options: Any) -> Any:
    import particles as package
    from particles import state_space_models as models

    model = models.StochVol(mu=MEAN, rho=PERSISTENCE, sigma=SCALE)
    chain = models.Bootstrap(ssm=model, data=ys)
    return package.SMC(fk=chain, N=count, resampling="systematic", collect="off", **options)


def particles(ys: np.ndarray, count: int) -> Seeded:
    def log_evidence(seed: int) -> float:
        np.random.seed(seed)
        run = particles_filter(ys, count)
        run.run()
        return run.logLt

    return log_evidence


def particles_history(ys: np.ndarray, count: int) -> Seeded:
    def run(seed: int) -> Any:
        np.random.seed(seed)
        run = particles_filter(ys, count, store_history=True)
        run.run()
        return run.hist

    return cache(run)


def particles_paths(history: Seeded, num_paths: int, moves: int | None) -> Seeded:
    """Exact where ``moves`` is None, else by that many Metropolis moves a step."""

    def sample(seed: int) -> np.ndarray:
        kept = history(seed)
        np.random.seed(1000 + seed)
        if moves is None:
            paths = kept.backward_sampling_ON2(num_paths)
        else:
            paths = kept.backward_sampling_mcmc(num_paths, nsteps=moves)
        return np.stack(paths, axis=-1)

    return sample
