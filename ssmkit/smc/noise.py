"""Laws as functions of noise: how one particle is drawn.

Gaussian laws take standard normals, which are drawn for the whole cloud at once; others take one
random key a particle. Sampling happens inside the function that is lifted over particles: a law
that leaves it would draw the same noise for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.models.distributions import is_gaussian, log_density, moments
from ssmkit.smc.weights import surrogate
from ssmkit.typing import Array, Law, Scalar

NoiseShape = tuple[int, ...] | None


def noise_shape(make: Callable[[], Law]) -> NoiseShape:
    """Shape of the standard normals that a law is made of; None when it needs a random key."""
    gaussian: list[bool] = []
    event_shape: list[tuple[int, ...]] = []

    def factor() -> Array:
        law = make()
        gaussian.append(is_gaussian(law))
        event_shape.append(law.event_shape)
        return moments(law)[1] if gaussian[0] else jnp.zeros(())

    shape = jax.eval_shape(factor).shape
    if not gaussian[0]:
        return None
    return shape[-1:] if len(shape) == 2 else event_shape[0]


def draw(law: Law, noise: Any, dtype: Any) -> Array:
    """One draw; it carries a gradient where it moves smoothly with the parameters.

    Args:
        law: the law of one state.
        noise: what `noise_shape` asks for.
        dtype: type of the draw, where it is a floating type.
    """
    if is_gaussian(law) and not jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        x = place(law, noise)
    else:
        x = law.sample(noise)
    if not is_differentiable(law):
        x = jax.lax.stop_gradient(x)
    # numpyro draws in the default precision
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def place(law: Law, noise: Array) -> Array:
    """Mean plus factor times standard normals, in the shape of the event."""
    mean, factor = moments(law)
    if factor.ndim == 2:
        return (mean + factor @ noise).reshape(law.event_shape)
    return mean.reshape(noise.shape) + factor.reshape(noise.shape) * noise


def is_differentiable(law: Law) -> bool:
    """Whether draws move smoothly with the parameters."""
    return is_gaussian(law) or (law.has_rsample and not law.is_discrete)


def score(law: Law, x: Array) -> Scalar | float:
    """Zero with the gradient of the log density of a draw, where the draw itself carries none."""
    return 0.0 if is_differentiable(law) else surrogate(log_density(law, x))
