"""What a user feeds a stream: checked on the host, as numpy arrays, before anything runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ssmkit.errors import DataError, OptionError, ShapeError
from ssmkit.models.observation import supports_coordinates, whole_rows
from ssmkit.posterior import Data
from ssmkit.smc.filter import floating_type
from ssmkit.typing import Inputs, PyTree
from ssmkit.validation import call_method, dry_run, refuse_tracers

Row = tuple[np.ndarray, PyTree, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What every observation of a stream looks like; set by the first.

    Attributes:
        event: shape of one observation.
        dtype: its type.
        by_coordinate: whether single coordinates can be missing.
        inputs: zeros of the shapes and types of one step's inputs, or None.
    """

    event: tuple[int, ...]
    dtype: np.dtype
    by_coordinate: bool
    inputs: PyTree


def spec_of(engine: Any, model: Any, y: Any, u: PyTree, lead: int, *, begun: bool) -> Spec:
    """Learn from the first observation, and check model × data × engine.

    Args:
        engine: the state engine.
        model: the model, at one parameter value.
        y: the observation, with ``lead`` axes in front (series, time).
        u: inputs with the same axes in front, or None.
        lead: number of these axes.
        begun: whether the stream goes on from a belief, so that no first state is needed.

    Raises:
        DataError: no numbers.
        ShapeError: shapes do not fit the model.
        ModelError: a method of the model fails.
        EngineError: the engine cannot serve the model.
    """
    refuse_tracers("Stream.update", y, u)
    values = as_values("y", y)
    inputs = jax.tree.map(lambda a: _blank(as_values("u", a), lead), u)
    event = values.shape[lead:]
    steps = model.num_steps or 1
    example = _many(np.zeros(event, values.dtype), steps)
    data = Data(example, jax.tree.map(lambda a: _many(a, steps), inputs))
    dry_run(model, data, batched=False)
    engine.check_steps(model, data.us, begun=begun)
    abstract = jax.tree.map(jnp.asarray, inputs)
    law = call_method(model, "initial", abstract)
    is_finite = getattr(law.support, "is_discrete", False)
    x = jnp.zeros(law.event_shape, int if is_finite else jnp.result_type(law.mean))
    seen = call_method(model, "emission", abstract, x)
    dtype = jax.dtypes.canonicalize_dtype(values.dtype)
    if dtype.kind != "f" and not getattr(seen.support, "is_discrete", False):
        dtype = np.dtype(floating_type(model, example))  # 740 today may be 740.5 tomorrow
    return Spec(event, dtype, supports_coordinates(seen), inputs)


def _blank(values: np.ndarray, lead: int) -> np.ndarray:
    return np.zeros(values.shape[lead:], jax.dtypes.canonicalize_dtype(values.dtype))


def _many(values: np.ndarray, count: int) -> Any:
    return jnp.asarray(np.broadcast_to(values, (count, *values.shape)))


def as_values(name: str, given: Any) -> np.ndarray:
    """An array of numbers on the host.

    Raises:
        DataError: something else.
    """
    if isinstance(given, Tracer):
        refuse_tracers("Stream.update", given)
    values = np.asarray(given.to_numpy() if hasattr(given, "to_numpy") else given)
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.int32)
    if kind not in "iuf":
        raise DataError(
            f"{name} is not made of real numbers or integers.",
            got=f"dtype {values.dtype}",
            expected="floats (nan where missing), or integers with observed=",
            fix=f"{name}=float('nan') or observed=False for an observation that is missing",
        )
    return values


def take(spec: Spec, y: Any, u: PyTree, observed: Any, lead: tuple[int, ...]) -> Row:
    """One step's observation, inputs and mask; or many with ``lead`` axes in front.

    Returns:
        The observation; the inputs; what is there, None when everything is.

    Raises:
        ShapeError: a shape other than that of the first observation.
        DataError: another kind of numbers, nan in ``u``, or inputs where there were none.
        MissingDataError: single coordinates are missing where only whole rows can be.
    """
    values = as_values("y", y)
    if values.shape != lead + spec.event:
        raise ShapeError(
            "y does not have the shape of the observations of this stream.",
            got=f"shape {values.shape}",
            expected=f"shape {lead + spec.event}",
        )
    mask = _mask(spec, y, values, observed, lead)
    return _cast("y", values, spec.dtype), take_inputs(spec, u, lead), mask


def _cast(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if values.dtype == dtype:
        return values
    if values.dtype.kind == "f" and dtype.kind != "f":
        raise DataError(
            f"{name} was made of integers so far.",
            got=f"dtype {values.dtype}",
            expected=f"dtype {dtype}",
            fix=f"int({name}); observed=False where an observation is missing",
        )
    return values.astype(dtype)


def _mask(
    spec: Spec, y: Any, values: np.ndarray, observed: Any, lead: tuple[int, ...]
) -> np.ndarray | None:
    there = None
    if values.dtype.kind == "f" and (absent := np.isnan(values)).any():
        there = ~absent
    if isinstance(y, np.ma.MaskedArray):
        seen = ~np.ma.getmaskarray(y)
        there = seen if there is None else there & seen
    if observed is not None:
        seen = _observed(spec, observed, lead)
        there = np.broadcast_to(seen, values.shape) if there is None else there & seen
    if there is None or there.all():
        return None
    if not spec.by_coordinate:
        # refuses rows that are there in part
        there = np.asarray(whole_rows(jnp.asarray(there.reshape((-1, *spec.event)))))
        there = there.reshape(lead)
    return there


def _observed(spec: Spec, observed: Any, lead: tuple[int, ...]) -> np.ndarray:
    seen = np.asarray(observed)
    if seen.dtype != bool or seen.shape not in (lead, lead + spec.event):
        raise ShapeError(
            "observed does not match y.",
            got=f"{seen.dtype} of shape {seen.shape}",
            expected=f"booleans of shape {lead} (the whole of it) or {lead + spec.event}",
            fix="observed=False for an observation that is missing",
        )
    return seen.reshape(seen.shape + (1,) * (len(lead + spec.event) - seen.ndim))


def take_slots(new: Any, num_series: int | None) -> np.ndarray:
    """Which series of a bank are new ``(B,)``, from their numbers or as booleans.

    Raises:
        OptionError: the stream is no bank, or has no such series.
    """
    if num_series is None:
        raise OptionError(
            "only a bank has slots that series may leave and take.",
            got="new= on a stream of one series",
            expected="sk.stream(key, engine, model, num_series=B)",
            fix="another sk.stream for another series",
        )
    slots = np.asarray(new)
    if slots.dtype == bool and slots.shape == (num_series,):
        return slots
    slots = np.atleast_1d(slots)
    if slots.shape == (0,):
        return np.zeros(num_series, bool)
    if (
        slots.ndim > 1
        or slots.dtype.kind not in "iu"
        or not np.isin(slots, np.arange(num_series)).all()
    ):
        raise OptionError(
            "new says which series of the bank begin anew.",
            got=repr(new),
            expected=f"numbers from 0 to {num_series - 1}, or {num_series} booleans",
        )
    return np.isin(np.arange(num_series), slots)


def take_inputs(spec: Spec, u: PyTree, lead: tuple[int, ...]) -> Inputs:
    """Inputs of one step, or of many with ``lead`` axes in front.

    Raises:
        DataError: there were none before, or there were; or nan.
        ShapeError: other shapes than those of the first step.
    """
    if u is None and spec.inputs is None:
        return None
    if (u is None) != (spec.inputs is None):
        raise DataError(
            "this stream takes inputs." if u is None else "this stream takes no inputs.",
            got="u=None" if u is None else "u",
            expected="inputs at every step, or at none",
            fix="u=the inputs of this step" if u is None else "u=None",
        )
    leaves, structure = jax.tree.flatten(u, is_leaf=lambda a: hasattr(a, "to_numpy"))
    blanks, expected = jax.tree.flatten(spec.inputs)
    arrays = [as_values("u", leaf) for leaf in leaves]
    shapes = [lead + blank.shape for blank in blanks]
    if structure != expected or [a.shape for a in arrays] != shapes:
        raise ShapeError(
            "u does not have the shape of the inputs of this stream.",
            got=f"{structure} of shapes {[a.shape for a in arrays]}",
            expected=f"{expected} of shapes {shapes}",
        )
    if any(a.dtype.kind == "f" and np.isnan(a).any() for a in arrays):
        raise DataError("u holds nan; only observations can be missing.", fix="fill the inputs")
    cast = [_cast("u", a, blank.dtype) for a, blank in zip(arrays, blanks, strict=True)]
    return jax.tree.unflatten(structure, cast)
