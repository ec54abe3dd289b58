"""Checkpoints of a stream: its state, how much of the input it has used, where its output ends."""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssmkit.cli.options import Every
from ssmkit.errors import SaveError
from ssmkit.serialise import read_note
from ssmkit.stream import Stream
from ssmkit.stream.files import write_stream

KIND = "stream"


class Position(NamedTuple):
    """How far a stream has come.

    Attributes:
        lines: number of lines of the input that were used.
        digest: of these lines.
        last: the last time, as it was written, or None.
        offset: number of bytes in the output.
        form: of the lines, ``"csv"`` or ``"json"``.
        header: all columns of the input.
    """

    lines: int
    digest: str
    last: Any
    offset: int
    form: str
    header: tuple[str, ...]


class Checkpoint:
    """One file that holds a stream and its position, written anew from time to time.

    Args:
        path: the file, or None for no checkpoints.
        every: how often.
    """

    def __init__(self, path: Path | None, every: Every) -> None:
        """Read the note of the file, if there is one; all else waits."""
        self.path, self.every = path, every
        self._note = read_note(path, kind=KIND) if path is not None and path.exists() else None
        self._saved_time, self._saved_at = 0, time.monotonic()
        if path is not None and path.exists() and self._note is None:
            raise SaveError(
                f"{path} is no checkpoint of the command line.",
                got="a stream that was saved in Python",
                expected="what `ssmkit stream --checkpoint` wrote",
                fix="another --checkpoint",
            )

    @property
    def position(self) -> Position | None:
        """Where to go on; None at the beginning."""
        return None if self._note is None else Position(**self._note["position"])

    def resume(self, flow: Stream, of: Mapping[str, Any], using: Iterable[Any]) -> None:
        """Put a stream where the file was.

        Raises:
            SaveError: the file is of another command, engine or model.
        """
        there = {} if self._note is None else self._note["of"]
        for name, value in of.items():
            if there.get(name) != value:
                raise SaveError(
                    f"the checkpoint is of another command: {name} differs.",
                    got=f"{there.get(name)!r} in {self.path}",
                    expected=repr(value),
                    fix="the command that wrote it, or another --checkpoint and --output",
                )
        if self.path is None:
            return
        flow.load(self.path, using)
        self._saved_time = flow.time
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*"):
            if re.fullmatch("[0-9a-f]{32}", left.suffix[1:]):
                left.unlink(missing_ok=True)  # of a process that was killed while it wrote

    def is_due(self, flow: Stream) -> bool:
        """Whether it is time to write it."""
        if self.path is None:
            return False
        if self.every.count is not None:
            return flow.time - self._saved_time >= self.every.count
        return time.monotonic() - self._saved_at >= (self.every.seconds or 0.0)

    def save(self, flow: Stream, of: Mapping[str, Any], position: Position) -> None:
        """Write the file, at once; the output up to the position is on the disk already."""
        if self.path is None:
            return
        note = {"of": dict(of), "position": position._asdict()}
        write_stream(self.path, flow._stepper.source, flow._stepper.seen, note)
        self._saved_time, self._saved_at = flow.time, time.monotonic()
