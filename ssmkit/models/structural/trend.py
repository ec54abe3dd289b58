r"""Local linear trend: a level with a slope, both walking at random.

\[\mu_t = \mu_{t-1} + \beta_{t-1} + N(0, \sigma_\xi^2), \quad
\beta_t = \beta_{t-1} + N(0, \sigma_\zeta^2), \quad y_t = \mu_t + N(0, \sigma_\epsilon^2)\]

Source: J. Durbin and S. J. Koopman (2012), Time Series Analysis by State Space Methods, 3.2.1.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from ssmkit.models.checks import Number, float_type, is_zero, require_at_least_zero, root
from ssmkit.models.structural.base import Observation, StateEquation, Structural
from ssmkit.typing import PyTree


class LocalLinearTrend(Structural):
    r"""A level with a slope; both start diffuse.

    \(\mu_t = \mu_{t-1} + \beta_{t-1} + N(0, \sigma_\xi^2)\),
    \(\beta_t = \beta_{t-1} + N(0, \sigma_\zeta^2)\), \(y_t = \mu_t + N(0, \sigma_\epsilon^2)\)

    Args:
        level_variance: \(\sigma_\xi^2\), scalar; 0 gives a smooth trend.
        slope_variance: \(\sigma_\zeta^2\), scalar, per step; 0 gives a constant slope.
        noise_variance: \(\sigma_\epsilon^2\), scalar.
        name: name of the component, ``"trend"`` when not given; its states are then
            ``"name_level"`` and ``"name_slope"``, otherwise ``"level"`` and ``"slope"``.

    Raises:
        ParameterError: a negative variance.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.LocalLinearTrend(1.0, 0.1, 2.0)
        >>> model.transition(jnp.array([3.0, 0.5]), None).mean.tolist()
        [3.5, 0.5]

    Source: J. Durbin and S. J. Koopman (2012), 3.2.1.
    """

    level_variance: Number
    slope_variance: Number
    noise_variance: Number = 0.0
    name: str | None = eqx.field(static=True, default=None)
    has_density: bool = eqx.field(static=True, init=False)

    def __post_init__(self) -> None:
        """Check the variances."""
        require_at_least_zero(
            self,
            level_variance=self.level_variance,
            slope_variance=self.slope_variance,
            noise_variance=self.noise_variance,
        )
        self.has_density = not (is_zero(self.level_variance) or is_zero(self.slope_variance))

    @property
    def labels(self) -> tuple[str, tuple[str, ...]]:
        """Name of the component, and of its states."""
        if self.name is None:
            return "trend", ("level", "slope")
        return self.name, (f"{self.name}_level", f"{self.name}_slope")

    def equation(self) -> StateEquation:
        """Return level and slope."""
        dtype = float_type(self.level_variance, self.slope_variance)
        matrix = jnp.array([[1, 1], [0, 1]], dtype)
        noise = jnp.stack([root(self.level_variance), root(self.slope_variance)])
        return StateEquation(matrix, noise.astype(dtype), self.has_density)

    def observation(self, u: PyTree) -> Observation:
        """Return the row ``[1, 0]``: only the level is seen."""
        row = jnp.array([1, 0], float_type(self.level_variance, self.slope_variance))
        return Observation(row, self.noise_variance)
