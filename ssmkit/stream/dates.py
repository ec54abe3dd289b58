"""Dates of what a stream has seen, and of what comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssmkit.forecast import future_times
from ssmkit.stream.begin import Seen

if TYPE_CHECKING:
    import pandas as pd


def take_dates(seen: Seen, ys: Any, count: int) -> pd.Index | None:
    """Note the dates of the ``count`` observations taken last, if they have some."""
    dates = getattr(ys, "index", None) if hasattr(ys, "to_numpy") else None
    if dates is None:
        seen.undated += count
        return None
    short = seen.lag + 1 - count
    if short > 0 and seen.dates is not None and seen.undated == 0:
        # a window may be longer than what came at once
        seen.dates = seen.dates[-short:].append(dates)
    else:
        seen.dates = dates
    seen.undated = 0
    return dates


def dates_ahead(seen: Seen, num_steps: int) -> pd.Index | None:
    """Dates of the next steps; None where they are not known."""
    times = future_times(seen.dates, seen.undated + num_steps)
    if times is None or seen.dates is None:
        return None
    return times[seen.undated :].rename(seen.dates.name)


def last_dates(seen: Seen, count: int) -> pd.Index | None:
    """Dates of the last ``count`` steps; None where they are not known."""
    if seen.dates is None:
        return None
    times = seen.dates
    if seen.undated:
        after = future_times(times, seen.undated)
        if after is None:
            return None
        times = times[-count:].append(after.rename(times.name))
    return times[-count:] if len(times) >= count else None
