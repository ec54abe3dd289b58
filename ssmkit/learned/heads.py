"""Heads of twists: a function of the state, whose numbers come from what an encoder has read.

``prepare`` runs once a time step, before the particles; the call runs once a particle.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.learned.reading import Setting
from ssmkit.reprs import call_repr
from ssmkit.typing import Array, Float, Key, Scalar

FULL = 8  # states beyond which a quadratic has a diagonal matrix
SMALL_START = 0.1


def small_network(
    key: Key, sizes: tuple[int, int], width: int, depth: int, dtype: Any
) -> eqx.nn.MLP:
    """A network whose last layer starts near zero, so that it says little before it has learned."""
    network = eqx.nn.MLP(*sizes, width, depth, activation=jnp.tanh, dtype=dtype, key=key)
    last = lambda n: (n.layers[-1].weight, n.layers[-1].bias)  # noqa: E731 - a path in the tree
    return eqx.tree_at(last, network, tuple(SMALL_START * a for a in last(network)))


class Coefficients(NamedTuple):
    """Of a quadratic at one time: the factor ``S`` of its matrix, its slope and its level."""

    factor: Array
    slope: Float[Array, " n"]
    level: Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class Quadratic:
    r"""A concave quadratic in the state, which cannot grow in its tails.

    \[\log\psi(x) = -\tfrac12 |S^\top x|^2 + h^\top x + c, \qquad (S, h, c) = \mathrm{MLP}(e)\]

    Under Gaussian transitions it is closed, so that `Induced` is the exact proposal.

    Args:
        width: units of a hidden layer.
        depth: hidden layers.
        diagonal: whether the matrix is diagonal; None for states of more than 8 coordinates.
    """

    width: int = 32
    depth: int = 1
    diagonal: bool | None = None

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting, num_features: int) -> QuadraticHead:
        """Make the arrays."""
        size = setting.state.size
        diagonal = size > FULL if self.diagonal is None else self.diagonal
        entries = size if diagonal else size * (size + 1) // 2
        sizes = (num_features, entries + size + 1)
        network = small_network(key, sizes, self.width, self.depth, setting.dtype)
        return QuadraticHead(network, size, diagonal)


class QuadraticHead(eqx.Module):
    """The network of `Quadratic`."""

    network: eqx.nn.MLP
    size: int = eqx.field(static=True)
    diagonal: bool = eqx.field(static=True)

    @property
    def separable(self) -> bool:
        """Whether it is a sum of functions of single coordinates of the state."""
        return self.diagonal

    def prepare(self, features: Float[Array, " F"]) -> Coefficients:
        """The coefficients at one time."""
        told = self.network(features)
        entries = told.shape[0] - self.size - 1
        free, slope, level = told[:entries], told[entries:-1], told[-1]
        start = 0.3  # at zero the gradient of a square vanishes
        if self.diagonal:
            return Coefficients(free + start, slope, level)
        rows, columns = jnp.tril_indices(self.size)
        factor = jnp.zeros((self.size, self.size), told.dtype).at[rows, columns].set(free)
        return Coefficients(factor + start * jnp.eye(self.size, dtype=told.dtype), slope, level)

    def __call__(self, x: Float[Array, " n"], known: Coefficients) -> Scalar:
        """Log twist in nats."""
        root = known.factor * x if self.diagonal else known.factor.T @ x
        return -0.5 * (root @ root) + known.slope @ x + known.level


@dataclasses.dataclass(frozen=True, repr=False)
class Network:
    r"""A plain network of the state and the features, \(\log\psi(x) = \mathrm{MLP}(x, e)\).

    Args:
        width: units of a hidden layer.
        depth: hidden layers.
    """

    width: int = 64
    depth: int = 2

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting, num_features: int) -> NetworkHead:
        """Make the arrays."""
        keys = jax.random.split(key, 3)
        size, dtype = setting.state.size, setting.dtype
        from_state = eqx.nn.Linear(size, self.width, use_bias=False, dtype=dtype, key=keys[0])
        from_features = eqx.nn.Linear(num_features, self.width, dtype=dtype, key=keys[1])
        rest = small_network(keys[2], (self.width, 1), self.width, self.depth - 1, dtype)
        return NetworkHead(from_state, from_features, rest)


class NetworkHead(eqx.Module):
    """The network of `Network`; the features' share of the first layer is computed once."""

    from_state: eqx.nn.Linear
    from_features: eqx.nn.Linear
    rest: eqx.nn.MLP

    def prepare(self, features: Float[Array, " F"]) -> Float[Array, " W"]:
        """What the features put into the first layer."""
        return self.from_features(features)

    def __call__(self, x: Float[Array, " n"], known: Float[Array, " W"]) -> Scalar:
        """Log twist in nats."""
        return self.rest(jnp.tanh(self.from_state(x) + known))[0]


@dataclasses.dataclass(frozen=True, repr=False)
class Sum:
    r"""The sum of two heads; by default a concave quadratic and a network for the rest.

    Args:
        first: a head.
        second: another.
    """

    first: Any = Quadratic()
    second: Any = Network(depth=1)

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting, num_features: int) -> SumHead:
        """Make the arrays."""
        first, second = jax.random.split(key)
        return SumHead(
            self.first.build(first, setting, num_features),
            self.second.build(second, setting, num_features),
        )


class SumHead(eqx.Module):
    """The heads of `Sum`."""

    first: Any
    second: Any

    def prepare(self, features: Float[Array, " F"]) -> tuple[Any, Any]:
        """What both prepare."""
        return self.first.prepare(features), self.second.prepare(features)

    def __call__(self, x: Float[Array, " n"], known: tuple[Any, Any]) -> Scalar:
        """Log twist in nats."""
        return self.first(x, known[0]) + self.second(x, known[1])
