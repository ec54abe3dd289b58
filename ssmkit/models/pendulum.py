r"""A noisy pendulum whose horizontal position is measured.

\[\alpha_t = \alpha_{t-1} + \dot\alpha_{t-1} \Delta, \qquad
\dot\alpha_t = \dot\alpha_{t-1} - g \sin(\alpha_{t-1}) \Delta, \qquad y_t = \sin\alpha_t + r_t\]

with state noise of covariance
\(q \begin{pmatrix} \Delta^3/3 & \Delta^2/2 \\ \Delta^2/2 & \Delta \end{pmatrix}\).

Source: S. Särkkä (2013), Bayesian Filtering and Smoothing, example 5.1.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import Number, float_type, require_positive
from ssmkit.models.laws import multivariate_normal, normal
from ssmkit.typing import Array, Float, PyTree


class Pendulum(StateSpaceModel):
    r"""A pendulum with a force that is white noise; the state is angle and angular velocity.

    \(\alpha_t = \alpha_{t-1} + \dot\alpha_{t-1} \Delta\),
    \(\dot\alpha_t = \dot\alpha_{t-1} - g \sin(\alpha_{t-1}) \Delta\), \(y_t = \sin\alpha_t + r_t\)

    Args:
        time_step: \(\Delta\), in seconds, scalar.
        gravity: \(g\), gravity over length, in 1/s², scalar.
        diffusion: \(q\), spectral density of the force, in rad²/s³, scalar.
        emission_scale: standard deviation of \(r_t\), scalar.
        initial_angle: mean of the first angle, in radians; the mean velocity is 0.
        initial_scale: standard deviation of the first angle and velocity, scalar.

    Raises:
        ParameterError: a time step, diffusion or scale that is not positive.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.Pendulum(time_step=0.5)
        >>> model.transition(jnp.array([0.0, 1.0]), None).mean.tolist()
        [0.5, 1.0]

    Source: S. Särkkä (2013), example 5.1.
    """

    time_step: Number = 0.01
    gravity: Number = 9.81
    diffusion: Number = 0.01
    emission_scale: Number = 0.1**0.5
    initial_angle: Number = 1.6
    initial_scale: Number = 0.1**0.5

    def __check_init__(self) -> None:
        """Check the values where they are known."""
        require_positive(
            self,
            time_step=self.time_step,
            diffusion=self.diffusion,
            emission_scale=self.emission_scale,
            initial_scale=self.initial_scale,
        )

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of the first angle and velocity."""
        dtype = float_type(self.initial_angle, self.initial_scale)
        mean = jnp.zeros(2, dtype).at[0].set(self.initial_angle)
        return normal(mean, jnp.full(2, self.initial_scale, dtype))

    def transition(self, x: Float[Array, " 2"], u: PyTree) -> dist.Distribution:
        """Return the law one Euler step ahead."""
        step = jnp.asarray(self.time_step)
        angle, velocity = x
        velocity_next = velocity - self.gravity * jnp.sin(angle) * step
        mean = jnp.stack([angle + velocity * step, velocity_next])
        # the Cholesky factor of the integrated white noise, in closed form
        root3, zero = 3**0.5, jnp.zeros_like(step)
        rows = [[step / root3, zero], [jnp.full_like(step, root3 / 2), jnp.full_like(step, 0.5)]]
        factor = jnp.sqrt(self.diffusion * step) * jnp.array(rows)
        return multivariate_normal(mean, factor)

    def emission(self, x: Float[Array, " 2"], u: PyTree) -> dist.Distribution:
        """Return the law of the measured position."""
        return normal(jnp.sin(x[0]), self.emission_scale)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return ("angle", "velocity")
