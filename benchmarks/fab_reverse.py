"""What FAB is compared with: the same flow by the reverse divergence, and uniform draws."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from ssmkit.measures import effective_sample_size
from ssmkit.smc.weights import log_mean_exp


class Weighted(NamedTuple):
    """Draws and what they say: weights, evidence, and the effective share."""

    x: Any
    log_weights: Any
    log_evidence: float
    ess: float


def weighted(x: Any, log_weights: Any) -> Weighted:
    """Read off draws and their log weights."""
    share = float(effective_sample_size(log_weights)) / log_weights.shape[0]
    return Weighted(x, log_weights, float(log_mean_exp(log_weights)), share)


def reverse_flow(key: Any, builder: Any, log_prob: Any, dim: int, steps: int, batch: int) -> Any:
    """A flow that maximises the evidence lower bound, which loves single modes."""
    build_key, train_key = jax.random.split(key)
    flow = builder.build(build_key, dim, jnp.result_type(float))
    arrays, static = eqx.partition(flow, eqx.is_inexact_array)
    rule = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adam(optax.cosine_decay_schedule(1e-3, steps, 0.01)),
    )

    def loss(arrays: Any, key: Any) -> Any:
        flow = eqx.combine(arrays, static)
        x, log_q = jax.vmap(flow.sample_and_log_prob)(jax.random.split(key, batch))
        return jnp.mean(log_q - jax.vmap(log_prob)(x))

    def step(carry: Any, key: Any) -> tuple[Any, None]:
        arrays, state = carry
        slope = jax.grad(loss)(arrays, key)
        change, state = rule.update(slope, state)
        return (optax.apply_updates(arrays, change), state), None

    keys = jax.random.split(train_key, steps)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])
    return eqx.combine(run((arrays, rule.init(arrays)))[0], static)


def draws_of(key: Any, flow: Any, log_prob: Any, count: int) -> Weighted:
    """Weighted draws of a flow."""
    keys = jax.random.split(key, count)
    x, log_q = jax.jit(jax.vmap(flow.sample_and_log_prob))(keys)
    return weighted(x, jax.jit(jax.vmap(log_prob))(x) - log_q)


def uniform_draws(key: Any, log_prob: Any, dim: int, edge: float, count: int) -> Weighted:
    """Weighted draws of a cube: what a target is worth as a test."""
    x = jax.random.uniform(key, (count, dim), minval=-edge, maxval=edge)
    return weighted(x, jax.jit(jax.vmap(log_prob))(x) + dim * jnp.log(2 * edge))
