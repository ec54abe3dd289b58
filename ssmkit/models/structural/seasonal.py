r"""Seasonal component in dummy form: the last ``period`` effects sum to noise.

\[\gamma_t = -\sum_{j=1}^{s-1} \gamma_{t-j} + N(0, \sigma_\omega^2)\]

Source: J. Durbin and S. J. Koopman (2012), Time Series Analysis by State Space Methods, 3.2.2.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from ssmkit.errors import ParameterError
from ssmkit.models.checks import Number, float_type, is_zero, require_at_least_zero, root
from ssmkit.models.structural.base import Observation, StateEquation, Structural
from ssmkit.typing import PyTree


class Seasonal(Structural):
    r"""Seasonal effects that sum to noise over one period; they start diffuse.

    \(\gamma_t = -\sum_{j=1}^{s-1} \gamma_{t-j} + N(0, \sigma_\omega^2)\); the state holds
    \(\gamma_t, \dots, \gamma_{t-s+2}\).

    Args:
        period: number of seasons ``s``, in steps, an integer ≥ 2.
        variance: \(\sigma_\omega^2\), scalar; 0 gives a fixed pattern.
        noise_variance: variance of the observation noise, scalar.
        name: name of the component, ``"seasonal"`` when not given.

    Raises:
        ParameterError: a period that is no integer ≥ 2, or a negative variance.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.Seasonal(period=4, variance=0.5)
        >>> model.transition(jnp.array([3.0, -1.0, 1.0]), None).mean.tolist()
        [-3.0, 3.0, -1.0]

    Source: J. Durbin and S. J. Koopman (2012), 3.2.2.
    """

    period: int = eqx.field(static=True)
    variance: Number
    noise_variance: Number = 0.0
    name: str | None = eqx.field(static=True, default=None)
    has_density: bool = eqx.field(static=True, init=False)

    def __post_init__(self) -> None:
        """Check the period and the variances."""
        if not isinstance(self.period, int) or self.period < 2:
            raise ParameterError(
                "Seasonal: period must be a whole number of steps.",
                got=self.period,
                expected="a Python int ≥ 2",
                fix="Seasonal(12, variance) for months in a year; Cycle for other periods",
            )
        require_at_least_zero(self, variance=self.variance, noise_variance=self.noise_variance)
        self.has_density = self.period == 2 and not is_zero(self.variance)

    @property
    def labels(self) -> tuple[str, tuple[str, ...]]:
        """Name of the component, and of its states."""
        name = self.name or "seasonal"
        return name, tuple(f"{name}{i}" for i in range(1, self.period))

    def equation(self) -> StateEquation:
        """Return the last ``period - 1`` effects."""
        size, dtype = self.period - 1, float_type(self.variance)
        matrix = jnp.eye(size, k=-1, dtype=dtype).at[0].set(-1)
        noise = jnp.zeros(size, dtype).at[0].set(root(self.variance))
        return StateEquation(matrix, noise, self.has_density)

    def observation(self, u: PyTree) -> Observation:
        """Return the row that picks the present effect."""
        row = jnp.zeros(self.period - 1, float_type(self.variance)).at[0].set(1)
        return Observation(row, self.noise_variance)
