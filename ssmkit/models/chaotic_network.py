r"""A recurrent network of neurons in its chaotic regime, seen with heavy-tailed noise.

\[x_t = x_{t-1} + \frac{\Delta}{\tau}\big(-x_{t-1} + \gamma W \tanh x_{t-1}\big) + N(0, s^2 I),
\qquad y_t = x_t + r\, t_\nu\]

Source: Y. Zhao, J. Nassar, I. Jordan, M. Bugallo and I. M. Park (2023), Streaming variational Monte
Carlo; A. Campbell et al. (2021), Online variational filtering and parameter learning.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.errors import ShapeError
from ssmkit.keys import as_key
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import Number, as_float, require_positive
from ssmkit.models.laws import normal
from ssmkit.typing import Array, Float, Key, PyTree


class ChaoticNetwork(StateSpaceModel):
    r"""A continuous-time recurrent network by Euler steps; chaotic for a gain well above one.

    \(x_t = x_{t-1} + \tfrac{\Delta}{\tau}(-x_{t-1} + \gamma W \tanh x_{t-1}) + N(0, s^2 I)\),
    \(y_t = x_t + r\, t_\nu\), one Student-t for each neuron.

    Args:
        weights: \(W\), ``(D, D)``.
        gain: \(\gamma\), scalar.
        time_constant: \(\tau\), in the unit of ``time_step``, scalar.
        time_step: \(\Delta\), scalar.
        transition_scale: \(s\), scalar.
        emission_scale: \(r\), scalar.
        freedom: \(\nu\), degrees of freedom of the Student-t, scalar.
        initial_scale: standard deviation of ``x_0`` around zero, scalar.

    Raises:
        ShapeError: weights that are no square matrix.
        ParameterError: a scale, time or number of degrees of freedom that is not positive.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.ChaoticNetwork.random(0, 5)
        >>> sk.simulate(1, model, 20).observations.shape
        (20, 5)

    Source: Y. Zhao et al. (2023), Streaming variational Monte Carlo, IEEE Transactions on Pattern
    Analysis and Machine Intelligence 45.
    """

    weights: Float[Array, "D D"] = eqx.field(converter=as_float)
    gain: Number = 2.5
    time_constant: Number = 0.025
    time_step: Number = 0.001
    transition_scale: Number = 0.1
    emission_scale: Number = 0.1
    freedom: Number = 2.0
    initial_scale: Number = 0.1

    def __check_init__(self) -> None:
        """Check shapes, and values where they are known."""
        shape = jnp.shape(self.weights)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ShapeError(
                "ChaoticNetwork: weights must be a square matrix.",
                got=f"shape {shape}",
                expected="shape (D, D)",
                fix="one row and one column for each neuron",
            )
        names = ("time_constant", "time_step", "transition_scale", "emission_scale")
        names += ("freedom", "initial_scale")
        require_positive(self, **{name: getattr(self, name) for name in names})

    @classmethod
    def random(cls, key: Key | int, size: int, **options: Number) -> ChaoticNetwork:
        """Draw the weights, of variance one over ``size``.

        Args:
            key: a typed random key, or an integer seed.
            size: number of neurons ``D``.
            options: the other arguments.
        """
        weights = jax.random.normal(as_key(key), (size, size)) / jnp.sqrt(size)
        return cls(weights, **options)

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_0``."""
        zeros = jnp.zeros(self.weights.shape[0], self.weights.dtype)
        return normal(zeros, self.initial_scale)

    def transition(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_t`` given ``x_{t-1} = x``."""
        pull = -x + self.gain * (self.weights @ jnp.tanh(x))
        share = self.time_step / self.time_constant
        return normal(x + share * pull, self.transition_scale)

    def emission(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``y_t``."""
        return dist.StudentT(self.freedom, x, self.emission_scale).to_event(1)
