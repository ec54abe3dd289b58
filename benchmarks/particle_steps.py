"""One update of a particle filter at a time: the carry goes in and comes out, and is waited for.

Each is a function of no arguments that goes on from where it stopped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from particle_peers import cuthbert_rule, particles_filter, volatility_model
from particle_problems import Recursion, hand_start, hand_step

import ssmkit as sk
from ssmkit.smc.recipes import Step


def our_stream(ys: np.ndarray, count: int) -> Callable[[], Any]:
    """``update`` of a stream: its checks of what comes in, the step, and the belief about it."""
    flow = sk.stream(0, sk.SMC(num_particles=count), volatility_model())
    return Stepper(flow.update(ys[0]), lambda belief, t, y: flow.update(y), ys)


def our_step(ys: np.ndarray, count: int) -> Callable[[], Any]:
    """One step of the filter under jit; everything it needs is an argument."""
    engine, key = sk.SMC(num_particles=count), jax.random.key(0)
    model = jax.tree.map(jnp.asarray, volatility_model())

    def particle_filter(model: Any, y: Any) -> Any:
        return engine.filter(model, Step(0, y, None, None))

    @jax.jit
    def begin(model: Any, key: Any, y: Any) -> Any:
        return particle_filter(model, y).first(key, Step(0, y, None, None))[0]

    @jax.jit
    def update(cloud: Any, model: Any, key: Any, t: Any, y: Any) -> Any:
        return particle_filter(model, y).advance(key, cloud, Step(t, y, None, None))[0]

    cloud = begin(model, key, ys[0])
    return Stepper(cloud, lambda cloud, t, y: update(cloud, model, key, t, y), ys)


class Stepper:
    """A carry that is moved on by one observation at every call."""

    def __init__(self, carry: Any, update: Callable[[Any, int, Any], Any], ys: np.ndarray):
        self.carry, self.update, self.ys, self.t = carry, update, ys, 1

    def __call__(self) -> Any:
        y = self.ys[self.t % len(self.ys)]
        self.carry = jax.block_until_ready(self.update(self.carry, self.t, y))
        self.t += 1
        return self.carry


def step_by_hand(r: Recursion, count: int) -> Callable[[], Any]:
    key, parameters = jax.random.key(0), r.parameters
    update = jax.jit(partial(hand_step, r))
    begin = jax.jit(partial(hand_start, r), static_argnums=3)(parameters, key, r.ys[0], count)
    return Stepper(begin, lambda carry, t, y: update(carry, parameters, key, t, y), r.ys)


def empty_step() -> Callable[[], Any]:
    """The least a jitted call costs."""
    return Stepper(jnp.zeros(()), jax.jit(lambda x, t, y: x + y), np.zeros(1))


def cuthbert_step(ys: np.ndarray, count: int) -> Callable[[], Any]:
    """One combination of a state with what was prepared for the next observation."""
    rule, key = cuthbert_rule(count), jax.random.key(0)

    @jax.jit
    def update(state: Any, key: Any, t: Any, y: Any) -> Any:
        ahead = rule.filter_prepare((t, y), key=jax.random.fold_in(key, t))
        return rule.filter_combine(state, ahead)

    begin = rule.init_prepare(key=key)._replace(model_inputs=(jnp.asarray(0), jnp.asarray(0.0)))
    return Stepper(begin, lambda state, t, y: update(state, key, t, y), ys)


def particles_step(ys: np.ndarray, count: int, longest: int = 100_000) -> Callable[[], Any]:
    np.random.seed(0)
    run = particles_filter(np.resize(ys, longest), count)
    next(run)

    def step() -> Any:
        next(run)
        return run.X

    return step
