"""Long work in chunks, and a progress bar for what takes longer than two seconds."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

PATIENCE_SECONDS = 2.0
CHUNK_SECONDS = 0.5


def next_chunk(length: int, seconds: float) -> int:
    """Steps of the next chunk: about half a second's worth, at most four times the last."""
    return max(1, min(4 * length, int(length * CHUNK_SECONDS / max(seconds, 1e-3))))


class Progress:
    """Progress of long work, in a notebook or a terminal.

    Args:
        title: what is being done.
        total: number of steps.
        show: True from the start, False never, None after two seconds.
    """

    def __init__(self, title: str, total: int, show: bool | None) -> None:
        self.title, self.total, self.show = title, total, show
        self._started = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        """Start the clock."""
        return self

    def advance_to(self, done: int, objective: float | None = None) -> None:
        """Report that ``done`` steps are finished."""
        waited = time.monotonic() - self._started > PATIENCE_SECONDS
        if self._bar is None and (self.show or (self.show is None and waited)):
            # unasked, only where a person looks: not into a log file
            silent = None if self.show is None else False
            self._bar = _tqdm()(total=self.total, desc=self.title, leave=False, disable=silent)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if objective is not None:
                self._bar.set_postfix_str(f"objective {objective:.4f} nats")

    def __exit__(self, *error: object) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def _tqdm() -> Any:
    """The notebook's bar where its widgets are installed, else the plain one (no warning)."""
    if importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm
