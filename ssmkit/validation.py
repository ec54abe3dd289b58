"""Host checks of the verbs: data, targets and a dry run, before anything is compiled."""

from __future__ import annotations

import linecache
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer

from ssmkit.beliefs import Labels
from ssmkit.errors import DataError, EngineError, ModelError, ShapeError, TracerError
from ssmkit.models.base import StateSpaceModel, abstract_law, as_arrays, input_at
from ssmkit.models.distributions import base_distribution
from ssmkit.models.observation import supports_coordinates
from ssmkit.models.programs import Program, program
from ssmkit.posterior import Data
from ssmkit.typing import Inputs, Law


class PrecisionWarning(UserWarning):
    """Data in float64 are about to be used in float32."""


def refuse_tracers(verb: str, *trees: Any) -> None:
    """Refuse to run a host verb inside a transformation.

    Raises:
        TracerError: some leaf is a tracer.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        raise TracerError(
            f"sk.{verb} was called inside jit, grad or vmap.",
            got="traced values",
            expected="concrete arrays: it validates, compiles and reports on the host",
            fix="call it outside, or use sk.log_evidence, which is pure",
        )


def as_target(target: Any) -> StateSpaceModel | Program:
    """Accept a model (its numbers become arrays), a program, or a plain numpyro function.

    Raises:
        EngineError: neither a model nor a function, or a model class instead of a model.
    """
    if isinstance(target, StateSpaceModel | Program):
        return as_arrays(target)
    if callable(target) and not isinstance(target, type):
        return program(target)
    called = isinstance(target, type)
    raise EngineError(
        "the target must be a model or a program.",
        got=f"the class {target.__name__}" if called else type(target).__name__,
        expected="an instance of sk.StateSpaceModel, or a numpyro function that returns one",
        fix=f"{target.__name__}(...)" if called else "sk.models.LocalLevel(1.0, 1.0)",
    )


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


def dry_run(model: StateSpaceModel, data: Data, *, batched: bool) -> None:
    """Call the model's methods on abstract values and compare shapes with the data.

    Raises:
        ModelError: a method fails, or does not return one distribution.
        ShapeError: event shapes do not fit each other, or the data.
    """
    lead = 2 if batched else 1
    u = jax.tree.map(lambda a: jnp.zeros(a.shape[lead:], a.dtype), data.us)
    start = call_method(model, "initial", u)
    x = jnp.zeros(start.event_shape, jnp.result_type(start.mean) if _has_mean(start) else int)
    moved = call_method(model, "transition", u, x)
    seen = call_method(model, "emission", u, x)
    name = type(model).__name__
    if moved.event_shape != start.event_shape:
        raise ShapeError(
            f"{name}: transition and initial disagree on the shape of a state.",
            got=f"transition {moved.event_shape}, initial {start.event_shape}",
            expected="the same event shape",
        )
    if seen.event_shape != data.ys.shape[lead:]:
        raise _observation_mismatch(name, seen, data, lead)
    steps = data.ys.shape[lead - 1]
    if model.num_steps is not None and model.num_steps != steps:
        raise ShapeError(
            f"{name} has parameters for another number of steps.",
            got=f"parameters for {model.num_steps} steps, {steps} observations",
            expected="one entry per observation",
        )
    _check_coordinates(seen, data, lead)


def _has_mean(law: Law) -> bool:
    return not getattr(law.support, "is_discrete", False)


def _observation_mismatch(name: str, seen: Law, data: Data, lead: int) -> ShapeError:
    shape, event = data.ys.shape, seen.event_shape
    fix = None
    if event == (1,) and shape[lead:] == ():
        fix = "ys[:, None]: this model emits vectors of one coordinate"
    elif event == () and shape[lead:] == (1,):
        fix = "ys[:, 0]: this model emits scalars"
    elif lead == 1 and event == shape[2:]:
        fix = "batched=True, if the first axis counts series and the second time"
    return ShapeError(
        f"ys does not have the shape of what {name}.emission returns.",
        got=f"ys of shape {shape}, so observations of shape {shape[lead:]}",
        expected=f"observations of shape {event}",
        fix=fix,
    )


def _check_coordinates(seen: Law, data: Data, lead: int) -> None:
    if data.mask is None or seen.event_shape == () or supports_coordinates(seen):
        return
    axes = tuple(range(lead, data.mask.ndim))
    if bool(jnp.any(jnp.any(data.mask, axes) != jnp.all(data.mask, axes))):
        from ssmkit.models.observation import observed_log_prob

        y = jnp.zeros(seen.event_shape)
        observed_log_prob(seen, y, jnp.zeros(seen.event_shape, bool))  # raises by name


def call_method(model: StateSpaceModel, method: str, u: Any, *args: Any) -> Law:
    """Call one method of a model on abstract values; failures point at the user's line.

    Raises:
        ModelError: the method raised, or did not return a single numpyro distribution.
    """
    where = f"{type(model).__name__}.{method}"
    try:
        law = abstract_law(lambda: getattr(model.at(0), method)(*args, u))
    except Exception as error:
        if isinstance(error, ModelError | ShapeError | DataError):
            raise
        raise ModelError(
            f"{where} failed{_user_line(error)}.",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="the model may use u: pass us=..." if u is None else None,
        ) from error
    if not isinstance(law, dist.Distribution):
        raise ModelError(
            f"{where} must return a distribution.",
            got=type(law).__name__,
            expected="a numpyro distribution",
            fix="dist.Normal(mean, scale)",
        )
    if law.batch_shape != ():
        raise ModelError(
            f"{where} returned several distributions instead of one.",
            got=f"{type(base_distribution(law)).__name__} with batch shape {law.batch_shape}",
            expected="one distribution, batch shape ()",
            fix="add .to_event(1) for independent coordinates, or write it for one state",
        )
    return law


def _user_line(error: BaseException) -> str:
    """Say where in the user's own code an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if not _is_library(f.filename)]
    if not mine:
        return ""
    frame = mine[-1]
    line = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f" at {frame.filename}:{frame.lineno}: `{line}`"


def _is_library(filename: str) -> bool:
    if "site-packages" in filename or filename.startswith("<frozen"):
        return True
    here = __file__.rsplit("/", 1)[0]
    return filename.startswith(here) and "/models/" not in filename


def first_inputs(data: Data, batched: bool) -> Inputs:
    """Inputs of the first series."""
    return input_at(data.us, 0) if batched else data.us
