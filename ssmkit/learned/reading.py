"""What builders and encoders look at: scales, and a series as rows of plain numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.models.base import StateSpaceModel, abstract_law, input_at, simulate_series
from ssmkit.models.distributions import base_distribution, is_a
from ssmkit.typing import Array, Bool, Float, Inputs, Key, PyTree

FARTHEST = 10.0  # standard deviations beyond which networks are not asked to tell values apart
NUM_SIMULATIONS = 64


class Scale(eqx.Module):
    """Values as networks like them: flat, near zero, of size one; a finite state as indicators.

    Attributes:
        mean: ``(n,)``; never trained.
        deviation: ``(n,)``; never trained.
        num_categories: number of values of a finite state, else None.
    """

    mean: Float[Array, " n"]
    deviation: Float[Array, " n"]
    num_categories: int | None = eqx.field(static=True, default=None)

    @property
    def size(self) -> int:
        """Number of entries after scaling."""
        return self.num_categories or self.mean.shape[0]

    def __call__(self, value: Array) -> Float[Array, " n"]:
        """Scale one value."""
        dtype = self.mean.dtype
        if self.num_categories is not None:
            return jax.nn.one_hot(value.ravel()[0], self.num_categories, dtype=dtype)
        mean, deviation = self.fixed
        return (value.ravel().astype(dtype) - mean) / deviation

    @property
    def fixed(self) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Mean and deviation, without a gradient."""
        return jax.lax.stop_gradient((self.mean, self.deviation))

    def clipped(self, value: Array) -> Float[Array, " n"]:
        """Scale one value; far out they are all the same."""
        return jnp.clip(self(value), -FARTHEST, FARTHEST)


class Setting(NamedTuple):
    """What a builder of networks may look at.

    Attributes:
        model: the model, with the parameters from which learning starts.
        num_steps: length ``T`` of the series.
        first_input: the input at the first time, or None.
        state: scale of the states.
        observation: scale of the observations.
        dtype: floating type.
    """

    model: StateSpaceModel
    num_steps: int
    first_input: PyTree
    state: Scale
    observation: Scale
    dtype: Any

    @property
    def num_inputs(self) -> int:
        """Numbers in one input."""
        return sum(jnp.size(a) for a in jax.tree.leaves(self.first_input))


def setting_of(
    key: Key, model: StateSpaceModel, series: tuple[Array, Inputs, Any], dtype: Any
) -> Setting:
    """Measure scales on simulated series, and those of observations on the data as well.

    Args:
        key: random key.
        model: the model to simulate from.
        series: observations ``(T, *event)``, inputs and mask of one series.
        dtype: floating type.
    """
    ys, us, mask = series
    keys = jax.random.split(key, NUM_SIMULATIONS)
    drawn = jax.vmap(lambda k: simulate_series(k, model, ys.shape[0], us))(keys)
    u = input_at(us, 0)
    x = drawn.states[0, 0]
    law = base_distribution(abstract_law(lambda: model.at(0).transition(x, u)))
    is_finite = is_a(law, dist.CategoricalProbs | dist.CategoricalLogits)
    states = drawn.states.reshape(-1, x.size)
    count = None
    if is_finite:
        weights = law.probs if is_a(law, dist.CategoricalProbs) else law.logits
        count = weights.shape[-1]
    rows = jnp.concatenate([drawn.observations.reshape(-1, ys[0].size), ys.reshape(-1, ys[0].size)])
    simulated = jnp.ones((rows.shape[0] - ys.shape[0], ys[0].size), bool)
    there = jnp.concatenate([simulated, rows_of_mask(ys, mask)])
    state = _scale(states, jnp.ones(states.shape, bool), dtype)
    return Setting(
        model,
        ys.shape[0],
        u,
        Scale(state.mean, state.deviation, count),
        _scale(rows, there, dtype),
        dtype,
    )


def _scale(rows: Array, there: Bool[Array, "n m"], dtype: Any) -> Scale:
    there = there & jnp.isfinite(rows)
    values = jnp.where(there, rows, 0).astype(dtype)
    count = jnp.maximum(jnp.sum(there, axis=0), 1)
    mean = jnp.sum(values, axis=0) / count
    square = jnp.sum(jnp.where(there, (values - mean) ** 2, 0), axis=0) / count
    return Scale(mean, jnp.where(square > 0, jnp.sqrt(square), 1.0).astype(dtype))


def rows_of_mask(ys: Array, mask: Any) -> Bool[Array, "T M"]:
    """What is there of each flattened observation."""
    size = ys[0].size
    there = None if mask is None else jnp.asarray(mask)
    if there is None:
        return jnp.ones((ys.shape[0], size), bool)
    return jnp.broadcast_to(there.reshape(ys.shape[0], -1), (ys.shape[0], size))


def rows_of(
    scale: Scale, series: tuple[Array, Inputs, Any]
) -> tuple[Float[Array, "T F"], Bool[Array, " T"]]:
    """A series as rows of numbers: observations, what of them is there, inputs.

    Returns:
        The rows, and which of them say something.
    """
    ys, us, mask = series
    there = rows_of_mask(ys, mask)
    flat = jnp.where(there, ys.reshape(there.shape), 0)
    values = jnp.where(there, jax.vmap(scale.clipped)(flat), 0.0)
    inputs = [a.reshape(a.shape[0], -1).astype(values.dtype) for a in jax.tree.leaves(us)]
    rows = jnp.concatenate([values, there.astype(values.dtype), *inputs], axis=1)
    # inputs say something as long as an observation is still to come
    return rows, remains(ys, mask) if inputs else jnp.any(there, axis=1)


def remains(ys: Array, mask: Any) -> Bool[Array, " T"]:
    """Whether anything is observed from each time on."""
    some = jnp.any(rows_of_mask(ys, mask), axis=1)
    return jnp.flip(jax.lax.cummax(jnp.flip(some).astype(jnp.int32))).astype(bool)
