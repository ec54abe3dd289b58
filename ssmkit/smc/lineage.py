r"""Standard errors of the evidence from a single run, by lineage.

Particles are grouped by their ancestor at the first time. With \(S_k\) the final weight of the
descendants of \(k\), the relative variance of \(\hat Z\) is estimated by

\[1 - \Big(\frac{N}{N-1}\Big)^{r+1} \Big(1 - \sum_k S_k^2\Big)
\quad\text{(multinomial)}, \qquad
\sum_k S_k^2 - \frac1N \quad\text{(systematic and the like)}\]

after \(r\) selections. Only the index of the first ancestor is carried: O(N) memory.

Source: A. Lee and N. Whiteley (2018), Variance estimation in the particle filter; H. P. Chan and
T. L. Lai (2013), A general theory of particle filters in hidden Markov models.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.typing import Array, Float, Int, Scalar

FEWEST = 5  # surviving first ancestors below which no standard error is given


class Lineage(NamedTuple):
    """First ancestor of each particle ``(N,)``, and the number of selections so far."""

    eves: Int[Array, " N"]
    num_selections: Int[Array, ""]


def first_lineage(num_particles: int) -> Lineage:
    """Everybody descends from themselves."""
    return Lineage(jnp.arange(num_particles, dtype=jnp.int32), jnp.zeros((), jnp.int32))


def next_lineage(lineage: Lineage, ancestors: Int[Array, " N"], resampled: Array) -> Lineage:
    """Hand the first ancestors down."""
    return Lineage(lineage.eves[ancestors], lineage.num_selections + resampled.astype(jnp.int32))


def num_survivors(lineage: Lineage) -> Int[Array, ""]:
    """Number of first ancestors that still have descendants."""
    return num_unique(lineage.eves)


def log_evidence_se(
    lineage: Lineage, log_weights: Float[Array, " N"], *, is_multinomial: bool
) -> Scalar:
    """Standard error of the log evidence, in nats; nan with fewer than five survivors.

    Args:
        lineage: at the end of the run.
        log_weights: at the end of the run ``(N,)``.
        is_multinomial: whether ancestors were drawn independently (Lee–Whiteley), or by a scheme
            with less noise (Chan–Lai).
    """
    count = log_weights.shape[0]
    weights = jax.nn.softmax(jax.lax.stop_gradient(log_weights))
    shares = jnp.zeros(count, weights.dtype).at[lineage.eves].add(weights)
    together = jnp.sum(shares**2)
    if is_multinomial:
        power = lineage.num_selections + 1
        growth = jnp.expm1(power * -jnp.log1p(jnp.asarray(-1 / count, weights.dtype)))
        variance = together - growth * (1 - together)
    else:
        variance = together - 1 / count
    enough = num_survivors(lineage) >= FEWEST
    return jnp.where(enough, jnp.sqrt(jnp.maximum(variance, 0.0)), jnp.nan)


def num_unique(indices: Int[Array, " N"]) -> Int[Array, ""]:
    """Number of different indices."""
    marks = jnp.zeros(indices.shape[0], jnp.int32).at[indices].set(1)
    return jnp.sum(marks)
