"""A stream at work: line in, step, line out, and a checkpoint now and then."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from ssmkit.cli.checkpoint import Checkpoint, Position
from ssmkit.cli.clock import Clock
from ssmkit.cli.interrupts import Stopped
from ssmkit.cli.layout import Layout
from ssmkit.cli.lines import Parser
from ssmkit.cli.options import say
from ssmkit.cli.output import Output
from ssmkit.cli.reading import Lines, Row, read_rows
from ssmkit.cli.rows import Told, Writer
from ssmkit.errors import DataError, NotComputed, SsmkitError
from ssmkit.stream import Stream

NOTHING = (0, hashlib.sha256().hexdigest())


class Reader(NamedTuple):
    """What turns the input into rows.

    Attributes:
        lines: the input.
        parser: of the form of its lines.
        clock: of their times.
        layout: what the model wants of a row.
    """

    lines: Lines
    parser: Parser
    clock: Clock
    layout: Layout


class Session:
    """All that a stream on the command line works with.

    Args:
        flow: the stream.
        reader: of its input.
        writer: of rows.
        output: where they go.
        checkpoint: what is written now and then.
        of: options by which a checkpoint is known.
        stops: whether a malformed line stops the run.
    """

    def __init__(
        self,
        flow: Stream,
        reader: Reader,
        writer: Writer,
        output: Output,
        checkpoint: Checkpoint,
        of: Mapping[str, Any],
        stops: bool,
    ) -> None:
        """Nothing was read yet."""
        self.flow, self.reader, self.writer, self.output = flow, reader, writer, output
        self.checkpoint, self.of, self.stops = checkpoint, of, stops
        self.used = NOTHING  # number and digest of the lines that were used
        self._skipped, self._has_alarm = 0, False

    def resumed(self, lines: int, digest: str) -> None:
        """The stream is where its checkpoint was, which had used these lines."""
        self.used = lines, digest
        self._skipped = int(self.flow.diagnostics["skipped"])
        self._has_alarm = bool(self._alarm())

    def save(self) -> None:
        """Write the checkpoint."""
        last = None if self.reader.clock.last is None else self.reader.clock.last.written
        form, header = self.reader.parser.form, self.reader.parser.header
        position = Position(*self.used, last, self.output.offset, form, header)
        self.checkpoint.save(self.flow, self.of, position)

    def follow(self, numbered: Iterator[tuple[int, bytes]]) -> int:
        """Go on to the end of the input; returns the exit code."""
        try:
            _, parser, clock, _ = self.reader
            for rows in read_rows(numbered, parser, clock, self._on_error):
                for row in rows:
                    self._step(row)
                self.used = self.reader.lines.number, self.reader.lines.digest
                if self.checkpoint.is_due(self.flow):
                    self.save()
        except Stopped as stopped:
            self.save()
            say(f"stopped by {stopped} after {self.flow.time} observations")
            return stopped.code
        self.save()
        say(
            f"end of the input: {self.flow.time} observations, {self._skipped} skipped; log "
            f"evidence {float(self.flow.log_evidence):.4f} nats ({self.flow.evidence_kind})"
        )
        return 0

    def _on_error(self, error: DataError) -> None:
        """A malformed line; the stream is where it was after the line before."""
        if self.stops:
            self.save()
            raise error
        say(f"skipped {error}")

    def _step(self, row: Row) -> None:
        y, there = self.reader.layout.observation(row.cells)
        try:
            belief = self.flow.update(y, self.reader.layout.input(row.cells), there)
        except SsmkitError:
            say(f"line {self.reader.lines.number} cannot be used:")
            raise
        time = None if row.time is None else row.time.written
        told = self._told(time, observed=bool(there.any()))
        columns, names = self.writer.columns(belief), self.writer.names(belief)
        self.output.write(self.writer.row(told, names, columns))

    def _told(self, time: Any, *, observed: bool) -> Told:
        noticed, t = self.flow.diagnostics, self.flow.time - 1
        skipped = noticed["skipped"] > self._skipped
        self._skipped = noticed["skipped"]
        if skipped:
            say(f"line {self.reader.lines.number}: the observation at t={t} is taken as missing")
        alarm = self._alarm()
        if alarm and not self._has_alarm:
            say(f"alarm at t={t}: observations no longer look like the model's predictions")
        self._has_alarm = bool(alarm)
        score = noticed["log_likelihood"] if observed and not skipped else None
        return Told(t, time, observed, score, alarm, skipped, self._params())

    def _params(self) -> dict[str, Any] | None:
        """What is learned as data arrive, networks left out; None where nothing is."""
        try:
            found = self.flow.params
        except NotComputed:
            return None
        numbers = {name: value for name, value in found.items() if eqx.is_array(value)}
        return {name: np.asarray(value).tolist() for name, value in numbers.items()}

    def _alarm(self) -> bool | None:
        """Whether it is raised; None where there is none, or nothing was seen."""
        try:
            return bool(self.flow.alarm.raised)
        except NotComputed:
            return None
