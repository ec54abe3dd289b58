"""A flow for parameters together with the noise of a whole path."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.errors import OptionError
from ssmkit.learned.backward import LOG_ROOT, spread, unspread
from ssmkit.learned.flows import (
    FAR,
    CouplingFlow,
    Layers,
    bounded,
    check_sizes,
    layers,
    log_prob_where_finite,
)
from ssmkit.learned.heads import FULL
from ssmkit.reprs import call_repr
from ssmkit.typing import Array, Float, Key, Scalar

LARGEST_SCALE = 1000.0  # of the noise at one time, and its inverse the smallest
DECAY = 0.9  # of the memory before it has learned


@dataclasses.dataclass(frozen=True, repr=False)
class PathFlow:
    r"""Parameters by a flow, and given them Gaussian noise that remembers its path.

    \[q(u, e) = q(u) \prod_{t=0}^{T-1} N\big(e_t;\; m_t(u) + A_t(u)\, h_{t-1},\;
    L_t(u) L_t(u)^\top\big), \qquad h_t = B_t(u)\, h_{t-1} + e_t, \qquad h_{-1} = 0\]

    with \((m_t, A_t, B_t, L_t)(u) = c_t + R_t \tanh \mathrm{MLP}(u)\): numbers \(c_t\) and
    \(R_t\) are free at each time, and one network tells all times of the parameters. A point holds
    ``u`` first and then ``e``, one time after the other. At the start ``e`` is standard normal, as
    noise is before data.

    Given data, the noise \(e_t\) of a model \(x_t = F x_{t-1} + S e_t\) depends on its whole past,
    by way of \(x_{t-1}\) alone. The memory \(h\) plays that part: where noise and state have as
    many coordinates, the smoothing law of a linear Gaussian model is in the family.

    Args:
        num_steps: steps ``T`` of the path.
        size: coordinates ``D`` of the noise at one time, and of the memory.
        parameters: builder of the flow of ``u``.
        width: units of the hidden layer of the network.
        num_features: what it tells of the parameters.
        diagonal: whether the matrices are diagonal; None for more than 8 coordinates.

    Raises:
        OptionError: a size is impossible.

    Example:
        >>> import jax
        >>> from ssmkit.learned import CouplingFlow, PathFlow
        >>> builder = PathFlow(num_steps=30, size=1, parameters=CouplingFlow(num_layers=2))
        >>> flow = builder.build(jax.random.key(0), dim=32)  # two parameters
        >>> x, log_prob = flow.sample_and_log_prob(jax.random.key(1))
        >>> parameters, noise = flow.split(x)
        >>> parameters.shape, noise.shape
        ((2,), (30, 1))

    Source: J. Heng, A. N. Bishop, G. Deligiannidis and A. Doucet (2020), Controlled sequential
    Monte Carlo, for transitions that data have twisted.
    """

    num_steps: int
    size: int
    parameters: Any = CouplingFlow()
    width: int = 64
    num_features: int = 16
    diagonal: bool | None = None

    __repr__ = call_repr

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be."""
        names = ("num_steps", "size", "width", "num_features")
        check_sizes("PathFlow", {name: getattr(self, name) for name in names})

    def build(self, key: Key, dim: int, dtype: Any = float) -> ParametersAndPath:
        """Make the arrays of a flow over ``dim`` coordinates: parameters, and noise ``T * D``.

        Raises:
            OptionError: the noise alone has more coordinates.
        """
        check_sizes("PathFlow", {"dim": dim})
        count = dim - self.num_steps * self.size
        if count < 0:
            raise OptionError(
                "PathFlow: dim holds no such path.",
                got=f"dim={dim}, and {self.num_steps} steps of size {self.size}",
                expected=f"dim of at least {self.num_steps * self.size}",
            )
        diagonal = self.size > FULL if self.diagonal is None else self.diagonal
        square = self.size if diagonal else self.size**2
        factor = self.size if diagonal else self.size * (self.size + 1) // 2
        table = jnp.zeros((self.num_steps, self.size + 2 * square + factor), dtype)
        if count == 0:
            return ParametersAndPath(None, None, None, table, self.size, diagonal)
        flow_key, network_key = jax.random.split(key)
        return ParametersAndPath(
            self.parameters.build(flow_key, count, dtype),
            layers(network_key, [count, self.width, self.num_features], dtype),
            jnp.zeros((*table.shape, self.num_features), dtype),
            table,
            self.size,
            diagonal,
        )


class Steps(NamedTuple):
    """What noise follows at all times; matrices that are diagonal are held as their diagonals.

    Attributes:
        offset: ``(T, D)``.
        gain: of the memory ``(T, D, D)`` or ``(T, D)``.
        decay: of the memory ``(T, D, D)`` or ``(T, D)``.
        factor: of the covariances, lower triangular, ``(T, D, D)`` or ``(T, D)``.
        log_scales: logarithms of the diagonals of the factors ``(T, D)``.
    """

    offset: Array
    gain: Array
    decay: Array
    factor: Array
    log_scales: Array


class ParametersAndPath(eqx.Module):
    """The flow of `PathFlow`.

    Attributes:
        parameters: flow of the parameters; None without any.
        network: of the parameters, tells what all times read.
        readout: of each time.
        table: the numbers of each time, before the network moves them.
        size: coordinates ``D`` of the noise at one time.
        diagonal: whether matrices are diagonal.
    """

    parameters: Any
    network: Layers | None
    readout: Float[Array, "T P F"] | None
    table: Float[Array, "T P"]
    size: int = eqx.field(static=True)
    diagonal: bool = eqx.field(static=True)

    @property
    def dim(self) -> int:
        """Number of coordinates of a point."""
        count = 0 if self.parameters is None else self.parameters.dim
        return count + self.table.shape[0] * self.size

    def split(self, x: Float[Array, " dim"]) -> tuple[Float[Array, " d"], Float[Array, "T D"]]:
        """Parameters and noise of a point."""
        num_steps = self.table.shape[0]
        count = self.dim - num_steps * self.size
        return x[:count], x[count:].reshape(num_steps, self.size)

    def steps(self, u: Float[Array, " d"]) -> Steps:
        """What the noise follows, given the parameters."""
        told, size = self.table, self.size
        if self.network is not None and self.readout is not None:
            told = told + self.readout @ jnp.tanh(self.network(jnp.clip(u, -FAR, FAR)))
        square = size if self.diagonal else size**2
        ends = (size, size + square, size + 2 * square, 2 * size + 2 * square)
        offset, gain, decay, raw, below = jnp.split(told, ends, axis=1)
        log_scales = bounded(raw, LARGEST_SCALE)
        scales = jnp.exp(log_scales)
        if self.diagonal:
            return Steps(offset, gain, decay + DECAY, scales, log_scales)
        gain, decay = gain.reshape(-1, size, size), decay.reshape(-1, size, size)
        unit = jnp.eye(size, dtype=told.dtype)
        rows, columns = jnp.tril_indices(size, -1)
        factor = (scales[:, None] * unit).at[:, rows, columns].set(below)
        return Steps(offset, gain, decay + DECAY * unit, factor, log_scales)

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, " dim"], Scalar]:
        """One draw, and its log density in nats, by one pass along the path."""
        flow_key, noise_key = jax.random.split(key)
        dtype = self.table.dtype
        u, log_prob = jnp.zeros(0, dtype), jnp.zeros((), dtype)
        if self.parameters is not None:
            u, log_prob = self.parameters.sample_and_log_prob(flow_key)
        white = jax.random.normal(noise_key, (self.table.shape[0], self.size), dtype)
        steps = self.steps(u)

        def step(memory: Array, now: tuple[Steps, Array]) -> tuple[Array, Array]:
            here, z = now
            e = here.offset + spread(here.gain, memory) + spread(here.factor, z)
            return spread(here.decay, memory) + e, e

        path = jax.lax.scan(step, jnp.zeros(self.size, dtype), (steps, white))[1]
        return jnp.concatenate([u, path.ravel()]), log_prob + _log_path(white, steps)

    def log_prob(self, x: Float[Array, " dim"]) -> Scalar:
        """Log density of a point in nats; −∞ where it is not finite.

        Raises:
            ShapeError: it is no single point.
        """

        def step(memory: Array, now: tuple[Steps, Array]) -> tuple[Array, Array]:
            here, e = now
            gap = e - here.offset - spread(here.gain, memory)
            return spread(here.decay, memory) + e, gap

        def finite(x: Array) -> Scalar:
            u, path = self.split(jnp.asarray(x, self.table.dtype))
            steps = self.steps(u)
            gaps = jax.lax.scan(step, jnp.zeros_like(path[0]), (steps, path))[1]
            value = _log_path(jax.vmap(unspread)(steps.factor, gaps), steps)
            return value if self.parameters is None else value + self.parameters.log_prob(u)

        return log_prob_where_finite(finite, x, self)


def _log_path(white: Float[Array, "T D"], steps: Steps) -> Scalar:
    """Log density of the path that is made of standard normal noise."""
    return -0.5 * jnp.sum(white**2) - white.size * LOG_ROOT - jnp.sum(steps.log_scales)
