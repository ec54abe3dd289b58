"""Particle methods against other libraries and against plain recursions: values, then times."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import kalman
import numpy as np
import particle_peers as peers
import particle_problems as problems
import particle_steps
import timing
from targets import Target, ratio_target
from timing import OURS, Contender

FLOAT32, NO_GAPS, HAND = "ssmkit, float32", "ssmkit, no gaps", "by hand"
BARE, EMPTY = "ssmkit, the step alone", "empty call"
SMALL, LARGE, LINEAR = "filter, N=1,000", "filter, N=100,000", "filter, D=4, M=2"
EXACT, UPDATE = "backward, exact", "one update"
MOVES = (1, 5)  # what particles does when not told, and what we do
REPETITIONS, FEWEST = 7, 5
LIMIT = 4.0  # standard errors
PIECE = 5  # paths of the slowest smoother, of 100
CALLS = 200


class Agreement(NamedTuple):
    """How far the mean over seeds is from the truth, and its standard error; None when missing."""

    what: str
    name: str
    gap: float | None = None
    error: float | None = None

    @property
    def is_missing(self) -> bool:
        return self.gap is None

    @property
    def agrees(self) -> bool:
        return self.gap is not None and abs(self.gap) <= LIMIT * self.error

    def cells(self) -> list[str]:
        if self.is_missing:
            return [self.what, self.name, "missing", "", "missing"]
        verdict = "yes" if self.agrees else "NO"
        return [self.what, self.name, f"{self.gap:+.4f}", f"{self.error:.4f}", verdict]


def moves_of(num_moves: int) -> str:
    return f"backward, {num_moves} move{'s' if num_moves > 1 else ''}"


def volatility_filters(T: int, count: int) -> dict[str, peers.Seeded | None]:
    """Who filters stochastic volatility, ours first; None for a peer that is not there."""
    ys, model, there = problems.volatility_data(T), peers.volatility_model(), peers.installed()
    return {
        OURS: peers.ours(model, ys, count),
        NO_GAPS: peers.ours(model, ys, count, gaps=False),
        FLOAT32: peers.ours(model, ys, count, np.float32),
        HAND: problems.by_hand(problems.volatility(ys), count),
        "cuthbert": peers.cuthbert(ys, count) if there["cuthbert"] else None,
        "particles": peers.particles(ys, count) if there["particles"] else None,
    }


def linear_filters(T: int, count: int) -> dict[str, peers.Seeded | None]:
    problem = kalman.make_problem(T)
    model = problems.linear_model(problem)
    return {
        OURS: peers.ours(model, problem.ys, count),
        NO_GAPS: peers.ours(model, problem.ys, count, gaps=False),
        HAND: problems.by_hand(problems.linear_gaussian(problem), count),
    }


def smoothers(T: int, count: int, num_paths: int) -> dict[str, dict[str, peers.Seeded | None]]:
    """Who samples backwards, from a history that is there before the clock runs."""
    ys, there = problems.volatility_data(T), peers.installed()
    makers = {
        "cuthbert": (peers.cuthbert_history, peers.cuthbert_paths),
        "particles": (peers.particles_history, peers.particles_paths),
    }
    found = {EXACT: {OURS: peers.our_paths(ys, count, "backward", 1, num_paths)}}
    for moves in MOVES:
        mine = peers.our_paths(ys, count, "backward_mcmc", moves, num_paths)
        found[moves_of(moves)] = {OURS: mine}
    for name, (make_history, make_paths) in makers.items():
        history = make_history(ys, count) if there[name] else None
        for work, moves in zip(found, (None, *MOVES), strict=True):
            few = name == "particles" and moves is None
            paths = min(PIECE, num_paths) if few else num_paths
            found[work][name] = history and make_paths(history, paths, moves)
    return found


def steps(count: int) -> dict[str, Callable[[], Any] | None]:
    """One update at a time: the carry goes in and comes out, and is waited for."""
    ys, there = problems.volatility_data(1000), peers.installed()
    return {
        OURS: particle_steps.our_stream(ys, count),
        BARE: particle_steps.our_step(ys, count),
        HAND: particle_steps.step_by_hand(problems.volatility(ys), count),
        "particles": particle_steps.particles_step(ys, count) if there["particles"] else None,
        "cuthbert": particle_steps.cuthbert_step(ys, count) if there["cuthbert"] else None,
        EMPTY: particle_steps.empty_step(),
    }


def evidence_agreement(
    what: str, filters: dict[str, peers.Seeded | None], truth: float, num_seeds: int
) -> list[Agreement]:
    """Log of the mean evidence against the truth: estimates are unbiased, their logs are not."""
    found = []
    for name, run in filters.items():
        if run is None:
            found.append(Agreement(what, name))
            continue
        values = np.array([float(run(seed)) for seed in range(num_seeds)])
        variance = np.var(values, ddof=1)
        error = math.sqrt(variance / num_seeds + variance**2 / (2 * (num_seeds - 1)))
        gap = float(np.mean(values) + variance / 2 - truth)
        found.append(Agreement(what, name, gap, error))
    return found


def path_agreement(
    work: str, runs: dict[str, peers.Seeded | None], truth: problems.Truth, num_seeds: int
) -> list[Agreement]:
    """Smoothed states, and their squared steps: what a wrong law of neighbours would get wrong."""
    found = []
    measures = (
        (f"{work}: states", truth.mean, np.mean),
        (f"{work}: squared steps", truth.roughness, lambda p: np.mean(np.diff(p, axis=1) ** 2)),
    )
    for name, run in runs.items():
        if run is None:
            found += [Agreement(what, name) for what, *_ in measures]
            continue
        paths = [np.asarray(run(seed)) for seed in range(num_seeds)]
        for what, expected, measure in measures:
            values = np.array([measure(p) for p in paths])
            error = float(np.std(values, ddof=1) / math.sqrt(num_seeds))
            found.append(Agreement(what, name, float(np.mean(values) - expected), error))
    return found


def agreement(
    T: int = 100, count: int = 1000, num_paths: int = 100, num_seeds: int = 16
) -> list[Agreement]:
    """Everybody against what is true, in standard errors over seeds."""
    truth = problems.volatility_truth(problems.volatility_data(T))
    filters = volatility_filters(T, count)
    found = evidence_agreement("volatility", filters, truth.log_evidence, num_seeds)
    short = max(
        2, T // 5
    )  # the emission tells much: four dimensions are hard on a bootstrap filter
    exact = problems.linear_truth(kalman.make_problem(short))
    found += evidence_agreement("linear", linear_filters(short, count), exact, num_seeds)
    for work, runs in smoothers(T, count, num_paths).items():
        found += path_agreement(work, runs, truth, num_seeds)
    return found


def at_seed(
    runs: dict[str, peers.Seeded | None], remarks: dict[str, tuple[float, str]] | None = None
) -> list[Contender]:
    remarks = remarks or {}
    return [
        Contender(name, run and partial(run, 0), *remarks.get(name, ()))
        for name, run in runs.items()
    ]


def many(run: Callable[[], Any] | None, calls: int) -> Callable[[], Any] | None:
    def repeated() -> Any:
        for _ in range(calls):
            result = run()
        return result

    return run and repeated


def time_filters(say: Callable[[str], None]) -> list[timing.Row]:
    """Filters and smoothers, in milliseconds."""
    rows = []
    for work, make in (
        (SMALL, partial(volatility_filters, 1000, 1000)),
        (LARGE, partial(volatility_filters, 100, 100_000)),
        (LINEAR, partial(linear_filters, 1000, 1000)),
    ):
        say(f"particles: {work}")
        rows += timing.compare(work, at_seed(make()), REPETITIONS)
    for work, runs in smoothers(1000, 1000, 100).items():
        say(f"particles: {work}")
        remarks = {"particles": (100 / PIECE, f"measured for {PIECE} paths, scaled")}
        contenders = at_seed(runs, remarks if work == EXACT else None)
        rows += timing.compare(work, contenders, FEWEST)
    return rows


def time_steps() -> list[timing.Row]:
    """One update, in microseconds."""
    contenders = [Contender(n, many(run, CALLS), 1e3 / CALLS) for n, run in steps(1000).items()]
    return timing.compare(UPDATE, contenders)


def targets(rows: list[timing.Row], updates: list[timing.Row]) -> list[Target]:
    """What was promised of particle methods."""

    def row(work: str, name: str = OURS) -> timing.Row:
        return timing.find(rows, work, name)

    def against(work: str, name: str, limit: float | None, mine: str = OURS) -> Target:
        return ratio_target(f"{work}: {mine} / {name}", row(work, mine), row(work, name), limit)

    best = min(peers.PEERS, key=lambda name: row(LARGE, name).cpu or -math.inf)
    found = [
        against(SMALL, "cuthbert", 0.7),
        against(SMALL, "cuthbert", 0.35, FLOAT32),
        against(SMALL, "particles", 0.4),
        against(SMALL, HAND, None),
        against(LARGE, best, 0.8),
        against(LARGE, best, None, FLOAT32),
        against(LINEAR, HAND, 2.0),
        against(EXACT, "cuthbert", 0.3),
        *(against(moves_of(num_moves), "particles", 1.0) for num_moves in MOVES),
        against(moves_of(MOVES[-1]), "cuthbert", None),
    ]
    for mine, name, limit in (
        (OURS, HAND, 1.3),
        (BARE, HAND, 1.3),
        (OURS, "particles", None),
        (OURS, "cuthbert", None),
        (OURS, EMPTY, None),
    ):
        rows = [timing.find(updates, UPDATE, n) for n in (mine, name)]
        found.append(ratio_target(f"{UPDATE}: {mine} / {name}", *rows, limit, "µs"))
    return found
