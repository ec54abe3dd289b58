"""Times of rows: in order, and with the steps that were left out."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, NamedTuple

from ssmkit.errors import DataError, OptionError

LONGEST_GAP = 100_000  # steps; more than that is a slip in the time or the step
CLOSE = 1e-6  # of a step, by which times that are numbers may be off


class Moment(NamedTuple):
    """A time: a date or a number, and how it was written."""

    value: Any
    written: Any


def moment(cell: Any) -> Moment:
    """Read a time.

    Raises:
        DataError: neither an ISO 8601 date nor a finite number.
    """
    value: Any = _read(cell.strip()) if isinstance(cell, str) else cell
    if isinstance(value, datetime):
        return Moment(value, cell.strip())
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return Moment(value, value)
    raise DataError(
        "this is no time.",
        got=repr(cell),
        expected="a date such as 2026-01-31 or 2026-01-31T12:00:00, or a number",
    )


def _read(text: str) -> Any:
    for read in (int, float, datetime.fromisoformat):
        try:
            return read(text)
        except ValueError:
            continue
    return None


class Clock:
    """Sees to it that times go on, and counts the steps between them.

    Args:
        step: time between two rows, or None where every row is one step.
        last: the last time so far, or None.

    Raises:
        OptionError: no step.
    """

    def __init__(self, step: str | None, last: Moment | None) -> None:
        """Begin after the last time."""
        self.written_step, self.step, self.last = step, _read_step(step), last

    def advance(self, now: Moment) -> list[Moment]:
        """Go on to a time; it counts as the last one only if all is well.

        Returns:
            The times between, at which there is no row.

        Raises:
            DataError: not after the last time, not a number of steps after it, or very many.
        """
        between = [] if self.last is None else self._between(self.last, now)
        self.last = now
        return between

    def _between(self, last: Moment, now: Moment) -> list[Moment]:
        try:
            is_later = now.value > last.value
        except TypeError as error:  # a date and a number, or only one with a time zone
            raise _unlike(last, now) from error
        if not is_later:
            raise DataError(
                "the time is not after the one before.",
                got=now.written,
                expected=f"a time after {last.written}",
                fix="sort the rows by time, and keep one of each",
            )
        if self.step is None:
            return []
        if isinstance(now.value, datetime) == isinstance(self.step, float):
            raise _unlike(last, now)
        between = self._numbers if isinstance(self.step, float) else self._dates
        return between(last, now)

    def _numbers(self, last: Moment, now: Moment) -> list[Moment]:
        steps = (now.value - last.value) / self.step
        count = round(steps)
        if abs(steps - count) > CLOSE or count < 1:
            raise self._off(last, now)
        _check_length(count, last, now)
        times = [last.value + self.step * i for i in range(1, count)]
        return [Moment(t, int(t) if t.is_integer() else t) for t in map(float, times)]

    def _dates(self, last: Moment, now: Moment) -> list[Moment]:
        import pandas as pd

        found, at = [], pd.Timestamp(last.value) + self.step
        while at < now.value:
            found.append(Moment(at.to_pydatetime(), _write(at, now.written)))
            at = at + self.step
            _check_length(len(found), last, now)
        if at != now.value:
            raise self._off(last, now)
        return found

    def _off(self, last: Moment, now: Moment) -> DataError:
        return DataError(
            "the time is no number of steps after the one before.",
            got=f"{last.written}, {now.written}",
            expected=f"steps of {getattr(self.step, 'freqstr', self.step)}",
            fix="another --step, or none, where every row is one step",
        )


def _read_step(text: str | None) -> Any:
    """A number, or an offset of pandas."""
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        return _offset(text)
    if not (math.isfinite(number) and number > 0):
        raise _no_step(text)
    return number


def _offset(text: str) -> Any:
    from pandas.tseries.frequencies import to_offset

    try:
        offset = to_offset(text)
    except ValueError as error:
        raise _no_step(text) from error
    if offset is None or offset.n < 1:
        raise _no_step(text)
    return offset


def _no_step(text: str) -> OptionError:
    return OptionError(
        "--step is no step.", got=text, expected="D, MS, 15min (as in pandas), or a number above 0"
    )


def _check_length(count: int, last: Moment, now: Moment) -> None:
    if count > LONGEST_GAP:
        raise DataError(
            f"more than {LONGEST_GAP:,} steps are left out.", got=f"{last.written}, {now.written}"
        )


def _unlike(last: Moment, now: Moment) -> DataError:
    return DataError(
        "the time is of another kind.",
        got=f"{now.written} after {last.written}",
        expected="dates (all with a time zone, or none) or numbers; --step of the same kind",
    )


def _write(at: Any, like: str) -> str:
    return at.date().isoformat() if len(like) == len("2026-01-31") else at.isoformat()
