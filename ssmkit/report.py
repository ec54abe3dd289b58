"""Small helpers for the command line: a stopwatch, a heartbeat, a table in plain text."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

HEARTBEAT_SECONDS = 10.0
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"

_watches: list[Stopwatch] = []


class Stopwatch:
    """Wall seconds of a block, and how many of them XLA spent compiling.

    Example:
        >>> with Stopwatch() as watch:
        ...     total = sum(range(10))
        >>> watch.compiling
        0.0
    """

    def __init__(self) -> None:
        self.seconds, self.compiling = 0.0, 0.0
        self._started = 0.0

    def __enter__(self) -> Stopwatch:
        """Start."""
        _listen()
        _watches.append(self)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._started
        _watches.remove(self)


_listening = False


def _listen() -> None:
    """Ask jax, once, to tell how long each compilation took."""
    global _listening
    if _listening:
        return
    import jax

    jax.monitoring.register_event_duration_secs_listener(_on_event)
    _listening = True


def _on_event(event: str, duration_secs: float, **_: Any) -> None:
    if event == COMPILE_EVENT:
        for watch in _watches:
            watch.compiling += duration_secs


@contextlib.contextmanager
def heartbeat(say: Callable[[str], Any], every: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Say every few seconds that work goes on."""
    stop, begun = threading.Event(), time.perf_counter()

    def beat() -> None:
        while not stop.wait(every):
            say(f"    … {time.perf_counter() - begun:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table in plain text; cells may have several lines.

    Example:
        >>> print(table(("a", "b"), [("1", "2\n3")]))
        a  b
        ────
        1  2
           3
    """
    blocks = [[cell.split("\n") for cell in row] for row in (header, *rows)]
    widths = [max(len(line) for row in blocks for line in row[i]) for i in range(len(header))]
    lines: list[str] = []
    for number, block in enumerate(blocks):
        for i in range(max(len(cell) for cell in block)):
            cells = [cell[i] if i < len(cell) else "" for cell in block]
            padded = (f"{cell:{w}}" for cell, w in zip(cells, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
        if number == 0:
            lines.append("─" * (sum(widths) + 2 * (len(widths) - 1)))
        elif number < len(blocks) - 1:
            lines.append("")
    return "\n".join(lines)
