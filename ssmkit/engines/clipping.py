"""Gradients clipped by what their norms have been of late."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.typing import Array, Float, Int, PyTree

WINDOW = 100  # norms that are remembered
HUGE = 1e30  # stands for what is not known yet, so that the first steps pass
CLIP, REFUSE = 2.0, 10.0  # times the median: clipped above one, left out above the other


class Norms(NamedTuple):
    """The last norms, and how many steps have been left out in a row and in all."""

    last: Float[Array, " W"]
    number: Int[Array, ""]
    in_a_row: Int[Array, ""]
    skipped: Int[Array, ""]


def no_norms(dtype: jnp.dtype) -> Norms:
    """Nothing remembered: two thirds are huge."""
    known = jnp.arange(WINDOW) >= 2 * WINDOW // 3
    zero = jnp.zeros((), jnp.int32)
    return Norms(jnp.where(known, 1.0, HUGE).astype(dtype), zero, zero, zero)


def clipped(gradient: PyTree, norms: Norms) -> tuple[PyTree, Array, Norms]:
    """Clip at twice the recent median; steps beyond ten times it, or not finite, are left out.

    Returns:
        The gradient, whether to take the step, and what is remembered.
    """
    squares = [jnp.sum(jnp.square(a)) for a in jax.tree.leaves(gradient)]
    norm = jnp.sqrt(sum(squares, jnp.zeros(()))).astype(norms.last.dtype)
    median = jnp.median(norms.last)
    take = jnp.isfinite(norm) & (norm <= REFUSE * median)
    factor = jnp.minimum(1.0, CLIP * median / jnp.where(norm > 0, norm, 1.0))
    gradient = jax.tree.map(lambda a: a * factor.astype(a.dtype), gradient)
    seen = jnp.where(jnp.isfinite(norm), norm, HUGE)
    last = norms.last.at[norms.number % WINDOW].set(seen)
    missed = (~take).astype(jnp.int32)
    in_a_row = jnp.where(take, 0, norms.in_a_row + 1)
    return gradient, take, Norms(last, norms.number + 1, in_a_row, norms.skipped + missed)
