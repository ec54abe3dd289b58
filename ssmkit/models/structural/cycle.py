r"""Stochastic cycle: a damped rotation with noise.

\[\begin{pmatrix} \psi_t \\ \psi^*_t \end{pmatrix} = \rho
\begin{pmatrix} \cos\lambda & \sin\lambda \\ -\sin\lambda & \cos\lambda \end{pmatrix}
\begin{pmatrix} \psi_{t-1} \\ \psi^*_{t-1} \end{pmatrix} + N(0, \sigma_\kappa^2 I),
\qquad \lambda = 2\pi / \text{period}\]

Source: A. C. Harvey (1989), Forecasting, Structural Time Series Models and the Kalman Filter, 2.3.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ssmkit.errors import ParameterError
from ssmkit.models.checks import (
    Number,
    float_type,
    is_known,
    is_zero,
    require_at_least_zero,
    require_positive,
    root,
)
from ssmkit.models.structural.base import Observation, Start, StateEquation, Structural
from ssmkit.typing import PyTree


class Cycle(Structural):
    r"""A cycle whose phase and size wander; the period may be learned.

    \(\psi_t = \rho R(\lambda) \psi_{t-1} + N(0, \sigma_\kappa^2 I)\), \(\lambda = 2\pi/\)period;
    stationary variance \(\sigma_\kappa^2 / (1 - \rho^2)\).

    Args:
        period: length of the cycle in steps, scalar > 0.
        damping: \(\rho\) in [0, 1], scalar. Below one, and inside a program, the cycle starts
            from its stationary law; given as 1 it starts diffuse.
        variance: \(\sigma_\kappa^2\), scalar.
        noise_variance: variance of the observation noise, scalar.
        name: name of the component, ``"cycle"`` when not given.

    Raises:
        ParameterError: damping outside [0, 1], a period that is not positive, or a negative
            variance.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.Cycle(period=10.0, damping=0.5, variance=0.75)
        >>> model.initial(None).variance.tolist()
        [1.0, 1.0]

    Source: A. C. Harvey (1989), 2.3.
    """

    period: Number
    damping: Number
    variance: Number
    noise_variance: Number = 0.0
    name: str | None = eqx.field(static=True, default=None)
    has_density: bool = eqx.field(static=True, init=False)
    is_damped: bool = eqx.field(static=True, init=False)

    def __post_init__(self) -> None:
        """Check the values; decide on the start."""
        require_positive(self, period=self.period)
        require_at_least_zero(
            self,
            damping=self.damping,
            variance=self.variance,
            noise_variance=self.noise_variance,
        )
        known = is_known(self.damping)
        if known and np.asarray(self.damping) > 1:
            raise ParameterError(
                "Cycle: damping above one explodes.",
                got=self.damping,
                expected="a number in [0, 1]",
                fix="constraint=dist.constraints.unit_interval where it is learned",
            )
        self.is_damped = not (known and np.asarray(self.damping) == 1)
        self.has_density = not is_zero(self.variance)

    @property
    def labels(self) -> tuple[str, tuple[str, ...]]:
        """Name of the component, and of its states."""
        name = self.name or "cycle"
        return name, (f"{name}1", f"{name}2")

    def equation(self) -> StateEquation:
        """Return the damped rotation."""
        angle = 2 * jnp.pi / jnp.asarray(self.period)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        matrix = self.damping * jnp.array([[cos, sin], [-sin, cos]])
        noise = jnp.full(2, root(self.variance), self._dtype)
        return StateEquation(matrix.astype(self._dtype), noise, self.has_density)

    def start(self) -> Start:
        """Return the stationary law of a damped cycle, else a diffuse start."""
        if not self.is_damped:
            return super().start()
        stationary = root(self.variance / (1 - jnp.square(jnp.asarray(self.damping))))
        eye = jnp.eye(2, dtype=self._dtype)
        return Start(stationary.astype(self._dtype) * eye, eye[:, :0])

    def observation(self, u: PyTree) -> Observation:
        """Return the row ``[1, 0]``."""
        return Observation(jnp.array([1, 0], self._dtype), self.noise_variance)

    @property
    def _dtype(self) -> Any:
        return float_type(self.period, self.damping, self.variance)
