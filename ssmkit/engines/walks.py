"""Random walks side by side, in chunks that report and can be interrupted."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.engines import adaptive_walk
from ssmkit.engines.adaptive_walk import Walk
from ssmkit.engines.chains import LEAST_DRAWS
from ssmkit.engines.objective import Objective
from ssmkit.engines.options import RunOptions
from ssmkit.engines.progress import Progress, next_chunk
from ssmkit.engines.pseudo_marginal import log_target
from ssmkit.errors import NotComputed
from ssmkit.typing import Array, Float, Int, Key

KEPT = ("position", "log_target", "accept_prob")


class Walks(NamedTuple):
    """All chains: where they are, the draws so far, and how often they moved.

    Attributes:
        walk: the chains, ``C`` in front.
        kept: what is kept of each draw, ``(num_samples, C, ...)``.
        moves: accepted steps of each chain after warm-up ``(C,)``.
        step: steps taken, warm-up with them.
    """

    walk: Walk
    kept: dict[str, Array]
    moves: Int[Array, " C"]
    step: Int[Array, ""]


class Run(NamedTuple):
    """What stays the same while the chains run."""

    engine: Any
    key: Key
    bar: Progress
    options: RunOptions

    def __call__(
        self, objective: Objective, walks: Walks, until: int, wanted: float
    ) -> tuple[Walks, bool]:
        """Run to the step ``until``; an interrupt with draws made ends the run and keeps them.

        Args:
            objective: what is walked on.
            walks: the chains.
            until: number of steps in all.
            wanted: acceptance probability that steps are adapted to.

        Returns:
            The chains, and whether they were interrupted.

        Raises:
            NotComputed: the callback stopped the run before there were draws.
        """
        chunk, aim = 1, jnp.asarray(wanted, walks.walk.position.dtype)
        try:
            while (step := int(walks.step)) < until:
                clock = time.perf_counter()
                limit = jnp.asarray(min(step + chunk, until))
                walks = _advance(self.engine, objective, self.key, walks, limit, aim)
                walks = jax.block_until_ready(walks)
                chunk = next_chunk(chunk, time.perf_counter() - clock)
                self.bar.advance_to(int(walks.step))
                callback = self.options.callback
                if callback is not None and callback(_report(self.engine, walks)):
                    self._require_draws(walks)
                    return walks, int(walks.step) < until
        except KeyboardInterrupt:
            if num_drawn(self.engine, walks) < LEAST_DRAWS:
                raise
            return walks, True
        return walks, False

    def _require_draws(self, walks: Walks) -> None:
        drawn = num_drawn(self.engine, walks)
        if drawn < LEAST_DRAWS:
            raise NotComputed(
                "the callback stopped the run before there were draws.",
                got=f"{drawn} draws of each chain",
                expected=f"{LEAST_DRAWS} or more",
                fix='let the callback return True only when its argument says enough "draws"',
            )


def begin(engine: Any, positions: Float[Array, "C d"], log_targets: Float[Array, " C"]) -> Walks:
    """The chains at their starts, with room for all draws."""
    walk = jax.vmap(adaptive_walk.begin)(positions, log_targets)
    rows = {name: getattr(walk, name) for name in KEPT}
    kept = {n: jnp.zeros((engine.num_samples, *a.shape), a.dtype) for n, a in rows.items()}
    walks = Walks(walk, kept, jnp.zeros(positions.shape[0], int), jnp.zeros((), int))
    return jax.tree.map(lambda a: a.astype(a.dtype), walks)  # weak types would compile anew


def num_drawn(engine: Any, walks: Walks) -> int:
    """Draws of each chain so far."""
    return max(0, int(walks.step) - engine.num_warmup) // engine.thinning


def acceptance_rate(engine: Any, walks: Walks) -> Float[Array, " C"]:
    """Share of the steps after warm-up that moved, for each chain."""
    return walks.moves / jnp.maximum(walks.step - engine.num_warmup, 1)


def _report(engine: Any, walks: Walks) -> dict[str, Any]:
    rate = float(jnp.mean(acceptance_rate(engine, walks)))
    drawn = num_drawn(engine, walks)
    return {"step": int(walks.step), "draws": drawn, "acceptance_rate": rate}


@eqx.filter_jit
def _advance(
    engine: Any, objective: Objective, key: Key, walks: Walks, limit: Array, wanted: Array
) -> Walks:
    """Take steps until a limit; one program for warm-up and draws, and for all lengths."""
    chain_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(walks.moves.shape[0]))

    def move(key: Key, walk: Walk) -> Walk:
        return adaptive_walk.step(key, walk, lambda k, z: log_target(objective, k, z))

    def step(_: Array, walks: Walks) -> Walks:
        number = walks.step
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(chain_keys, number)
        walk = jax.vmap(move)(step_keys, walks.walk)
        learned = jax.vmap(adaptive_walk.adapt, (0, None, None))(walk, number, wanted)
        is_warmup = number < engine.num_warmup
        walk = jax.tree.map(lambda a, b: jnp.where(is_warmup, a, b), learned, walk)
        moves = walks.moves + (walk.accepted & ~is_warmup)
        count = number + 1 - engine.num_warmup
        is_kept = ~is_warmup & (count % engine.thinning == 0)
        # outside: dropped
        place = jnp.where(is_kept, count // engine.thinning - 1, engine.num_samples)
        put = lambda a, row: a.at[place].set(row, mode="drop")  # noqa: E731
        kept = {name: put(a, getattr(walk, name)) for name, a in walks.kept.items()}
        return Walks(walk, kept, moves, number + 1)

    return jax.lax.fori_loop(walks.step, limit, step, walks)
