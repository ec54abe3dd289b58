"""Gaussian laws without numpyro's argument checks.

The models check their parameters themselves. numpyro's checks compile a dozen small kernels when a
multivariate normal is built, refuse standard deviations of zero (which Gaussian engines serve
exactly), and add a mask to every density in a particle filter.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.models.checks import Number
from ssmkit.models.distributions import SingularNormal
from ssmkit.typing import Array, Float


def normal(mean: Number, scale: Number) -> dist.Distribution:
    """Independent normal coordinates: an event of the shape of the mean.

    Args:
        mean: ``()`` or ``(D,)``.
        scale: standard deviations that broadcast against the mean; zero is allowed.
    """
    return dist.Normal(mean, scale, validate_args=False).to_event(jnp.ndim(mean))


class LogVarianceNormal(dist.Normal):
    r"""\(N(m, e^h)\) by its log variance: the density needs no logarithm of a scale.

    Args:
        loc: the mean.
        log_variance: \(h\).
    """

    pytree_data_fields = ("log_variance",)

    def __init__(self, loc: Number, log_variance: Number) -> None:
        self.log_variance = log_variance
        super().__init__(loc, jnp.exp(log_variance / 2), validate_args=False)

    def log_prob(self, value: Any) -> Array:
        """Log density, in nats."""
        square = (value - self.loc) ** 2 * jnp.exp(-self.log_variance)
        return -0.5 * (square + self.log_variance + math.log(2 * math.pi))


def multivariate_normal(
    mean: Float[Array, " D"], factor: Float[Array, "D D"], *, is_singular: bool = False
) -> dist.Distribution:
    """A normal vector by the lower factor of its covariance.

    Args:
        mean: ``(D,)``.
        factor: ``(D, D)``.
        is_singular: whether the law has no density.
    """
    if is_singular:
        return SingularNormal(mean, factor)
    return dist.MultivariateNormal(mean, scale_tril=factor, validate_args=False)
