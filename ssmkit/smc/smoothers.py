r"""Smoothing: whole paths from the history of a particle filter.

Backward sampling draws a path from the last time to the first,

\[x_t \mid x_{t+1} \sim \sum_i \frac{w_t^i f(x_{t+1} \mid x_t^i)}{\sum_j \cdots}\,\delta_{x_t^i}\]

either exactly, at a cost of N a step and path, or by moves of an independent Metropolis chain that
starts at the ancestor, at a cost of one. Genealogies and the fixed lag follow ancestors and need no
transition density.

Source: S. Godsill, A. Doucet and M. West (2004); H.-D. Dau and N. Chopin (2022), On backward
smoothing algorithms; G. Kitagawa (1996).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs import Particles
from ssmkit.errors import NotComputed
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.models.distributions import log_density
from ssmkit.typing import Array, Float, Inputs, Int, Key

SMOOTHERS = ("backward", "backward_mcmc", "genealogy", "fixed_lag")
NEED_DENSITY = ("backward", "backward_mcmc")
BLOCK = 32


class ParticlePaths(eqx.Module):
    """The joint law of a path given all data, by the history of a filter.

    Attributes:
        states: ``(T, N, *state)``.
        log_weights: filtered log weights ``(T, N)``.
        ancestors: parents of the particles at each time ``(T, N)``.
        arrays: the arrays of the model.
        frame: the rest of it; beliefs hold arrays only where draws are stacked.
        us: inputs, or None.
        method: how paths are drawn.
        num_moves: moves a step of ``backward_mcmc``.
        lag: steps of the fixed lag.
    """

    states: Array
    log_weights: Float[Array, "T N"]
    ancestors: Int[Array, "T N"]
    arrays: StateSpaceModel
    us: Inputs
    frame: StateSpaceModel = eqx.field(static=True)
    method: str = eqx.field(static=True)
    num_moves: int = eqx.field(static=True)
    lag: int = eqx.field(static=True)

    @property
    def model(self) -> StateSpaceModel:
        """The model."""
        return eqx.combine(self.arrays, self.frame)

    def until(self, length: int) -> ParticlePaths:
        """The law of the first ``length`` states, when nothing after them was observed."""
        history = (self.states, self.log_weights, self.ancestors, self.us)
        states, log_weights, ancestors, us = jax.tree.map(lambda a: a[:length], history)
        return dataclasses.replace(
            self, states=states, log_weights=log_weights, ancestors=ancestors, us=us
        )

    def sample(self, key: Key, num_paths: int) -> Array:
        """Draw whole paths ``(n, T, *state)``.

        Raises:
            NotComputed: the fixed lag has marginals only.
        """
        if self.method == "fixed_lag":
            raise NotComputed(
                "the fixed lag gives marginals, and no law of whole paths.",
                fix='sk.SMC(smoother="backward"), or smoother="genealogy"',
            )
        index = jnp.swapaxes(self.sample_indices(key, num_paths), 0, 1)
        times = jnp.arange(self.states.shape[0])
        return self.states[times, index]

    def sample_indices(self, key: Key, num_paths: int) -> Int[Array, "T n"]:
        """Draw whole paths as indices of particles."""
        last_key, back_key = jax.random.split(key)
        last = draw_index(last_key, self.log_weights[-1], num_paths)
        if self.method == "genealogy":
            return trace_back(self.ancestors, last)

        def back(index: Array, t: Array) -> tuple[Array, Array]:
            step_key = jax.random.fold_in(back_key, t)
            index = self._before(step_key, t, index)
            return index, index

        times = jnp.arange(self.states.shape[0] - 1)
        earlier = jax.lax.scan(back, last, times, reverse=True)[1]
        return jnp.concatenate([earlier, last[None]])

    def _before(self, key: Key, t: Array, index: Int[Array, " n"]) -> Int[Array, " n"]:
        """Draw the indices at time ``t`` given those at ``t + 1``."""
        after = self.states[t + 1][index]
        before, log_weights = self.states[t], self.log_weights[t]
        here, u = self.model.at(t + 1), input_at(self.us, t + 1)

        def log_transition(x: Array, x_after: Array) -> Array:
            return log_density(here.transition(x, u), x_after)

        if self.method == "backward":
            return _draw_before(key, log_transition, before, log_weights, after)
        start = self.ancestors[t + 1][index]
        each = jax.vmap(log_transition)
        return independent_moves(
            key,
            start,
            log_weights,
            lambda i: each(before[i], after),
            self.num_moves,
        )

    def marginals(self, key: Key, num_paths: int) -> Particles:
        """Smoothed marginals per time, as weighted particles."""
        event = self.states.shape[2:]
        if self.method in NEED_DENSITY:
            index = self.sample_indices(key, num_paths)
            values = self.states[jnp.arange(self.states.shape[0])[:, None], index]
            return Particles(values, jnp.zeros(index.shape, self.log_weights.dtype), event)
        if self.method == "genealogy":
            last = jnp.arange(self.states.shape[1], dtype=jnp.int32)
            index = trace_back(self.ancestors, last)
            weights = jnp.broadcast_to(self.log_weights[-1], index.shape)
        else:
            index, weights = self._lagged()
        values = self.states[jnp.arange(self.states.shape[0])[:, None], index]
        return Particles(values, weights, event)

    def _lagged(self) -> tuple[Array, Array]:
        """Ancestors at each time of the particles ``lag`` steps later, and the weights of these."""
        length, count = self.log_weights.shape
        times = jnp.arange(length)
        ends = jnp.minimum(times + self.lag, length - 1)
        index = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (length, count))

        def back(k: Array, index: Array) -> Array:
            at = ends - k
            parents = jnp.take_along_axis(self.ancestors[at], index, axis=1)
            return jnp.where((at > times)[:, None], parents, index)

        index = jax.lax.fori_loop(0, min(self.lag, length - 1), back, index)
        return index, self.log_weights[ends]


def window_marginals(
    key: Key,
    model: StateSpaceModel,
    history: tuple[Array, Float[Array, "n N"]],
    times: Int[Array, " n"],
    us: Inputs,
    num_paths: int,
) -> Particles:
    """Marginals of the last states by backward sampling, from the clouds of a stream.

    Args:
        key: random key.
        model: the model, whose transition has a density.
        history: states ``(n, N, *state)`` and filtered log weights.
        times: of these clouds.
        us: their inputs, or None.
        num_paths: number of paths drawn.
    """
    states, log_weights = history
    last_key, back_key = jax.random.split(key)
    last = states[-1][draw_index(last_key, log_weights[-1], num_paths)]

    def back(after: Array, at: tuple) -> tuple[Array, Array]:
        before, log_weights, (t, u), step_key = at
        here = model.at(t)
        log_transition = lambda x, x_after: log_density(here.transition(x, u), x_after)  # noqa: E731
        x = before[_draw_before(step_key, log_transition, before, log_weights, after)]
        return x, x

    into = jax.tree.map(lambda a: a[1:], (times, us))
    step_keys = jax.random.split(back_key, len(times) - 1)
    clouds = (states[:-1], log_weights[:-1], into, step_keys)
    earlier = jax.lax.scan(back, last, clouds, reverse=True)[1]
    values = jnp.concatenate([earlier, last[None]])
    return Particles(values, jnp.zeros(values.shape[:2], log_weights.dtype), states.shape[2:])


def _draw_before(
    key: Key,
    log_transition: Callable[[Array, Array], Array],
    before: Array,
    log_weights: Float[Array, " N"],
    after: Array,
) -> Int[Array, " n"]:
    """For each state after, a particle before it, by weight times transition density."""
    # particles outside, paths inside: the laws are made once for each particle
    pairs = jax.vmap(jax.vmap(log_transition, (None, 0)), (0, None))(before, after)
    return draw_columns(key, log_weights[:, None] + pairs)


def trace_back(ancestors: Int[Array, "T N"], last: Int[Array, " n"]) -> Int[Array, "T n"]:
    """Indices along the genealogies that end in ``last``."""

    def back(index: Array, parents: Array) -> tuple[Array, Array]:
        index = parents[index]
        return index, index

    earlier = jax.lax.scan(back, last, ancestors[1:], reverse=True)[1]
    return jnp.concatenate([earlier, last[None]])


def draw_index(key: Key, log_weights: Float[Array, " N"], num_draws: int) -> Int[Array, " n"]:
    """Independent draws of indices by their weights."""
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    points = jax.random.uniform(key, (num_draws,), cumulative.dtype) * cumulative[-1]
    index = jnp.searchsorted(cumulative, points, side="right")
    return jnp.minimum(index, log_weights.shape[0] - 1).astype(jnp.int32)


def draw_columns(key: Key, log_values: Float[Array, "N n"]) -> Int[Array, " n"]:
    """One draw for each column, by inversion: first of a block of rows, then inside it."""
    count, columns = log_values.shape
    size = min(BLOCK, count)
    values = jnp.exp(log_values - jnp.max(log_values, axis=0))
    padded = math.ceil(count / size) * size
    blocks = jnp.pad(values, ((0, padded - count), (0, 0))).reshape(-1, size, columns)
    totals = jnp.cumsum(jnp.sum(blocks, axis=1), axis=0)
    point = jax.random.uniform(key, (columns,), values.dtype) * totals[-1]
    block = jnp.minimum(jnp.sum(totals <= point, axis=0), totals.shape[0] - 1)
    before = jnp.where(block > 0, totals[block - 1, jnp.arange(columns)], 0.0)
    inside = jnp.cumsum(blocks[block, :, jnp.arange(columns)], axis=1)
    place = jnp.sum(inside <= (point - before)[:, None], axis=1)
    # rounding between the two sums must not lead past the last positive weight of the block
    place = jnp.minimum(place, jnp.argmax(inside >= inside[:, -1:], axis=1))
    return (block * size + place).astype(jnp.int32)


def independent_moves(
    key: Key,
    start: Int[Array, " n"],
    log_weights: Float[Array, " N"],
    log_density: Any,
    num_moves: int,
) -> Int[Array, " n"]:
    """Metropolis moves whose proposals are drawn by the weights: the density decides alone."""
    index, current = start, log_density(start)
    count = start.shape[0]
    propose_key, accept_key = jax.random.split(key)
    proposals = draw_index(propose_key, log_weights, num_moves * count).reshape(num_moves, count)
    levels = jnp.log1p(-jax.random.uniform(accept_key, (num_moves, count), log_weights.dtype))
    for k in range(num_moves):
        value = log_density(proposals[k])
        accept = levels[k] < value - current
        index = jnp.where(accept, proposals[k], index)
        current = jnp.where(accept, value, current)
    return index
