r"""The ensemble Kalman filter: members move by draws, and observations move them linearly.

With the members' mean observations as rows of \(H\), their anomalies
\(Z = (H - \bar h) / \sqrt{N-1}\) and the noise \(R = F F^\top\), one triangular factor does it all:

\[S = Z^\top Z + R = C C^\top, \qquad x \leftarrow x + L\,Z^\top (x - \bar x).\]

The rows of \(L\) are \((y - h_i - e_i)^\top S^{-1} / \sqrt{N-1}\) with perturbations \(e_i\) of
covariance \(R\), or, without random numbers, \((y - \bar h)^\top S^{-1} / \sqrt{N-1}\) less those
of \(Z\,(C + F)^{-\top} C^{-1}\), for then the anomalies are multiplied by a square root of
\(I - Z S^{-1} Z^\top\). ``C`` comes from orthogonalising \((Z^\top, F)\), so that \(S\) is never
formed, and \(R\) is never inverted: exact observations are served.

Source: G. Burgers, P. J. van Leeuwen and G. Evensen (1998) for the perturbations; A. Andrews (1968)
and J. Whitaker and T. Hamill (2002), eq. 10, for the square root.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.kalman.checks import depends_on_argument
from ssmkit.linalg import (
    cholesky_psd,
    compensated_add,
    solve_lower,
    solve_lower_transposed,
    solve_psd,
    triangularise,
)
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import moments
from ssmkit.smc.feynman_kac import draw_noise
from ssmkit.smc.recipes import Recipe, Step
from ssmkit.typing import Array, Float, Key, Scalar


class Ensemble(NamedTuple):
    """What the filter carries from step to step.

    Attributes:
        members: equally weighted draws of the state ``(N, *state)``.
        evidence: log evidence of all that was seen, in nats, and the rounding error it owes.
    """

    members: Array
    evidence: tuple[Scalar, Scalar]


class Transform(NamedTuple):
    r"""An analysis: \(x \leftarrow x + L\,Z^\top (x - \bar x)\), the same for all coordinates.

    Attributes:
        left: \(L\), ``(N, M)``.
        right: \(Z\), ``(N, M)``; its columns sum to zero.
    """

    left: Float[Array, "N M"]
    right: Float[Array, "N M"]

    def __call__(self, members: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """Move the members, or what they were at an earlier time."""
        anomalies = members - jnp.mean(members, axis=0)
        return members + self.left @ (self.right.T @ anomalies)


class EnsembleStep(NamedTuple):
    """What one step reports.

    Attributes:
        predicted: members before the observation ``(N, *state)``.
        filtered: members after it.
        observation: mean ``(M,)`` and covariance ``(M, M)`` of the observation, as predicted.
        log_likelihood: of this observation given those before it, in nats.
        transform: the analysis.
    """

    predicted: Array
    filtered: Array
    observation: tuple[Array, Array]
    log_likelihood: Scalar
    transform: Transform


class EnsembleFilter(NamedTuple):
    """What runs an ensemble: the model, its draws, how many members, and the options."""

    model: StateSpaceModel
    recipe: Recipe
    num_particles: int
    is_square_root: bool
    inflation: float
    dtype: Any


def first(f: EnsembleFilter, key: Key, s: Step) -> tuple[Ensemble, EnsembleStep]:
    """Draw the ensemble at the first time, and let the first observation move it."""
    noise_key, analysis_key = jax.random.split(jax.random.fold_in(key, 0))
    noise = draw_noise(noise_key, f.num_particles, f.recipe.noise_shapes[0], f.dtype)
    members = jax.vmap(f.recipe.init, (0, None))(noise, s)
    zero = jnp.zeros((), f.dtype)
    return _analyse(f, analysis_key, Ensemble(members, (zero, zero)), s)


def advance(
    f: EnsembleFilter, key: Key, before: Ensemble, s: Step
) -> tuple[Ensemble, EnsembleStep]:
    """One step: each member moves by a draw of its transition; then the observation."""
    noise_key, analysis_key = jax.random.split(jax.random.fold_in(key, s.t))
    noise = draw_noise(noise_key, f.num_particles, f.recipe.noise_shapes[1], f.dtype)
    members = jax.vmap(f.recipe.propose, (0, 0, None))(noise, before.members, s)
    return _analyse(f, analysis_key, before._replace(members=members), s)


def run(
    f: EnsembleFilter, key: Key, steps: Callable[[Any], Step], length: int, *, keep: bool
) -> tuple[Ensemble, EnsembleStep | None]:
    """The whole series: a scan of `advance`.

    Args:
        f: the filter.
        key: random key; the step at time ``t`` uses ``fold_in(key, t)``.
        steps: ``t -> s``.
        length: number of steps ``T``.
        keep: whether to keep the reports; without them memory does not grow with ``T``.
    """
    begin, report = first(f, key, steps(0))

    def body(carry: tuple[Array, Ensemble], _: None) -> tuple[tuple, EnsembleStep | None]:
        t, before = carry
        after, told = advance(f, key, before, steps(t))
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, before)
        return (t + 1, after), told if keep else None

    # rematerialised: the gradient stores one ensemble a step instead of every intermediate
    start = (jnp.asarray(1), begin)
    (_, last), later = jax.lax.scan(jax.checkpoint(body), start, length=length - 1)
    if later is None:
        return last, None
    return last, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), report, later)


def _analyse(
    f: EnsembleFilter, key: Key, before: Ensemble, s: Step
) -> tuple[Ensemble, EnsembleStep]:
    members = before.members
    means, factors = _emitted(f, members, s)
    mask = None if s.mask is None else jnp.broadcast_to(s.mask, jnp.shape(s.y)).ravel()
    y = jnp.ravel(s.y).astype(f.dtype)
    covariance = _mean_covariance(factors)
    perturbations = None if f.is_square_root else _perturbations(key, factors, f.num_particles)
    transform, gain = condition(means, covariance, y, mask, perturbations)
    after = transform(members.reshape(f.num_particles, -1))
    if f.inflation != 1.0:
        mean = jnp.mean(after, axis=0)
        inflated = mean + f.inflation * (after - mean)
        # a step with nothing observed is exactly a prediction
        after = inflated if mask is None else jnp.where(jnp.any(mask), inflated, after)
    after = after.reshape(members.shape)
    centred = means - jnp.mean(means, axis=0)
    scatter = centred.T @ centred / (f.num_particles - 1)
    seen = (jnp.mean(means, axis=0), scatter + covariance)
    report = EnsembleStep(members, after, seen, gain, transform)
    return Ensemble(after, compensated_add(before.evidence, gain)), report


def condition(
    means: Float[Array, "N M"],
    covariance: Float[Array, "M M"],
    y: Float[Array, " M"],
    mask: Array | None = None,
    perturbations: Float[Array, "N M"] | None = None,
) -> tuple[Transform, Scalar]:
    """The analysis of one observation, and its log likelihood in nats.

    Args:
        means: what each member expects to see.
        covariance: of the noise.
        y: the observation.
        mask: what of it is there; what is not leaves the noise and the anomalies. None for all.
        perturbations: noise added to what each member expects; None for the square root.
    """
    mask = jnp.ones(y.shape, bool) if mask is None else mask
    pair = mask[:, None] & mask[None, :]
    factor = cholesky_psd(jnp.where(pair, covariance, jnp.eye(y.shape[0], dtype=y.dtype)))
    centre, scale = jnp.mean(means, axis=0), math.sqrt(means.shape[0] - 1)
    right = jnp.where(mask, (means - centre) / scale, 0.0)
    y = jnp.where(mask, y, 0.0)
    innovation = jnp.where(mask, y - centre, 0.0)
    root = triangularise(jnp.concatenate([right.T, factor], axis=1))
    white = solve_lower(root, innovation[:, None])
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(root))) + jnp.sum(mask) * math.log(2 * math.pi)
    log_likelihood = -0.5 * (jnp.sum(white**2) + log_det)
    if perturbations is None:
        shift = solve_lower_transposed(root, white)
        shrink = solve_lower_transposed(root, solve_lower(root + factor, right.T))
        return Transform((shift / scale - shrink).T, right), log_likelihood
    residuals = jnp.where(mask, y - means - perturbations, 0.0)
    return Transform(solve_psd(root, residuals.T).T / scale, right), log_likelihood


def _emitted(f: EnsembleFilter, members: Array, s: Step) -> tuple[Array, Array]:
    """Means ``(N, M)``, and factors ``(N, M)`` or ``(N, M, K)``, of what members emit.

    Noise that is the same for all of them has a leading axis of one: ``N M^3`` operations less.
    """

    def one(x: Array) -> tuple[Array, Array]:
        return moments(f.model.at(s.t).emission(x, s.u))

    if depends_on_argument(lambda x: one(x)[1], members[0]):
        means, factors = jax.vmap(one)(members)
    else:
        means, factors = jax.vmap(lambda x: one(x)[0])(members), one(members[0])[1][None]
    return means.astype(f.dtype), factors.astype(f.dtype)


def _mean_covariance(factors: Array) -> Float[Array, "M M"]:
    """The noise of the emission, in the mean over members."""
    if factors.ndim == 2:
        return jnp.diag(jnp.mean(factors**2, axis=0))
    return jnp.einsum("nik,njk->ij", factors, factors) / factors.shape[0]


def _perturbations(key: Key, factors: Array, count: int) -> Float[Array, "N M"]:
    """Noise of each member's emission, with mean zero over members, and scaled to make up for it.

    Then the mean of the members moves as without perturbations.
    """
    draws = jax.random.normal(key, (count, factors.shape[-1]), factors.dtype)
    noise = factors * draws if factors.ndim == 2 else (factors @ draws[..., None])[..., 0]
    return (noise - jnp.mean(noise, axis=0)) * math.sqrt(count / (count - 1))
