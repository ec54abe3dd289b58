"""Small real series with their dates, units, source and licence.

The files are in the wheel as ``ssmkit/datasets`` and in a checkout as the top-level ``data``; the
network is never used. Pandas is imported when a series is loaded, so that ``import ssmkit`` stays
cheap.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmkit.errors import UnknownNameError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    import pandas as pd

__all__ = ["load", "names"]


@cache
def _folder() -> Traversable:
    packaged = files("ssmkit") / "datasets"
    if packaged.is_dir():
        return packaged
    return Path(__file__).resolve().parent.parent / "data"


@cache
def _catalogue() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads((_folder() / "catalogue.toml").read_text(encoding="utf-8"))


def names() -> list[str]:
    """Give the names that `load` knows.

    Returns:
        The names, in alphabetical order.

    Raises:
        FileNotFoundError: The data files are missing, so the installation is damaged.

    Example:
        >>> import ssmkit as sk
        >>> sk.data.names()
        ['co2', 'currencies', 'eurusd', 'macrodata', 'nile', 'sp500', 'sunspots']
    """
    return sorted(_catalogue())


def load(name: str) -> pd.Series | pd.DataFrame:
    """Load a real series with its dates; a missing value is `nan`.

    Args:
        name: One of `names()`.

    Returns:
        A series, or a frame if there are several columns, in float64, indexed by date. The index
        has a `freq` where the dates are regular. Its `.attrs` hold `units` (a text, or for a
        frame a dictionary by column), `source`, `licence` and `description`.

    Raises:
        UnknownNameError: There is no series of that name.

    Example:
        >>> import ssmkit as sk
        >>> nile = sk.data.load("nile")
        >>> nile.attrs["units"]
        '10^8 m^3 per year'
        >>> int(sk.data.load("co2").isna().sum())
        5
    """
    if not isinstance(name, str) or name not in _catalogue():
        raise _unknown(name)
    import pandas as pd

    entry = _catalogue()[name]
    with (_folder() / f"{name}.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file, index_col="date", parse_dates=["date"]).astype("float64")
    if "frequency" in entry:
        # `asfreq` would invent rows for dates left out; this refuses a file that has such holes.
        frame.index = pd.DatetimeIndex(frame.index, freq=entry["frequency"])
    data = frame.iloc[:, 0] if frame.shape[1] == 1 else frame
    data.attrs = _attributes(entry)
    return data


def _attributes(entry: Mapping[str, Any]) -> dict[str, Any]:
    units = entry["units"]
    return {
        # A copy: the catalogue is cached, and attributes are the user's to change.
        "units": dict(units) if isinstance(units, Mapping) else units,
        "source": entry["source"],
        "licence": entry["licence"],
        "description": f"{entry['title']}. {entry['made']}",
    }


def _unknown(name: object) -> UnknownNameError:
    from difflib import get_close_matches

    close = get_close_matches(str(name), names(), n=1)
    return UnknownNameError(
        "there is no data set of this name",
        got=repr(name),
        expected=f"one of {', '.join(names())}",
        fix=f"did you mean {close[0]!r}?" if close else "pass one of the names above",
    )
