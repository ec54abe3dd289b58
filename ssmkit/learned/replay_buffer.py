r"""A prioritised replay buffer: weighted draws that stay right while the flow moves on.

A row holds a draw \(x\), the log density \(\log q\) of the flow that its weight is of, and the log
weight for a target \(\propto p^\alpha q^{1-\alpha}\). Annealed weights are linear in the density
they end at, so that

\[\log w' = \log w + (1 - \alpha)\,(\log q_{\mathrm{now}}(x) - \log q(x))\]

is the weight for the flow as it is now, without a single evaluation of the target.

Source: L. Midgley, V. Stimper, G. Simm, B. Schölkopf and J. M. Hernández-Lobato (2023), Flow
annealed importance sampling bootstrap.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.errors import OptionError
from ssmkit.smc.resampling import pick
from ssmkit.typing import Array, Float, Int, Key


class Rows(NamedTuple):
    """What a buffer holds; ``log_weights`` are −inf where a row is empty or was thrown away.

    Attributes:
        x: draws ``(C, d)``.
        log_weights: ``(C,)``, in nats.
        log_q: log density ``(C,)`` of the flow that the weights are of.
        cursor: where the next rows go.
    """

    x: Float[Array, "C d"]
    log_weights: Float[Array, " C"]
    log_q: Float[Array, " C"]
    cursor: Int[Array, ""]

    @property
    def size(self) -> Array:
        """Number of rows that are in use."""
        return jnp.sum(jnp.isfinite(self.log_weights))


@dataclasses.dataclass(frozen=True)
class ReplayBuffer:
    """Options of the buffer; lengths are counted in batches of annealed draws.

    Args:
        capacity: batches that it holds; the oldest go first.
        begin: batches that must be there before the flow learns from it; ten times the batches
            that one iteration takes, or more, or the first draws are learned by heart.
        num_updates: gradient steps, each on a batch, for every batch that comes in.
        replace: draw rows by weight with replacement, which is unbiased. False takes the largest
            perturbed weights without it, as in the source: no row comes twice, which flattens the
            weights where few rows hold most of them, and keeps a flow in the making steady.
        clip: the correction of a row's weight for the flow's moves counts at most this much; None
            for no limit.

    Raises:
        OptionError: an impossible option.

    Example:
        >>> import ssmkit as sk
        >>> sk.learned.ReplayBuffer(capacity=20, begin=5)
        ReplayBuffer(capacity=20, begin=5, num_updates=4, replace=False, clip=10.0)

    Source: L. Midgley et al. (2023); T. Schaul, J. Quan, I. Antonoglou and D. Silver (2016),
    Prioritized experience replay.
    """

    capacity: int = 100
    begin: int = 40
    num_updates: int = 4
    replace: bool = False
    clip: float | None = 10.0

    def __post_init__(self) -> None:
        for name, low in (("begin", 1), ("num_updates", 1), ("capacity", self.begin)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise OptionError(
                    f"learned.ReplayBuffer: {name} is no number that can be used.",
                    got=repr(value),
                    expected=f"an integer ≥ {low}",
                )
        if self.clip is not None and not self.clip >= 1:
            raise OptionError(
                "learned.ReplayBuffer: clip limits a factor that is one for a flow that stands.",
                got=repr(self.clip),
                expected="at least 1, or None",
            )

    def empty(self, batch_size: int, x: Float[Array, " d"]) -> Rows:
        """Rows for draws like ``x``, all empty."""
        count = self.capacity * batch_size
        nothing = jnp.full(count, -jnp.inf, x.dtype)
        return Rows(
            jnp.zeros((count, *x.shape), x.dtype),
            nothing,
            jnp.zeros(count, x.dtype),
            jnp.zeros((), jnp.int32),
        )

    def add(self, rows: Rows, x: Float[Array, "B d"], log_weights: Array, log_q: Array) -> Rows:
        """Put a batch in the place of the oldest; draws that are not finite leave what is there."""
        count = log_weights.shape[0]
        good = jnp.isfinite(log_weights) & jnp.isfinite(log_q) & jnp.all(jnp.isfinite(x), axis=1)
        here = (rows.cursor + jnp.arange(count)) % rows.log_weights.shape[0]

        def put(old: Array, new: Array) -> Array:
            kept = good.reshape(-1, *(1,) * (new.ndim - 1))
            return old.at[here].set(jnp.where(kept, new, old[here]))

        cursor = (rows.cursor + count) % rows.log_weights.shape[0]
        return Rows(
            put(rows.x, x),
            put(rows.log_weights, log_weights),
            put(rows.log_q, log_q),
            cursor.astype(jnp.int32),
        )

    def draw(self, key: Key, rows: Rows, count: int) -> Int[Array, " count"]:
        """Indices of rows by weight, in random order."""
        draw_key, order_key = jax.random.split(key)
        if self.replace:
            index = pick(draw_key, jax.nn.softmax(rows.log_weights), count)
        else:
            noise = jax.random.gumbel(draw_key, rows.log_weights.shape, rows.x.dtype)
            index = jax.lax.top_k(rows.log_weights + noise, count)[1]
        return jax.random.permutation(order_key, index)


def corrected(log_weights: Array, log_q: Array, log_q_now: Array, alpha: float) -> Array:
    """Log weights of rows for the flow as it is now; −inf where they are no numbers."""
    moved = log_weights + (1 - alpha) * (log_q_now - log_q)
    return jnp.where(jnp.isfinite(moved), moved, -jnp.inf)
