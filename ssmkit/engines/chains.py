"""Chains of a numpyro sampler, in chunks that report and can be interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.engines.objective import Objective
from ssmkit.engines.options import RunOptions
from ssmkit.engines.progress import Progress, next_chunk
from ssmkit.errors import NotComputed
from ssmkit.typing import Array, Key, PyTree

FIELDS = ("diverging", "accept_prob", "num_steps", "potential_energy", "energy")
LEAST_DRAWS = 4  # R-hat compares the halves of each chain


class Chains(NamedTuple):
    """The chains side by side: numpyro's state, the draws so far, and the steps taken.

    ``kept`` has rows for all draws, ``(num_samples, chains, ...)``; ``step`` counts warm-up too.
    """

    state: Any
    kept: dict[str, PyTree]
    step: Array


class Drawn(NamedTuple):
    """Values of the program's sites and statistics, ``(chains, draws, ...)``."""

    values: dict[str, PyTree]
    stats: dict[str, Array]
    interrupted: bool


def draw(engine: Any, kernel: Any, key: Key, objective: Objective, options: RunOptions) -> Drawn:
    """Warm up and draw; numbers do not depend on how the steps fall into chunks.

    An interrupt (Ctrl-C) ends the run and returns the draws so far; during warm-up there are
    none, and it is raised.

    Args:
        engine: what holds ``num_warmup``, ``num_samples`` and ``num_chains``.
        kernel: numpyro's sampler of a function of the objective.
        key: random key.
        objective: what the sampler's function takes.
        options: progress and callback.

    Raises:
        NotComputed: the callback stopped the run before there were draws.
    """
    keys = jax.random.split(key, engine.num_chains)
    state = kernel.init(keys, engine.num_warmup, None, (objective,), {})
    state = jax.tree.map(_strong, state)  # weak types would compile the second chunk anew
    blank = lambda a: jnp.zeros((engine.num_samples, *a.shape), a.dtype)  # noqa: E731
    chains = Chains(state, jax.tree.map(blank, _row(state)), jnp.zeros((), int))
    advance = _stepper(kernel, engine)
    chains, interrupted = _run(engine, lambda *at: advance(objective, *at), chains, options)
    count = int(chains.step) - engine.num_warmup
    stats = jax.tree.map(lambda a: jnp.swapaxes(a[:count], 0, 1), chains.kept)

    @eqx.filter_jit
    def constrain(objective: Objective, z: PyTree) -> dict[str, PyTree]:
        return jax.vmap(jax.vmap(kernel.postprocess_fn((objective,), {})))(z)

    return Drawn(constrain(objective, stats.pop("z")), stats, interrupted)


def _strong(a: Array) -> Array:
    return a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a.astype(a.dtype)


def _row(state: Any) -> dict[str, PyTree]:
    return {name: getattr(state, name) for name in ("z", *FIELDS)}


def _stepper(kernel: Any, engine: Any) -> Callable[[Objective, Chains, Array], Chains]:
    """Compile the steps until a limit; one program for warm-up and draws, and for all lengths."""

    @eqx.filter_jit
    def advance(objective: Objective, chains: Chains, limit: Array) -> Chains:
        def step(_: Array, chains: Chains) -> Chains:
            state = kernel.sample(chains.state, (objective,), {})
            number = chains.step - engine.num_warmup
            place = jnp.where(number < 0, engine.num_samples, number)  # outside: dropped
            put = lambda a, new: a.at[place].set(new, mode="drop")  # noqa: E731
            kept = jax.tree.map(put, chains.kept, _row(state))
            return Chains(state, kept, chains.step + 1)

        return jax.lax.fori_loop(chains.step, limit, step, chains)

    return advance


def _run(
    engine: Any,
    advance: Callable[[Chains, Array], Chains],
    chains: Chains,
    options: RunOptions,
) -> tuple[Chains, bool]:
    total, chunk, drawn = engine.num_warmup + engine.num_samples, 1, 0
    try:
        with Progress("draw", total, options.progress) as bar:
            while (step := int(chains.step)) < total:
                clock = time.perf_counter()
                limit = min(step + chunk, engine.num_warmup if step < engine.num_warmup else total)
                chains = jax.block_until_ready(advance(chains, jnp.asarray(limit)))
                drawn = max(0, limit - engine.num_warmup)
                chunk = next_chunk(chunk, time.perf_counter() - clock)
                bar.advance_to(limit)
                if options.callback is not None and options.callback(_report(chains, drawn)):
                    return _stopped(chains, drawn), limit < total
    except KeyboardInterrupt:
        if drawn < LEAST_DRAWS:
            raise
        return chains, True
    return chains, False


def _report(chains: Chains, drawn: int) -> dict[str, Any]:
    divergences = int(jnp.sum(chains.kept["diverging"]))
    return {"step": int(chains.step), "draws": drawn, "divergences": divergences}


def _stopped(chains: Chains, drawn: int) -> Chains:
    if drawn < LEAST_DRAWS:
        raise NotComputed(
            "the callback stopped the run before there were draws.",
            got=f"{drawn} draws of each chain",
            expected=f"{LEAST_DRAWS} or more",
            fix='let the callback return True only when its argument says enough "draws"',
        )
    return chains
