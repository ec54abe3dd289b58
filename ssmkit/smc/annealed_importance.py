r"""Annealed importance sampling: draws from a start, moved towards an end, with exact weights.

\[\log w = \sum_{k=1}^{K+1} (\beta_k - \beta_{k-1})\,\big(b(x_{k-1}) - a(x_{k-1})\big), \qquad
0 = \beta_0 < \dots < \beta_{K+1} = 1,\]

with \(x_0\) from the start \(e^a\) and \(x_k\) moved at \(\beta_k\) by a kernel that leaves
\(e^{(1 - \beta_k) a + \beta_k b}\) invariant; \(\mathrm E\, w = \int e^b\). There is no move at the
end: the weights do not need one, and there the density may have no finite integral.

Source: R. Neal (2001), Annealed importance sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.smc import feynman_kac
from ssmkit.smc.annealing import Rung, annealed
from ssmkit.smc.kernels import Kernel, LogDensities
from ssmkit.smc.resampling import selector, systematic
from ssmkit.smc.weights import log_mean_exp
from ssmkit.typing import Array, Float, Int, Key, PyTree, Scalar


class Annealed(NamedTuple):
    """Weighted draws from the end.

    Attributes:
        x: draws, a pytree with ``N`` in front.
        log_densities: of the start and the end there ``(N, 2)``, in nats.
        log_weights: ``(N,)``, unnormalised: their mean is the ratio of the normalising constants.
        log_evidence: log of that mean, in nats.
        first: log densities where the draws began ``(N, 2)``.
        acceptance_rates: of the moves at each temperature between the ends ``(K,)``.
    """

    x: PyTree
    log_densities: Float[Array, "N 2"]
    log_weights: Float[Array, " N"]
    log_evidence: Scalar
    first: Float[Array, "N 2"]
    acceptance_rates: Float[Array, " K"]


def anneal(
    key: Key,
    sample: Callable[[Key], PyTree],
    log_densities: LogDensities,
    kernel: Kernel,
    temperatures: Float[Array, " K"],
    step_sizes: Array,
    *,
    num_particles: int,
    num_moves: int = 1,
    threshold: float = 0.0,
) -> Annealed:
    """Draw, move and weigh; pure, and unbiased with or without resampling.

    Args:
        key: random key.
        sample: ``key -> x``, a draw from the start.
        log_densities: ``x -> (log start, log end)``, in nats; the end need not be normalised. A
            draw where it is nan counts as impossible, with weight zero.
        kernel: what moves the draws.
        temperatures: between the ends ``(K,)``, ascending; ``K = 0`` is importance sampling.
        step_sizes: of the moves at each of them ``(K, ...)``.
        num_particles: ``N``.
        num_moves: steps of the kernel at each temperature.
        threshold: resample when the effective share of the draws is at most this; 0 never does.
    """
    count = temperatures.shape[0]
    zero = jnp.zeros(1, temperatures.dtype)
    betas = jnp.concatenate([zero, temperatures])
    sizes = jnp.concatenate([jnp.zeros((1, *step_sizes.shape[1:]), zero.dtype), step_sizes])
    rungs = Rung(betas, jnp.diff(betas, prepend=zero), sizes)

    def rung(t: int | Int[Array, ""]) -> Rung:
        return jax.tree.map(lambda a: a[t], rungs)

    def possible(x: PyTree) -> tuple[Scalar, Scalar]:
        start, end = log_densities(x)
        there = jnp.isfinite(start) & ~jnp.isnan(end)
        return start, jnp.where(there, end, -jnp.inf)

    recipe = annealed(sample, possible, kernel, num_moves=num_moves)
    select = selector(systematic, threshold)
    begin = feynman_kac.first(recipe, jax.random.fold_in(key, 0), num_particles, rung(0))
    steps: Any
    cloud, steps = feynman_kac.scan(recipe, select, key, begin, rung, count + 1, keep=True)
    place = cloud.particles.place
    start, end = place.log_densities.T
    last = jnp.where(count > 0, 1 - betas[-1], 1.0)
    # a difference of two infinities is no weight
    gain = jnp.where(jnp.isfinite(end), last * (end - start), -jnp.inf)
    log_weights = cloud.log_weights + cloud.log_evidence + gain
    rates = jnp.mean(steps.states, axis=1)[1:]
    first = begin[0].particles.place.log_densities
    return Annealed(place.x, place.log_densities, log_weights, log_mean_exp(log_weights), first,
                    rates)  # fmt: skip
