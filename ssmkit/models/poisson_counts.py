r"""Counts whose log intensity is an autoregression or a random walk.

\[x_t \sim N(\mu + \phi (x_{t-1} - \mu), \sigma^2), \qquad y_t \sim \mathrm{Poisson}(e^{x_t})\]

Source: K. S. Chan and J. Ledolter (1995), Monte Carlo EM estimation for time series models
involving counts, Journal of the American Statistical Association 90.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.errors import ParameterError
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import Number, require_positive, require_scalars, require_stationary
from ssmkit.models.laws import normal
from ssmkit.typing import Array, PyTree


class PoissonCounts(StateSpaceModel):
    r"""Counts with a log intensity that reverts to its mean, or walks at random.

    \(x_t \sim N(\mu + \phi (x_{t-1} - \mu), \sigma^2)\), \(y_t \sim \mathrm{Poisson}(e^{x_t})\)

    Args:
        mean: \(\mu\), mean of the log intensity (of ``x_0``, for a random walk), scalar.
        persistence: \(\phi\) in (-1, 1), scalar; or 1, a random walk, with ``initial_scale``.
        scale: \(\sigma\), standard deviation of the steps, scalar.
        initial_scale: standard deviation of ``x_0``, scalar; that of the stationary law,
            \(\sigma / \sqrt{1 - \phi^2}\), when not given.

    Raises:
        ParameterError: a persistence outside (-1, 1) without ``initial_scale``, or a scale that
            is not positive.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.PoissonCounts(mean=1.0, persistence=0.8, scale=0.6)
        >>> float(model.emission(jnp.array(0.0), None).mean)
        1.0

    Source: K. S. Chan and J. Ledolter (1995), JASA 90.
    """

    mean: Number
    persistence: Number
    scale: Number
    initial_scale: Number | None = None

    def __check_init__(self) -> None:
        """Check the values where they are known."""
        require_scalars(self, mean=self.mean, persistence=self.persistence)
        require_positive(self, scale=self.scale)
        if self.initial_scale is not None:
            require_positive(self, initial_scale=self.initial_scale)
            return
        try:
            require_stationary(self, self.persistence)
        except ParameterError as error:
            raise ParameterError(
                f"{error}\n  or: initial_scale=1.0, where the intensity walks at random"
            ) from None

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of the first log intensity."""
        if self.initial_scale is not None:
            return normal(self.mean, self.initial_scale)
        return normal(self.mean, self.scale / jnp.sqrt(1 - self.persistence**2))

    def transition(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of the next log intensity."""
        return normal(self.mean + self.persistence * (x - self.mean), self.scale)

    def emission(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of the count."""
        return dist.Poisson(jnp.exp(x))

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name of the state."""
        return ("log_intensity",)
