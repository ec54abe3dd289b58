"""From a file or standard input to rows: lines are counted, errors have their number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ssmkit.cli.clock import Clock, Moment, moment
from ssmkit.cli.lines import Cells, Columns, Parser, begin
from ssmkit.errors import DataError


class Row(NamedTuple):
    """One step: its time, and what is in its cells."""

    time: Moment | None
    cells: Cells


class Lines:
    """Lines, counted and digested.

    Args:
        readline: reads the next one; nothing at the end.
    """

    def __init__(self, readline: Callable[[], bytes]) -> None:
        """Begin at the first line."""
        self._readline = readline
        self.number, self.digest = 0, hashlib.sha256().hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        """Go on to the end."""
        while line := self._readline():
            self.number += 1
            # Of every line so far: another input is told apart from the same one begun anew.
            self.digest = hashlib.sha256(self.digest.encode() + line.rstrip(b"\r\n")).hexdigest()
            yield line

    def skip_to(self, number: int, digest: str) -> None:
        """Pass over the lines that were used before.

        Raises:
            DataError: these are others.
        """
        lines = iter(self)
        while self.number < number and next(lines, None) is not None:
            pass
        if (self.number, self.digest) != (number, digest):
            raise DataError(
                "the input does not begin as it did when the checkpoint was written.",
                got=f"{self.number} lines, of which some are others"
                if self.number == number
                else f"{self.number} lines",
                expected=f"the {number} lines that were used up to then",
                fix="the same input from its beginning; --live where it goes on; or remove the "
                "checkpoint and the output to begin anew",
            )


def read_header(lines: Lines, columns: Columns) -> tuple[Parser, bytes | None]:
    """Read the first line.

    Returns:
        The parser, and that line if it is a row.

    Raises:
        DataError: no line, or no header.
    """
    line = next(iter(lines), None)
    if line is None:
        raise DataError("the input is empty.", expected="a header, and rows")
    try:
        parser = begin(_decode(line, "utf-8-sig"), columns)
    except DataError as error:
        raise at_line(lines.number, error) from error
    return parser, line if parser.form == "json" else None


def with_numbers(lines: Lines, first: bytes | None) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; ``first`` is the row that has been read with the header."""
    if first is not None:
        yield lines.number, first
    for line in lines:
        yield lines.number, line


def read_rows(
    lines: Iterator[tuple[int, bytes]],
    parser: Parser,
    clock: Clock,
    on_error: Callable[[DataError], None],
) -> Iterator[list[Row]]:
    """Read line by line.

    Args:
        lines: with their numbers.
        parser: of their form.
        clock: of their times.
        on_error: told of a line that cannot be used, which is passed over unless this raises.

    Yields:
        For every line its row, with the steps that were left out before it; nothing for a line
        that is empty, or cannot be used.
    """
    for number, line in lines:
        rows: list[Row] = []
        try:
            text = _decode(line, "utf-8")
            if text.strip():
                rows = _rows_of(parser.read(text), parser, clock)
        except DataError as error:
            on_error(at_line(number, error))
        yield rows


def _rows_of(cells: Cells, parser: Parser, clock: Clock) -> list[Row]:
    if parser.columns.time is None:
        return [Row(None, cells)]
    now, last = moment(cells.time), clock.last
    between = clock.advance(now)
    if between and cells.inputs.size:
        clock.last = last
        raise DataError(
            "rows are left out before this one, and with them their inputs.",
            got=f"{len(between)} steps from {between[0].written} on",
            expected="inputs at every step",
            fix="rows with inputs and an empty observation",
        )
    nothing = np.full_like(cells.values, np.nan)
    gap = [Row(time, Cells(None, nothing, cells.inputs)) for time in between]
    return [*gap, Row(now, cells)]


def _decode(line: bytes, encoding: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError("this is no text.", got=str(error), expected="UTF-8") from error


def at_line(number: int, error: DataError) -> DataError:
    """The same error, which says at which line."""
    return DataError(f"line {number}: {error}")
