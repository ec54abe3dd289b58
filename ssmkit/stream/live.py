"""The object that takes observations; made by `sk.stream`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssmkit.alarm import Alarm
from ssmkit.beliefs import Belief, Labels
from ssmkit.errors import OptionError, ShapeError
from ssmkit.forecast import Forecast
from ssmkit.stream.begin import Seen, Source, describe
from ssmkit.stream.dates import dates_ahead, take_dates
from ssmkit.stream.files import read_stream, require_same, write_stream
from ssmkit.stream.stepper import Stepper
from ssmkit.typing import Inputs, PyTree
from ssmkit.validation import refuse_tracers


class Stream:
    """Takes observations as they come, and answers each with a belief; made by `stream`.

    A step costs what it costs to compute: it is compiled once for a shape (at the first update,
    again at the first update with something missing, and for each length of `update_many`), and
    never waits for its result. What is not there is nan in ``y``, or ``observed=False``.

    A step that cannot be used (an observation that the model holds impossible, particles that
    have all died) is counted in ``diagnostics["skipped"]`` and taken as one with nothing observed.

    On one machine and one set of versions a stream that was saved and read goes on with the same
    bits as one that was not. One by one, by `update_many` and by ``sk.infer`` a series gives the
    same numbers to rounding: the same step with the same keys, in three programs, each of which
    XLA fuses in its own way. Members of a bank agree with streams of their own to rounding
    (Gaussian and finite engines), or in law (particles).

    Example:
        >>> import ssmkit as sk
        >>> flow = sk.stream(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0))
        >>> for y in sk.data.load("nile"):
        ...     belief = flow.update(y)
        >>> round(float(belief.mean()[0]), 1), round(float(flow.log_evidence), 2)
        (798.4, -633.46)
    """

    def __init__(self, source: Source, seen: Seen) -> None:
        """Hold what the stream is of, and what it has seen."""
        self._stepper = Stepper(source, seen)

    def update(self, y: Any, u: PyTree = None, observed: Any = None, *, new: Any = None) -> Belief:
        """Take one observation.

        Args:
            y: the observation, ``(*observation)``; of a bank ``(B, *observation)``.
            u: inputs of this step, or None: at every step, or at none.
            observed: whether it is there, one boolean or one per coordinate; of a bank with ``B``
                in front.
            new: of a bank, the series that begin anew with this observation: their numbers, or
                ``B`` booleans. Belief, evidence, skipped steps and alarm of these slots are those
                of a new series; a slot that nobody has is fed nan.

        Returns:
            The belief about the state at this time; it stays valid after later updates.

        Raises:
            ShapeError: a shape that does not fit the model, or the observations before.
            DataError: no numbers, nan in ``u``, or inputs where there were none before.
            MissingDataError: single coordinates are missing where only whole rows can be.
            EngineError: the engine cannot serve the model, or the model's parameters have ended.
            NonFiniteError: the very first belief is not a number.
            OptionError: ``new`` names no series of the bank, or this is no bank.

        Example:
            >>> import ssmkit as sk
            >>> flow = sk.stream(0, sk.Kalman(), sk.models.LocalLevel(1.0, 1.0))
            >>> flow.update(740.0).mean().tolist(), flow.update(float("nan")).mean().tolist()
            ([740.0], [740.0])
        """
        if new is None:
            belief = self._stepper.step("step", y, u, observed, ())
        else:
            belief = self._stepper.renew(new, y, u, observed)
        self._stepper.seen.undated += 1
        return belief

    def update_many(self, ys: Any, us: Inputs = None, observed: Any = None) -> Belief:
        """Take many observations by one compiled scan: the numbers of as many single updates.

        Args:
            ys: ``(T, *observation)``; of a bank ``(B, T, *observation)``. Dates of a pandas Series
                or DataFrame are kept.
            us: inputs with the same axes in front, or None.
            observed: booleans ``(T,)`` or of the shape of ``ys``; of a bank with ``B`` in front.

        Returns:
            The beliefs, each about the state at its time given all up to then, with the axis of
            time (of a bank ``(B, T)``) in front.

        Raises:
            ShapeError: as `update`, or no observation.
            DataError: as `update`.
            MissingDataError: as `update`.
            EngineError: as `update`.
            NonFiniteError: as `update`.

        Example:
            >>> import ssmkit as sk
            >>> flow = sk.stream(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0))
            >>> flow.update_many(sk.data.load("nile")).mean().shape
            (100, 1)
        """
        source, seen = self._stepper.source, self._stepper.seen
        axis = len(source.lead)
        if 0 in (shape := np.shape(ys))[: axis + 1] or len(shape) <= axis:
            raise ShapeError(
                "ys has too few axes, or is empty.",
                got=f"shape {shape}",
                expected="(B, T, *observation)" if axis else "(T, *observation)",
                fix="stream.update(y) for one observation",
            )
        beliefs = self._stepper.step("many", ys, us, observed, (shape[axis],))
        dates = take_dates(seen, ys, shape[axis])
        return beliefs if dates is None else beliefs.labelled(Labels(dates, beliefs.labels.names))

    def predict(self, num_steps: int, us: Inputs = None) -> Forecast:
        """Forecast the next states and observations; the stream stays where it is.

        Args:
            num_steps: number of steps ahead.
            us: inputs of these steps, with leading axis ``num_steps``, where the stream takes
                inputs; of a bank ``(B, num_steps, …)``.

        Returns:
            A `Forecast`; dated, where the last observations were.

        Raises:
            OptionError: fewer than one step.
            NotComputed: nothing has been seen yet.
            EngineError: the model's parameters end before.
            DataError: inputs are missing, or there were none before.
            ShapeError: inputs of other shapes than before.

        Example:
            >>> import ssmkit as sk
            >>> flow = sk.stream(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0))
            >>> beliefs = flow.update_many(sk.data.load("nile"))
            >>> flow.predict(2).to_frame().round(1)["mean"].tolist()
            [798.4, 798.4]
        """
        if num_steps < 1:
            raise OptionError("num_steps is too small.", got=num_steps, expected="at least 1")
        refuse_tracers("Stream.predict", us)
        source, seen = self._stepper.source, self._stepper.seen
        parts = self._stepper.predict(num_steps, us)
        times, names = dates_ahead(seen, num_steps), source.one_model.state_names
        return Forecast(
            parts["states"].labelled(Labels(times, names)),
            parts["observations"].labelled(Labels(times, source.observation_names)),
        )

    def smoothed(self) -> Belief:
        """Look back: beliefs about the last states, given all that was seen since.

        An update with ``lag=`` costs a few microseconds more; the backward pass is made here. By
        particles it draws paths backward, whatever the ``smoother`` of the engine. Where
        parameters are learned, it is by those that stand now.

        Returns:
            The beliefs at the last ``lag + 1`` times, or as many as were seen (a posterior that
            was gone on from counts with its last), with the axis of time (of a bank ``(B, n)``) in
            front; dated, where the observations were. In a bank the times before a series began
            are nan.

        Raises:
            NotComputed: the stream keeps no past, or nothing has been seen yet.
            SingularTransitionError: particles, and a transition without a density.

        Example:
            >>> import ssmkit as sk
            >>> nile, model = sk.data.load("nile"), sk.models.LocalLevel(1469.0, 15099.0)
            >>> flow = sk.stream(0, sk.Kalman(), model, lag=20)
            >>> beliefs = flow.update_many(nile)
            >>> flow.smoothed().to_frame().round(1)["mean"].tail(2).tolist()
            [804.1, 798.4]
        """
        return self._stepper.smoothed()

    @property
    def time(self) -> int:
        """Number of observations seen, those of a posterior it went on from included."""
        return self._stepper.seen.time

    @property
    def log_evidence(self) -> Any:
        """Log evidence in nats of all that was seen, of a bank ``(B,)``; skipped steps add nothing.

        ``evidence_kind`` and ``evidence_of`` say what it is.
        """
        return self._stepper.seen.report().get("log_evidence", np.zeros(self._stepper.source.lead))

    @property
    def params(self) -> dict[str, Any]:
        """Parameters that are learned as data arrive, as they stand: site to value.

        With ``averaging_from`` of `StochasticAscent`, their mean over time. Of a bank ``(B, …)``.
        Reading it waits for the last step.

        Raises:
            NotComputed: nothing is learned, or nothing has been seen yet.

        Example:
            >>> import numpyro, ssmkit as sk
            >>> def level():
            ...     size = numpyro.param("size", 1.0)
            ...     return sk.models.LocalLevel(size**2, 1.0).with_initial([0.0], [1.0])
            >>> flow = sk.stream(0, sk.OnlineVariational(num_steps=0), level)
            >>> beliefs = [flow.update(y) for y in (0.3, -0.2, 0.8)]
            >>> list(flow.params)
            ['size']
        """
        return self._stepper.params()

    @property
    def evidence_kind(self) -> str:
        """``exact``, ``unbiased``, ``lower bound`` or ``approximate``."""
        return self._stepper.source.evidence_kind

    @property
    def evidence_of(self) -> str:
        """``data given parameters``, ``data``, or ``data since the posterior``."""
        return self._stepper.source.evidence_of

    @property
    def diagnostics(self) -> dict[str, Any]:
        """What was noticed; reading it waits for the last step.

        ``skipped`` counts the steps that were of no use; ``log_likelihood`` in nats and, of
        particles, ``ess`` and ``resampled`` are of the last step (``effective_draws`` where there
        are several parameter draws); ``additive`` is the smoothed mean of a functional that the
        engine carries along.
        """
        found = {"skipped": self._stepper.seen.state.skipped} | self._stepper.seen.report()
        found.pop("log_evidence", None)
        return jax.tree.map(_host, found)

    @property
    def alarm(self) -> Alarm:
        """Whether the observations still look like what the model predicts; reading it waits.

        Bets against the uniformity of each observation's probability integral transform (see
        `diagnose`), on outcomes further out, less far out, lower or higher than predicted, with
        a new bet begun at every step. In the mean it takes ``run_length`` steps or more until
        they have a false success, whatever the model (of particles, up to their Monte Carlo error).
        An observation that is missing leaves them alone; one that the model holds impossible
        counts. An update takes 20 to 70 microseconds longer.

        Raises:
            NotComputed: the stream has no alarm, or nothing has been seen yet.

        Example:
            >>> import ssmkit as sk
            >>> model = sk.models.LocalLevel(1469.0, 15099.0)
            >>> flow = sk.stream(0, sk.Kalman(), model, run_length=1000)
            >>> beliefs = flow.update_many(sk.data.load("nile"))
            >>> flow.alarm.raised
            False
            >>> for strange in (2500.0, 200.0, 2600.0, 100.0):
            ...     belief = flow.update(strange)
            >>> flow.alarm.raised, flow.alarm.since
            (True, 101)

        Source: J. Shin, A. Ramdas and A. Rinaldo (2023), E-detectors: a nonparametric framework
        for sequential change detection.
        """
        return self._stepper.alarm()

    def save(self, path: str | Path) -> Path:
        """Write the stream to one file, at once and with all it needs to go on: data, never code.

        Args:
            path: the file; one of that name is replaced, at the end and at once.

        Returns:
            The path.

        Raises:
            SaveError: something in the model or engine is no data.

        Example:
            >>> import tempfile, pathlib, ssmkit as sk
            >>> flow = sk.stream(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0))
            >>> belief = flow.update(1120.0)
            >>> folder = tempfile.TemporaryDirectory()
            >>> path = flow.save(pathlib.Path(folder.name) / "nile.stream")
            >>> sk.load_stream(path).time
            1
            >>> folder.cleanup()
        """
        return write_stream(path, self._stepper.source, self._stepper.seen)

    def load(self, path: str | Path, using: Iterable[Any] = ()) -> Stream:
        """Go on where a saved stream of the same engine and model was.

        Args:
            path: the file that `save` wrote.
            using: functions and classes of your own that the file refers to, besides the class of
                this stream's model.

        Returns:
            This stream.

        Raises:
            SaveError: the file is damaged or of another version, or its engine or model is not
                that of this stream; nothing is changed then.
        """
        model = self._stepper.source.model
        own = {type(model), type(getattr(model, "followed", model))}
        source, seen = read_stream(path, [*using, *own])
        require_same(self._stepper.source, source)
        self._stepper = Stepper(source, seen)
        return self

    def __repr__(self) -> str:
        """Say engine, model, how much was seen and what it is worth."""
        return describe(self._stepper.source, self._stepper.seen)


def _host(value: Any) -> Any:
    value = np.asarray(value)
    return value.item() if value.ndim == 0 else value
