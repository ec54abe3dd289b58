"""Ctrl-C and SIGTERM between two lines, never within one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


class Stopped(Exception):
    """The process was asked to stop, and is between two lines.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        """Keep the number."""
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number  # as a shell has it


class Interrupts:
    """While it is open, SIGINT and SIGTERM wait for the line that is being worked on.

    So that a checkpoint can be written when the process is asked to stop. A second one does not
    wait.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self._asked: int | None = None
        self._is_reading = False
        self._before: list[Any] = []

    def __enter__(self) -> Interrupts:
        """Take the signals."""
        self._before = [signal.signal(number, self._ask) for number in self.SIGNALS]
        return self

    def __exit__(self, *error: object) -> None:
        """Give them back."""
        for number, handler in zip(self.SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def reading(self, readline: Callable[[], bytes]) -> Callable[[], bytes]:
        """The same function, which stops while it waits, or before.

        Raises:
            Stopped: from that function.
        """

        def read() -> bytes:
            if self._asked is not None:
                raise Stopped(self._asked)
            self._is_reading = True
            try:
                return readline()
            finally:
                self._is_reading = False

        return read

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._is_reading:
            raise Stopped(number)
        if self._asked is not None:
            raise KeyboardInterrupt
        self._asked = number
