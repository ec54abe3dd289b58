"""A resampling scheme: particles survive in proportion to their weight, or are replaced."""

import jax
import jax.numpy as jnp


def killing(key, weights):
    r"""Keep a particle with probability \(w / \max w\); else draw its successor from all.

    The expected number of offspring of particle i is
    \(w_i / \max w + w_i \sum_j (1 - w_j / \max w) = N w_i\), as it has to be.

    Source: P. Del Moral (2004), Feynman–Kac Formulae, section 2.5.3.
    """
    survive_key, draw_key = jax.random.split(key)
    uniforms = jax.random.uniform(survive_key, weights.shape, weights.dtype)
    survives = uniforms < weights / jnp.max(weights)
    drawn = jax.random.categorical(draw_key, jnp.log(weights), shape=weights.shape)
    return jnp.where(survives, jnp.arange(weights.shape[0]), drawn)
