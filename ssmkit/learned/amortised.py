"""One network for the filters and backward kernels of all times and series."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.learned.backward import Filter, Kernel, Moves, Residual, residual, still
from ssmkit.learned.encoders import num_columns
from ssmkit.learned.reading import Scale, Setting, rows_of
from ssmkit.models.base import StateSpaceModel
from ssmkit.reprs import call_repr
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Step, log_emission
from ssmkit.typing import Array, Float, Key

CLIPPED = 10.0  # slopes and curvatures beyond which a network does not tell them apart
FARTHEST = 3.0  # standard deviations of the start that a network may move things by


@dataclasses.dataclass(frozen=True, repr=False)
class Amortised:
    r"""A recurrent network that says how far filter and kernel stand from their start.

    \[h_t = \mathrm{GRU}(h_{t-1}, (y_t, m_t, u_t)), \qquad
    \phi_t = \phi^0_t + s_t\, g\big(h_t, \phi^0_t, \nabla \log p(y_t \mid x),
    \nabla^2 \log p(y_t \mid x)\big)\]

    with the analytic start \(\phi^0_t\) of the time, its scales \(s_t\), and slope and curvature of
    what was observed there. It is learned once, on series simulated from the model, by the lower
    bounds up to times drawn at random; afterwards an observation costs one evaluation and no
    gradient steps. Before it is learned it moves nothing.

    Args:
        size: entries of the hidden state.
        width: units of the layer between hidden state and moves.
        steps: steps of the optimiser.
        batch_size: simulated series in a step.
        window: length of the simulated series; None for that of the data.
        optimizer: ``sk.optimizer(...)``; None for Adam, 3e-3 falling along a cosine.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 30).observations
        >>> engine = sk.OnlineVariational(amortised=sk.learned.Amortised(steps=20), num_steps=0)
        >>> posterior = sk.infer(1, engine, model, ys)
        >>> again = sk.infer(2, engine, model, ys[:20], learned=posterior.learned)
        >>> again.filtered.mean().shape
        (20,)

    Source: A. Campbell, Y. Shi, T. Rainforth and A. Doucet (2021), for a network without an
    analytic start; K. Cho et al. (2014) for the gated unit.
    """

    size: int = 32
    width: int = 64
    steps: int = 1000
    batch_size: int = 16
    window: int | None = None
    optimizer: Any = None

    __repr__ = call_repr

    def num_moves(self, count: int, *, full: bool) -> int:
        """Numbers that are told for a state of so many coordinates."""
        return sum(math.prod(shape) for shape in _shapes(count, full=full))

    def build(self, key: Key, setting: Setting, *, full: bool, network: bool) -> AmortisedMoves:
        """Make the arrays.

        Args:
            key: random key.
            setting: scales of states and observations.
            full: whether factors are matrices.
            network: whether kernels have a network of their own, one for all times.
        """
        cell_key, inner_key, outer_key, own_key = jax.random.split(key, 4)
        dtype, count = setting.dtype, setting.state.size
        columns = num_columns(setting)
        told = self.num_moves(count, full=full)
        outer = eqx.nn.Linear(self.width, told, dtype=dtype, key=outer_key)
        parts = lambda layer: (layer.weight, layer.bias)  # noqa: E731 - one line
        zeros = tuple(jnp.zeros_like(a) for a in parts(outer))
        return AmortisedMoves(
            eqx.nn.GRUCell(columns, self.size, dtype=dtype, key=cell_key),
            eqx.nn.Linear(self.size + 4 * count, self.width, dtype=dtype, key=inner_key),
            eqx.tree_at(parts, outer, zeros),
            residual(own_key, count, self.width, dtype) if network else None,
            setting.state,
            setting.observation,
        )


def _shapes(count: int, *, full: bool) -> tuple[tuple[int, ...], ...]:
    """Shapes of the moves, without a network."""
    factor = (count, count) if full else (count,)
    return (count,), factor, (count,), (count, count), factor


class AmortisedMoves(eqx.Module):
    """The network of `Amortised`.

    Attributes:
        cell: reads the observations in turn.
        inner: first layer of what it tells.
        outer: last layer.
        network: of the kernels, or None.
        state: scale of the states.
        observation: scale of the observations.
    """

    cell: eqx.nn.GRUCell
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    network: Residual | None
    state: Scale
    observation: Scale

    @property
    def nothing_read(self) -> Float[Array, " H"]:
        """The hidden state before the first observation."""
        return jnp.zeros(self.cell.hidden_size, self.outer.weight.dtype)

    def read(self, hidden: Float[Array, " H"], s: Step) -> Float[Array, " H"]:
        """Read one observation."""
        one = jax.tree.map(lambda a: jnp.asarray(a)[None], (s.y, s.u, s.mask))
        rows, _ = rows_of(self.observation, one)
        return self.cell(rows[0].astype(hidden.dtype), hidden)

    def moves(self, hidden: Float[Array, " H"], start: Filter, seen: Array) -> Moves:
        """How far filter and kernel stand from a start; ``seen`` says what was observed there."""
        scales = start.factor if start.factor.ndim == 1 else jnp.diagonal(start.factor)
        logs = jnp.log(scales / self.state.fixed[1])
        features = jnp.concatenate([self.state.clipped(start.mean), logs, seen])
        told = self.outer(jax.nn.tanh(self.inner(jnp.append(hidden, features))))
        told = FARTHEST * jnp.tanh(told / FARTHEST)
        shapes = _shapes(start.mean.shape[0], full=start.factor.ndim == 2)
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        shift, scale, *kernel = (
            part.reshape(shape)
            for part, shape in zip(jnp.split(told, ends[:-1]), shapes, strict=True)
        )
        return Moves(shift, scale, kernel[0], kernel[1], kernel[2], self.network)


def slope_and_curvature(model: StateSpaceModel, s: Step, filter: Filter) -> Float[Array, " 2D"]:
    """Of the log density of what is observed, at a filter's mean and in its units."""
    shape = own_law(model, None, s).event_shape

    def log_seen(noise: Array) -> Array:
        return log_emission(model, filter.draw(noise).reshape(shape), s)

    here = jnp.zeros_like(filter.mean)
    both = (jax.grad(log_seen)(here), jnp.diagonal(jax.hessian(log_seen)(here)))
    return jnp.clip(jnp.concatenate(both), -CLIPPED, CLIPPED)


class AmortisedStart(eqx.Module):
    """An analytic start, moved by a network that has read all up to now."""

    start: Any
    network: AmortisedMoves
    hidden: Float[Array, " H"]

    def first(self, model: StateSpaceModel, s: Step, network: Any, *, full: bool) -> Any:
        """The filter at the first time."""
        family, _ = self.start.first(model, s, self.network.network, full=full)
        return self._moved(model, s, family)

    def later(self, model: StateSpaceModel, s: Step, last: Filter, moves: Moves) -> Any:
        """Filter and kernel at a later time."""
        same = still(last, self.network.network)
        family: tuple[Filter, Kernel] = self.start.later(model, s, last, same)[0]
        return self._moved(model, s, family)

    def _moved(self, model: StateSpaceModel, s: Step, family: Any) -> Any:
        seen = slope_and_curvature(model, s, family[0])
        return family, self.network.moves(self.hidden, family[0], seen)
