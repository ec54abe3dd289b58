"""A network that is fitted to draws, and goes on learning from step to step."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.learned.backward import Filter
from ssmkit.learned.past import Past
from ssmkit.learned.regression import Polynomial
from ssmkit.reprs import call_repr
from ssmkit.typing import Array, Float, Key, Scalar

LINE = Polynomial(1, held_out=0.25)  # what it is fitted to beyond noise
MEMORY = 0.9  # of the running variances, by step


class NetworkFit(eqx.Module):
    """A linear function of a state in standard units, and a network for the rest.

    Attributes:
        layers: of the network, whose outputs are in units of ``scale``.
        scale: running standard deviations of the rest ``(k,)``.
        trend: coefficients ``(D, k)``.
        level: constant part ``(k,)``.
    """

    layers: tuple[eqx.nn.Linear, ...]
    scale: Float[Array, " k"]
    trend: Float[Array, "D k"]
    level: Float[Array, " k"]

    def __call__(self, z: Float[Array, " D"]) -> Float[Array, " k"]:
        """The values at one state."""
        return self.level + z @ self.trend + self.scale * _output(self.layers, z)

    def past(self, filter: Filter) -> Past:
        """As the next step sees it."""
        return Past(filter, lambda x: self(filter.white(x)))


@dataclasses.dataclass(frozen=True, repr=False)
class NetworkRegression:
    r"""A network for what a linear function leaves over, by a few steps of Adam at each time.

    Its weights go on from those of the time before, so that it averages over more draws than those
    of one time. For scores of many parameters, which share its layers, and states of many
    coordinates. Inputs are in units of the filter, outputs in running standard deviations.

    Args:
        width: units of a hidden layer.
        depth: hidden layers.
        num_points: draws that it is fitted to at each time.
        num_steps: of Adam at each time.
        batch_size: draws of one such step.
        rate: of Adam.

    Example:
        >>> import ssmkit as sk
        >>> sk.OnlineVariational(score=sk.learned.NetworkRegression(width=128)).score
        NetworkRegression(width=128)

    Source: A. Campbell, Y. Shi, T. Rainforth and A. Doucet (2021), section 3.2 and their code.
    """

    width: int = 64
    depth: int = 2
    num_points: int = 256
    num_steps: int = 50
    batch_size: int = 64
    rate: float = 1e-3

    needs_slopes = True

    __repr__ = call_repr

    def fit(
        self, key: Key, z: Float[Array, "N D"], targets: Float[Array, "N k"], last: Any
    ) -> NetworkFit:
        """Fit values at draws in standard units, from where the last fit stood."""
        line = LINE.fit(key, z, targets, None)
        rest = targets - jax.vmap(line)(z)
        square = jnp.mean(rest**2, axis=0)
        begin_key, train_key = jax.random.split(key)
        if last is None:
            layers = _layers(begin_key, self, z.shape[1], targets.shape[1], z.dtype)
        else:
            layers = last.layers
            square = MEMORY * last.scale**2 + (1 - MEMORY) * square
        scale = jnp.sqrt(square)
        goals = rest / jnp.where(scale > 0, scale, 1.0)
        layers = self._train(train_key, layers, z, goals)
        return NetworkFit(layers, scale, line.trend, line.level)

    def _train(self, key: Key, layers: Any, z: Array, goals: Array) -> Any:
        import optax

        rule = optax.adam(self.rate)

        def loss(layers: Any, rows: Array) -> Scalar:
            found = jax.vmap(lambda one: _output(layers, one))(z[rows])
            return jnp.mean((found - goals[rows]) ** 2)

        def step(carry: Any, key: Key) -> tuple[Any, None]:
            layers, state = carry
            rows = jax.random.randint(key, (self.batch_size,), 0, z.shape[0])
            change, state = rule.update(jax.grad(loss)(layers, rows), state, layers)
            return (optax.apply_updates(layers, change), state), None

        keys = jax.random.split(key, self.num_steps)
        return jax.lax.scan(step, (layers, rule.init(layers)), keys)[0][0]


def _layers(
    key: Key, settings: NetworkRegression, size: int, count: int, dtype: Any
) -> tuple[eqx.nn.Linear, ...]:
    """Layers of which the last is zero: before it has learned, the network says nothing."""
    sizes = [size, *[settings.width] * settings.depth, count]
    keys = jax.random.split(key, len(sizes) - 1)
    layers = [
        eqx.nn.Linear(*pair, dtype=dtype, key=k)
        for pair, k in zip(pairwise(sizes), keys, strict=True)
    ]
    return (*layers[:-1], jax.tree.map(jnp.zeros_like, layers[-1]))


def _output(layers: tuple[eqx.nn.Linear, ...], z: Float[Array, " D"]) -> Float[Array, " k"]:
    for layer in layers[:-1]:
        z = jnp.tanh(layer(z))
    return layers[-1](z)
