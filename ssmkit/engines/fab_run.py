"""The run of a flow's training: chunks, progress, history, checkpoints, and what went wrong."""

from __future__ import annotations

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.engines.fab_target import Defended
from ssmkit.engines.fab_training import Learner, Task, take_iterations
from ssmkit.engines.options import RunOptions
from ssmkit.engines.progress import Progress
from ssmkit.errors import NonFiniteError
from ssmkit.typing import Array

NUM_CHUNKS = 50  # in which a run reports; the numbers do not depend on it


def train(task: Task, learner: Learner, options: RunOptions) -> tuple[Learner, dict[str, Any]]:
    """Take the iterations.

    An interrupt (Ctrl-C), or a callback that returns True, ends the run with what was learned.

    Raises:
        NonFiniteError: the target is finite at none of the first draws.
    """
    total, files = task.engine.num_iterations, options.checkpoint
    chunk = max(1, -(-total // NUM_CHUNKS))
    history: list[dict[str, float]] = []
    if files is not None and (found := files.load(learner)) is not None:
        learner, history = found
    if not history:
        _check_start(task, learner)
    interrupted = False
    with Progress("learn", total, options.progress) as bar:
        try:
            while (done := int(learner.iteration)) < total:
                begun = time.perf_counter()
                count = jnp.asarray(min(chunk, total - done))
                learner, told = jax.block_until_ready(take_iterations(task, learner, count))
                line = {name: float(value) for name, value in told._asdict().items()}
                history.append({"iteration": float(learner.iteration), **line})
                history[-1]["seconds"] = time.perf_counter() - begun
                bar.advance_to(int(learner.iteration), line["log_evidence"])
                if files is not None:
                    files.save(learner, history)
                if options.callback is not None and options.callback(dict(history[-1])):
                    interrupted = True
                    break
        except KeyboardInterrupt:
            interrupted = True
    return learner, _report(task, learner, history, interrupted=interrupted)


def _check_start(task: Task, learner: Learner) -> None:
    values = np.asarray(_first_values(task, learner.flow))
    if np.isfinite(values).any():
        return
    what = "nan" if np.isnan(values).any() else str(values[0])
    raise NonFiniteError(
        "the log density of the target is finite at none of the first draws.",
        got=f"{what} at all {values.size} draws of the untrained flow",
        expected="a flow that begins where the target is not zero",
        fix="sk.learned.CouplingFlow(scale=...) begins wider; a narrower prior; or a target that "
        "is finite where it should be (nan counts as impossible)",
    )


@eqx.filter_jit
def _first_values(task: Task, flow: Any) -> Array:
    start = Defended(flow, task.target, task.engine.share_of(task.target))
    keys = jax.random.split(jax.random.fold_in(task.key, 0), task.engine.batch_size)
    return jax.vmap(lambda key: task.target.log_prob(start.sample(key)))(keys)


def _report(
    task: Task, learner: Learner, history: list[dict[str, float]], *, interrupted: bool
) -> dict[str, Any]:
    names = history[0].keys() if history else ()
    done = int(learner.iteration)
    return {
        "history": {name: np.array([h[name] for h in history]) for name in names},
        "interrupted": interrupted,
        "iterations": done,
        "target_evaluations": done * evaluations(task.engine),
        "skipped_updates": int(learner.norms.skipped),
        "flushed_buffers": int(learner.flushed),
        "invalid_starts": int(learner.invalid),
        "step_sizes": np.exp(np.asarray(learner.log_steps)),
    }


def evaluations(engine: Any) -> int:
    """Evaluations of the target in one iteration, each with its gradient for Hamiltonian moves."""
    moves = engine.num_temperatures * engine.num_moves
    each = 1 if engine.walks else engine.num_leapfrog
    return engine.batch_size * (moves * each + 1)
