"""Variables of an export: names, dims and dates that netCDF and ArviZ can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ssmkit.posterior import Posterior
from ssmkit.typing import PyTree

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

SAMPLE = ("chain", "draw")
RESERVED = (*SAMPLE, "time", "state", "states", "log_weights")


def named_leaves(values: dict[str, PyTree]) -> dict[str, np.ndarray]:
    """Arrays by name; a network gives one for each leaf, such as ``net.layers[0].weight``.

    Slashes, which netCDF reads as folders, become dots; a name that ArviZ or the export uses for
    something else gets ``_parameter`` appended.
    """
    found: dict[str, np.ndarray] = {}
    for site, tree in values.items():
        stem = site.removesuffix("$params").replace("/", ".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = stem + jax.tree_util.keystr(path).replace("/", ".")
            while name in RESERVED or name in found:
                name += "_parameter"
            found[name] = np.asarray(leaf)
    return found


def event_dims(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the dims of an event, as ArviZ gives them."""
    return tuple(f"{name}_dim_{i}" for i in range(len(shape)))


def variable(name: str, values: np.ndarray, lead: tuple[str, ...]) -> xr.DataArray:
    """An array with named dims: ``lead``, then those of the event."""
    import xarray as xr

    shape = values.shape[len(lead) :]
    dims = event_dims(name, shape)
    coords = {dim: np.arange(size) for dim, size in zip(dims, shape, strict=True)}
    return xr.DataArray(values, coords, (*lead, *dims))


def dataset(variables: dict[str, Any], shape: tuple[int, ...], note: str) -> xr.Dataset:
    """Variables with chain and draw coordinates, and a note on what they are."""
    import xarray as xr

    coords = {dim: np.arange(size) for dim, size in zip(SAMPLE, shape, strict=True)}
    return xr.Dataset(variables, coords, {"note": note})


def times_of(posterior: Posterior) -> dict[str, Any]:
    """The coordinate ``time``: dates where there are, else ``0 … T-1``."""
    length = posterior.data.ys.shape[0]
    times = posterior.data.labels.times
    if times is None or len(times) != length:
        return {"time": np.arange(length)}
    return {"time": _plain(times)}


def _plain(times: pd.Index) -> Any:
    """An index that netCDF can hold: periods as their starts, zones as UTC, the rest as text."""
    import pandas as pd

    if isinstance(times, pd.PeriodIndex):
        times = times.to_timestamp()
    if isinstance(times, pd.DatetimeIndex):
        return (times if times.tz is None else times.tz_convert(None)).to_numpy()
    if isinstance(times, pd.TimedeltaIndex) or pd.api.types.is_numeric_dtype(times):
        return times.to_numpy()
    return np.array([str(t) for t in times], dtype=object)
