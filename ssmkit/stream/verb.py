"""The verbs: begin a stream, or read one from a file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ssmkit import keys
from ssmkit.errors import OptionError
from ssmkit.infer import _fixed_model
from ssmkit.posterior import Posterior
from ssmkit.stream.begin import at_nothing, at_posterior, check_engine
from ssmkit.stream.files import read_stream
from ssmkit.stream.live import Stream
from ssmkit.stream.window import check_lag
from ssmkit.typing import Key
from ssmkit.validation import as_target, refuse_tracers


def stream(
    key: Key | int,
    engine: Any,
    target: Any,
    num_series: int | None = None,
    *,
    run_length: float | None = None,
    lag: int = 0,
) -> Stream:
    """Take observations one at a time, by the step that `infer` scans.

    Args:
        key: a typed random key, or an integer seed; with the key of `infer`, its numbers.
        engine: a state engine: ``sk.Kalman()``, ``sk.SMC()``, …
        target: a model, a program (with free sites where the engine learns them as data arrive,
            as ``sk.OnlineVariational()`` does), or the posterior of one series. A posterior
            is gone on from at its last time, with its parameters; where there are several draws of
            them, each keeps a filter of its own and counts by how well it predicts. An engine
            other than that of the posterior begins at its last belief.
        num_series: number of series of a bank, stepped side by side; None for one series.
        run_length: raise `Stream.alarm` when the observations stop looking like what the model
            predicts, with this many steps or more to a false alarm, in the mean: 1000, say. None
            for no alarm.
        lag: number of steps before the last that `Stream.smoothed` looks back on; what the engine
            carried at each is held on to. 0 keeps nothing.

    Returns:
        A `Stream`.

    Raises:
        RandomKeyError: ``key`` is no key.
        EngineError: no state engine, the posterior of a batch, or an engine that cannot begin
            where the posterior ends.
        ParameterError: a program with free sites.
        OptionError: an impossible number of series, run length or lag.
        NotComputed: a lag for an engine that does not smooth a stream.

    Example:
        >>> import ssmkit as sk
        >>> nile, model = sk.data.load("nile"), sk.models.LocalLevel(1469.0, 15099.0)
        >>> flow = sk.stream(1, sk.SMC(num_particles=500), sk.infer(0, sk.Kalman(), model, nile))
        >>> belief = flow.update(740.0)
        >>> flow.time, flow.evidence_kind
        (101, 'unbiased')
    """
    refuse_tracers("stream", key, target)
    key = keys.as_key(key)
    check_engine(engine)
    if run_length is not None and not 1 < (run_length := float(run_length)) < math.inf:
        raise OptionError(
            "run_length is no number of steps to a false alarm.",
            got=run_length,
            expected="a number above 1, or None for no alarm",
            fix="run_length=1000",
        )
    options = (num_series, run_length, check_lag(engine, lag))
    if isinstance(target, Posterior):
        target.require_series("stream")
        return Stream(*at_posterior(key, engine, target, *options))
    target = as_target(target)
    learns = hasattr(engine, "model_of")
    model = engine.model_of(target) if learns else _fixed_model(engine, target)
    return Stream(*at_nothing(key, engine, model, *options))


def load_stream(path: str | Path, using: Iterable[Any] = ()) -> Stream:
    """Read a stream that goes on, bit for bit, where the saved one was.

    Args:
        path: the file that `Stream.save` wrote.
        using: model classes and functions of your own that the file refers to; nothing in a file
            is run.

    Raises:
        SaveError: a damaged file, one of another version or of something else, or a class or
            function that was not handed over.

    Example:
        >>> import tempfile, pathlib, ssmkit as sk
        >>> flow = sk.stream(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0))
        >>> belief = flow.update(1120.0)
        >>> folder = tempfile.TemporaryDirectory()
        >>> again = load_stream(flow.save(pathlib.Path(folder.name) / "nile.stream"))
        >>> bool((again.update(1160.0).mean() == flow.update(1160.0).mean()).all())
        True
        >>> folder.cleanup()
    """
    return Stream(*read_stream(path, using))
