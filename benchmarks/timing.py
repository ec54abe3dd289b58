"""Side-by-side timing: interleaved repetitions, medians, compile time apart, ratios to ours.

Repetitions are interleaved (A, B, C, A, B, C, …), so that a machine that slows down slows down
everybody. CPU time is measured next to wall time, since another process in the way adds only to
the latter; ratios are of CPU time. `one_core` makes it the time of the work alone.
"""

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

REPETITIONS = 9
OURS = "ssmkit"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One library's way to do the work.

    ``run`` does it once and returns arrays; ``scale`` multiplies its time where it did a smaller
    piece of the work; None instead of a function marks a library that is not installed.
    """

    name: str
    run: Callable[[], Any] | None
    scale: float = 1.0
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured for one contender; times in milliseconds, None where it is missing."""

    work: str
    name: str
    wall: float | None
    cpu: float | None
    first: float | None
    ratio: float | None
    remark: str

    @property
    def is_missing(self) -> bool:
        return self.wall is None

    def cells(self) -> list[str]:
        if self.is_missing:
            return [self.work, self.name, "missing", "missing", "", "", self.remark]
        return [
            self.work,
            self.name,
            f"{self.wall:.1f}",
            f"{self.cpu:.1f}",
            f"{self.first:.2f}",
            f"{self.ratio:.2f}",
            self.remark,
        ]


HEADER = ["work", "library", "wall ms", "CPU ms", "first call s", "CPU / ours", "remark"]


@contextlib.contextmanager
def one_core() -> Iterator[bool]:
    """Keep to one core, where the system can; to be entered before jax has a backend.

    XLA shares even small loops out to helper threads, which wait for the next one in a busy loop:
    that doubles the CPU time of a particle filter on two cores, and makes it no faster.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield True
    finally:
        os.sched_setaffinity(0, cores)


def once(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of one call, results waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(work: str, contenders: list[Contender], repetitions: int = REPETITIONS) -> list[Row]:
    """Time contenders in turns; the first one is ours."""
    present = [c for c in contenders if c.run is not None]
    first = {c.name: once(c.run)[0] for c in present}
    samples: dict[str, list[tuple[float, float]]] = {c.name: [] for c in present}
    for _ in range(repetitions):
        for c in present:
            samples[c.name].append(once(c.run))
    base = contenders[0].scale * statistics.median(p for _, p in samples[contenders[0].name])
    rows = []
    for c in contenders:
        if c.run is None:
            rows.append(Row(work, c.name, None, None, None, None, c.remark or "not installed"))
            continue
        wall = 1e3 * c.scale * statistics.median(w for w, _ in samples[c.name])
        cpu = 1e3 * c.scale * statistics.median(p for _, p in samples[c.name])
        ratio = cpu / (1e3 * base)
        rows.append(Row(work, c.name, wall, cpu, first[c.name], ratio, c.remark))
    return rows


def find(rows: list[Row], work: str, name: str = OURS) -> Row:
    """The row of one library at one piece of work."""
    return next(r for r in rows if r.work == work and r.name == name)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table with aligned columns."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    shown = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])
