r"""The objective of flow annealed importance sampling bootstrap.

\[D_\alpha(p \,\|\, q) = -\frac{1}{\alpha (1 - \alpha)} \int p^\alpha q^{1 - \alpha}, \qquad
-\nabla D_\alpha \propto \mathrm E_g\,[\nabla \log q(x)], \quad
g \propto p^\alpha q^{1 - \alpha}\]

At \(\alpha = 2\) this is the variance of the importance weights \(p / q\), and \(g = p^2 / q\) the
law under which it is estimated with the least variance: annealed importance sampling from the flow
goes there, to where the target is and the flow is not.

Source: L. Midgley, V. Stimper, G. Simm, B. Schölkopf and J. M. Hernández-Lobato (2023), Flow
annealed importance sampling bootstrap.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ssmkit.typing import Array, Float, Scalar


def annealing_end(log_q: Scalar, log_p: Scalar, alpha: float) -> Scalar:
    r"""Where annealing goes, \(\alpha \log p + (1 - \alpha) \log q\), in nats."""
    return alpha * log_p + (1 - alpha) * log_q


def target_of_end(log_q: Array, end: Array, alpha: float) -> Array:
    r"""The target's log density \(\log p\) out of the annealing's end, in nats."""
    return (end - (1 - alpha) * log_q) / alpha


def annealed_loss(log_q: Float[Array, " N"], log_weights: Float[Array, " N"]) -> Scalar:
    r"""The loss by fresh annealed draws, \(-\sum_i W_i \log q(x_i)\) with normalised weights.

    Args:
        log_q: log density of the flow at the draws, which carries the gradient.
        log_weights: unnormalised log weights of the draws; −inf for those that do not count.
    """
    weights = jax.nn.softmax(jax.lax.stop_gradient(log_weights))
    # zero times a log density that is not finite is nothing
    return -jnp.sum(jnp.where(weights > 0, weights * log_q, 0.0))


def replayed_loss(
    log_q: Float[Array, " N"], log_q_then: Float[Array, " N"], alpha: float, clip: float | None
) -> Scalar:
    r"""The loss by rows that were drawn by weight, \(-\frac1N \sum_i c_i \log q(x_i)\).

    \[c_i = \Big(\frac{q(x_i)}{q_{\mathrm{then}}(x_i)}\Big)^{1 - \alpha}\]

    turns weights of the flow as it was into those of the flow as it is.

    Args:
        log_q: log density of the flow at the rows, which carries the gradient.
        log_q_then: what it was when the rows were weighed.
        alpha: order of the divergence.
        clip: the largest correction that counts; None for no limit.
    """
    fixed = jax.lax.stop_gradient(log_q)
    correction = jnp.exp((1 - alpha) * (fixed - log_q_then))
    correction = jnp.where(jnp.isfinite(fixed), correction, 0.0)
    if clip is not None:
        correction = jnp.minimum(correction, clip)
    return -jnp.mean(jnp.where(correction > 0, correction * log_q, 0.0))
