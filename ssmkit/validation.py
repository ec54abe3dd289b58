"""Host checks of the verbs: targets and a dry run, before anything is compiled."""

from __future__ import annotations

import linecache
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer

from ssmkit.errors import DataError, EngineError, ModelError, ShapeError, TracerError
from ssmkit.models.base import StateSpaceModel, abstract_law, as_arrays, input_at
from ssmkit.models.distributions import base_distribution
from ssmkit.models.observation import supports_coordinates
from ssmkit.models.programs import Program, program
from ssmkit.posterior import Data
from ssmkit.typing import Inputs, Law


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
