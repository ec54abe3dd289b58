"""Twists by contrast with what the twisted filter believes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.learned.pieces import Pieces, frozen, sweepable
from ssmkit.models.base import StateSpaceModel
from ssmkit.objectives.density_ratio import simulate_like
from ssmkit.objectives.sweep import log_twists, sweep
from ssmkit.reprs import call_repr
from ssmkit.smc.filter import Series
from ssmkit.typing import Array, Key, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class Contrastive:
    r"""Raise the twist where states given the future are, lower it where the filter puts them.

    \[\nabla = \sum_t \mathrm{E}_{p(x_t \mid y)} \nabla\log\psi_{t+1}(x_t)
    - \mathrm{E}_{\pi_t} \nabla\log\psi_{t+1}(x_t)\]

    the gradient of minus the divergences of the targets \(\pi_t\) from the smoothing laws. Of a
    simulated series the path that made it is an exact draw from the first; particles of the twisted
    filter, weighted, stand for the second. Finer than telling pairs apart where a classifier is
    already certain. The filter draws from the engine's proposal.

    Args:
        batch_size: simulated series in a step.
        num_particles: of the filter.
        window: length of the simulated series; None for that of the data.
        steps: steps of the optimiser in a round.
        optimizer: ``sk.optimizer(...)``; None for Adam.

    Source: S. Zhao, R. Brekelmans, A. Makhzani and R. Grosse (2024), Probabilistic inference in
    language models via twisted sequential Monte Carlo, section 4.1.
    """

    batch_size: int = 16
    num_particles: int = 32
    window: int | None = None
    steps: int = 200
    optimizer: Any = None

    __repr__ = call_repr

    def loss(
        self, key: Key, model: StateSpaceModel, pieces: Pieces, series: Series
    ) -> tuple[Scalar, dict[str, Array]]:
        """Minus the contrast in nats, mean over time; only its gradient means something."""
        data_key, run_key = jax.random.split(key)
        states, simulated = simulate_like(data_key, model, series, self.batch_size, self.window)

        def one(key: Key, path: Array, series: Series) -> tuple[Array, Array]:
            run = sweep(
                key,
                model,
                frozen(pieces),
                series,
                num_particles=self.num_particles,
                scheme="systematic",
                threshold=0.5,
            )
            of = sweepable(pieces, model, series, run.log_twists.dtype)
            report = jax.lax.stop_gradient(run.report)
            weights = jax.nn.softmax(jax.lax.stop_gradient(run.target_log_weights), axis=1)
            believed = jnp.sum(weights * log_twists(of, report), axis=1)
            alone = report._replace(states=path[:, None], log_weights=believed[:, None])
            return jnp.mean(log_twists(of, alone)[:, 0] - believed), jnp.min(run.effective_sizes)

        keys = jax.random.split(run_key, self.batch_size)
        contrast, sizes = jax.vmap(one)(keys, states, simulated)
        return -jnp.mean(contrast), {"contrast": jnp.mean(contrast), "twist_ess": jnp.mean(sizes)}
