"""``ssmkit forecast``: beliefs about the observations that come after a finished file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssmkit.cli import options
from ssmkit.cli.apply import Applied, apply
from ssmkit.cli.output import write_all
from ssmkit.cli.rows import Told, Writer
from ssmkit.cli.table import read_inputs
from ssmkit.errors import OptionError


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "forecast",
        help="forecast the observations after a finished file",
        description="Forecast the observations after the end of a file (CSV or JSON lines), and "
        "write one line of JSON per step. Without a file it goes on from the data of the fit.",
    )
    command.add_argument("file", type=Path, nargs="?", metavar="FILE", help="observations")
    command.add_argument(
        "--steps", type=options.positive, required=True, metavar="N", help="number of steps ahead"
    )
    command.add_argument(
        "--future", type=Path, metavar="FILE", help="inputs of the steps to come, by column name"
    )
    options.add_source(command)
    options.add_columns(command)
    options.add_rows(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Forecast, and write the rows; returns the exit code."""
    import ssmkit as sk

    applied = apply(arguments)
    us = _future(arguments.future, applied)
    ahead = sk.forecast(arguments.seed, applied.posterior, arguments.steps, us)
    rows = _rows(Writer(arguments.quantiles, "y"), ahead.observations, applied)
    write_all(arguments.output, rows)
    return 0


def _future(path: Path | None, applied: Applied) -> Any:
    us: Any = applied.posterior.data.us
    if path is None:
        return None  # where inputs are needed, the verb says so
    if us is None:
        raise OptionError("the model was given no inputs.", got=f"--future {path}", fix="drop it")
    return read_inputs(path, applied.columns, us.shape[1:])


def _rows(writer: Writer, belief: Any, applied: Applied) -> Iterator[bytes]:
    columns, names = writer.columns(belief), writer.names(belief)
    start = applied.posterior.data.ys.shape[0]
    times = belief.labels.times if applied.columns.time else None
    for step in range(next(iter(columns.values())).shape[0]):
        time = None if times is None else _written(times[step])
        told = Told(start + step, time, observed=False)
        yield writer.row(told, names, {name: values[step] for name, values in columns.items()})


def _written(time: Any) -> Any:
    """A date without the hour where there is none; a number."""
    if hasattr(time, "isoformat"):
        return time.isoformat().removesuffix("T00:00:00")
    return time.item() if hasattr(time, "item") else time
