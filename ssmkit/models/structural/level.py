r"""Local level: a random walk seen with noise.

\[\mu_t = \mu_{t-1} + N(0, \sigma_\xi^2), \qquad y_t = \mu_t + N(0, \sigma_\epsilon^2)\]

Source: J. Durbin and S. J. Koopman (2012), Time Series Analysis by State Space Methods, ch. 2.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from ssmkit.models.checks import Number, float_type, is_zero, require_at_least_zero, root
from ssmkit.models.structural.base import Observation, StateEquation, Structural
from ssmkit.typing import PyTree


class LocalLevel(Structural):
    r"""A level that walks at random; it starts diffuse.

    \(\mu_t = \mu_{t-1} + N(0, \sigma_\xi^2)\), \(y_t = \mu_t + N(0, \sigma_\epsilon^2)\)

    Args:
        level_variance: \(\sigma_\xi^2\), scalar; 0 gives a constant level.
        noise_variance: \(\sigma_\epsilon^2\), scalar.
        name: name of the component and its state, ``"level"`` when not given.

    Raises:
        ParameterError: a negative variance.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(level_variance=1469.0, noise_variance=15099.0)
        >>> model.state_names
        ('level',)

    Source: J. Durbin and S. J. Koopman (2012), ch. 2.
    """

    level_variance: Number
    noise_variance: Number = 0.0
    name: str | None = eqx.field(static=True, default=None)
    has_density: bool = eqx.field(static=True, init=False)

    def __post_init__(self) -> None:
        """Check the variances."""
        require_at_least_zero(
            self, level_variance=self.level_variance, noise_variance=self.noise_variance
        )
        self.has_density = not is_zero(self.level_variance)

    @property
    def labels(self) -> tuple[str, tuple[str, ...]]:
        """Name of the component, and of its state."""
        name = self.name or "level"
        return name, (name,)

    def equation(self) -> StateEquation:
        """Return the random walk."""
        dtype = float_type(self.level_variance)
        noise = root(self.level_variance)[None]
        return StateEquation(jnp.ones((1, 1), dtype), noise, self.has_density)

    def observation(self, u: PyTree) -> Observation:
        """Return the row ``[1]``."""
        row = jnp.ones(1, float_type(self.level_variance))
        return Observation(row, self.noise_variance)
