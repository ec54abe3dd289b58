"""Finished files, read as a whole."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssmkit.cli.clock import Clock, Moment
from ssmkit.cli.layout import Layout, layout_of
from ssmkit.cli.lines import Columns
from ssmkit.cli.options import say
from ssmkit.cli.reading import Lines, Row, read_header, read_rows, with_numbers
from ssmkit.errors import DataError
from ssmkit.models.base import StateSpaceModel


class Table(NamedTuple):
    """A finished series.

    Attributes:
        ys: observations, a pandas Series or DataFrame with its times.
        us: inputs, or None.
        observed: what is there.
        columns: which columns were what.
        times: as they were written, or None.
    """

    ys: Any
    us: np.ndarray | None
    observed: np.ndarray
    columns: Columns
    times: list[Any] | None


def read_table(
    path: Path, model: StateSpaceModel, columns: Columns, arguments: argparse.Namespace
) -> Table:
    """Read a file of observations; ``-`` is standard input.

    Raises:
        OSError: it cannot be read.
        DataError: the header, or a line of it, cannot be used, or there is no row.
    """
    clock = Clock(arguments.step, None)
    with _opened(path) as file:
        lines = Lines(file.readline)
        parser, first = read_header(lines, columns)
        layout = layout_of(model, parser.columns)
        parser = dataclasses.replace(parser, whole=layout.is_whole)
        numbered = with_numbers(lines, first)
        rows = [r for rs in read_rows(numbered, parser, clock, reaction(arguments)) for r in rs]
    if not rows:
        raise DataError(f"{path} has no rows.", expected="a header, and rows")
    say(f"{path}: {len(rows)} observations of {', '.join(parser.columns.observations or ())}")
    return _table(rows, layout, parser.columns, clock)


def read_inputs(path: Path, columns: Columns, shape: tuple[int, ...]) -> np.ndarray:
    """Inputs of the steps to come: a file with the columns of the inputs.

    Raises:
        DataError: as `read_table`.
    """
    with _opened(path) as file:
        lines = Lines(file.readline)
        parser, first = read_header(lines, Columns((), columns.inputs, None))
        numbered = with_numbers(lines, first)
        found = list(read_rows(numbered, parser, Clock(None, None), _stop))
    return np.array([row.cells.inputs.reshape(shape) for rows in found for row in rows])


def reaction(arguments: argparse.Namespace) -> Callable[[DataError], None]:
    """What is done about a malformed line."""
    return _stop if arguments.on_error == "stop" else _skip


def _stop(error: DataError) -> None:
    raise error


def _skip(error: DataError) -> None:
    say(f"skipped {error}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    with path.open("rb") as file:
        yield file


def _table(rows: list[Row], layout: Layout, columns: Columns, clock: Clock) -> Table:
    import pandas as pd

    pairs = [layout.observation(row.cells) for row in rows]
    values, observed = (np.stack(side) for side in zip(*pairs, strict=True))
    if not layout.is_whole:
        values = np.where(observed, values, np.nan)
    moments = [row.time for row in rows if row.time is not None]
    index = _index(moments, columns.time, clock) if moments else None
    names = list(columns.observations or ())
    if values.ndim == 1:
        ys: Any = pd.Series(values, index, name=names[0])
    elif values.ndim == 2:
        ys = pd.DataFrame(values, index, names)
    else:
        ys = values
    us = None
    if layout.inputs is not None:
        us = np.stack([row.cells.inputs.reshape(layout.inputs) for row in rows])
    return Table(ys, us, observed, columns, [m.written for m in moments] or None)


def _index(moments: list[Moment], name: str | None, clock: Clock) -> Any:
    import pandas as pd

    values = [moment.value for moment in moments]
    if not isinstance(values[0], datetime):
        return pd.Index(values, name=name)
    index = pd.DatetimeIndex(values, name=name)
    if clock.step is not None:
        index.freq = clock.step
    return index
