"""What a model wants of a row: shapes and kinds of observations and inputs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ssmkit.cli.lines import Cells, Columns
from ssmkit.errors import DataError, ModelError, SsmkitError
from ssmkit.models.base import StateSpaceModel
from ssmkit.typing import PyTree
from ssmkit.validation import call_method


class Layout(NamedTuple):
    """Shapes and kinds that a model wants.

    Attributes:
        event: shape of an observation.
        is_whole: whether observations are whole numbers.
        inputs: shape of the inputs of a step; None where there are none.
    """

    event: tuple[int, ...]
    is_whole: bool
    inputs: tuple[int, ...] | None

    def observation(self, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
        """The observation, and what of it is there."""
        there = ~np.isnan(cells.values)
        values = cells.values
        if self.is_whole:
            values = np.where(there, values, 0).astype(np.int64)
        return values.reshape(self.event), there.reshape(self.event)

    def input(self, cells: Cells) -> np.ndarray | None:
        """The inputs, or None."""
        return None if self.inputs is None else cells.inputs.reshape(self.inputs)


def layout_of(model: StateSpaceModel, columns: Columns) -> Layout:
    """Ask a model what it wants, by abstract calls.

    Several inputs come as one array, in the order of their columns; a single one as an array of one
    entry, or as a number where the model wants that.

    Raises:
        DataError: another number of columns than the model has coordinates.
        ModelError: a method of the model fails.
    """
    count = len(columns.inputs or ())
    shapes: list[Any] = [None] if count == 0 else [(count,), ()] if count == 1 else [(count,)]
    failures: list[SsmkitError] = []
    for shape in shapes:
        try:
            event, is_whole = _emission(model, shape)
            break
        except SsmkitError as error:
            failures.append(error)
    else:
        raise failures[0]
    names = columns.observations or ()
    if len(names) != math.prod(event):
        raise DataError(
            "the number of columns is not that of the model's observations.",
            got=f"{len(names)}: {', '.join(names)}",
            expected=f"{math.prod(event)}, for observations of shape {event}",
            fix="--columns a,b names those of the observation, --time and --inputs the others",
        )
    return Layout(event, is_whole, shape)


def _emission(model: StateSpaceModel, shape: tuple[int, ...] | None) -> tuple[tuple, bool]:
    """Shape of what the model emits, and whether these are whole numbers."""
    u: PyTree = None if shape is None else jnp.zeros(shape)
    law = call_method(model, "initial", u)
    is_finite = getattr(law.support, "is_discrete", False)
    x = jnp.zeros(law.event_shape, int if is_finite else jnp.result_type(law.mean))
    moved = call_method(model, "transition", u, x)
    if moved.event_shape != law.event_shape:
        raise ModelError(
            "transition and initial disagree on the shape of a state.",
            got=f"transition {moved.event_shape}, initial {law.event_shape}",
            expected="the same event shape",
        )
    seen = call_method(model, "emission", u, x)
    return seen.event_shape, bool(getattr(seen.support, "is_discrete", False))
