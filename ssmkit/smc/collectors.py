"""What may go along with a cloud of particles, in a state of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ssmkit.typing import Array, Float, Int, Key, PyTree


class Move(NamedTuple):
    """What a collector sees of a step.

    Attributes:
        before: the states before ``(N, *state)``.
        log_weights_before: their weights, without what selection multiplied them by.
        ancestors: index of each particle's parent among them.
        states: the states after.
        log_weights: their weights after the observation.
    """

    before: PyTree
    log_weights_before: Float[Array, " N"]
    ancestors: Int[Array, " N"]
    states: PyTree
    log_weights: Float[Array, " N"]


class Collector(NamedTuple):
    """What goes along with a cloud, in a state of its own, and leaves the cloud as it is.

    Attributes:
        first: ``(states, log_weights, s) -> state``, at the first time.
        step: ``(key, state, move, s) -> state``.
    """

    first: Callable[[PyTree, Array, PyTree], PyTree]
    step: Callable[[Key, PyTree, Move, PyTree], PyTree]
