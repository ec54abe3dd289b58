"""Where rows go: standard output, or a file that is written row by row, or all at once."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ssmkit.errors import SaveError


class Output:
    """Rows that go out one by one, each at once.

    Args:
        path: the file, or None for standard output.
        offset: where to go on in it, which cuts off what comes after; None for a new file.

    Raises:
        SaveError: a new file is there already, or one to go on with is too short.
    """

    def __init__(self, path: Path | None, offset: int | None) -> None:
        """Check that rows can go there; nothing is opened or written."""
        self._path, self._start, self._file = path, offset or 0, None
        if path is None:
            return
        size = path.stat().st_size if path.exists() else 0
        if offset is None and path.exists():
            raise SaveError(
                f"{path} is there already, and no checkpoint says how it goes on.",
                expected="a new file, or the checkpoint that belongs to it",
                fix="another --output, or remove it",
            )
        if size < self._start:
            raise SaveError(
                f"{path} is not what the checkpoint goes on with.",
                got=f"{size} bytes",
                expected=f"at least {offset}, which were written when the checkpoint was",
                fix="the same --output; or remove checkpoint and output to begin anew",
            )

    def open(self) -> None:
        """Open the file for this process alone, and cut it off where rows go on.

        Raises:
            OSError: it cannot be opened.
            SaveError: another process writes to it.
        """
        if self._path is None:
            return
        self._file = self._path.open("r+b" if self._path.exists() else "xb", buffering=0)
        if not _is_ours(self._file):
            raise SaveError(
                f"another process writes to {self._path}.",
                expected="one stream for each output and its checkpoint",
                fix="wait until it has ended, or another --output and --checkpoint",
            )
        self._file.truncate(self._start)
        self._file.seek(self._start)

    def write(self, row: bytes) -> None:
        """Write one row, whole."""
        if self._file is None:
            sys.stdout.buffer.write(row)
            sys.stdout.buffer.flush()
            return
        while row:  # a raw file may take a part
            row = row[self._file.write(row) :]

    @property
    def offset(self) -> int:
        """Number of bytes in the file, all of them on the disk; 0 for standard output."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _is_ours(file: IO[bytes]) -> bool:
    """Lock a file until it is closed or the process is gone; where there are no locks, hope."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def write_all(path: Path | None, rows: Iterable[bytes]) -> None:
    """Write rows to standard output, or to a file that is replaced at the end and at once.

    Raises:
        OSError: it cannot be written.
    """
    if path is None:
        output = Output(None, None)
        for row in rows:
            output.write(row)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(b"".join(rows))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
