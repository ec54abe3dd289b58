r"""Twists: what is to come, as seen by a state.

\[\psi_t(x_{t-1}) \approx p(y_{t:T-1} \mid x_{t-1})\]

A twist is an `equinox.Module` with two methods: ``read(model, ys, us, mask)``, once a series, to
features with leading axis ``T`` whose entry at ``t`` has seen ``y_t, y_{t+1}, …`` only; and
``log_twist(model, x, features)``, once a particle, with the features of one time. The library
shifts them: the target at ``t - 1`` is multiplied by what is read from ``t`` on; and where nothing
is observed any more (always behind the last time) there is no twist. Factors that do not depend on
the state change nothing.

A builder is a frozen dataclass with ``build(key, setting)`` that makes one, and ``amortised``:
whether what it has learned serves other series. A twist that is a sum of functions of single
coordinates may say so by ``separable``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.learned.encoders import Recurrent
from ssmkit.learned.heads import Sum
from ssmkit.learned.reading import Scale, Setting, remains
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.reprs import call_repr
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class Twist:
    r"""A learned twist: an encoder reads the observations to come, a head is asked with the state.

    \[\log\psi_t(x) = \mathrm{head}(x, e_t), \qquad e_t = \mathrm{encoder}(y_{t:T-1}, u_{t:T-1})\]

    Args:
        encoder: `Recurrent`, `Windowed`, `PerStep`, or your own builder.
        head: `Quadratic`, `Network`, `Sum`, or your own builder.

    Example:
        >>> import ssmkit as sk
        >>> sk.learned.Twist(sk.learned.Windowed(3), sk.learned.Quadratic()).encoder
        Windowed(length=3)

    Source: D. Lawson, A. Raventós, A. Warrington and S. Linderman (2022), SIXO.
    """

    encoder: Any = Recurrent()
    head: Any = Sum()

    __repr__ = call_repr

    @property
    def amortised(self) -> bool:
        """Whether what is learned serves other series."""
        return self.encoder.amortised

    def build(self, key: Key, setting: Setting) -> LearnedTwist:
        """Make the arrays."""
        encoder_key, head_key = jax.random.split(key)
        encoder = self.encoder.build(encoder_key, setting)
        head = self.head.build(head_key, setting, encoder.size)
        return LearnedTwist(encoder, head, setting.state)


class LearnedTwist(eqx.Module):
    """The networks of `Twist`."""

    encoder: Any
    head: Any
    scale: Scale

    @property
    def separable(self) -> bool:
        """Whether it is a sum of functions of single coordinates of the state."""
        return getattr(self.head, "separable", False)

    def read(self, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any) -> PyTree:
        """Read a series from its end."""
        return jax.vmap(self.head.prepare)(self.encoder(ys, us, mask))

    def log_twist(self, model: StateSpaceModel, x: Array, features: PyTree) -> Scalar:
        """Log twist in nats of one state."""
        return self.head(self.scale(x), features)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a twist has read of a series: asked by time, with the shift and the end built in."""

    twist: Any
    model: StateSpaceModel
    features: PyTree
    remains: Array

    def at(self, t: Any) -> tuple[PyTree, Array]:
        """The features from time ``t`` on, and whether anything is observed there."""
        last = self.remains.shape[0] - 1
        inside = jnp.minimum(t, last)
        return input_at(self.features, inside), self.remains[inside] & (t <= last)

    def log_twist(self, x: Array, known: tuple[PyTree, Array]) -> Scalar:
        """Log twist in nats; zero where nothing is observed any more."""
        features, is_informed = known
        value = self.twist.log_twist(self.model, x, features)
        return jnp.where(is_informed, value, 0.0)


class Beyond(NamedTuple):
    """The log twist of a state by all that comes later than its time; called with the state."""

    reading: Reading
    known: tuple[PyTree, Array]

    @property
    def separable(self) -> bool:
        """Whether it is a sum of functions of single coordinates of the state."""
        return getattr(self.reading.twist, "separable", False)

    def __call__(self, x: Array) -> Scalar:
        """Log twist in nats."""
        return self.reading.log_twist(x, self.known)


def read_series(twist: Any, model: StateSpaceModel, series: tuple[Array, Inputs, Any]) -> Reading:
    """Let a twist read a series."""
    ys, us, mask = series
    return Reading(twist, model, twist.read(model, ys, us, mask), remains(ys, mask))
