"""The engine room of a stream: what it is of, what it has seen, and its compiled functions."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import numpy as np

from ssmkit.alarm import Alarm, read_alarm
from ssmkit.beliefs import Belief, Labels, mix
from ssmkit.errors import EngineError, NonFiniteError, NotComputed
from ssmkit.stream.begin import Seen, Source
from ssmkit.stream.dates import last_dates
from ssmkit.stream.intake import Row, Spec, spec_of, take, take_inputs, take_slots
from ssmkit.stream.packed import Shared
from ssmkit.stream.setup import DRAWS, SERIES, Fixed, partition
from ssmkit.stream.step import Compiled, compiled
from ssmkit.stream.window import Kept, alive, cut, kept_steps, padded
from ssmkit.typing import Inputs, PyTree


class Stepper:
    """Runs the compiled functions; what it has seen changes only when all went well."""

    def __init__(self, source: Source, seen: Seen) -> None:
        """Hold what the stream is of, and what it has seen."""
        self.source, self.seen = source, seen

    def step(self, name: str, y: Any, u: PyTree, observed: Any, more: tuple[int, ...]) -> Belief:
        """Take one observation (``"step"``), or the number ``more`` of them (``"many"``)."""
        source, seen, count = self.source, self.seen, *(more or (1,))
        lead = source.lead + more
        spec = seen.spec
        if spec is None:
            spec = spec_of(source.engine, source.one_model, y, u, len(lead), begun=False)
        row = take(spec, y, u, observed, lead)
        self.require_parameters(count)
        keep = min(count, source.lag + 1) if source.lag else 0
        options = {"keep": keep} if keep and more else {}
        after, last, belief, *carries = self._call(name, spec, row, options)
        if isinstance(belief, Shared):
            belief = belief.restore(after)
        seen.state, seen.last, seen.spec = after, last, spec
        seen.time += count
        if keep:
            carried = carries[0] if more else (after.carry,)
            us = row[1] if more else jax.tree.map(lambda a: np.expand_dims(a, len(lead)), row[1])
            seen.window.extend(kept_steps(carried, us, len(source.lead)))
        return belief

    def renew(self, new: Any, y: Any, u: PyTree, observed: Any) -> Belief:
        """Take one observation of every series of a bank, the first one of those that are new."""
        source, seen = self.source, self.seen
        slots = take_slots(new, source.num_series)
        if seen.spec is None or not slots.any():
            return self.step("step", y, u, observed, ())
        if self._num_steps is not None:
            raise EngineError(
                "the model's parameters belong to times, and the clock of a bank goes on for all.",
                got="new= with a model that changes with time",
                fix="a bank of its own for the series that is new",
            )
        row = take(seen.spec, y, u, observed, source.lead)
        told = self._functions.renew(self._fixed, self._renewal, seen.state, slots, *row)
        seen.state, seen.last, belief = told
        seen.time += 1
        if source.lag:
            us = jax.tree.map(np.array, row[1])
            seen.window.append(Kept(seen.state.carry, us, slots))
        return belief.restore(seen.state)

    def _call(self, name: str, spec: Spec, row: Row, options: dict[str, int]) -> tuple[Any, ...]:
        if self.seen.spec is not None:
            return getattr(self._functions, name)(self._fixed, self.seen.state, *row, **options)
        functions = compiled(self.source.setup(spec))
        told = getattr(functions, name)(self._fixed, self.seen.state, *row, **options)
        _require_start(told[0].carry)
        return told

    def predict(self, num_steps: int, us: Inputs) -> dict[str, Any]:
        """Beliefs about the next states and observations."""
        source, spec = self.source, self.seen.spec
        if spec is None:
            raise NotComputed(
                "nothing has been seen yet.",
                fix="stream.update(y) first; sk.simulate(key, model, num_steps) draws from a model",
            )
        self.require_parameters(num_steps)
        us = take_inputs(spec, us, (*source.lead, num_steps))
        fixed = self._fixed._replace(key=source.lane_keys("forecasting"))
        return self._functions.ahead(fixed, self.seen.state, us, num_steps=num_steps)

    def smoothed(self) -> Belief:
        """Beliefs about the last states, given all that was seen."""
        source, seen = self.source, self.seen
        if not source.lag or not seen.window:
            raise NotComputed(
                "nothing has been seen yet." if source.lag else "this stream keeps no past.",
                fix="stream.update(y) first" if source.lag else "sk.stream(…, lag=20)",
            )
        window, lanes = seen.window, source.lanes
        fixed = self._fixed._replace(key=source.lane_keys("smoothing"))
        told = self._functions.smooth(fixed, seen.state.t, *padded(window, source.lag + 1))
        belief = cut(told, len(window), lanes, alive(window) if lanes == SERIES else None)
        if lanes == DRAWS:
            belief = mix(belief, seen.state.log_weights)
        times = last_dates(seen, len(window))
        return belief.labelled(Labels(times, source.one_model.state_names))

    def params(self) -> dict[str, Any]:
        """Parameters that are learned as data arrive, as they stand."""
        source, seen = self.source, self.seen
        if not hasattr(source.model, "values") or seen.spec is None:
            raise NotComputed(
                "this stream has learned no parameters.",
                fix="sk.stream(key, sk.OnlineVariational(), program), and an update",
            )
        return source.engine.params_now(source.model, seen.state.carry)

    def alarm(self) -> Alarm:
        """The running alarm, as it stands."""
        run_length, state = self.source.run_length, self.seen.state.alarm
        if run_length is None:
            raise NotComputed(
                "this stream has no alarm.", fix="sk.stream(key, engine, target, run_length=1000)"
            )
        if state is None:
            raise NotComputed("nothing has been seen yet.", fix="stream.update(y) first")
        return read_alarm(state, run_length)

    def require_parameters(self, count: int) -> None:
        """Refuse steps for which the model has no parameters.

        Raises:
            EngineError: they end before.
        """
        if self._num_steps is not None and self.seen.time + count > self._num_steps:
            raise EngineError(
                "the model's parameters end before this step.",
                got=f"time {self.seen.time + count - 1}, counted from 0",
                expected=f"times below {self._num_steps}, for which the model has parameters",
                fix="a model with longer parameter arrays, or one that does not change with time",
            )

    @cached_property
    def _functions(self) -> Compiled:
        spec: Any = self.seen.spec
        return compiled(self.source.setup(spec))

    @cached_property
    def _fixed(self) -> Fixed:
        source = self.source
        alarm_key = None if source.run_length is None else source.lane_keys("alarm")
        return Fixed(partition(source.model)[0], source.lane_keys("time"), alarm_key)

    @cached_property
    def _renewal(self) -> Any:
        """Keys of series that begin in a slot; that the engine can begin one is checked once."""
        spec: Any = self.seen.spec
        blank = jax.tree.map(lambda a: a[None], spec.inputs)
        self.source.engine.check_steps(self.source.one_model, blank, begun=False)
        return self.source.lane_keys("renewal")

    @cached_property
    def _num_steps(self) -> int | None:
        return self.source.one_model.num_steps


def _require_start(carry: PyTree) -> None:
    """A first belief that is not a number stays so; later ones fall back on the last good one."""
    leaves = [np.asarray(a) for a in jax.tree.leaves(carry)]
    if any(np.isnan(a).any() for a in leaves if a.dtype.kind == "f"):
        raise NonFiniteError(
            "the belief about the first state is not a number, whatever is observed.",
            expected="an initial law with finite parameters",
            fix="look for nan in the parameters or inputs",
        )
