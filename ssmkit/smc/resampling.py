"""Resampling schemes, and the selection step made of one and a criterion.

A scheme is a function ``(key, weights) -> ancestors``: normalised weights ``(N,)`` in, ``N``
indices out, with the expected number of offspring proportional to the weight. That is all that
unbiasedness asks for, and anyone may write another.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssmkit.smc.feynman_kac import Select, Selection
from ssmkit.smc.weights import log_mean_exp, surrogate
from ssmkit.typing import Array, Bool, Float, Int, Key, PyTree

Scheme = Callable[[Key, Array], Array]
Criterion = Callable[[Array], Array]


def _cumulative(weights: Float[Array, " N"]) -> Float[Array, " N"]:
    """Cumulative weights that end at exactly one, where the last positive weight stands."""
    total = jnp.cumsum(weights)
    return total / total[-1]


def _ancestors_from_starts(starts: Int[Array, " N"]) -> Int[Array, " N"]:
    """Ancestor of each slot, given the first slot *after* each parent's offspring.

    Counting costs O(N) and no search: slot j belongs to the number of parents that end before it.
    """
    count = starts.shape[0]
    ends = jnp.zeros(count, jnp.int32).at[starts].add(1, mode="drop")
    return jnp.cumsum(ends, dtype=jnp.int32)


def systematic(key: Key, weights: Float[Array, " N"]) -> Int[Array, " N"]:
    """One uniform number for all slots: points ``(j + u) / N``.

    Source: J. Carpenter, P. Clifford and P. Fearnhead (1999).
    """
    count = weights.shape[0]
    uniform = jax.random.uniform(key, dtype=weights.dtype)
    ends = jnp.ceil(count * _cumulative(weights) - uniform)
    return _ancestors_from_starts(ends.astype(jnp.int32))


def pick(key: Key, weights: Float[Array, " N"], count: int) -> Int[Array, " count"]:
    """Any number of draws by weight, in increasing order: points ``(j + u) / count``.

    Args:
        key: random key.
        weights: ``(N,)``, not negative; they need not add up to one.
        count: number of draws, whatever ``N`` is.
    """
    ends = jnp.cumsum(weights)
    points = (jnp.arange(count) + jax.random.uniform(key, dtype=ends.dtype)) / count
    index = jnp.searchsorted(ends, points * ends[-1], side="right")
    return jnp.minimum(index, weights.shape[0] - 1)


def stratified(key: Key, weights: Float[Array, " N"]) -> Int[Array, " N"]:
    """One uniform number in each of ``N`` strata: points ``(j + u_j) / N``.

    Source: G. Kitagawa (1996).
    """
    count = weights.shape[0]
    uniforms = jax.random.uniform(key, (count,), dtype=weights.dtype)
    places = count * _cumulative(weights)
    whole = jnp.floor(places).astype(jnp.int32)
    inside = uniforms[jnp.minimum(whole, count - 1)] < places - whole
    return _ancestors_from_starts(whole + inside)


def multinomial(key: Key, weights: Float[Array, " N"]) -> Int[Array, " N"]:
    """Independent draws.

    Source: N. Gordon, D. Salmond and A. Smith (1993).
    """
    uniforms = jax.random.uniform(key, weights.shape, dtype=weights.dtype)
    return _search(_cumulative(weights), uniforms)


def residual(key: Key, weights: Float[Array, " N"]) -> Int[Array, " N"]:
    """The whole part of ``N w`` offspring for certain, the rest by independent draws.

    Source: J. Liu and R. Chen (1998).
    """
    count = weights.shape[0]
    expected = count * weights / jnp.sum(weights)
    # a share of one offspring that rounding made smaller is certain all the same
    certain = jnp.floor(expected * (1 + 4 * jnp.finfo(weights.dtype).eps))
    rest = jnp.maximum(expected - certain, 0.0)
    ends = jnp.cumsum(certain).astype(jnp.int32)
    uniforms = jax.random.uniform(key, weights.shape, dtype=weights.dtype)
    # where nothing is left over every slot is certain, and what stands here is not looked at
    shares = jnp.where(jnp.sum(rest) > 0, rest, 1.0)
    drawn = _search(_cumulative(shares), uniforms)
    return jnp.where(jnp.arange(count) < ends[-1], _ancestors_from_starts(ends), drawn)


def _search(cumulative: Float[Array, " N"], points: Float[Array, " N"]) -> Int[Array, " N"]:
    return jnp.searchsorted(cumulative, points, side="right").astype(jnp.int32)


SCHEMES: dict[str, Scheme] = {
    "systematic": systematic,
    "stratified": stratified,
    "multinomial": multinomial,
    "residual": residual,
}


def selector(scheme: Scheme, threshold: float | Criterion, *, with_score: bool = True) -> Select:
    r"""The selection step: draw ancestors by a scheme whenever a criterion says so.

    After a selection the weights are \(\overline v / \psi(x^a)\), with \(v\) the weights times the
    look-ahead \(\psi\); their expected mean is that of the weights before, whatever the scheme and
    the criterion.

    Args:
        scheme: ``(key, weights) -> ancestors``.
        threshold: resample when the effective number of particles is at most this share of
            ``N`` (0 never, 1 always), or a criterion ``normalised weights (N,) -> bool``.
        with_score: give gradients the score of the choice, so that they are those of the expected
            evidence. Without it ancestors count as constants, which is *wrong for the evidence*:
            for objectives that say what they do about it.
    """

    def select(
        key: Key, particles: PyTree, log_weights: Array, log_lookahead: Array | None, s: PyTree
    ) -> Selection:
        count = log_weights.shape[0]
        log_values, log_total = log_weights, 0.0  # weights are scaled to mean one
        if log_lookahead is not None:
            log_values = log_weights + log_lookahead
            log_total = log_mean_exp(log_values)
        fixed = jax.lax.stop_gradient((log_values, log_total))
        weights = jnp.exp(fixed[0] - fixed[1]) / count

        def resample() -> tuple[Array, Array]:
            ancestors = scheme(key, weights).astype(jnp.int32)
            # points at the far end may fall behind the last weight by rounding
            ancestors = jnp.clip(ancestors, 0, count - 1)
            # with the score, the mean's own gradient is in the score of who was chosen
            after = jnp.broadcast_to(log_total, (count,))
            if with_score:
                after = fixed[1] + surrogate(log_values)[ancestors]
            if log_lookahead is not None:
                after = after - log_lookahead[ancestors]
            return ancestors, after

        def stay() -> tuple[Array, Array]:
            return jnp.arange(count, dtype=jnp.int32), log_weights

        return _decide(_criterion(threshold, weights), resample, stay)

    return select


def _criterion(threshold: float | Criterion, weights: Array) -> bool | Bool[Array, ""]:
    if callable(threshold):
        return jnp.asarray(threshold(weights), bool)
    if threshold <= 0 or threshold >= 1:
        return threshold >= 1
    ess = jnp.sum(weights) ** 2 / jnp.sum(weights**2)
    return ess <= threshold * weights.shape[0]


def _decide(decision: bool | Array, resample: Callable, stay: Callable) -> Selection:
    if isinstance(decision, bool):
        ancestors, log_weights = resample() if decision else stay()
    else:
        ancestors, log_weights = jax.lax.cond(decision, resample, stay)
    return Selection(ancestors, log_weights, jnp.asarray(decision))
