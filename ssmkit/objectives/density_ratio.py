"""Twists by density-ratio estimation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.learned.pieces import Pieces
from ssmkit.learned.reading import remains
from ssmkit.models.base import StateSpaceModel, simulate_series
from ssmkit.reprs import call_repr
from ssmkit.smc.filter import Series
from ssmkit.typing import Array, Bool, Float, Key, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class DensityRatio:
    r"""Tell pairs of a state and *its* future from pairs that do not belong together.

    \[\min_\psi\; \tfrac12\,\mathrm{E}\big[\mathrm{softplus}(-\log\psi_t(x_{t-1}, y_{t:T-1}))\big]
    + \tfrac12\,\mathrm{E}\big[\mathrm{softplus}(\log\psi_t(\tilde x_{t-1}, y_{t:T-1}))\big]\]

    with \((x, y)\) simulated from the model and \(\tilde x\) from another simulation. The best
    classifier has \(\log\psi_t = \log p(y_{t:T-1} \mid x_{t-1}) - \log p(y_{t:T-1})\). Series are
    simulated with the gaps and inputs of the data, and no data are looked at. A classifier that has
    learned nothing has the loss log 2.

    Args:
        batch_size: simulated series in a step.
        num_negatives: other simulations that each series is paired with.
        window: length of the simulated series; None for that of the data.
        steps: steps of the optimiser in a round.
        optimizer: ``sk.optimizer(...)``; None for Adam, 3e-3 falling along a cosine.

    Source: D. Lawson, A. Raventós, A. Warrington and S. Linderman (2022), SIXO, section 3.2.
    """

    batch_size: int = 16
    num_negatives: int = 4
    window: int | None = None
    steps: int = 200
    optimizer: Any = None

    __repr__ = call_repr

    def loss(
        self, key: Key, model: StateSpaceModel, pieces: Pieces, series: Series
    ) -> tuple[Scalar, dict[str, Array]]:
        """The classifier's loss in nats, mean over time; and the floor that it believes in."""
        logits = pair_logits(key, model, pieces.twist, series, self)
        positive, negative, counts = logits
        each = 0.5 * jax.nn.softplus(-positive)
        each = each + 0.5 * jnp.mean(jax.nn.softplus(negative), axis=0)
        loss = _mean(each, counts)
        floor = _mean(0.5 * _entropy(positive) + 0.5 * jnp.mean(_entropy(negative), 0), counts)
        return loss, {"classifier_loss": loss, "classifier_floor": floor}


def _mean(values: Float[Array, "B T"], counts: Bool[Array, "B T"]) -> Scalar:
    """Mean over the times at which something is still to come."""
    total = jnp.sum(jnp.where(counts, values, 0.0))
    return total / jnp.maximum(jnp.sum(counts), 1)


def _entropy(logit: Array) -> Array:
    """What a classifier that is right about its own probabilities expects to lose, in nats."""
    return jax.nn.softplus(logit) - logit * jax.nn.sigmoid(logit)


def simulate_like(
    key: Key, model: StateSpaceModel, series: Series, size: int, window: int | None
) -> tuple[Array, tuple]:
    """Simulate series with the gaps and inputs of given ones.

    Args:
        key: random key.
        model: the model.
        series: observations ``(B, T, *event)``, inputs and mask of ``B`` series.
        size: number of simulations.
        window: their length; None for ``T``.

    Returns:
        States, and the simulated series, each with leading axis ``size``.
    """
    ys, us, mask = series
    length = ys.shape[1] if window is None else min(window, ys.shape[1])
    which_key, start_key, draw_key = jax.random.split(key, 3)
    which = jax.random.randint(which_key, (size,), 0, ys.shape[0])
    start = jax.random.randint(start_key, (size,), 0, ys.shape[1] - length + 1)

    def one(key: Key, b: Array, start: Array) -> tuple[Array, tuple]:
        cut = lambda a: jax.lax.dynamic_slice_in_dim(a[b], start, length)  # noqa: E731
        here, there = jax.tree.map(cut, us), jax.tree.map(cut, mask)
        drawn = simulate_series(key, model, length, here)
        return drawn.states, (drawn.observations, here, there)

    fixed = jax.lax.stop_gradient
    return fixed(jax.vmap(one)(jax.random.split(draw_key, size), which, start))


def pair_logits(
    key: Key, model: StateSpaceModel, twist: Any, series: Series, options: DensityRatio
) -> tuple[Float[Array, "B T"], Float[Array, "n B T"], Bool[Array, "B T"]]:
    """Logits of pairs that belong together, of pairs that do not, and where they count."""
    size, window = options.batch_size, options.window
    states, simulated = simulate_like(key, model, series, size, window)
    before = states[:, :-1]
    others = jnp.stack([jnp.roll(before, i + 1, axis=0) for i in range(options.num_negatives)])

    def of_series(one: Array, rest: Array, series: Series) -> tuple[Array, Array, Array]:
        ys, us, mask = series
        informed = remains(ys, mask)[1:]
        features = jax.tree.map(lambda a: a[1:], twist.read(model, ys, us, mask))

        def at(x: Array, x_rest: Array, known: Any) -> tuple[Array, Array]:
            log_twist = lambda x: twist.log_twist(model, x, known)  # noqa: E731
            return log_twist(x), jax.vmap(log_twist)(x_rest)

        positive, negative = jax.vmap(at, (0, 1, 0), (0, 1))(one, rest, features)
        return positive, negative, informed

    return jax.vmap(of_series, (0, 1, 0), (0, 1, 0))(before, others, simulated)
