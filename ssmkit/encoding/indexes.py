"""Pandas indexes as plain trees, and back, without pickle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssmkit.errors import SaveError

if TYPE_CHECKING:
    import pandas as pd


def index_to_tree(index: pd.Index) -> dict[str, Any]:
    """Describe an index by numbers and texts.

    Raises:
        SaveError: a kind of index that is neither dates, numbers, texts nor levels of these.
    """
    import pandas as pd

    if isinstance(index, pd.MultiIndex):
        levels = [index_to_tree(index.get_level_values(i)) for i in range(index.nlevels)]
        return {"kind": "levels", "levels": levels, "name": list(index.names)}
    tree: dict[str, Any] = {"name": index.name}
    if isinstance(index, pd.RangeIndex):
        return tree | {"kind": "range", "range": (index.start, index.stop, index.step)}
    if isinstance(index, pd.PeriodIndex):
        return tree | {"kind": "periods", "values": index.asi8, "freq": index.freqstr}
    if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex):
        kind, zone = "spans", None
        if isinstance(index, pd.DatetimeIndex):
            kind, zone = "dates", None if index.tz is None else str(index.tz)
        tree |= {"kind": kind, "values": index.asi8, "unit": index.unit}
        return tree | {"freq": index.freqstr, "zone": zone}
    if pd.api.types.is_numeric_dtype(index.dtype) and isinstance(index.dtype, np.dtype):
        return tree | {"kind": "numbers", "values": index.to_numpy()}
    if all(isinstance(entry, str) for entry in index):
        return tree | {"kind": "texts", "values": list(index), "dtype": str(index.dtype)}
    raise SaveError(
        "this kind of index cannot be written.",
        got=f"{type(index).__name__} of {index.dtype}",
        expected="dates, periods, numbers or texts",
        fix="ys.index = pd.DatetimeIndex(ys.index), or ys.reset_index(drop=True), before infer",
    )


def tree_to_index(tree: dict[str, Any]) -> pd.Index:
    """Build the index that `index_to_tree` described."""
    import pandas as pd

    kind, name = tree["kind"], tree["name"]
    if kind == "levels":
        levels = [tree_to_index(level) for level in tree["levels"]]
        return pd.MultiIndex.from_arrays(levels, names=name)
    if kind == "range":
        return pd.RangeIndex(*tree["range"], name=name)
    if kind == "periods":
        return pd.PeriodIndex.from_ordinals(tree["values"], freq=tree["freq"], name=name)
    if kind == "numbers":
        return pd.Index(tree["values"], name=name)
    if kind == "texts":
        return pd.Index(tree["values"], name=name, dtype=tree["dtype"])
    code = "M8" if kind == "dates" else "m8"
    values = np.asarray(tree["values"]).view(f"{code}[{tree['unit']}]")
    build = pd.DatetimeIndex if kind == "dates" else pd.TimedeltaIndex
    index: Any = build(values, name=name)
    if tree["zone"] is not None:
        index = index.tz_localize("UTC").tz_convert(tree["zone"])
    return _with_frequency(index, tree["freq"])


def _with_frequency(index: Any, freq: str | None) -> Any:
    """Set the frequency; one that its text does not tell in full (own holidays) is left out."""
    if freq is None:
        return index
    try:
        return type(index)(index, freq=freq)
    except ValueError:
        return index
