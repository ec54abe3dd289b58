r"""Smoothing forward in time: the running mean of an additive functional, by backward kernels.

\[\tau_t^i = \sum_j \frac{w_{t-1}^j f(x_t^i \mid x_{t-1}^j)}
  {\sum_k w_{t-1}^k f(x_t^i \mid x_{t-1}^k)}
  \big(\tau_{t-1}^j + h_t(x_{t-1}^j, x_t^i)\big), \qquad
\mathrm{E}\Big[\sum_{s \le t} h_s \,\Big|\, y_{0:t}\Big] \approx \sum_i W_t^i \tau_t^i\]

The sum over all pairs is forward smoothing; its mean over a few draws of \(j\) is PaRIS. A particle
and its ancestor, with the particle's weight, are a draw from filter and backward kernel together,
so that Metropolis moves of the ancestor leave it one, whatever proposed and selected.

Source: P. Del Moral, A. Doucet and S. Singh (2010), Forward smoothing using sequential Monte Carlo;
J. Olsson and J. Westerborn (2017), Efficient particle-based online smoothing in general hidden
Markov models: the PaRIS algorithm; H.-D. Dau and N. Chopin (2022), On backward smoothing
algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.linalg import compensated_add
from ssmkit.models.base import StateSpaceModel
from ssmkit.smc.additive import Additive
from ssmkit.smc.collectors import Collector, Move
from ssmkit.smc.recipes import Step, log_transition
from ssmkit.smc.smoothers import draw_columns, independent_moves
from ssmkit.typing import Array, Int, Key, PyTree

BLOCK = 2**20  # numbers that a block of pairs may hold at once


class Collected(NamedTuple):
    """What is carried: a long sum in float32 keeps its digits only apart from what differs.

    Attributes:
        values: of the particles ``(N, *shape)``, less their weighted mean.
        total: that mean, and the rounding error it owes.
    """

    values: PyTree
    total: tuple[PyTree, PyTree]

    def mean(self) -> PyTree:
        """The smoothed mean of the functional."""
        return self.total[0]


class Pairs(NamedTuple):
    """What an average over the states before is made of.

    Attributes:
        term: ``(x_before, x) -> pytree``, what the step adds.
        log_density: ``(x_before, x) -> scalar``, of the transition.
        values: carried by the particles before.
        move: the particles before and after.
    """

    term: Callable[[Array, Array], PyTree]
    log_density: Callable[[Array, Array], Array]
    values: PyTree
    move: Move

    def drawn(self, index: Int[Array, " n"], x: Array) -> PyTree:
        """Carried values and terms of one state before for each state."""
        terms = jax.vmap(self.term)(self.move.before[index], x)
        return jax.tree.map(lambda value, term: value[index] + term, self.values, terms)


def collector(additive: Additive, model: StateSpaceModel) -> Collector:
    """What carries a functional of a model along with a cloud."""

    def term(before: Array | None, x: Array, s: Step, dtype: Any) -> PyTree:
        given = additive.term(model, before, x, s)
        return jax.tree.map(lambda a: jnp.asarray(a).astype(dtype), given)

    def first(states: Array, log_weights: Array, s: Step) -> Collected:
        values = jax.vmap(lambda x: term(None, x, s, log_weights.dtype))(states)
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), values)
        return _settled((zero, zero), values, log_weights)

    def step(key: Key, collected: Collected, move: Move, s: Step) -> Collected:
        dtype, log_density = move.log_weights.dtype, log_transition(model)
        pairs = Pairs(
            lambda before, x: term(before, x, s, dtype),
            lambda before, x: log_density(before, x, s),
            collected.values,
            move,
        )
        values = AVERAGES[additive.method](additive, key, pairs)
        return _settled(collected.total, values, move.log_weights)

    return Collector(first, step)


def begun(additive: Additive, model: StateSpaceModel, states: Array, s: Step, dtype: Any) -> Any:
    """What a cloud carries that has collected nothing yet; of ``s`` only shapes matter."""
    one = jax.eval_shape(lambda: additive.term(model, states[0], states[0], s))
    count = states.shape[0]
    values = jax.tree.map(lambda a: jnp.zeros((count, *jnp.shape(a)), dtype), one)
    zero = jax.tree.map(lambda a: jnp.zeros(jnp.shape(a), dtype), one)
    return Collected(values, (zero, zero))


def _settled(total: tuple[PyTree, PyTree], values: PyTree, log_weights: Array) -> Collected:
    """Move the weighted mean into the total; what has no weight has no value, nan included."""
    weights = jax.nn.softmax(log_weights)
    alive = weights > 0

    def only(a: Array) -> Array:
        return jnp.where(alive.reshape(alive.shape + (1,) * (a.ndim - 1)), a, 0.0)

    values = jax.tree.map(only, values)
    mean = jax.tree.map(lambda a: jnp.tensordot(weights, a, 1), values)
    values = jax.tree.map(lambda a, m: only(a - m), values, mean)
    return Collected(values, compensated_add(total, mean))


def _genealogy(additive: Additive, key: Key, pairs: Pairs) -> PyTree:
    return pairs.drawn(pairs.move.ancestors, pairs.move.states)


def _backward_mcmc(additive: Additive, key: Key, pairs: Pairs) -> PyTree:
    """The mean over the states of one chain, which begins at the ancestor."""
    move, each = pairs.move, jax.vmap(pairs.log_density)

    def log_density(index: Array) -> Array:
        return each(move.before[index], move.states)

    index = move.ancestors
    total = pairs.drawn(index, move.states)
    if additive.num_draws == 1:
        return total
    for one in jax.random.split(key, additive.num_draws - 1):
        index = independent_moves(
            one, index, move.log_weights_before, log_density, additive.num_moves
        )
        total = jax.tree.map(jnp.add, total, pairs.drawn(index, move.states))
    return jax.tree.map(lambda a: a / additive.num_draws, total)


def _backward(additive: Additive, key: Key, pairs: Pairs) -> PyTree:
    """The mean over exact draws."""

    def block(key: Key, x: Array) -> PyTree:
        keys = jax.random.split(key, additive.num_draws)
        draws = jax.vmap(draw_columns, (0, None))(keys, _log_shares(pairs, x))
        drawn = jax.vmap(pairs.drawn, (0, None))(draws, x)
        return jax.tree.map(lambda a: jnp.mean(a, axis=0), drawn)

    return _in_blocks(block, key, pairs.move.states, width=1)


def _all_pairs(additive: Additive, key: Key, pairs: Pairs) -> PyTree:
    """The mean over all states before."""

    def block(key: Key, x: Array) -> PyTree:
        shares = jax.nn.softmax(_log_shares(pairs, x), axis=0)
        terms = jax.vmap(jax.vmap(pairs.term, (None, 0)), (0, None))(pairs.move.before, x)

        def mean(values: Array, terms: Array) -> Array:
            there = shares.reshape(shares.shape + (1,) * (terms.ndim - 2)) > 0
            own = jnp.einsum("jn,jn...->n...", shares, jnp.where(there, terms, 0.0))
            return jnp.tensordot(shares, values, (0, 0)) + own

        return jax.tree.map(mean, pairs.values, terms)

    width = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(pairs.values))
    return _in_blocks(block, key, pairs.move.states, width + 1)


AVERAGES = {
    "backward_mcmc": _backward_mcmc,
    "backward": _backward,
    "all_pairs": _all_pairs,
    "genealogy": _genealogy,
}


def _log_shares(pairs: Pairs, x: Array) -> Array:
    """Log weights ``(N, n)`` of the states before, up to a constant, for ``n`` states."""
    # particles before outside: their laws are made once
    log_density = jax.vmap(jax.vmap(pairs.log_density, (None, 0)), (0, None))
    return pairs.move.log_weights_before[:, None] + log_density(pairs.move.before, x)


def _in_blocks(block: Callable[[Key, Array], PyTree], key: Key, x: Array, width: int) -> PyTree:
    """Take the states a block at a time, so that memory does not grow with all pairs."""
    count = x.shape[0]
    size = min(max(BLOCK // (count * width), 1), count)
    number = math.ceil(count / size)
    index = jnp.arange(number * size) % count  # the last block is filled up
    keys = jax.random.split(key, number)
    blocks = jax.lax.map(lambda a: block(*a), (keys, x[index].reshape(number, size, *x.shape[1:])))
    return jax.tree.map(lambda a: a.reshape(number * size, *a.shape[2:])[:count], blocks)
