"""Encoders: what the observations from each time on come to, as a row of numbers.

The row at ``t`` has read ``y_t, y_{t+1}, …`` and nothing before. A builder says which network; its
``build`` makes the arrays.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.errors import ShapeError
from ssmkit.learned.reading import Scale, Setting, rows_of
from ssmkit.reprs import call_repr
from ssmkit.typing import Array, Float, Inputs, Key

NUM_DELAYS = 2


def encode_delay(steps: Array) -> Float[Array, "... 2"]:
    """Steps until the next row that says something, as numbers of size one."""
    return jnp.stack([1 / (1 + steps), jnp.log1p(steps) / 4], axis=-1)


def num_columns(setting: Setting) -> int:
    """Numbers in a row of `rows_of`."""
    return 2 * setting.observation.size + setting.num_inputs


@dataclasses.dataclass(frozen=True, repr=False)
class Recurrent:
    r"""A gated recurrent network that reads the series from its end.

    \[h_t = \mathrm{GRU}(h_{t+1},\, (y_t, m_t, u_t)), \qquad e_t = (h_t, \text{delay})\]

    Steps at which nothing is said pass it on, so that gaps and padding change nothing but the
    delay until the next observation.

    Args:
        size: entries of the hidden state.

    Source: K. Cho et al. (2014), Learning phrase representations using RNN encoder-decoder.
    """

    size: int = 32

    amortised = True

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting) -> RecurrentEncoder:
        """Make the arrays."""
        width = num_columns(setting) + NUM_DELAYS
        cell = eqx.nn.GRUCell(width, self.size, dtype=setting.dtype, key=key)
        return RecurrentEncoder(cell, setting.observation)


class RecurrentEncoder(eqx.Module):
    """The network of `Recurrent`."""

    cell: eqx.nn.GRUCell
    scale: Scale

    @property
    def size(self) -> int:
        """Entries of a row."""
        return self.cell.hidden_size + NUM_DELAYS

    def __call__(self, ys: Array, us: Inputs, mask: Any) -> Float[Array, "T F"]:
        """Encode a series."""
        rows, speaks = rows_of(self.scale, (ys, us, mask))

        def back(carry: tuple[Array, Array, Array], at: tuple[Array, Array]) -> tuple[Any, Array]:
            hidden, delay, heard = carry
            row, says = at
            read = self.cell(jnp.concatenate([row, encode_delay(delay)]), hidden)
            hidden = jnp.where(says, read, hidden)
            # behind the last row that says something nothing is counted: padding may stand there
            delay = jnp.where(says, 0.0, delay + heard)
            heard = jnp.where(says, 1.0, heard).astype(heard.dtype)
            return (hidden, delay, heard), jnp.concatenate([hidden, encode_delay(delay)])

        zero = jnp.zeros((), rows.dtype)
        start = (jnp.zeros(self.cell.hidden_size, rows.dtype), zero, zero)
        return jax.lax.scan(back, start, (rows, speaks), reverse=True)[1]


@dataclasses.dataclass(frozen=True, repr=False)
class Windowed:
    r"""The next ``length`` rows that say something, each with the steps until then.

    \[e_t = (y_{s_1}, s_1 - t, \dots, y_{s_L}, s_L - t), \qquad t \le s_1 < s_2 < \dots\]

    Args:
        length: rows of the window.
    """

    length: int = 1

    amortised = True

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting) -> WindowedEncoder:
        """Nothing is learned here."""
        columns = num_columns(setting)
        return WindowedEncoder(setting.observation, self.length, columns)


class WindowedEncoder(eqx.Module):
    """The window of `Windowed`."""

    scale: Scale
    length: int = eqx.field(static=True)
    num_columns: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Entries of a row."""
        return self.length * (self.num_columns + NUM_DELAYS + 1)

    def __call__(self, ys: Array, us: Inputs, mask: Any) -> Float[Array, "T F"]:
        """Encode a series."""
        rows, speaks = rows_of(self.scale, (ys, us, mask))

        def back(carry: Any, at: tuple[Array, Array]) -> tuple[Any, Array]:
            held, delays, valid = carry
            row, says = at
            pushed = (
                jnp.concatenate([row[None], held[:-1]]),
                jnp.concatenate([jnp.zeros(1, rows.dtype), delays[:-1] + 1]),
                jnp.concatenate([jnp.ones(1, rows.dtype), valid[:-1]]),
            )
            waited = (held, delays + 1, valid)
            held, delays, valid = jax.tree.map(lambda a, b: jnp.where(says, a, b), pushed, waited)
            told = jnp.concatenate([held, encode_delay(delays), valid[:, None]], axis=1)
            return (held, delays, valid), (told * valid[:, None]).ravel()

        size = self.length
        start = (
            jnp.zeros((size, rows.shape[1]), rows.dtype),
            jnp.zeros(size, rows.dtype),
            jnp.zeros(size, rows.dtype),
        )
        return jax.lax.scan(back, start, (rows, speaks), reverse=True)[1]


@dataclasses.dataclass(frozen=True, repr=False)
class PerStep:
    """Free numbers for each time, for one series only: nothing is read, everything is learned.

    Args:
        size: numbers for each time.
    """

    size: int = 8

    amortised = False

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting) -> PerStepEncoder:
        """Make the arrays."""
        shape = (setting.num_steps, self.size)
        return PerStepEncoder(jax.random.normal(key, shape, setting.dtype))


class PerStepEncoder(eqx.Module):
    """The table of `PerStep`."""

    table: Float[Array, "T F"]

    @property
    def size(self) -> int:
        """Entries of a row."""
        return self.table.shape[1]

    def __call__(self, ys: Array, us: Inputs, mask: Any) -> Float[Array, "T F"]:
        """The rows, whatever the series.

        Raises:
            ShapeError: the series has another length than the one that was learned from.
        """
        if ys.shape[0] != self.table.shape[0]:
            raise ShapeError(
                "what was learned for each step serves no series of another length.",
                got=f"{ys.shape[0]} steps",
                expected=f"{self.table.shape[0]} steps",
                fix="an encoder that reads the series: learned.Recurrent() or learned.Windowed()",
            )
        return self.table
