"""The one Gaussian filter: predict, whiten, condition on one scalar at a time.

Scalars are processed one after the other, which needs no matrix inverse, no LAPACK call inside
the scan, and makes a missing coordinate a row of zeros.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.kalman.affine import AffineGaussian, Linearisation
from ssmkit.kalman.forms import Form
from ssmkit.linalg import cholesky_psd, compensated_add, solve_lower
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.models.distributions import Diffuse, moments, square_factor
from ssmkit.typing import Array, Float, Inputs, PyTree, Scalar

UNROLL = 8


class GaussianState(NamedTuple):
    """What the filter carries from step to step.

    Attributes:
        means: ``(D, 1 + q)``, affine in the ``q`` flat coefficients of a diffuse start.
        spread: ``(D, D)``, the covariance or a factor of it, as the form has it.
        evidence: running totals of `Evidence`, each with the rounding error it owes.
    """

    means: Array
    spread: Array
    evidence: Any


class Evidence(NamedTuple):
    """Sums over time: Gram matrix of scaled innovations, and the log normalisers in nats."""

    gram: Float[Array, "p p"]
    log_norm: Scalar


class GaussianStep(NamedTuple):
    """What one step reports: beliefs before and after the observation, and the forms used."""

    predicted: tuple[Array, Array]
    filtered: tuple[Array, Array]
    gram: Array
    evidence: Evidence
    transition: AffineGaussian | None
    emission: AffineGaussian | None


class GaussianKernel(NamedTuple):
    """A filter for one model: the rule, the form and what does not depend on the data."""

    rule: Linearisation
    form: Form
    model: StateSpaceModel
    event_shape: tuple[int, ...]
    transition: tuple[AffineGaussian, Array] | None = None
    emission: tuple[AffineGaussian, Array | None] | None = None

    def conditional(self, method: str, t: int | Array, u: PyTree) -> Any:
        """The law that ``model.at(t).<method>`` gives for a flat state."""
        call = getattr(self.model.at(t), method)
        return lambda x: call(jnp.reshape(x, self.event_shape), u)


def gaussian_kernel(
    rule: Linearisation, form: Form, model: StateSpaceModel, us: Inputs
) -> GaussianKernel:
    """Build the filter; matrices of a constant linear model are read off once, here."""
    start = jax.eval_shape(lambda: model.at(0).initial(input_at(us, 0)).mean)
    kernel = GaussianKernel(rule, form, model, start.shape)
    if us is not None or model.time_varying or not rule.is_exact:
        return kernel
    size = math.prod(start.shape)
    zero = jnp.zeros(size, start.dtype), jnp.zeros((size, size), start.dtype)
    transition = rule(kernel.conditional("transition", 0, None), *zero)
    emission = rule(kernel.conditional("emission", 0, None), *zero)
    prepared = (transition, form.noise(transition.factor))
    return kernel._replace(transition=prepared, emission=whiten(emission))


def start(kernel: GaussianKernel, u: PyTree) -> GaussianState:
    """The belief before the first observation."""
    law = kernel.model.at(0).initial(u)
    form = kernel.form
    if isinstance(law, Diffuse):
        means = jnp.concatenate([law.location[:, None], law.directions], axis=1)
        # Flat plus anything is flat: a proper part along the flat directions changes nothing
        # in the limit, and keeps innovation variances positive when there is no noise.
        factor = cholesky_psd(law.factor @ law.factor.T + law.directions @ law.directions.T)
    else:
        mean, factor = moments(law)
        means, factor = mean[:, None], square_factor(factor)
    spread = form.noise(factor)
    size = means.shape[1]
    zero = Evidence(jnp.zeros((size, size), means.dtype), jnp.zeros((), means.dtype))
    return GaussianState(means, spread, (zero, zero))


def predict(
    kernel: GaussianKernel, state: GaussianState, t: int | Array, u: PyTree
) -> tuple[GaussianState, AffineGaussian]:
    """Move the belief one step ahead; also returns the transition that was used."""
    if kernel.transition is None:
        factor = kernel.form.factor(state.spread)
        law = kernel.conditional("transition", t, u)
        transition = kernel.rule(law, state.means[:, 0], factor)
        noise = kernel.form.noise(transition.factor)
    else:
        transition, noise = kernel.transition
    means = (transition.matrix @ state.means).at[:, 0].add(transition.offset)
    spread = kernel.form.predict(state.spread, transition.matrix, noise)
    return state._replace(means=means, spread=spread), transition


def whiten(emission: AffineGaussian) -> tuple[AffineGaussian, Array | None]:
    """Decorrelate the coordinates of an emission; returns the factor that was divided out."""
    if emission.factor.ndim == 1:
        return emission, None
    lower = cholesky_psd(emission.covariance)
    ones = jnp.where(jnp.diagonal(lower) > 0, 1.0, jnp.nan).astype(lower.dtype)
    matrix = solve_lower(lower, emission.matrix)
    offset = solve_lower(lower, emission.offset[:, None])[:, 0]
    return AffineGaussian(matrix, offset, ones), lower


def _rows(
    emission: tuple[AffineGaussian, Array | None], y: Array, mask: Array | None
) -> tuple[Array, Array, Array, Scalar]:
    """Rows, residuals and standard deviations of independent scalars, and the log Jacobian.

    A coordinate that is missing leaves the noise covariance, and becomes a row that says nothing.
    """
    (matrix, offset, std), lower = emission
    if mask is None:
        log_jacobian = jnp.zeros((), matrix.dtype)
        if lower is not None:
            y = solve_lower(lower, y[:, None])[:, 0]
            log_jacobian = -jnp.sum(jnp.log(jnp.diagonal(lower)))
        return matrix, y - offset, std, log_jacobian
    if lower is None:
        matrix = jnp.where(mask[:, None], matrix, 0.0)
        residual = jnp.where(mask, jnp.where(mask, y, 0.0) - offset, 0.0)
        return matrix, residual, jnp.where(mask, std, 1.0), jnp.zeros((), matrix.dtype)
    filled = jnp.where(mask, y, 0.0)
    complete = lambda: _rows(emission, filled, None)  # noqa: E731 - a branch
    partial = lambda: _rows(_marginal(emission[0], lower, mask), filled, None)  # noqa: E731
    return jax.lax.cond(jnp.all(mask), complete, partial)


def _marginal(
    whitened: AffineGaussian, lower: Array, mask: Array
) -> tuple[AffineGaussian, Array | None]:
    """The emission of what is observed: missing rows and columns leave the noise covariance."""
    pair = mask[:, None] & mask[None, :]
    noise = jnp.where(pair, lower @ lower.T, jnp.eye(mask.shape[0], dtype=lower.dtype))
    matrix = jnp.where(mask[:, None], lower @ whitened.matrix, 0.0)
    offset = jnp.where(mask, lower @ whitened.offset, 0.0)
    return whiten(AffineGaussian(matrix, offset, cholesky_psd(noise)))


def _condition(
    form: Form, means: Array, spread: Array, rows: tuple[Array, Array, Array]
) -> tuple[Array, Array, Evidence]:
    """Condition on independent scalars, one at a time."""
    matrix, residual, std = rows
    zero = Evidence(jnp.zeros((means.shape[1],) * 2, means.dtype), jnp.zeros((), means.dtype))

    def scalar(carry: Any, row: tuple[Array, Array, Array]) -> tuple[Any, None]:
        means, spread, evidence = carry
        direction, value, scale = row
        innovation = (-direction @ means).at[0].add(value)
        spread, gain, variance = form.update(spread, direction, scale)
        gram = evidence.gram + jnp.outer(innovation, innovation) / variance
        log_norm = evidence.log_norm - 0.5 * jnp.log(variance)
        means = means + jnp.outer(gain, innovation)
        return (means, spread, Evidence(gram, log_norm)), None

    carry = (means, spread, zero)
    if matrix.shape[0] > UNROLL:
        return jax.lax.scan(scalar, carry, rows)[0]
    for i in range(matrix.shape[0]):
        carry, _ = scalar(carry, (matrix[i], residual[i], std[i]))
    return carry


def update(
    kernel: GaussianKernel,
    state: GaussianState,
    t: int | Array,
    u: PyTree,
    y: Float[Array, " M"],
    mask: Array | None,
) -> tuple[GaussianState, Evidence, AffineGaussian | None]:
    """Condition the belief on one observation; its increments of the evidence come along."""
    count = y.shape[0] if mask is None else jnp.sum(mask)

    def around(point: Array) -> tuple[tuple[Array, Array, Evidence], Scalar, AffineGaussian | None]:
        emission, used = _emission(kernel, state, t, u, point)
        matrix, residual, std, log_jacobian = _rows(emission, y, mask)
        rows = (matrix, residual, std)
        return _condition(kernel.form, state.means, state.spread, rows), log_jacobian, used

    result = around(state.means[:, 0])
    for _ in range(kernel.rule.iterations - 1):
        result = around(result[0][0][:, 0])
    (means, spread, evidence), log_jacobian, used = result
    log_norm = evidence.log_norm + log_jacobian - 0.5 * count * math.log(2 * math.pi)
    evidence = Evidence(evidence.gram, log_norm)
    total = compensated_add(state.evidence, evidence)
    return GaussianState(means, spread, total), evidence, used


def _emission(
    kernel: GaussianKernel, state: GaussianState, t: int | Array, u: PyTree, point: Array
) -> tuple[tuple[AffineGaussian, Array | None], AffineGaussian | None]:
    """The whitened emission, and the affine form it came from when that changes with time."""
    if kernel.emission is not None:
        return kernel.emission, None
    law = kernel.conditional("emission", t, u)
    used = kernel.rule(law, point, kernel.form.factor(state.spread))
    return whiten(used), used


def step(
    kernel: GaussianKernel,
    state: GaussianState,
    t: Array,
    u: PyTree,
    y: Array,
    mask: Array | None,
) -> tuple[GaussianState, GaussianStep]:
    """One step of the filter: predict with ``u_t``, then condition on ``y_t``."""
    predicted, transition = predict(kernel, state, t, u)
    state, report = first(kernel, predicted, t, u, y, mask)
    used = None if kernel.transition is not None else transition
    return state, report._replace(transition=used)


def first(
    kernel: GaussianKernel,
    predicted: GaussianState,
    t: int | Array,
    u: PyTree,
    y: Array,
    mask: Array | None,
) -> tuple[GaussianState, GaussianStep]:
    """The part of a step after the prediction; all there is at the first time."""
    state, evidence, emission = update(kernel, predicted, t, u, y, mask)
    report = GaussianStep(
        (predicted.means, predicted.spread),
        (state.means, state.spread),
        state.evidence[0].gram,
        evidence,
        None,
        emission,
    )
    return state, report
