"""What the compiled step of a stream is given: its state, and what stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax

from ssmkit.typing import Array, Int, PyTree

ONE, DRAWS, SERIES = "one", "draws", "series"


class State(NamedTuple):
    """What goes from step to step.

    Attributes:
        t: the time of the next observation.
        carry: what the engine carries, with the lanes in front if there are several; None before
            the first observation.
        log_weights: normalised log weights of the parameter draws ``(K,)``, or None.
        evidence: of parameter draws: log evidence in nats, and the rounding error it owes; None
            where the engine's carry has it.
        skipped: how many steps were of no use, ``()`` or ``(B,)``.
        alarm: the running alarm, of a bank with the series in front; None where there is none,
            and before the first observation.
    """

    t: Int[Array, ""]
    carry: PyTree
    log_weights: Any
    evidence: Any
    skipped: Int[Array, ...]
    alarm: Any = None


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a step is compiled for; equal for streams that can share it.

    Attributes:
        engine: the state engine.
        structure: of the model's arrays.
        static: leaves and structure of the rest of the model.
        lanes: ``"one"``, ``"draws"`` or ``"series"``.
        impl: implementation of the random keys.
        names: of the state's coordinates.
        by_coordinate: whether single coordinates of an observation can be missing.
        run_length: the least mean number of steps to a false alarm; None for no alarm.
    """

    engine: Any
    structure: Any
    static: tuple[tuple[Any, ...], Any]
    lanes: str
    impl: str
    names: tuple[str, ...] | None
    by_coordinate: bool
    run_length: float | None = None

    def model(self, arrays: tuple[Array, ...]) -> Any:
        """Put the model together again."""
        leaves, structure = self.static
        static = jax.tree.unflatten(structure, leaves)
        return eqx.combine(jax.tree.unflatten(self.structure, arrays), static)

    def model_now(self, arrays: tuple[Array, ...], carry: PyTree) -> Any:
        """The model, at the parameters that an engine has learned on the way."""
        model = self.model(arrays)
        learns = hasattr(self.engine, "model_now")
        return self.engine.model_now(model, carry) if learns else model

    def key(self, data: Array) -> Array:
        """A typed key from its data."""
        return jax.random.wrap_key_data(data, impl=self.impl)

    def over_lanes(self, one: Callable, owners: str) -> Callable:
        """Lift a function of one lane; arguments are of the l(ane), m(odel) or d(ata)."""
        if self.lanes == ONE:
            return one
        axes = {"l": 0, "m": 0 if self.lanes == DRAWS else None}
        axes["d"] = 0 if self.lanes == SERIES else None
        return jax.vmap(one, in_axes=tuple(axes[owner] for owner in owners))


class Fixed(NamedTuple):
    """Arguments of every step that stay: the model's arrays, and data of keys by lane."""

    arrays: tuple[Array, ...]
    key: Array
    alarm_key: Array | None = None


def partition(model: Any) -> tuple[tuple[Array, ...], Any, tuple[tuple[Any, ...], Any]]:
    """Split a model into arrays, their structure, and what is static."""
    arrays, static = eqx.partition(model, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    rest, static_structure = jax.tree.flatten(static)
    return tuple(leaves), structure, (tuple(rest), static_structure)
