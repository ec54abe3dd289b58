"""What a belief about the next state says of the next observation: bounds, moments, draws.

Pure functions of one step, for diagnostics and for streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from ssmkit.beliefs import Categorical, Gaussian, Particles
from ssmkit.linalg import cholesky_psd
from ssmkit.measures import Bounds, as_sampled, bounds_by_draw, cdf_bounds, weighted_bounds
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.observation import feasible
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Float, Key, Law

NUM_DRAWS = 1000  # states that stand for a belief over a finite state, where draws are needed


def observation_bounds(
    key: Key, model: StateSpaceModel, belief: Any, s: Step, rule: Any = None
) -> Bounds:
    r"""\(P(Y_t < y)\) and \(P(Y_t \le y)\) of each coordinate, ``y`` being what is observed.

    A mixture over particles (or a finite state) of the emission's distribution function; where
    numpyro has none, each particle emits one draw. Normal for a Gaussian belief. Particles do not
    know their tails: no probability is below one over (twice) their effective number.

    Args:
        key: random key, used where draws are needed.
        model: the model.
        belief: about ``x_t``, given what came before ``y_t``.
        s: the step: time, observation, input, and what of the observation is there.
        rule: how a Gaussian engine linearises the emission.

    Returns:
        Probabilities ``(M,)``; nan where nothing is observed, or nothing is identified yet.
    """
    if isinstance(belief, Gaussian):
        mean, std = observation_moments(model, belief, s, rule)
        return hide(normal_bounds(mean, std, jnp.ravel(s.y)), s)
    pick, emit = jax.random.split(key)
    states, log_weights = members(pick, belief, has_cdf(model, belief, s))
    by_draw: list[bool] = []

    def one(key: Key, x: Array) -> Bounds:
        law = model.at(s.t).emission(x, s.u)
        y = filled(law, s)
        found = cdf_bounds(law, y)
        by_draw.append(found is None)
        found = found or bounds_by_draw(law.sample(key), y, log_weights.dtype)
        return Bounds(*(jnp.ravel(a).astype(log_weights.dtype) for a in found))

    each = jax.vmap(one)(jax.random.split(emit, log_weights.shape[0]), states)
    bounds = weighted_bounds(each, log_weights)
    if isinstance(belief, Particles) or by_draw[0]:
        bounds = as_sampled(bounds, log_weights, by_draw=by_draw[0])
    return hide(bounds, s)


def observation_draws(
    key: Key, model: StateSpaceModel, belief: Particles | Categorical, s: Step
) -> tuple[Float[Array, "M N"], Float[Array, " N"]]:
    """Weighted draws of the next observation, by coordinate: each particle emits one."""
    pick, emit = jax.random.split(key)
    states, log_weights = members(pick, belief, False)

    def one(key: Key, x: Array) -> Array:
        return jnp.ravel(model.at(s.t).emission(x, s.u).sample(key)).astype(log_weights.dtype)

    draws = jax.vmap(one)(jax.random.split(emit, log_weights.shape[0]), states)
    return draws.T, log_weights


def members(
    key: Key, belief: Particles | Categorical, every: bool
) -> tuple[Array, Float[Array, " N"]]:
    """States and log weights that make up a belief; a finite state as a whole, or by draws."""
    if isinstance(belief, Particles):
        return belief.values, belief.log_weights
    logits = belief.log_probabilities
    if every:
        return jnp.arange(logits.shape[-1]), logits
    states = jax.random.categorical(key, logits, shape=(NUM_DRAWS,))
    return states, jnp.zeros(NUM_DRAWS, logits.dtype)


def has_cdf(model: StateSpaceModel, belief: Particles | Categorical, s: Step) -> bool:
    """Whether the distribution function of the emission is known; nothing is computed."""
    found: list[bool] = []

    def ask() -> None:
        x = members(jax.random.key(0), belief, True)[0][0]
        law = model.at(s.t).emission(x, s.u)
        found.append(cdf_bounds(law, filled(law, s)) is not None)

    jax.eval_shape(ask)
    return found[0]


def observation_moments(
    model: StateSpaceModel, belief: Gaussian, s: Step, rule: Callable[..., Any]
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Mean and standard deviation of each coordinate; infinite where nothing is identified."""
    flat = ~jnp.isfinite(jnp.diagonal(belief.covariance))
    known = ~(flat[:, None] | flat[None, :])
    covariance = jnp.where(known, belief.covariance, 0.0)

    def emission(x: Array) -> Law:
        return model.at(s.t).emission(jnp.reshape(x, belief.event_shape), s.u)

    used = rule(emission, belief.location, cholesky_psd(covariance))
    spread = jnp.einsum("md,de,me->m", used.matrix, covariance, used.matrix)
    variance = spread + jnp.diagonal(used.covariance)
    open_ended = jnp.any((used.matrix != 0) & flat, axis=1)
    mean = used.matrix @ belief.location + used.offset
    return mean, jnp.where(open_ended, jnp.inf, jnp.sqrt(jnp.maximum(variance, 0.0)))


def normal_bounds(mean: Array, std: Array, y: Array) -> Bounds:
    """The distribution function of normal laws; nan where the standard deviation is infinite."""
    z = (y - mean) / jnp.where(std > 0, std, 1.0)
    smooth = jnp.where(jnp.isfinite(std), ndtr(z), jnp.nan)
    below = jnp.where(std > 0, smooth, (y > mean).astype(z.dtype))
    return Bounds(below, jnp.where(std > 0, smooth, (y >= mean).astype(z.dtype)))


def filled(law: Law, s: Step) -> Array:
    """The observation, with what is missing replaced by something inside the support."""
    return s.y if s.mask is None else feasible(law, s.y, s.mask)


def hide(bounds: Any, s: Step) -> Any:
    """Put nan where nothing was observed."""
    if s.mask is None:
        return bounds
    mask = jnp.reshape(s.mask, s.mask.shape + (1,) * (s.y.ndim - s.mask.ndim))
    there = jnp.ravel(jnp.broadcast_to(mask, s.y.shape))
    return jax.tree.map(lambda a: jnp.where(there, a, jnp.nan), bounds)
