"""Files of streams: what a stream is of and what it has seen, as data."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssmkit.errors import SaveError
from ssmkit.stream.begin import Seen, Source
from ssmkit.stream.intake import Spec
from ssmkit.stream.setup import State, partition


def write_stream(
    path: str | Path, source: Source, seen: Seen, note: Mapping[str, Any] | None = None
) -> Path:
    """Write a stream, atomically; ``note`` is for `ssmkit.serialise.read_note`.

    Raises:
        SaveError: something in it is no data.
    """
    from ssmkit.serialise import write_tree

    held = _fields(seen) | {"state": seen.state._asdict(), "last": seen.report()}
    held["window"] = tuple(seen.window)
    held["spec"] = None if seen.spec is None else _fields(seen.spec)
    return write_tree({"source": _fields(source), "seen": held}, path, kind="stream", note=note)


def read_stream(path: str | Path, using: Iterable[Any]) -> tuple[Source, Seen]:
    """Read a stream.

    Raises:
        SaveError: as `load_stream`.
    """
    from ssmkit.serialise import read_tree

    held = read_tree(path, kind="stream", using=using)
    seen = held["seen"]
    spec = None if seen["spec"] is None else Spec(**seen["spec"])
    source = Source(**held["source"])
    window = deque(seen.get("window", ()), maxlen=source.lag + 1)  # older files have none
    seen |= {"state": State(**seen["state"]), "spec": spec, "window": window}
    return source, Seen(**seen)


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def require_same(here: Source, there: Source) -> None:
    """Refuse a file whose engine, model or number of series are others.

    Raises:
        SaveError: says what differs.
    """
    names = ("engine", "num_series", "num_draws", "evidence_kind", "evidence_of", "run_length")
    for name in (*names, "lag"):
        if getattr(here, name) != getattr(there, name):
            raise _differs(name, getattr(here, name), getattr(there, name))
    if partition(here.model)[1:] != partition(there.model)[1:]:
        raise _differs("model", here.model, there.model)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(here.model), jax.tree.leaves(there.model), strict=True
    )
    for (path, own), other in pairs:
        own, other = np.asarray(own), np.asarray(other)
        if own.dtype != other.dtype or not np.array_equal(own, other, equal_nan=_is_float(own)):
            raise _differs(f"model{jax.tree_util.keystr(path)}", own, other)


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f"


def _differs(what: str, here: Any, there: Any) -> SaveError:
    return SaveError(
        f"the stream in the file is another: {what} differs.",
        got=f"{there!r} in the file",
        expected=repr(here),
        fix="sk.load_stream(path) builds the stream of the file",
    )
