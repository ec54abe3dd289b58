"""From what the user has to arrays: data, masks, inputs and dates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.beliefs import Labels
from ssmkit.errors import DataError, ShapeError
from ssmkit.posterior import Data
from ssmkit.typing import Inputs


class PrecisionWarning(UserWarning):
    """Data in float64 are about to be used in float32."""


def as_data(ys: Any, us: Any, observed: Any, *, batched: bool) -> Data:
    """Turn what the user has into arrays, a mask and dates.

    Raises:
        DataError: empty, complex, object-typed, or nan where it cannot be.
        ShapeError: ``us`` or ``observed`` do not match ``ys``.
    """
    if _is_list_of_series(ys):
        return _ragged(ys, us, observed)
    values, labels = _array("ys", ys)
    lead = 2 if batched else 1
    if values.ndim < lead or 0 in values.shape[:lead]:
        raise DataError(
            "ys is empty." if values.ndim >= lead else "ys has too few axes.",
            got=f"shape {values.shape}",
            expected="(B, T, *observation) with batched=True" if batched else "(T, *observation)",
        )
    us = _inputs(us, values.shape[:lead], labels)
    mask = _mask(ys, values, observed, lead)
    return Data(jnp.asarray(values), us, mask, None, labels)


def _is_list_of_series(ys: Any) -> bool:
    return isinstance(ys, Sequence) and len(ys) > 0 and np.ndim(ys[0]) > 0


def _array(name: str, values: Any) -> tuple[np.ndarray, Labels]:
    labels = _labels(values)
    array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    if array.dtype == bool:
        array = array.astype(np.int32)
    if array.dtype.kind not in "iuf":
        raise DataError(
            f"{name} is not an array of real numbers or integers.",
            got=f"dtype {array.dtype}" + (" (integers with missing values?)" * _has_none(array)),
            expected="floats (nan where missing), or integers with observed=",
            fix=f"{name}.astype(float), or integers with a boolean observed= of shape (T,)",
        )
    if array.dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore
        _notice_precision()
    return array, labels


def _has_none(array: np.ndarray) -> bool:
    return array.dtype == object


def _notice_precision() -> None:
    warnings.warn(
        "float64 data will run in float32. For full precision, put this line before anything "
        'else:\n    jax.config.update("jax_enable_x64", True)',
        PrecisionWarning,
        stacklevel=5,
    )


def _labels(values: Any) -> Labels:
    index = getattr(values, "index", None)
    if index is None or callable(index):
        return Labels()
    columns = getattr(values, "columns", None)
    if columns is not None:
        return Labels(index, tuple(map(str, columns)))
    name = getattr(values, "name", None)
    return Labels(index, None if name is None else (str(name),))


def _inputs(us: Any, lead: tuple[int, ...], labels: Labels) -> Inputs:
    if us is None:
        return None
    is_leaf = lambda leaf: hasattr(leaf, "to_numpy")  # noqa: E731
    leaves, structure = jax.tree.flatten(us, is_leaf=is_leaf)
    arrays = []
    for leaf in leaves:
        array, own = _array("us", leaf)
        if array.shape[: len(lead)] != lead:
            raise ShapeError(
                "us does not match ys.",
                got=f"us of shape {array.shape}, ys with {lead} in front",
                expected=f"us with leading axes {lead}",
                fix="one row of inputs per observation, also where the observation is missing",
            )
        dates, expected = own.times, labels.times
        if dates is not None and expected is not None and not dates.equals(expected):
            raise DataError("us and ys have different dates.", fix="us.reindex(ys.index)")
        if array.dtype.kind == "f" and np.isnan(array).any():
            bad = np.argwhere(np.isnan(array))[0]
            raise DataError(
                "us holds nan; only observations can be missing.",
                got=f"nan at {tuple(int(i) for i in bad)}",
                expected="finite inputs",
                fix="fill the inputs, for example us.interpolate()",
            )
        arrays.append(jnp.asarray(array))
    return jax.tree.unflatten(structure, arrays)


def _mask(ys: Any, values: np.ndarray, observed: Any, lead: int) -> jax.Array | None:
    there = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    if isinstance(ys, np.ma.MaskedArray):
        there = there & ~np.ma.getmaskarray(ys)
    if observed is not None:
        mask = np.asarray(observed)
        if mask.dtype != bool or mask.shape not in (values.shape[:lead], values.shape):
            raise ShapeError(
                "observed does not match ys.",
                got=f"{mask.dtype} of shape {mask.shape}",
                expected=f"booleans of shape {values.shape[:lead]} (whole rows) or {values.shape}",
                fix="observed = ~np.isnan(ys)",
            )
        there = there & mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return None if there.all() else jnp.asarray(there)


def _ragged(ys: Sequence, us: Any, observed: Any) -> Data:
    """Pad a list of series with steps at which nothing is observed."""
    count = len(ys)
    for name, other in (("us", us), ("observed", observed)):
        if other is not None and (not isinstance(other, Sequence) or len(other) != count):
            raise ShapeError(f"{name} must be a list as long as ys.", expected=f"{count} entries")
    each = [
        as_data(y, us and us[i], observed and observed[i], batched=False) for i, y in enumerate(ys)
    ]
    if len({d.ys.shape[1:] for d in each}) > 1:
        raise ShapeError(
            "the series of a batch do not have the same coordinates.",
            got=f"observations of shapes {[d.ys.shape[1:] for d in each]}",
            expected="one shape; only the lengths may differ",
        )
    lengths = tuple(d.ys.shape[0] for d in each)
    longest = max(lengths)

    def pad(a: jax.Array) -> jax.Array:
        return jnp.concatenate([a, jnp.repeat(a[-1:], longest - a.shape[0], axis=0)])

    masks = [jnp.ones(d.ys.shape, bool) if d.mask is None else d.mask for d in each]
    padded = [
        jnp.concatenate([m, jnp.zeros((longest - m.shape[0], *m.shape[1:]), bool)]) for m in masks
    ]
    stacked: Any = jax.tree.map(
        lambda *a: jnp.stack([pad(x) for x in a]), *[(d.ys, d.us) for d in each]
    )
    mask = jnp.stack(padded)
    labels = Labels(None, each[0].labels.names)
    dates = tuple(d.labels for d in each)
    values, us = stacked[0], stacked[1]
    return Data(values, us, None if bool(mask.all()) else mask, lengths, labels, dates)
