"""Maximising an objective from several starts, in chunks that report and can be interrupted."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.engines.objective import Objective
from ssmkit.engines.options import RunOptions
from ssmkit.engines.progress import Progress, next_chunk
from ssmkit.errors import NonFiniteError
from ssmkit.typing import Array, PyTree, Scalar

PATIENCE = 3  # steps without measurable progress that end a run


class Optimum(NamedTuple):
    """The best point found: unconstrained values, log evidence, log prior, and a report."""

    unconstrained: dict[str, PyTree]
    log_evidence: Scalar
    log_prior: Scalar
    report: dict[str, Any]


class Run(NamedTuple):
    """State of one optimisation; ``best`` is the point with the smallest loss so far."""

    point: PyTree
    optimiser: Any
    best: PyTree
    best_loss: Array
    step: Array
    stalled: Array
    converged: Array


def maximise(
    engine: Any, objective: Objective, starts: list[PyTree], options: RunOptions
) -> Optimum:
    """Run from every start and return the best end.

    An interrupt (Ctrl-C) ends the search and returns the best point so far.

    Raises:
        NonFiniteError: the objective is finite at no start.
    """
    runs, interrupted = [], False
    with Progress("fit", len(starts) * engine.max_steps, options.progress) as bar:
        for number, start in enumerate(starts):
            run, interrupted = _one_run(engine, objective, start, (bar, number, options))
            runs.append(run)
            if interrupted:
                break
            bar.advance_to((number + 1) * engine.max_steps)
    losses = np.array([float(run.best_loss) for run in runs])
    if not np.isfinite(losses).any():
        raise NonFiniteError(
            "the objective is not finite at any start.",
            got=f"{len(runs)} starts",
            expected="a finite log evidence plus log prior",
            fix="give the program start values inside the model's range",
        )
    best = runs[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))]
    log_evidence, log_prior = _terms(objective, best.best)
    report = {
        "converged": bool(best.converged) and not interrupted,
        "interrupted": interrupted,
        "steps": int(best.step),
        "objectives": -losses,
    }
    return Optimum(best.best, log_evidence, log_prior, report)


@eqx.filter_jit
def _terms(objective: Objective, point: PyTree) -> tuple[Scalar, Scalar]:
    return objective.terms(point)


def _one_run(
    engine: Any, objective: Objective, start: PyTree, context: tuple[Progress, int, RunOptions]
) -> tuple[Run, bool]:
    bar, number, options = context
    run = _begin(engine, start)
    chunk = 1
    try:
        while not _is_over(run) and int(run.step) < engine.max_steps:
            clock = time.perf_counter()
            limit = min(int(run.step) + chunk, engine.max_steps)
            run = jax.block_until_ready(_advance(engine, objective, run, jnp.asarray(limit)))
            chunk = next_chunk(chunk, time.perf_counter() - clock)
            done = {"start": number, "step": int(run.step), "objective": -float(run.best_loss)}
            bar.advance_to(number * engine.max_steps + done["step"], done["objective"])
            if options.callback is not None and options.callback(done):
                return run, True
    except KeyboardInterrupt:
        return run, True
    return run, False


def _is_over(run: Run) -> bool:
    return bool(run.converged) or int(run.stalled) >= PATIENCE


def _optimiser(engine: Any) -> Any:
    import optax

    if engine.optimizer is not None:
        return optax.with_extra_args_support(engine.optimizer.build())
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=30, initial_guess_strategy="one")
    return optax.lbfgs(linesearch=search)


def _begin(engine: Any, start: PyTree) -> Run:
    loss = jnp.asarray(jnp.inf, jnp.result_type(float))
    zero = jnp.zeros((), int)
    start = jax.tree.map(jnp.asarray, start)
    state = _optimiser(engine).init(start)
    run = Run(start, state, start, loss, zero, zero, jnp.asarray(False))
    # weak types would compile the second chunk anew
    return jax.tree.map(lambda a: a.astype(a.dtype) if eqx.is_array(a) else a, run)


@eqx.filter_jit
def _advance(engine: Any, objective: Objective, run: Run, limit: Array) -> Run:
    """Take steps until ``limit``, convergence, or no progress."""
    optimiser = _optimiser(engine)
    epsilon = jnp.finfo(run.best_loss.dtype).eps
    tolerance = engine.tolerance or (1e-8 if epsilon < 1e-10 else 1e-4)

    def step(run: Run) -> Run:
        loss, gradient = jax.value_and_grad(objective.loss)(run.point)
        largest = jax.tree.reduce(jnp.maximum, jax.tree.map(_largest, gradient))
        updates, state = optimiser.update(
            gradient,
            run.optimiser,
            run.point,
            value=loss,
            grad=gradient,
            value_fn=objective.loss,
        )
        point = jax.tree.map(lambda p, u: p + u, run.point, updates)
        gained = run.best_loss - loss > 10 * epsilon * (1 + jnp.abs(loss))
        better = loss < run.best_loss
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), run.point, run.best)
        return Run(
            point,
            state,
            best,
            jnp.minimum(loss, run.best_loss),
            run.step + 1,
            jnp.where(gained, 0, run.stalled + 1),
            largest < tolerance * (1 + jnp.abs(loss)),
        )

    def more(run: Run) -> Array:
        return (run.step < limit) & ~run.converged & (run.stalled < PATIENCE)

    return jax.lax.while_loop(more, step, run)


def _largest(a: Array) -> Array:
    return jnp.max(jnp.abs(a), initial=0.0)
