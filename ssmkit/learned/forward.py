r"""The proposal that a filter and a backward kernel imply: the state given the one before.

Together they are a joint law of two states, \(q_t(x_t)\, q_t(x_{t-1} \mid x_t)\); for a Gaussian
filter and a linear kernel its other conditional is normal as well.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.learned.backward import Filter, Kernel, inverse, log_normal, scaled
from ssmkit.linalg import cholesky_psd, solve_lower
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import log_density, square_factor
from ssmkit.smc.proposals import Draw, own_law
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Float


class Forward(NamedTuple):
    r"""A normal law whose mean is linear in the state before, \(m + G (x_{t-1} - b)\).

    Attributes:
        mean: ``m``.
        matrix: ``G``.
        centre: ``b``.
        factor: of the covariance, lower triangular.
    """

    mean: Float[Array, " D"]
    matrix: Float[Array, "D D"]
    centre: Float[Array, " D"]
    factor: Float[Array, "D D"]


def forward(filter: Filter, kernel: Kernel | None) -> Forward:
    r"""Turn the joint law of two states round.

    \[q(x_t \mid x_{t-1}) = N\big(m + G(x_{t-1} - b),\, \Sigma\big), \qquad
    \Sigma^{-1} = P^{-1} + J^\top R^{-1} J, \quad G = \Sigma J^\top R^{-1}\]

    with the filter's mean and covariance ``m``, ``P``, and the kernel's mean ``b``, slope ``J``
    (both at ``m``; a network enters by its slope there) and covariance ``R``. Where model and
    family are linear and Gaussian it is the best of all proposals, \(p(x_t \mid x_{t-1}, y_t)\).

    Args:
        filter: of the state.
        kernel: to the state before; None at the first time, where the filter is the law.
    """
    factor = square_factor(filter.factor)
    if kernel is None:
        nothing = jnp.zeros_like(factor)
        return Forward(filter.mean, nothing, jnp.zeros_like(filter.mean), factor)
    slope = jax.jacfwd(kernel.mean)(filter.mean)
    white = scaled(inverse(kernel.factor), slope @ factor)  # in standard units of both
    eye = jnp.eye(factor.shape[0], dtype=factor.dtype)
    # P - P J' (J P J' + R)^{-1} J P, as a product: a difference would lose its digits
    root = cholesky_psd(eye + white.T @ white)
    half = solve_lower(root, factor.T)
    matrix = half.T @ solve_lower(root, white.T)
    gain = scaled(inverse(kernel.factor).T, matrix.T).T
    return Forward(filter.mean, gain, kernel.mean(filter.mean), cholesky_psd(half.T @ half))


def draw_forward(
    law: Forward, model: StateSpaceModel, before: Array | None, s: Step, widening: float
) -> Draw:
    """How one state is drawn by it, and weighed against the transition.

    Args:
        law: the proposal at this time.
        model: the model.
        before: the state before; None at the first time.
        s: the step.
        widening: factor of the standard deviations.
    """
    own = own_law(model, before, s)
    factor = widening * law.factor
    gone = 0.0 if before is None else law.matrix @ (jnp.ravel(before) - law.centre)
    mean = law.mean + gone

    def log_ratio(x: Array) -> Array:
        return log_density(own, x) - log_normal(factor, jnp.ravel(x) - mean)

    def one(noise: Array) -> tuple[Array, Array]:
        x = (mean + factor @ noise).reshape(own.event_shape)
        return x, log_ratio(x)

    return Draw((law.mean.shape[0],), one, log_ratio)
