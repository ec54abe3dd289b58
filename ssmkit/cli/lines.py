"""Lines of CSV or JSON: the one place where text becomes numbers."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssmkit.errors import DataError

CSV, JSON = "csv", "json"
MISSING = frozenset(("", "nan", "na", "n/a", "null", "none"))


class Columns(NamedTuple):
    """Which columns are what; None where the user has not said."""

    observations: tuple[str, ...] | None = None
    inputs: tuple[str, ...] | None = None
    time: str | None = None


class Cells(NamedTuple):
    """One line: its time as it was written, observations ``(M,)`` (nan is missing), inputs."""

    time: Any
    values: np.ndarray
    inputs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Parser:
    """Reads lines of one form.

    Attributes:
        form: ``"csv"`` or ``"json"``.
        header: all columns, in order.
        columns: which of them are what.
        whole: whether observations are whole numbers.
    """

    form: str
    header: tuple[str, ...]
    columns: Columns
    whole: bool = False

    def read(self, line: str) -> Cells:
        """Read one line.

        Raises:
            DataError: not of the form of the first, another number of columns, text where a number
                is due, an infinity, or an input that is missing.
        """
        cells = self._cells(line)
        columns, time = self.columns, self.columns.time
        seen = [self._observation(name, cells[name]) for name in columns.observations or ()]
        inputs = [_input(name, cells[name]) for name in columns.inputs or ()]
        at = None if time is None else cells[time]
        return Cells(at, np.array(seen, float), np.array(inputs, float))

    def is_header(self, line: bytes) -> bool:
        """Whether a line is the header once more."""
        names = [name.strip() for name in line.decode("utf-8-sig", "replace").split(",")]
        return self.form == CSV and tuple(names) == self.header

    def _cells(self, line: str) -> Mapping[str, Any]:
        if self.form == CSV:
            found = _split(line)
            if len(found) != len(self.header):
                raise _wrong_columns(found, self.header)
            return dict(zip(self.header, found, strict=True))
        cells = _object(line)
        if set(cells) != set(self.header):
            raise _wrong_columns(list(cells), self.header)
        return cells

    def _observation(self, name: str, cell: Any) -> float:
        value = as_number(name, cell)
        if self.whole and not math.isnan(value) and not value.is_integer():
            raise DataError(
                f"column {name}: the model emits whole numbers.", got=cell, expected="one of them"
            )
        return value


def begin(line: str, columns: Columns) -> Parser:
    """Make the parser that the first line asks for: the header of CSV, or an object of JSON.

    Raises:
        DataError: no header, or as `parser_of`.
    """
    if line.lstrip().startswith("{"):
        return parser_of(JSON, tuple(_object(line)), columns)
    header = tuple(_split(line))
    if all(_is_numeral(name) for name in header):
        raise DataError(
            "the first line is no header.",
            got=", ".join(header),
            expected="the names of the columns",
            fix="put them in front: (echo y; cat numbers.csv)",
        )
    return parser_of(CSV, header, columns)


def parser_of(form: str, header: tuple[str, ...], columns: Columns) -> Parser:
    """Make the parser of lines with these columns.

    Raises:
        DataError: columns without names of their own, or that are not there.
    """
    if len(set(header)) < len(header) or "" in header:
        raise DataError(
            "the columns need names of their own.",
            got=", ".join(map(repr, header)),
            expected="a different name for each column",
        )
    inputs = columns.inputs or ()
    for name in (*(columns.observations or ()), *inputs, columns.time):
        if name is not None and name not in header:
            raise DataError(
                f"there is no column {name}.", got=", ".join(header), fix="name one that is there"
            )
    rest = tuple(name for name in header if name not in (*inputs, columns.time))
    seen = rest if columns.observations is None else columns.observations
    return Parser(form, header, Columns(seen, inputs, columns.time))


def as_number(name: str, cell: Any) -> float:
    """The number in a cell; nan where it is missing.

    Raises:
        DataError: text, or an infinity.
    """
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return math.nan
    is_text = isinstance(cell, str)
    try:
        # `1_000` is a number to Python and a slip in data
        value = float(cell) if _is_number(cell) or (is_text and "_" not in cell) else None
    except (ValueError, OverflowError):
        value = None
    if value is None:
        raise DataError(
            f"column {name} holds no number.",
            got=repr(cell),
            expected="a number, or nothing where it is missing",
            fix=f"--columns without it, or --time {name} if these are times",
        )
    if math.isinf(value):
        raise DataError(f"column {name} holds an infinity.", got=cell, expected="finite numbers")
    return value


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _input(name: str, cell: Any) -> float:
    value = as_number(name, cell)
    if math.isnan(value):
        raise DataError(
            f"column {name} is an input, and missing.",
            got=repr(cell),
            expected="a number: only observations can be missing",
        )
    return value


def _split(line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
    except csv.Error as error:
        raise DataError("this is no line of CSV.", got=str(error)) from error


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError("this is no line of JSON.", got=str(error)) from error
    if not isinstance(found, dict):
        raise DataError("this is no object of JSON.", got=line.strip()[:80])
    return found


def _is_numeral(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _wrong_columns(found: Sequence[str], expected: Sequence[str]) -> DataError:
    return DataError(
        "this line has other columns.",
        got=f"{len(found)}: {', '.join(found)[:80]}",
        expected=f"{len(expected)}: {', '.join(expected)[:80]}",
    )
