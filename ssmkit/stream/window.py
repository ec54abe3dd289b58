"""The last steps of a stream, and beliefs about them given all that was seen.

Arrays are never written over, so that what the engine carried after a step is kept by holding on
to it: a step costs what it cost without a window. One backward pass, compiled once, smooths it.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.errors import NotComputed, OptionError
from ssmkit.stream.setup import ONE, SERIES, Fixed, Setup
from ssmkit.typing import Array, Bool, PyTree


class Kept(NamedTuple):
    """What is kept of a step.

    Attributes:
        carry: what the engine carried after it.
        u: its inputs.
        new: the series of a bank that began with it ``(B,)``; None where none did.
    """

    carry: PyTree
    u: PyTree
    new: np.ndarray | None = None


Window = deque[Kept]


def check_lag(engine: Any, lag: Any) -> int:
    """Refuse a window that cannot be kept, or an engine that cannot look back.

    Raises:
        OptionError: no number of steps.
        NotComputed: an engine that filters only.
    """
    if not isinstance(lag, int) or isinstance(lag, bool) or lag < 0:
        raise OptionError(
            "lag is no number of steps to look back.", got=repr(lag), expected="≥ 0", fix="lag=20"
        )
    smooths = hasattr(getattr(engine, "evidence", engine), "smooth")
    if lag and not smooths:
        raise NotComputed(
            f"{engine!r} does not smooth the last steps of a stream.",
            fix="lag=0, or an engine such as sk.Kalman(), sk.ForwardBackward() or sk.SMC()",
        )
    return lag


def kept_steps(carries: tuple[PyTree, ...], us: PyTree, axis: int) -> list[Kept]:
    """What is kept of the last steps; ``axis`` of the inputs counts all of them."""
    count = len(carries)

    def at(i: int) -> PyTree:
        # a copy: whoever feeds the stream may write into the array again
        return jax.tree.map(lambda a: np.take(a, a.shape[axis] - count + i, axis), us)

    return [Kept(carry, at(i)) for i, carry in enumerate(carries)]


def smooth(
    setup: Setup, fixed: Fixed, t: Array, carries: tuple[PyTree, ...], us: tuple[PyTree, ...]
) -> Any:
    """Beliefs about the last states by lane, given all observations.

    Args:
        setup: what it is compiled for.
        fixed: the model's arrays and the keys of smoothing, by lane.
        t: the time of the next observation.
        carries: what the engine carried after each of the last steps.
        us: their inputs.
    """

    def stacked(trees: tuple[PyTree, ...], axis: int) -> PyTree:
        return jax.tree.map(lambda *a: jnp.stack(a, axis), *trees)

    times = t - len(carries) + jnp.arange(len(carries))

    def one(key: Array, arrays: Any, carries: PyTree, us: PyTree) -> Any:
        now = jax.random.fold_in(setup.key(key), t)
        return setup.engine.smooth(now, setup.model(arrays), carries, times, us)

    lanes = stacked(carries, 0 if setup.lanes == ONE else 1)
    inputs = stacked(us, 1 if setup.lanes == SERIES else 0)
    return setup.over_lanes(one, "lmld")(fixed.key, fixed.arrays, lanes, inputs)


def padded(window: Window, length: int) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Carries and inputs of as many steps: the first again and again, which says nothing later."""
    steps = [window[0]] * (length - len(window)) + list(window)
    return tuple(step.carry for step in steps), tuple(step.u for step in steps)


def alive(window: Window) -> Bool[np.ndarray, "B n"] | None:
    """Which steps belong to the present series of a bank; None where all do."""
    begun = [step.new for step in window]
    if all(new is None for new in begun[1:]):
        return None
    size = next(len(new) for new in begun if new is not None)
    news = np.stack([np.zeros(size, bool) if new is None else new for new in begun], axis=1)
    news[:, 0] = True
    after = np.cumsum(news, axis=1)
    return after == after[:, -1:]


def cut(belief: Any, count: int, lanes: str, which: Bool[np.ndarray, "B n"] | None) -> Any:
    """Leave out the steps before the first, and make those of earlier series of a bank nan."""
    axis = 0 if lanes == ONE else 1

    def one(a: Array) -> Array:
        a = a[-count:] if axis == 0 else a[:, -count:]
        if which is None or not jnp.issubdtype(a.dtype, jnp.inexact):
            return a
        return jnp.where(which.reshape(which.shape + (1,) * (a.ndim - 2)), a, jnp.nan)

    return jax.tree.map(one, belief)
