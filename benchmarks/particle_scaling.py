"""How the cost of a particle filter grows with N, T and D: exponents by least squares in logs."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import kalman
import numpy as np
import particle_peers as peers
import particle_problems as problems
import timing
from timing import Contender

REPETITIONS = 5
COUNTS = (1_000, 4_000, 16_000, 64_000)
LENGTHS = (500, 1_000, 2_000, 4_000)
DIMENSIONS = (2, 4, 8, 16)


class Growth(NamedTuple):
    """CPU milliseconds at some sizes, and the exponent of the power of the size they fit."""

    variable: str
    sizes: tuple[int, ...]
    cpu: tuple[float, ...]
    exponent: float
    remark: str

    def cells(self) -> list[str]:
        measured = (f"{n:,}: {ms:.1f}" for n, ms in zip(self.sizes, self.cpu, strict=True))
        return [self.variable, ", ".join(measured), f"{self.exponent:.2f}", self.remark]


HEADER = ["in", "CPU ms", "exponent", "the rest"]


def exponent(sizes: tuple[int, ...], cpu: tuple[float, ...]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(cpu), 1)[0])


def filter_of(T: int, count: int) -> peers.Seeded:
    return peers.ours(peers.volatility_model(), problems.volatility_data(T), count)


def linear_filter_of(D: int, T: int, count: int) -> peers.Seeded:
    problem = kalman.make_problem(T, D)
    return peers.ours(problems.linear_model(problem), problem.ys, count)


def grow(
    variable: str, sizes: tuple[int, ...], make: Callable[[int], peers.Seeded], remark: str
) -> Growth:
    contenders = [Contender(str(n), partial(make(n), 0)) for n in sizes]
    rows = timing.compare(variable, contenders, REPETITIONS)
    cpu = tuple(row.cpu for row in rows)
    return Growth(variable, sizes, cpu, exponent(sizes, cpu), remark)


def measure() -> list[Growth]:
    """Each size alone; the rest stays as it is."""
    return [
        grow("N", COUNTS, lambda n: filter_of(100, n), "stochastic volatility, T=100"),
        grow("T", LENGTHS, lambda n: filter_of(n, 1000), "stochastic volatility, N=1,000"),
        grow(
            "D",
            DIMENSIONS,
            lambda n: linear_filter_of(n, 100, 1000),
            "linear Gaussian, M=2, N=1,000, T=100",
        ),
    ]
