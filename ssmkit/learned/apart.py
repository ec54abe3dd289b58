"""Coordinates that have nothing to do with each other: found statically, and made use of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.learned.reading import Setting
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import base_distribution, is_a, moments
from ssmkit.models.observation import observed_log_prob
from ssmkit.smc.noise import noise_shape, place
from ssmkit.smc.proposals import Draw, own_law
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Bool, Law, Scalar


def coordinates(model: StateSpaceModel, x: Array, s: Step) -> Array:
    """Log density of each coordinate of what was observed, in nats."""
    law = base_distribution(model.at(s.t).emission(x, s.u))
    mask = None if s.mask is None else jnp.broadcast_to(s.mask, jnp.shape(s.y))
    return observed_log_prob(law, s.y, mask)


def leaves_coordinates_apart(setting: Setting) -> bool:
    """Whether noise is independent and each observation depends on its own state only.

    A nan in one coordinate of the state then stays in that coordinate. Unlike a slope it does so
    whatever the parameters are, which learning may move.
    """
    model, u = setting.model, setting.first_input
    s = Step(0, None, u, None)
    shape = jax.eval_shape(lambda: own_law(model, None, s).sample(jax.random.key(0))).shape
    if setting.state.num_categories is not None or not _has_one_each(model, shape, s):
        return False
    x = setting.state.mean + 0.5 * setting.state.deviation
    s = s._replace(y=setting.observation.mean.reshape(shape))
    own = jnp.eye(x.size, dtype=bool)

    def is_spoiled(hole: Bool[Array, " D"]) -> Bool[Array, " D"]:
        holed = jnp.where(hole, jnp.nan, x).reshape(shape)
        return jnp.isnan(jnp.broadcast_to(coordinates(model, holed, s), shape)).ravel()

    return bool(jnp.all(jax.vmap(is_spoiled)(own) == own))


def _has_one_each(model: StateSpaceModel, shape: tuple[int, ...], s: Step) -> bool:
    """Whether states move by independent normals, and have one independent observation each."""
    found: list[bool] = []

    def look() -> Array:
        x = jnp.zeros(shape)
        law = model.at(0).emission(x, s.u)
        moves = is_a(base_distribution(own_law(model, x, s)), dist.Normal)
        base = base_distribution(law)
        found.append(moves and law.event_shape == shape and base.event_shape == ())
        return x

    jax.eval_shape(look)
    return found[0]


def draw_apart(
    iterations: int, own: Callable[[], Law], log_target: Callable[[Array], Scalar], dtype: Any
) -> Draw:
    """As `sk.Linearised` for independent coordinates: each matrix is the diagonal that it has.

    Args:
        iterations: Newton steps to the mode.
        own: makes the model's own law of the state, independent normals.
        log_target: a sum of functions of single coordinates of the state.
        dtype: floating type of the state.
    """
    shape = noise_shape(own)

    def around(law: Law) -> tuple[Callable[[Array], Array], Array, Array]:
        def state(eps: Array) -> Array:
            return place(law, eps.reshape(shape)).astype(dtype)

        start = jnp.zeros(jnp.size(law.mean), dtype)
        found = _mode(lambda eps: log_target(state(eps)), start, iterations)
        # the proposal is a choice: the gradient is that of the target at fixed noise
        return state, *jax.lax.stop_gradient(found)

    def log_ratio(eps: Array, flat: Array, root: Array) -> Scalar:
        return 0.5 * (flat @ flat - eps @ eps) - jnp.sum(jnp.log(root))

    def one(noise: Array) -> tuple[Array, Scalar]:
        state, centre, root = around(own())
        flat = jnp.ravel(noise)
        eps = centre + flat / root
        return state(eps), log_ratio(eps, flat, root)

    def of_state(value: Array) -> Scalar:
        law = own()
        _, centre, root = around(law)
        mean, deviation = moments(law)
        eps = (jnp.ravel(value) - mean) / deviation
        return log_ratio(eps, root * (eps - centre), root)

    return Draw(shape, one, of_state)


def _mode(
    log_target: Callable[[Array], Scalar], start: Array, iterations: int
) -> tuple[Array, Array]:
    """Newton steps from the prior mean: the centre, and the root of the precision there."""
    centre, precision = start, jnp.ones_like(start)
    for _ in range(iterations):
        # the matrix is diagonal: its rows add up to it
        slope, bend = jax.jvp(jax.grad(log_target), (centre,), (jnp.ones_like(centre),))
        precision = 1 + jnp.maximum(-bend, 0.0)
        centre = centre + (slope - centre) / precision
    return centre, jnp.sqrt(precision)
