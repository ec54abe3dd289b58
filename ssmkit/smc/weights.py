"""Log weights of a cloud: sums, effective numbers, and the term that carries their score."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ssmkit.typing import Array, Float, Scalar


def log_mean_exp(log_values: Float[Array, " N"]) -> Scalar:
    """Log of the mean of exponentials; −inf when all are −inf."""
    top = jax.lax.stop_gradient(jnp.max(log_values))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return top + jnp.log(jnp.mean(jnp.exp(log_values - top)))


@jax.custom_jvp
def surrogate(log_value: Array) -> Array:
    r"""Zero, with the derivative of its argument.

    A discrete choice made with probability \(p_\theta\) has no derivative of its own; adding
    ``surrogate(log p)`` to the log weight of what was chosen gives the score \(\nabla \log p\),
    and with it the right gradient of the expectation. The value does not change.

    Source: A. Ścibior and F. Wood (2021), Differentiable particle filtering without modifying the
    forward pass.
    """
    return jnp.zeros_like(log_value)


@surrogate.defjvp
def _surrogate_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return jnp.zeros_like(primals[0]), tangents[0]
