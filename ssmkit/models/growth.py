r"""The growth model: bimodal, strongly nonlinear, driven by the time itself.

\[x_t = \frac{x_{t-1}}{2} + \frac{25 x_{t-1}}{1 + x_{t-1}^2} + 8 \cos(1.2\, t) + N(0, s^2),
\qquad y_t = \frac{x_t^2}{20} + N(0, r^2)\]

Source: G. Kitagawa (1987), Non-Gaussian state-space modeling of nonstationary time series,
Journal of the American Statistical Association 82.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import Number, require_positive
from ssmkit.models.laws import normal
from ssmkit.typing import Array, PyTree


class Growth(StateSpaceModel):
    r"""A scalar model whose sign is hard to tell from its square; it needs no inputs.

    \(x_t = x_{t-1}/2 + 25 x_{t-1}/(1 + x_{t-1}^2) + 8 \cos(1.2\, t) + N(0, s^2)\),
    \(y_t = x_t^2/20 + N(0, r^2)\)

    Args:
        transition_scale: \(s\), scalar.
        emission_scale: \(r\), scalar.
        initial_scale: standard deviation of ``x_0`` around zero, scalar.
        time: the time step ``t`` into which the transition leads; engines set it by ``at(t)``.

    Raises:
        ParameterError: a scale that is not positive.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.Growth()
        >>> round(float(model.at(3).transition(jnp.array(0.0), None).mean), 3)
        -7.174

    Source: G. Kitagawa (1987), Journal of the American Statistical Association 82.
    """

    transition_scale: Number = 10.0**0.5
    emission_scale: Number = 1.0
    initial_scale: Number = 5.0**0.5
    time: int | Array = 0

    def __check_init__(self) -> None:
        """Check the values where they are known."""
        require_positive(
            self,
            transition_scale=self.transition_scale,
            emission_scale=self.emission_scale,
            initial_scale=self.initial_scale,
        )

    def at(self, t: int | Array) -> Growth:
        """Return the model that rules the step into time ``t``."""
        return dataclasses.replace(self, time=t)

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_0``."""
        return normal(0.0, self.initial_scale)

    def transition(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_t``, where ``t`` is ``self.time``."""
        wave = 8 * jnp.cos(1.2 * jnp.asarray(self.time)).astype(x.dtype)
        return normal(x / 2 + 25 * x / (1 + x**2) + wave, self.transition_scale)

    def emission(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``y_t``."""
        return normal(x**2 / 20, self.emission_scale)
