"""Twists by least squares, from the last step to the first."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.learned.pieces import Pieces, frozen, sweepable
from ssmkit.models.base import StateSpaceModel
from ssmkit.objectives.sweep import Sweep, log_twists, sweep
from ssmkit.reprs import call_repr
from ssmkit.smc.feynman_kac import draw_noise
from ssmkit.smc.filter import Series
from ssmkit.smc.noise import draw
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import log_emission
from ssmkit.smc.weights import log_mean_exp
from ssmkit.typing import Array, Float, Key, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class LeastSquares:
    r"""Fit the recursion of the best twist at the particles of the twisted filter.

    \[\min_\psi \sum_t \sum_i \Big(\log\psi_t(x_{t-1}^i) - c_t - \log\tfrac1M\sum_j
    \frac{p(x_t^{ij} \mid x_{t-1}^i)}{q(x_t^{ij} \mid x_{t-1}^i, y)}\, p(y_t \mid x_t^{ij})\,
    \psi_{t+1}(x_t^{ij})\Big)^2, \qquad x_t^{ij} \sim q\]

    with the right-hand side held fixed and \(c_t\) free, as in iterated auxiliary filters and in
    controlled sequential Monte Carlo; next states are drawn from the engine's proposal \(q\). By
    `learned.Induced` one draw is exact where emission and twist are quadratic: the regression has
    no noise then. It looks at the data themselves and simulates nothing, so that it serves twists
    with free numbers for each step.

    Args:
        batch_size: series in a step.
        num_particles: of the filter.
        num_draws: \(M\), from each particle.
        steps: steps of the optimiser in a round.
        optimizer: ``sk.optimizer(...)``; None for Adam, 3e-3 falling along a cosine.

    Source: P. Guarniero, A. Johansen and A. Lee (2017), The iterated auxiliary particle filter;
    J. Heng, A. Bishop, G. Deligiannidis and A. Doucet (2020), Controlled sequential Monte Carlo.
    """

    batch_size: int = 4
    num_particles: int = 32
    num_draws: int = 4
    steps: int = 200
    optimizer: Any = None

    __repr__ = call_repr

    def loss(
        self, key: Key, model: StateSpaceModel, pieces: Pieces, series: Series
    ) -> tuple[Scalar, dict[str, Array]]:
        """Mean squared residual of the recursion, in nats squared."""
        which_key, run_key = jax.random.split(key)
        count = series[0].shape[0]
        which = jax.random.randint(which_key, (self.batch_size,), 0, count)

        def one(key: Key, b: Array) -> tuple[Array, Array]:
            run_key, draw_key = jax.random.split(key)
            chosen = jax.tree.map(lambda a: a[b], series)
            run = sweep(
                run_key,
                model,
                frozen(pieces),
                chosen,
                num_particles=self.num_particles,
                scheme="systematic",
                threshold=0.5,
            )
            goal = jax.lax.stop_gradient(recursion(draw_key, run, model, self.num_draws))
            of = sweepable(pieces, model, chosen, goal.dtype)
            found = log_twists(of, jax.lax.stop_gradient(run.report))[:-1]
            rest = found - goal
            rest = rest - jnp.mean(rest, axis=1, keepdims=True)
            return jnp.mean(rest**2), jnp.min(run.effective_sizes)

        keys = jax.random.split(run_key, self.batch_size)
        squares, sizes = jax.vmap(one)(keys, which)
        loss = jnp.mean(squares)
        return loss, {"squared_residual": loss, "twist_ess": jnp.mean(sizes)}


def recursion(key: Key, run: Sweep, model: StateSpaceModel, num_draws: int) -> Float[Array, "S N"]:
    """What the log twist of each particle should be by the next one; ``S`` is ``T - 1``."""
    of = run.of
    log_twist = of.log_twist
    dtype = run.report.log_weights.dtype

    def at(t: Array, states: Array) -> Array:
        s = of.steps(t)
        later = s._replace(read=s.read._replace(now=s.read.beyond))

        def move(key: Key, x: Array) -> tuple[Array, Scalar | float]:
            if of.choose is None:
                return draw(own_law(model, x, s), key, dtype), 0.0
            chosen = of.choose(x, s)
            noise = draw_noise(key, 1, chosen.noise_shape, dtype)
            return chosen.draw(noise[0])

        def value(key: Key, x: Array) -> Scalar:
            moved, log_ratio = move(key, x)
            beyond = 0.0 if log_twist is None else log_twist(moved, later)
            return log_emission(model, moved, s) + beyond + log_ratio

        def mean(key: Key, x: Array) -> Scalar:
            keys = jax.random.split(key, num_draws)
            return log_mean_exp(jax.vmap(value, (0, None))(keys, x))

        keys = jax.random.split(jax.random.fold_in(key, t), states.shape[0])
        return jax.vmap(mean)(keys, states)

    return jax.vmap(at)(jnp.arange(1, of.length), run.report.states[:-1])
