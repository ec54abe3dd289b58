"""Rows of the output: one JSON object a line."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ssmkit.beliefs import Belief, Categorical


class Told(NamedTuple):
    """What a row says besides the belief."""

    t: int
    time: Any
    observed: bool
    score: Any = None
    alarm: bool | None = None
    skipped: bool = False
    params: dict[str, Any] | None = None


class Writer:
    """Makes the rows of beliefs about one thing.

    Args:
        levels: of the quantiles.
        default: what coordinates without a name are called, with their number: ``x`` or ``y``.
    """

    def __init__(self, levels: tuple[float, ...], default: str = "x") -> None:
        """Keep the levels."""
        self.levels, self.default = levels, default
        self._levels = np.asarray(levels)

    def columns(self, belief: Belief) -> dict[str, np.ndarray]:
        """What the rows say of a belief, or of beliefs over time: name to array."""
        told = jax.device_get(_moments(belief, self._levels))
        for level, values in zip(self.levels, told.pop("quantiles", ()), strict=False):
            told[f"quantiles {level:g}"] = values
        return told

    def names(self, belief: Belief) -> list[str]:
        """Names of the coordinates, or of the states of a finite belief."""
        if isinstance(belief, Categorical):
            return [f"state {k}" for k in range(belief.log_probabilities.shape[-1])]
        return belief._names(self.default)

    def row(self, told: Told, names: list[str], columns: dict[str, np.ndarray]) -> bytes:
        """One line."""
        line: dict[str, Any] = {"t": told.t, "time": told.time, "observed": told.observed}
        for name, values in columns.items():
            kind, _, level = name.partition(" ")
            by_name = dict(zip(names, map(_number, np.ravel(values)), strict=True))
            if level:
                line.setdefault(kind, {})[level] = by_name
            else:
                line[kind] = by_name
        line |= {"score": _number(told.score), "alarm": told.alarm, "skipped": told.skipped}
        if told.params is not None:
            line["params"] = told.params
        return json.dumps(line, allow_nan=False, ensure_ascii=False).encode() + b"\n"


@eqx.filter_jit
def _moments(belief: Any, levels: Any) -> dict[str, Any]:
    if isinstance(belief, Categorical):
        return {"probabilities": belief.probabilities()}
    return {"mean": belief.mean(), "sd": belief.std(), "quantiles": belief.quantile(levels)}


def _number(value: Any) -> float | int | None:
    """A number of JSON; null where there is none, or it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return np.asarray(value).item()
