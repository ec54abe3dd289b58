"""The entry verb: ``infer(key, engine, target, ys)`` answers with a posterior."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ssmkit import keys
from ssmkit.engines.options import RunOptions
from ssmkit.engines.states import state_posterior
from ssmkit.errors import DataError, EngineError, OptionError, ParameterError
from ssmkit.models.base import as_arrays
from ssmkit.models.density import Density
from ssmkit.models.programs import Program, build, free_sites
from ssmkit.posterior import Posterior
from ssmkit.series import as_data
from ssmkit.typing import Inputs, Key
from ssmkit.validation import as_target, dry_run, first_inputs, refuse_tracers

KEEP = ("all", "final")


def infer(
    key: Key | int,
    engine: Any,
    target: Any,
    ys: Any = None,
    us: Inputs = None,
    observed: Any = None,
    *,
    learned: Any = None,
    batched: bool = False,
    throw: bool = True,
    progress: bool | None = None,
    callback: Any = None,
    checkpoint: Any = None,
    keep: str = "all",
) -> Posterior:
    """Infer states, parameters or both, by any engine.

    Args:
        key: a typed random key, or an integer seed.
        engine: how: ``sk.Kalman()``, ``sk.GradientFit(evidence=sk.Kalman())``, …
        target: a model, or a program (a numpyro function that returns one); of ``sk.FAB()`` also a
            ``sk.Density``, without ``ys``.
        ys: observations ``(T, *observation)``: an array, a pandas Series or DataFrame (dates are
            kept). nan is missing. With ``batched=True`` ``(B, T, *observation)``; a list of
            series is a ragged batch.
        us: inputs with leading axis ``T``, or None.
        observed: booleans ``(T,)`` or ``(T, M)`` for integer data, or to leave data out.
        learned: ``posterior.learned`` of an earlier run by the same kind of engine: a fit begins
            there, and ``sk.SIXO`` serves new data by it without learning again.
        batched: whether the first axis of ``ys`` counts series.
        throw: raise when a computation becomes non-finite; else flag it in the diagnostics.
        progress: show progress; None shows it for anything over two seconds.
        callback: called with a dictionary after each chunk of learning or drawing; returning
            True stops.
        checkpoint: a file in which long learning keeps how far it has come; when it is there, the
            run goes on from it as if it had not been interrupted.
        keep: ``"all"``, or ``"final"`` for the evidence and the last belief only, in memory that
            does not grow with ``T``.

    Returns:
        A `Posterior`.

    Raises:
        RandomKeyError: ``key`` is no key.
        EngineError: the engine cannot serve this target.
        ParameterError: a state engine was given a program with free sites.
        DataError: ``ys`` or ``us`` cannot be used.
        ShapeError: shapes do not fit each other, or the model.
        ModelError: a method of the model fails or returns no usable distribution.
        NonFiniteError: the evidence is not finite (``throw=True``).

    Example:
        >>> import ssmkit as sk
        >>> nile = sk.data.load("nile")
        >>> posterior = sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0), nile)
        >>> posterior.states.mean().shape
        (100, 1)
    """
    refuse_tracers("infer", key, target, ys, us, observed)
    key = keys.as_key(key)
    _check_options(engine, keep, learned, checkpoint)
    if isinstance(target, Density):
        return _of_density(key, engine, target, (ys, us, observed, checkpoint), RunOptions(
            keep, throw, progress, callback, False, learned))  # fmt: skip
    if ys is None:
        raise DataError(
            "there are no observations.",
            got="ys=None",
            expected="ys of shape (T, *observation); only a Density goes without",
        )
    is_list = isinstance(ys, list | tuple)
    data = as_data(ys, us, observed, batched=batched)
    batched = batched or (is_list and data.lengths is not None)
    target = as_target(target)
    files = _files(checkpoint, key, engine, target, data)
    options = RunOptions(keep, throw, progress, callback, batched, learned, files)
    if hasattr(engine, "fit"):
        _check_start(engine, target, data, batched=batched)
        return engine.fit(key, target, data, options)
    model = _fixed_model(engine, target)
    check_model(engine, model, data, batched=batched)
    return state_posterior(engine, keys.purpose(key, "time"), target, model, data, options)


def _of_density(
    key: Key, engine: Any, target: Density, given: tuple, options: RunOptions
) -> Posterior:
    *series, checkpoint = given
    if not getattr(engine, "serves_densities", False):
        raise EngineError(
            f"{engine!r} infers state-space models, and this is a plain density.",
            got=repr(target),
            expected="a model or a program",
            fix="sk.FAB()",
        )
    if any(a is not None for a in series):
        raise DataError(
            "a density comes without a series.",
            got="ys, us or observed",
            fix="arrays that the density needs go in by sk.Density(log_prob, dim, array, …)",
        )
    target = as_arrays(target)
    files = _files(checkpoint, key, engine, target, None)
    return engine.fit(key, target, None, dataclasses.replace(options, checkpoint=files))


def _files(path: Any, *run: Any) -> Any:
    from ssmkit.checkpoint import as_checkpoint

    return as_checkpoint(path, *run)


def _check_options(engine: Any, keep: str, learned: Any, checkpoint: Any) -> None:
    if isinstance(engine, type):
        raise EngineError(
            "the engine must be an instance.",
            got=f"the class {engine.__name__}",
            fix=f"sk.{engine.__name__}()",
        )
    if not hasattr(engine, "fit") and not hasattr(engine, "infer"):
        raise EngineError(
            "the second argument must be an engine.",
            got=type(engine).__name__,
            expected="an engine such as sk.Kalman()",
            fix="sk.infer(key, sk.Kalman(), model, ys)",
        )
    if keep not in KEEP:
        raise OptionError("unknown value of keep.", got=repr(keep), expected=KEEP)
    if checkpoint is not None and not getattr(engine, "takes_checkpoint", False):
        raise OptionError(
            f"{engine!r} keeps no checkpoints.",
            got="checkpoint=...",
            expected="None",
            fix="drop checkpoint=",
        )
    if learned is not None and not getattr(engine, "takes_learned", False):
        raise OptionError(
            f"{engine!r} does not learn.", got="learned=...", expected="None", fix="drop learned="
        )


def _fixed_model(engine: Any, target: Any) -> Any:
    if not isinstance(target, Program):
        return target
    names = list(free_sites(target))
    if names:
        raise ParameterError(
            f"{engine!r} infers states, and this program has free sites: {', '.join(names)}.",
            got=f"{target!r} with {len(names)} free sites",
            expected="a model, or a program without free sites",
            fix=f"sk.GradientFit(evidence={engine!r}) to fit them, or "
            f"sk.NUTS(evidence={engine!r}) to draw them",
        )
    return build(target, {})


def _check_start(engine: Any, target: Any, data: Any, *, batched: bool) -> None:
    """Dry run of the model that a program builds at its start values."""
    evidence = getattr(engine, "evidence", engine)
    if evidence is None:  # parameters and states jointly
        dry_run(_at_start(target) if isinstance(target, Program) else target, data, batched=batched)
        return
    if not isinstance(target, Program) and evidence is engine:
        check_model(engine, target, data, batched=batched)
        return
    usable = hasattr(evidence, "check") and not isinstance(evidence, type)
    if not isinstance(target, Program) or not usable:
        return  # the engine itself says what is wrong
    check_model(evidence, _at_start(target), data, batched=batched)


def _at_start(target: Program) -> Any:
    """The model at the values that a program begins with."""
    return build(target, {name: site.value for name, site in free_sites(target).items()})


def check_model(engine: Any, model: Any, data: Any, *, batched: bool) -> None:
    """Dry run of model × data × engine."""
    dry_run(model, data, batched=batched)
    engine.check(model, first_inputs(data, batched))


def apply(posterior: Posterior, ys: Any, us: Inputs, observed: Any, *, key: Key | int) -> Posterior:
    """Filter and smooth new data with the parameters of a posterior."""
    from ssmkit.engines.states import check_finite, run_states

    refuse_tracers("Posterior.apply", key, ys, us, observed)
    data = as_data(ys, us, observed, batched=False)
    engine, model = posterior.state_engine, posterior.model
    if engine is posterior.engine and posterior.parts.get("learned") is not None:
        learned = posterior.learned
        return infer(key, engine, posterior.target, ys, us, observed, learned=learned)
    weights = posterior.parts["state_log_weights"]
    single = weights.shape[0] == 1
    one = model if single else jax.tree.map(lambda a: a[0], model)
    check_model(engine, one, data, batched=False)
    time_key = keys.purpose(keys.as_key(key), "time")
    draws = None if single else weights
    parts = run_states(engine, time_key, model, data, RunOptions(), draws)
    if single:
        check_finite(parts, engine, throw=True)
    for name in ("params", "estimates", "state_index"):
        if name in posterior.parts:
            parts[name] = posterior.parts[name]
    return Posterior(
        posterior.engine,
        posterior.target,
        data,
        model,
        parts,
        engine,
        engine.evidence_kind if single else None,
        "data given parameters" if single else None,
    )
