r"""Wake-sleep on the particles of a filter, as shared by `NASMC` and `NASX`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.learned.pieces import Pieces, frozen, sweepable
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import log_density
from ssmkit.objectives.sweep import Sweep, sweep, told_of
from ssmkit.reprs import call_repr
from ssmkit.smc.filter import Series
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Step, log_emission
from ssmkit.typing import Array, Key, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class Reweighted:
    r"""Fisher's identity on weighted particles: gradients of densities, never of draws.

    \[\nabla_\theta \approx \sum_t \sum_k W_t^k\, \nabla_\theta \log p_\theta(x_t^k, y_t \mid
    x_{t-1}^{a_k}), \qquad
    \nabla_\phi \approx \sum_t \sum_k W_t^k\, \nabla_\phi \log q_\phi(x_t^k \mid x_{t-1}^{a_k}, y)\]

    so that states may be discrete.

    Args:
        num_particles: ``K``.
        threshold: resample when the effective number is at most this share of ``K``.
        scheme: how ancestors are drawn.
        steps: steps of the optimiser in a round.
        batch_size: series in a step.
        optimizer: ``sk.optimizer(...)``; None for clipped Adam, 3e-3 falling along a cosine.
    """

    num_particles: int = 16
    threshold: float = 0.5
    scheme: str = "systematic"
    steps: int = 100
    batch_size: int = 8
    optimizer: Any = None

    uses_twist = True
    needs_density = True

    __repr__ = call_repr

    def check(self) -> None:
        """Nothing can be wrong here."""

    def loss(
        self, key: Key, model: StateSpaceModel, pieces: Pieces, series: Series
    ) -> tuple[Scalar, dict[str, Array]]:
        """Minus the expected log densities of one series, in nats, and what is told of it."""
        run = sweep(
            key,
            frozen(model),
            frozen(pieces),
            series,
            num_particles=self.num_particles,
            scheme=self.scheme,
            threshold=self.threshold,
        )
        return -expected_log_densities(run, model, pieces, series), told_of(run)


def expected_log_densities(
    run: Sweep, model: StateSpaceModel, pieces: Pieces, series: Series
) -> Scalar:
    """Weighted log densities of the particles under the model, and under the proposal."""
    states, ancestors = jax.lax.stop_gradient((run.report.states, run.report.ancestors))
    weights = jax.lax.stop_gradient(jax.nn.softmax(run.target_log_weights, axis=1))
    fixed = frozen(model)  # the proposal learns from the particles, not the model through it
    of = sweepable(pieces, fixed, series, run.report.log_weights.dtype)

    def both(before: Array | None, x: Array, s: Step) -> Scalar:
        total = log_density(own_law(model, before, s), x) + log_emission(model, x, s)
        ratio = None if of.choose is None else of.choose(before, s).log_ratio
        if ratio is None:
            return total
        return total + log_density(own_law(fixed, before, s), x) - ratio(x)

    first = jax.vmap(lambda x: both(None, x, of.steps(0)))(states[0])

    def at(t: Array) -> Array:
        before = states[t - 1][ancestors[t]]
        return jax.vmap(both, (0, 0, None))(before, states[t], of.steps(t))

    later = jax.vmap(at)(jnp.arange(1, of.length))
    # what has no weight may have the log density −∞
    values = weights * jnp.concatenate([first[None], later])
    return jnp.sum(jnp.where(weights > 0, values, 0.0))
