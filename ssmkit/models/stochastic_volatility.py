r"""Stochastic volatility: the log variance of returns is an autoregression.

\[x_0 \sim N\!\left(\mu, \frac{\sigma^2}{1-\phi^2}\right), \qquad
x_t \sim N(\mu + \phi (x_{t-1} - \mu), \sigma^2), \qquad y_t \sim N(0, e^{x_t})\]

Source: S. Kim, N. Shephard and S. Chib (1998), Stochastic volatility: likelihood inference and
comparison with ARCH models, Review of Economic Studies 65.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import Number, require_positive, require_scalars, require_stationary
from ssmkit.models.laws import LogVarianceNormal, normal
from ssmkit.typing import Array, PyTree


class StochasticVolatility(StateSpaceModel):
    r"""Returns with a log variance that reverts to its mean.

    \(x_t \sim N(\mu + \phi (x_{t-1} - \mu), \sigma^2)\), \(y_t \sim N(0, e^{x_t})\)

    Args:
        mean: \(\mu\), mean of the log variance, scalar; returns in per cent suit values near 0.
        persistence: \(\phi\) in (-1, 1), scalar.
        scale: \(\sigma\), standard deviation of the steps, scalar.

    Raises:
        ParameterError: a persistence outside (-1, 1) or a scale that is not positive.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(mean=-1.0, persistence=0.8, scale=0.6)
        >>> round(float(model.initial(None).scale), 6)
        1.0

    Source: S. Kim, N. Shephard and S. Chib (1998), Review of Economic Studies 65.
    """

    mean: Number
    persistence: Number
    scale: Number

    def __check_init__(self) -> None:
        """Check the values where they are known."""
        require_scalars(self, mean=self.mean)
        require_stationary(self, self.persistence)
        require_positive(self, scale=self.scale)

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the stationary law of the log variance."""
        return normal(self.mean, self.scale / jnp.sqrt(1 - self.persistence**2))

    def transition(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of the next log variance."""
        return normal(self.mean + self.persistence * (x - self.mean), self.scale)

    def emission(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of the return, with variance ``exp(x)``."""
        return LogVarianceNormal(jnp.zeros_like(x), x)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name of the state."""
        return ("log_variance",)
