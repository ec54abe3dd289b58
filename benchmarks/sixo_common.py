"""What the rows on twisted filters share: learning, evaluation, sections of a report."""

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.engines.alternating import (
    REST,
    TWIST,
    Learner,
    Task,
    begin,
    learns,
    part_of,
    take_steps,
)
from ssmkit.engines.sixo import build_pieces
from ssmkit.learned.pieces import Pieces
from ssmkit.models.base import as_arrays
from ssmkit.models.programs import Program, build, constrain, free_sites, unconstrain
from ssmkit.objectives.sweep import sweep

SEEDS = (1, 2, 3)
HEADER = (
    "method", "K", "scheme", "threshold", "mean", "median", "sd", "events", "steps", "wall s",
    "loss",
)  # fmt: skip


class How(NamedTuple):
    """How particles are resampled."""

    num_particles: int
    scheme: str = "multinomial"
    threshold: float = 1.0


class Learned(NamedTuple):
    """What an engine has learned, the steps of both blocks, and what it took."""

    pieces: Pieces
    params: dict[str, np.ndarray]
    history: dict[str, np.ndarray]
    steps: int
    seconds: float

    @property
    def loss(self) -> str:
        """The classifier's loss over the last tenth of the rounds, in nats."""
        values = self.history.get("classifier_loss")
        return "–" if values is None else f"{values[-max(1, len(values) // 10) :].mean():.4f}"


class Sweeps(NamedTuple):
    """Log evidences ``(S, B)``, mean resampling events, and smallest effective numbers."""

    values: np.ndarray
    events: float
    smallest: np.ndarray


def learn(seed: int, engine: Any, target: Any, ys: Any) -> Learned:
    """Learn from series ``(B, T, *event)`` as `sk.infer` does, without judging and answer."""
    begun = time.perf_counter()
    setting_key, run_key = jax.random.split(jax.random.key(seed))
    task, learner = start(engine, target, ys, (setting_key, run_key))
    blocks = ((TWIST, engine.twist_learning), (REST, engine.objective))
    history: list[dict[str, float]] = []
    steps = 0
    for _ in range(engine.rounds):
        told: dict[str, float] = {}
        for block, options in blocks:
            if learns(part_of(learner, block)) and (block == REST or engine.objective.uses_twist):
                learner, part = take_steps(task, learner, block, jnp.asarray(options.steps))
                told |= {name: float(value) for name, value in part.items()}
                steps += options.steps
        history.append(told)
    seconds = time.perf_counter() - begun
    print(f"… learned in {seconds:.0f} s: {engine!r}"[:160], file=sys.stderr, flush=True)
    columns = {name: np.array([h[name] for h in history]) for name in history[-1]}
    sites = free_sites(target) if isinstance(target, Program) else {}
    params = {name: np.asarray(value) for name, value in constrain(sites, learner.params).items()}
    return Learned(learner.pieces, params, columns, steps, seconds)


def start(
    engine: Any, target: Any, ys: Any, keys: tuple[jax.Array, jax.Array] | None = None
) -> tuple[Task, Learner]:
    """A task, and a learner that has taken no step."""
    setting_key, run_key = keys or tuple(jax.random.split(jax.random.key(0)))
    sites = free_sites(target) if isinstance(target, Program) else {}
    params = unconstrain(sites, {name: site.value for name, site in sites.items()})
    model = as_arrays(build(target, constrain(sites, params)) if sites else target)
    scale_key, build_key = jax.random.split(setting_key)
    series = series_of(ys)
    pieces = build_pieces(engine, (scale_key, build_key), model, series)
    total = tuple(engine.rounds * part.steps for part in (engine.twist_learning, engine.objective))
    options = (engine.objective, engine.twist_learning, total)
    task = Task(target if sites else model, series, run_key, *options)
    return task, begin(task, params, pieces)


def untrained(engine: Any, model: Any, ys: Any, key: int = 0) -> Pieces:
    """Twist and proposal at their start; those that have nothing to learn are finished."""
    keys = jax.random.split(jax.random.key(key))
    return build_pieces(engine, (keys[0], keys[1]), as_arrays(model), series_of(ys))


def series_of(ys: Any) -> tuple[jax.Array, None, jax.Array | None]:
    """Series ``(B, T, *event)`` with ``nan`` for what is missing, as values and mask."""
    ys = jnp.asarray(ys)
    there = jnp.isfinite(ys)
    return jnp.where(there, ys, 0.0), None, None if bool(there.all()) else there


@eqx.filter_jit
def _sweeps(keys: jax.Array, model: Any, pieces: Pieces, series: Any, how: How, size: int) -> Any:
    def one(at: tuple) -> tuple:
        key, one_series = at
        run = sweep(key, model, pieces, one_series, **how._asdict())
        return run.log_evidence, jnp.sum(run.report.resampled), jnp.min(run.effective_sizes)

    return jax.lax.map(one, (keys, series), batch_size=size)


def evaluate(
    model: Any, pieces: Pieces, ys: Any, how: How, seeds: Sequence[int] = SEEDS, size: int = 100
) -> Sweeps:
    """Sweeps of every series with every seed: methods with the same ``how`` share their keys."""
    series = series_of(ys)
    count = series[0].shape[0]
    runs = []
    for seed in seeds:
        keys = jax.random.split(jax.random.key(seed), count)
        found = _sweeps(keys, as_arrays(model), pieces, series, how, min(size, count))
        runs.append([np.asarray(a) for a in found])
    values, events, smallest = (np.stack(a) for a in zip(*runs, strict=True))
    return Sweeps(values, float(events.mean()), smallest)


def cells(
    name: str, how: How, found: Sweeps, learned: Learned | None, less: Any = 0.0
) -> list[str]:
    """A line of the table: statistics over seeds and series, of the evidence less something."""
    values = found.values - less
    shown = (values.mean(), np.median(values), values.std())
    told = ["–", "–", "–"]
    if learned is not None:
        told = [f"{learned.steps:,}", f"{learned.seconds:.0f}", learned.loss]
    line = [name, str(how.num_particles), how.scheme, f"{how.threshold:g}"]
    return [*line, *(f"{v:.4g}" for v in shown), f"{found.events:.1f}", *told]
