"""The engine room of a stream: what it is of, what it has seen, and its compiled functions."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import numpy as np

from ssmkit.beliefs import Belief
from ssmkit.errors import EngineError, NonFiniteError, NotComputed
from ssmkit.stream.begin import Seen, Source
from ssmkit.stream.intake import Row, Spec, spec_of, take, take_inputs, take_slots
from ssmkit.stream.packed import Shared
from ssmkit.stream.setup import Fixed, partition
from ssmkit.stream.step import Compiled, compiled
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
        after, last, belief = self._call(name, spec, row)
        if isinstance(belief, Shared):
            belief = belief.restore(after)
        seen.state, seen.last, seen.spec = after, last, spec
        seen.time += count
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
        return belief.restore(seen.state)

    def _call(self, name: str, spec: Spec, row: Row) -> tuple[Any, Any, Any]:
        if self.seen.spec is not None:
            return getattr(self._functions, name)(self._fixed, self.seen.state, *row)
        functions = compiled(self.source.setup(spec))
        told = getattr(functions, name)(self._fixed, self.seen.state, *row)
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
