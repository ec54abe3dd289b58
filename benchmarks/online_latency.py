"""One observation at a time: how long `Stream.update` takes, and how many a bank takes a second."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import timing
from kalman import make_problem
from sections import Section
from targets import Target

import ssmkit as sk

EMPTY = "an empty jitted call"
HEADER = (
    "work",
    "series",
    "first two, CPU s",
    "median µs",
    "99th percentile µs",
    "median CPU µs",
    "CPU / empty call",
    "series-updates a CPU second",
)


class Size(NamedTuple):
    """How much is run: updates are ``rounds`` times ``calls``."""

    rounds: int
    calls: int
    bank_calls: int
    series: int
    particles: int
    bank_particles: int
    steps: tuple[int, ...]


FULL = Size(25, 100, 10, 1_000, 1_000, 100, (0, 10, 100))
QUICK = Size(2, 2, 1, 3, 20, 10, (0,))


class Work(NamedTuple):
    """One contender.

    Attributes:
        name: in the table.
        update: takes one observation, and answers arrays to wait for.
        ys: observations, taken in turn again and again; of a bank ``(T, B, …)``.
        calls: updates in each round.
        series: how many series an update moves on.
    """

    name: str
    update: Callable[[Any], Any]
    ys: np.ndarray
    calls: int
    series: int = 1


class Measured(NamedTuple):
    """Seconds of one contender.

    Attributes:
        work: the contender.
        first: CPU time of the first two updates, which compile.
        wall: of each later one.
        cpu: the same, to which other processes add little.
    """

    work: Work
    first: float
    wall: np.ndarray
    cpu: np.ndarray

    def quantile(self, level: float) -> float:
        """Of wall time, in microseconds."""
        return 1e6 * float(np.quantile(self.wall, level))

    @property
    def work_time(self) -> float:
        """Median of CPU time, in microseconds."""
        return 1e6 * float(np.median(self.cpu))

    def cells(self, empty: float) -> list[str]:
        """A line of the table; ``empty`` is the CPU time of the empty call, in microseconds."""
        rate = self.work.series * len(self.cpu) / self.cpu.sum()
        walls = [f"{self.quantile(level):,.0f}" for level in (0.5, 0.99)]
        ours = [f"{self.work_time:,.0f}", f"{self.work_time / empty:,.1f}", f"{rate:,.0f}"]
        return [self.work.name, f"{self.work.series:,}", f"{self.first:.1f}", *walls, *ours]


def linear_model() -> Any:
    """Four states, two observations."""
    *arrays, _ = make_problem(1)
    return sk.models.LinearGaussian(*arrays)


def singles(size: Size) -> list[Work]:
    """Streams of one series; the empty call is the first."""
    neurons = sk.models.ChaoticNetwork.random(100, 5)
    spikes = np.array(sk.simulate(0, neurons, 200).observations)
    volatile = sk.models.StochasticVolatility(-1.0, 0.95, 0.3)
    returns = np.array(sk.simulate(0, volatile, 200).observations)
    add = jax.jit(jnp.add)
    works = [Work(EMPTY, lambda y: add(y, y), returns, size.calls)]
    for steps in size.steps:
        flow = sk.stream(1, sk.OnlineVariational(num_steps=steps), neurons)
        name = f"OnlineVariational, 5 neurons, {steps} gradient steps"
        works.append(Work(name, flow.update, spikes, size.calls))
    cloud = sk.stream(1, sk.SMC(num_particles=size.particles), volatile)
    name = f"SMC, {size.particles:,} particles, stochastic volatility"
    works.append(Work(name, cloud.update, returns, size.calls))
    exact, ys = sk.stream(1, sk.Kalman(), linear_model()), make_problem(200).ys
    return [*works, Work("Kalman, 4 states, 2 observations", exact.update, ys, size.calls)]


def banks(size: Size) -> list[Work]:
    """Streams of many series, all of which each update moves on."""
    count, calls = size.series, size.bank_calls
    exact, ys = sk.stream(1, sk.Kalman(), linear_model(), num_series=count), make_problem(200).ys
    seen = np.stack([np.roll(ys, shift, axis=0) for shift in range(count)], axis=1)
    volatile = sk.models.StochasticVolatility(-1.0, 0.95, 0.3)
    particles = sk.SMC(num_particles=size.bank_particles)
    clouds = sk.stream(1, particles, volatile, num_series=count)
    returns = np.array(sk.simulate(0, volatile, 200).observations)
    rolled = np.stack([np.roll(returns, shift) for shift in range(count)], axis=1)
    return [
        Work("Kalman, a bank", exact.update, seen, calls, count),
        Work(f"SMC, {size.bank_particles} particles, a bank", clouds.update, rolled, calls, count),
    ]


def once(work: Work, t: int) -> tuple[float, float]:
    """Wall and CPU seconds of one update, its belief waited for."""
    y = work.ys[t % len(work.ys)]
    return timing.once(lambda: work.update(y))


def measure(works: list[Work], rounds: int) -> list[Measured]:
    """Everybody in turns: a machine that slows down slows down all of them."""
    first, kept = [], [[] for _ in works]
    for work in works:
        first.append(once(work, 0)[1] + once(work, 1)[1])
        print(f"{work.name}: {first[-1]:.1f} s", file=sys.stderr, flush=True)
    for turn in range(-1, rounds):  # the first turn only warms up
        for work, times in zip(works, kept, strict=True):
            begin = 2 + (turn + 1) * work.calls
            found = [once(work, begin + t) for t in range(work.calls)]
            times.extend(found if turn >= 0 else [])
    columns = [np.array(times).T for times in kept]
    return [Measured(w, f, *times) for w, f, times in zip(works, first, columns, strict=True)]


def latency(*, quick: bool = False) -> Section:
    """Row G."""
    size = QUICK if quick else FULL
    found = measure([*singles(size), *banks(size)], size.rounds)
    empty = found[0].work_time
    kalman = next(each for each in found if each.work.name.startswith("Kalman"))
    above = f"{kalman.work_time - empty:,.0f} µs"
    targets = [Target("Kalman: CPU time of an update above an empty call", "reported", above, None)]
    remarks = (
        f"`Stream.update`, the belief waited for, {size.rounds * size.calls:,} updates each "
        f"({size.rounds * size.bank_calls:,} of banks), in turns, after as many as one turn has. "
        "The first two updates compile: one for the first belief, one for all later ones. Streams "
        "have no alarm. Wall times are what a caller waits, other processes on the core included: "
        "above a millisecond, and in the last per cent, most of all."
    )
    lines = [each.cells(empty) for each in found]
    return Section("G. Latency of a stream", remarks, HEADER, lines, targets)
