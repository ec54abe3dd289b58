r"""Stochastic volatility of several assets, each with a scale of its own.

\[x_0 \sim N(\mu, \sigma^2), \qquad x_t \sim N(\mu + \phi (x_{t-1} - \mu), \sigma^2), \qquad
y_t \sim N(0, \beta^2 e^{x_t})\]

elementwise over the assets.

Source: C. A. Naesseth, S. W. Linderman, R. Ranganath and D. M. Blei (2018), Variational sequential
Monte Carlo, AISTATS 21.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import (
    as_float,
    require_all_positive,
    require_all_stationary,
    require_vectors,
)
from ssmkit.models.laws import LogVarianceNormal, normal
from ssmkit.typing import Array, Float, PyTree


class MultivariateStochasticVolatility(StateSpaceModel):
    r"""Returns of several assets, whose log variances revert to their means independently.

    \(x_0 \sim N(\mu, \sigma^2)\), \(x_t \sim N(\mu + \phi (x_{t-1} - \mu), \sigma^2)\),
    \(y_t = \beta\, e^{x_t / 2} \epsilon_t\), \(\epsilon_t \sim N(0, I)\), elementwise.

    The start is \(N(\mu, \sigma^2)\), as in the released code of Lawson et al. (2022); their text
    prints \(N(0, \sigma^2)\), the code of Naesseth et al. (2018) has
    \(N(\mu - \phi \mu, \sigma^2)\), and `StochasticVolatility` starts stationary.

    With this start \(\mu\) and \(\beta\) are not both identified: the returns have the same law
    under \((\mu + c, \beta e^{-c/2})\) for every \(c\). Hold one of them: ``mean`` at zero and
    learn ``beta``, or ``beta`` at one and learn ``mean``.

    Args:
        mean: \(\mu\), means of the states, ``(D,)``.
        persistence: \(\phi\), each in (-1, 1), ``(D,)``.
        scale: \(\sigma\), standard deviations of the steps, ``(D,)``.
        beta: \(\beta\), standard deviations of the returns where the state is zero, ``(D,)``.

    Raises:
        ParameterError: a persistence outside (-1, 1), or a scale or beta that is not positive.
        ShapeError: parameters that are not ``(D,)`` with one ``D``.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.MultivariateStochasticVolatility(
        ...     mean=[0.0, 0.0], persistence=[0.9, 0.5], scale=[0.3, 0.3], beta=[1.0, 2.0]
        ... )
        >>> model.emission(jnp.zeros(2), None).variance.tolist()
        [1.0, 4.0]

    Source: C. A. Naesseth et al. (2018), AISTATS 21; D. Lawson et al. (2022), NeurIPS 35.
    """

    mean: Float[Array, " D"] = eqx.field(converter=as_float)
    persistence: Float[Array, " D"] = eqx.field(converter=as_float)
    scale: Float[Array, " D"] = eqx.field(converter=as_float)
    beta: Float[Array, " D"] = eqx.field(converter=as_float)

    def __check_init__(self) -> None:
        """Check the values where they are known."""
        steps = {"persistence": self.persistence, "scale": self.scale}
        require_vectors(self, mean=self.mean, **steps, beta=self.beta)
        require_all_stationary(self, self.persistence)
        require_all_positive(self, scale=self.scale, beta=self.beta)

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of the first states: one step from their means."""
        return normal(self.mean, self.scale)

    def transition(self, x: Float[Array, " D"], u: PyTree) -> dist.Distribution:
        """Return the law of the next states."""
        return normal(self.mean + self.persistence * (x - self.mean), self.scale)

    def emission(self, x: Float[Array, " D"], u: PyTree) -> dist.Distribution:
        """Return the law of the returns, with variances ``beta**2 * exp(x)``."""
        log_variance = x + 2 * jnp.log(self.beta)
        return LogVarianceNormal(jnp.zeros_like(x), log_variance).to_event(1)
