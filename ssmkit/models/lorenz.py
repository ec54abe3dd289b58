r"""The Lorenz system with additive noise, integrated by Runge–Kutta steps.

\[\dot a = \sigma (b - a), \qquad \dot b = a (\rho - c) - b, \qquad \dot c = a b - \beta c\]

Source: E. N. Lorenz (1963), Deterministic nonperiodic flow, Journal of the Atmospheric Sciences 20.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.errors import ParameterError
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import Number, float_type, require_positive, require_scalars
from ssmkit.models.laws import normal
from ssmkit.typing import Array, Float, PyTree


class Lorenz63(StateSpaceModel):
    r"""A chaotic system of three coordinates, of which some are seen with noise.

    \(x_t = \Phi_\Delta(x_{t-1}) + N(0, s^2 I)\), \(y_t = (x_t)_{\text{observed}} + N(0, r^2 I)\),
    with \(\Phi_\Delta\) the classical fourth-order Runge–Kutta method on
    \(\dot a = \sigma (b - a)\), \(\dot b = a (\rho - c) - b\), \(\dot c = a b - \beta c\).

    Args:
        time_step: \(\Delta\), time between observations, scalar.
        transition_scale: \(s\), scalar.
        emission_scale: \(r\), scalar.
        sigma: \(\sigma\), scalar.
        rho: \(\rho\), scalar.
        beta: \(\beta\), scalar.
        initial_scale: standard deviation of the start around (0, 0, 25), scalar.
        observed: indices of the coordinates that are seen.
        num_substeps: number of Runge–Kutta steps in ``time_step``.

    Raises:
        ParameterError: a scale or time step that is not positive, or other indices than 0, 1, 2.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.Lorenz63(observed=(0, 2))
        >>> model.emission(jnp.array([1.0, 2.0, 3.0]), None).mean.tolist()
        [1.0, 3.0]

    Source: E. N. Lorenz (1963), Journal of the Atmospheric Sciences 20.
    """

    time_step: Number = 0.05
    transition_scale: Number = 0.1
    emission_scale: Number = 1.0
    sigma: Number = 10.0
    rho: Number = 28.0
    beta: Number = 8 / 3
    initial_scale: Number = 8.0
    observed: tuple[int, ...] = eqx.field(static=True, default=(0, 1, 2), converter=tuple)
    num_substeps: int = eqx.field(static=True, default=2)

    def __check_init__(self) -> None:
        """Check the values where they are known."""
        require_scalars(self, sigma=self.sigma, rho=self.rho, beta=self.beta)
        require_positive(
            self,
            time_step=self.time_step,
            transition_scale=self.transition_scale,
            emission_scale=self.emission_scale,
            initial_scale=self.initial_scale,
        )
        if not self.observed or any(i not in (0, 1, 2) for i in self.observed):
            raise ParameterError(
                "Lorenz63: observed must name coordinates.",
                got=self.observed,
                expected="some of 0, 1, 2",
                fix="observed=(0,)",
            )
        if not isinstance(self.num_substeps, int) or self.num_substeps < 1:
            raise ParameterError(
                "Lorenz63: num_substeps must be a whole number.",
                got=self.num_substeps,
                expected="a Python int ≥ 1",
                fix="num_substeps=2",
            )

    def field(self, x: Float[Array, " 3"]) -> Float[Array, " 3"]:
        """Return the time derivative of the state."""
        a, b, c = x
        return jnp.stack([self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c])

    def flow(self, x: Float[Array, " 3"]) -> Float[Array, " 3"]:
        """Return the state ``time_step`` later, without noise."""
        h = self.time_step / self.num_substeps

        def substep(_: int, x: Array) -> Array:
            k1 = self.field(x)
            k2 = self.field(x + h / 2 * k1)
            k3 = self.field(x + h / 2 * k2)
            k4 = self.field(x + h * k3)
            return x + (h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).astype(x.dtype)

        if self.num_substeps == 1:
            return substep(0, x)
        return jax.lax.fori_loop(0, self.num_substeps, substep, x)

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of the first state, about as wide as the attractor."""
        mean = jnp.array([0, 0, 25], float_type(self.initial_scale))
        return normal(mean, self.initial_scale)

    def transition(self, x: Float[Array, " 3"], u: PyTree) -> dist.Distribution:
        """Return the law one ``time_step`` ahead."""
        return normal(self.flow(x), self.transition_scale)

    def emission(self, x: Float[Array, " 3"], u: PyTree) -> dist.Distribution:
        """Return the law of the coordinates that are seen."""
        return normal(x[jnp.array(self.observed)], self.emission_scale)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return ("a", "b", "c")

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names of the coordinates that are seen."""
        return tuple(self.state_names[i] for i in self.observed)
