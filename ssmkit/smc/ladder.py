r"""Temperatures and step sizes that are found on the way.

The next temperature is the largest that leaves a share of the effective particles; step sizes
follow the acceptance rate. Both look at the particles that they act on, so that the evidence is
consistent and no longer unbiased.

Source: A. Jasra, D. Stephens, A. Doucet and T. Tsagaris (2011), Inference for Lévy-driven
stochastic volatility models via adaptive sequential Monte Carlo; A. Beskos, A. Jasra, N. Kantas and
A. Thiery (2016), On the convergence of adaptive sequential Monte Carlo methods.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.smc import feynman_kac
from ssmkit.smc.annealing import Rung
from ssmkit.smc.feynman_kac import Cloud, Recipe, Select
from ssmkit.typing import Array, Float, Int, Key, Scalar

BISECTIONS = 40
STEP_GAIN = 1.0  # how fast the log step size follows the acceptance rate; more would swing


class Ladder(NamedTuple):
    """What stays the same while temperatures are found."""

    recipe: Recipe
    select: Select
    key: Key
    acceptance: float
    target_ess: float
    max_steps: int


class Climb(NamedTuple):
    """Where the run is.

    Attributes:
        t: steps taken.
        cloud: the particles.
        step_size: of the next moves.
        rungs: the record of the steps, with room for all; ones behind the end.
        rates: acceptance rates of the moves, nan where there were none.
        ess: effective numbers of particles, nan where there were none.
    """

    t: Int[Array, ""]
    cloud: Cloud
    step_size: Array
    rungs: Rung
    rates: Float[Array, " K"]
    ess: Float[Array, " K"]


def climb(ladder: Ladder, num_particles: int, step_size: Array) -> Climb:
    """Run from temperature zero to one, in a ``while_loop`` of its own."""
    start = Rung(jnp.zeros(()), jnp.zeros(()), step_size)
    first_key = jax.random.fold_in(ladder.key, 0)
    cloud, report = feynman_kac.first(ladder.recipe, first_key, num_particles, start)
    dtype, count = cloud.log_weights.dtype, ladder.max_steps + 1
    sizes = jnp.broadcast_to(step_size.astype(dtype), (count, *step_size.shape))
    nothing = jnp.full(count, jnp.nan, dtype)
    rungs = Rung(jnp.ones(count, dtype).at[0].set(0.0), jnp.zeros(count, dtype), sizes)
    ess = nothing.at[0].set(report.ess)
    begin = Climb(jnp.asarray(0), cloud, sizes[0], rungs, nothing, ess)

    def more(here: Climb) -> Array:
        return here.rungs.temperature[here.t] < 1

    return jax.lax.while_loop(more, lambda here: _next_rung(ladder, here), begin)


def _next_rung(ladder: Ladder, here: Climb) -> Climb:
    t = here.t + 1
    before = here.rungs.temperature[here.t]
    temperature = next_temperature(here.cloud, before, ladder.target_ess)
    temperature = jnp.where(t == ladder.max_steps, 1.0, temperature)
    rung = Rung(temperature, temperature - before, here.step_size)
    step_key = jax.random.fold_in(ladder.key, t)
    cloud, report = feynman_kac.advance(ladder.recipe, ladder.select, step_key, here.cloud, rung)
    cloud = jax.tree.map(lambda new, old: new.astype(old.dtype), cloud, here.cloud)
    rate = jnp.mean(report.states)
    rungs = jax.tree.map(lambda a, new: a.at[t].set(new), here.rungs, rung)
    step_size = here.step_size * jnp.exp(STEP_GAIN * (rate - ladder.acceptance))
    # behind the end stands the last step size, so that the record is a schedule as it is
    later = (jnp.arange(ladder.max_steps + 1) > t).reshape(-1, *(1,) * step_size.ndim)
    rungs = rungs._replace(step_size=jnp.where(later, step_size, rungs.step_size))
    rates, ess = here.rates.at[t].set(rate), here.ess.at[t].set(report.ess)
    return Climb(t, cloud, step_size, rungs, rates, ess)


def next_temperature(cloud: Cloud, temperature: Scalar, target_ess: float) -> Scalar:
    r"""The largest temperature at which a share of the effective particles is left, by bisection.

    The share is \((\sum W g)^2 / \sum W g^2\) with normalised weights \(W\) and gains \(g\).
    """
    pairs = cloud.particles.place.log_densities
    slopes = pairs[:, 1] - pairs[:, 0]
    log_shares = jax.nn.log_softmax(cloud.log_weights)

    def is_enough(new: Scalar) -> Array:
        gains = (new - temperature) * slopes
        first = jax.nn.logsumexp(log_shares + gains)
        second = jax.nn.logsumexp(log_shares + 2 * gains)
        return 2 * first - second >= jnp.log(target_ess)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        enough = is_enough(middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    one = jnp.ones_like(temperature)
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (temperature, one))
    return jnp.where(is_enough(one), one, jnp.where(low > temperature, low, high))
