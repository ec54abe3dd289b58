"""The running alarm inside the compiled step: one probability integral transform a step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.alarm import AlarmState, init_alarm, step_alarm
from ssmkit.measures import Bounds, pit
from ssmkit.predictive import observation_bounds
from ssmkit.smc.recipes import Step
from ssmkit.stream.setup import Fixed, Setup, State
from ssmkit.typing import Array, PyTree


def listen(
    setup: Setup,
    fixed: Fixed,
    before: State,
    told: dict[str, Any],
    row: tuple[Array, PyTree, Array | None],
) -> AlarmState | None:
    """The alarm after a step; None where there is none.

    Args:
        setup: what the step is compiled for.
        fixed: the model's arrays and the keys of the alarm, by lane.
        before: the stream before the step.
        told: what the step told.
        row: observation, input, and what of the observation is there.
    """
    if setup.run_length is None:
        return None
    transforms = _transforms(setup, fixed, before, told["predicted"], row)
    # of parameter draws the cloud that is worst off
    ess = told["diagnostics"].get("ess", jnp.nan)
    ess = jnp.broadcast_to(
        ess if jnp.ndim(ess) == transforms.ndim - 1 else jnp.min(ess), transforms.shape[:-1]
    )
    state = before.alarm
    if state is None:
        kind = told["log_likelihood"].dtype
        state = new_alarm(transforms.shape, kind, before.t)

    def one(state: AlarmState, pit: Array, log_score: Array, ess: Array) -> AlarmState:
        return step_alarm(state, pit, setup.run_length or jnp.inf, log_score, ess)

    run = one if transforms.ndim == 1 else jax.vmap(one)
    return run(state, transforms, told["log_likelihood"], ess)


def new_alarm(shape: tuple[int, ...], dtype: Any, t: int | Array) -> AlarmState:
    """An alarm that has seen nothing, for transforms ``(M,)``, or ``(B, M)`` of a bank."""
    state = init_alarm(shape[-1], dtype, t)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*shape[:-1], *a.shape)), state)


def _transforms(
    setup: Setup,
    fixed: Fixed,
    before: State,
    predicted: Any,
    row: tuple[Array, PyTree, Array | None],
) -> Array:
    """Transforms of the coordinates ``(M,)``, or ``(B, M)`` of a bank."""
    rule = getattr(setup.engine, "rule", None)

    def one(
        key: Array, arrays: Any, carry: Any, belief: Any, y: Array, u: PyTree, mask: Array | None
    ) -> tuple[Bounds, Array]:
        now = jax.random.fold_in(setup.key(key), before.t)
        bounds_key, uniform_key = jax.random.split(now)
        step = Step(before.t, y, u, mask)
        bounds = observation_bounds(bounds_key, setup.model_now(arrays, carry), belief, step, rule)
        return bounds, jax.random.uniform(uniform_key, bounds.below.shape, bounds.below.dtype)

    run = setup.over_lanes(one, "lmllddd")
    bounds, uniforms = run(fixed.alarm_key, fixed.arrays, before.carry, predicted, *row)
    if before.log_weights is None:
        return pit(uniforms, bounds)
    weights = jnp.exp(before.log_weights)  # normalised; draws are mixed by what they knew before
    mixed = Bounds(*(jnp.tensordot(weights, a, axes=1) for a in bounds))
    return pit(uniforms[0], mixed)
