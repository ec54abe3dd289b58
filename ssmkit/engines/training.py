"""Rounds of learning: progress, history, the best so far, and what went wrong in words."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.engines.alternating import (
    REST,
    TWIST,
    Learner,
    Task,
    held_out,
    learns,
    part_of,
    take_steps,
)
from ssmkit.engines.options import RunOptions
from ssmkit.engines.progress import Progress, next_chunk
from ssmkit.errors import LearningWarning
from ssmkit.smc.filter import Series

LONG_SECONDS = 60.0
NOTHING = 0.002  # nats below log 2 under which a classifier has learned nothing
SATURATED = 0.01


class Plan(NamedTuple):
    """How long to learn, and on what the bound is judged.

    Attributes:
        rounds: rounds at most.
        patience: rounds without a better bound that end the run; None for never.
        num_particles: of the judging bound.
        judged: the series it is of, with leading axis ``B``.
    """

    rounds: int
    patience: int | None
    num_particles: int
    judged: Series


class Trained(NamedTuple):
    """The learner at the end (or the best, where there is patience), and the history by round."""

    learner: Learner
    report: dict[str, Any]


def train(task: Task, learner: Learner, plan: Plan, options: RunOptions, files: Any) -> Trained:
    """Run the rounds.

    An interrupt (Ctrl-C), or a callback that returns True, ends the run with what was learned.

    Args:
        task: what is learned from.
        learner: where it begins.
        plan: how long.
        options: progress and callback.
        files: saves and restores how far the run has come; None for no checkpoints.
    """
    history: list[dict[str, float]] = []
    best = learner
    if files is not None and (found := files.load((learner, best))) is not None:
        (learner, best), history = found
    clock = _Clock(task, learner, plan)
    interrupted = False
    rounds = plan.rounds if any(clock.steps) else 0
    with Progress("learn", rounds, options.progress) as bar:
        try:
            while len(history) < rounds and not _is_over(history, plan.patience):
                learner, told = _one_round(task, learner, clock)
                key = jax.random.fold_in(task.key, 2)  # the same numbers in every round
                judged = held_out(task, learner, key, plan.judged, plan.num_particles)
                told |= {"held_out_bound": float(judged["bound"])}
                told |= {"smallest_ess": float(judged["smallest_ess"])}
                history.append({"round": len(history) + 1.0, **told})
                if _is_best(history):
                    best = learner
                bar.advance_to(len(history), told["held_out_bound"])
                if files is not None:
                    files.save((learner, best), history)
                if options.callback is not None and options.callback(dict(history[-1])):
                    interrupted = True
                    break
        except KeyboardInterrupt:
            interrupted = True
    report = _report(history, learner, plan, interrupted=interrupted)
    return Trained(learner if plan.patience is None else best, report)


def _one_round(task: Task, learner: Learner, clock: _Clock) -> tuple[Learner, dict[str, float]]:
    told: dict[str, float] = {}
    for block, steps in ((TWIST, clock.steps[TWIST]), (REST, clock.steps[REST])):
        done = 0
        sums: dict[str, float] = {}
        while done < steps:
            count = min(clock.chunks[block], steps - done)
            start = time.perf_counter()
            learner, part = take_steps(task, learner, block, jnp.asarray(count))
            part = {name: float(value) * count for name, value in part.items()}
            clock.took(block, count, time.perf_counter() - start)
            sums = {name: sums.get(name, 0.0) + value for name, value in part.items()}
            done += count
        told |= {name: value / steps for name, value in sums.items()}
    return learner, told


class _Clock:
    """Chunks of about half a second, and the estimate of what a long run will take."""

    def __init__(self, task: Task, learner: Learner, plan: Plan) -> None:
        planned = (getattr(task.twist_learning, "steps", 0), task.objective.steps)
        is_used = (task.objective.uses_twist, True)
        self.steps = tuple(
            n if used and learns(part_of(learner, block)) else 0
            for block, (n, used) in enumerate(zip(planned, is_used, strict=True))
        )
        self.rounds, self.chunks = plan.rounds, [1, 1]
        self.calls, self.seconds = [0, 0], [math.nan, math.nan]
        self.said = False

    def took(self, block: int, count: int, seconds: float) -> None:
        """Note what a chunk took; the first compiles."""
        self.calls[block] += 1
        if self.calls[block] > 1:
            self.seconds[block] = seconds / count
            self.chunks[block] = next_chunk(self.chunks[block], seconds)
        self._say()

    def _say(self) -> None:
        known = [s * n for s, n in zip(self.seconds, self.steps, strict=True) if n > 1]
        if self.said or any(math.isnan(s) for s in known):
            return
        self.said = True
        total = self.rounds * sum(known)
        if total > LONG_SECONDS:
            warnings.warn(
                f"learning will take about {_duration(total)} on this machine: {self.rounds} "
                f"rounds of {sum(self.steps)} steps. Ctrl-C keeps what is "
                "learned; fewer rounds or steps, smaller batches, or a window are faster.",
                LearningWarning,
                stacklevel=2,
            )


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _is_best(history: list[dict[str, float]]) -> bool:
    bounds = [h["held_out_bound"] for h in history]
    return bounds[-1] >= max((b for b in bounds if not math.isnan(b)), default=math.inf)


def _is_over(history: list[dict[str, float]], patience: int | None) -> bool:
    if patience is None or not history:
        return False
    bounds = np.array([h["held_out_bound"] for h in history])
    if np.isnan(bounds).all():
        return len(bounds) > patience
    return len(bounds) - 1 - int(np.nanargmax(bounds)) >= patience


def _report(
    history: list[dict[str, float]], learner: Learner, plan: Plan, *, interrupted: bool
) -> dict[str, Any]:
    names = history[0].keys() if history else ()
    columns = {name: np.array([h[name] for h in history]) for name in names}
    report = {"history": columns, "interrupted": interrupted, "rounds": len(history)}
    report["skipped_steps"] = int(learner.skipped)
    report["warnings"] = found = _findings(columns, int(learner.skipped))
    for text in found:
        warnings.warn(text, LearningWarning, stacklevel=2)
    return report


def _findings(columns: dict[str, np.ndarray], skipped: int) -> list[str]:
    found = []
    losses = columns.get("classifier_loss")
    if losses is not None and losses[-1] > math.log(2) - NOTHING:
        found.append(
            f"the twist has learned nothing: the classifier's loss is {losses[-1]:.4f}, and chance "
            "is log 2 = 0.6931. More rounds or another encoder may help; or what comes later says "
            "nothing of a state, and no twist is needed."
        )
    if losses is not None and losses[-1] < SATURATED and _falls(columns["smallest_ess"]):
        found.append(
            f"the twist saturates: the classifier's loss is {losses[-1]:.4f} while the effective "
            f"number of particles falls to {columns['smallest_ess'][-1]:.1f}. Beyond certainty a "
            "classifier does not say how certain: learned.Analytic(), learned.Quadratic() as head, "
            "or a shorter window."
        )
    if skipped:
        found.append(
            f"{skipped} steps were left out because a gradient was not finite: a smaller learning "
            "rate, or start values inside the model's range."
        )
    return found


def _falls(values: np.ndarray) -> bool:
    return len(values) > 1 and values[-1] < values.max() - 0.05 * abs(values.max())
