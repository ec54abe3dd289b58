"""Arguments that several commands share, and how their texts are read."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

QUANTILES = (0.05, 0.5, 0.95)


class Every(NamedTuple):
    """How often a checkpoint is written: by number of observations, or by seconds."""

    count: int | None = None
    seconds: float | None = None


def add_source(command: argparse.ArgumentParser) -> None:
    """Say by what the data are read: a fit, or a model and an engine."""
    command.add_argument(
        "--fit", type=Path, metavar="FILE", help="what `ssmkit fit` wrote: model and parameters"
    )
    add_model(command)


def add_model(command: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Name a model and an engine."""
    command.add_argument(
        "--model",
        required=required,
        metavar="MODULE:NAME",
        help="a model, a program, or a function without arguments that returns a model: "
        "module:name or path/to/file.py:name",
    )
    command.add_argument(
        "--engine",
        required=required,
        metavar="ENGINE",
        help='an engine of ssmkit, as in Python: Kalman, "SMC(num_particles=1000)"',
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed (%(default)s)"
    )


def add_columns(command: argparse.ArgumentParser) -> None:
    """Say what the columns are."""
    command.add_argument(
        "--columns",
        type=names,
        metavar="A,B",
        help="columns of the observation (all that are neither time nor input)",
    )
    command.add_argument(
        "--inputs", type=names, metavar="A,B", help="columns of the inputs, which go to the model"
    )
    command.add_argument(
        "--time", metavar="COLUMN", help="column of timestamps: ISO 8601 dates, or numbers"
    )
    command.add_argument(
        "--step",
        metavar="STEP",
        help="time between two rows: D, MS, 15min (as in pandas), or a number; rows left out "
        "become steps with nothing observed",
    )
    command.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do at a malformed line, which is reported by its number (%(default)s)",
    )


def add_rows(command: argparse.ArgumentParser) -> None:
    """Say what goes out, and where to."""
    command.add_argument(
        "--quantiles",
        type=levels,
        default=QUANTILES,
        metavar="Q,Q",
        help="quantiles to report (0.05,0.5,0.95)",
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write (standard output)"
    )


def names(text: str) -> tuple[str, ...]:
    """Names of columns, between commas."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different names: a,b")
    return found


def levels(text: str) -> tuple[float, ...]:
    """Levels of quantiles, between commas."""
    try:
        found = tuple(float(level) for level in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < level < 1 for level in found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers between 0 and 1")
    return found


def every(text: str) -> Every:
    """``100`` for a number of observations, ``5s`` for seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s?)", text)
    number = float(match[1]) if match else 0.0
    if match is None or number <= 0 or not (match[2] or number.is_integer()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number such as 100 nor 5s")
    return Every(seconds=number) if match[2] else Every(count=int(number))


def positive(text: str) -> int:
    """A whole number, one or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps, 1 or more")
    return int(text)


def say(line: str) -> None:
    """Tell the user, on standard error: standard output is for rows."""
    print(f"ssmkit: {line}", file=sys.stderr, flush=True)
