r"""A model in a file of its own: the Ricker population model, counted with Poisson noise.

\[x_0 \sim N(\log K, 1), \qquad x_t \sim N(x_{t-1} + r (1 - e^{x_{t-1}} / K), \sigma^2), \qquad
y_t \sim \mathrm{Poisson}(e^{x_t})\]

``x`` is the logarithm of the abundance, ``K`` the abundance at which it neither grows nor shrinks.

Source: W. E. Ricker (1954), Stock and recruitment, Journal of the Fisheries Research Board of
Canada 11.
"""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

import ssmkit as sk


class Ricker(sk.StateSpaceModel):
    """Density-dependent growth, counted.

    Args:
        growth_rate: ``r``, per step, scalar.
        capacity: ``K``, in individuals, scalar.
        scale: standard deviation of the noise on the log abundance, per step, scalar.
    """

    growth_rate: Array
    capacity: Array
    scale: Array

    def initial(self, u):
        """Return the law of ``x_0``."""
        return dist.Normal(jnp.log(self.capacity), 1.0)

    def transition(self, x, u):
        """Return the law of ``x_t`` given ``x_{t-1} = x``."""
        growth = self.growth_rate * (1 - jnp.exp(x) / self.capacity)
        return dist.Normal(x + growth, self.scale)

    def emission(self, x, u):
        """Return the law of ``y_t`` given ``x_t = x``."""
        return dist.Poisson(jnp.exp(x))

    @property
    def state_names(self):
        """Name of the state in tables, plots and exports."""
        return ("log_abundance",)
