"""The filter over a series: a scan of the same step that a stream takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.kalman.diffuse import FlatPosterior, flat_posterior, resolve
from ssmkit.kalman.filter import (
    Evidence,
    GaussianKernel,
    GaussianState,
    GaussianStep,
    first,
    start,
    step,
)
from ssmkit.models.base import input_at
from ssmkit.models.observation import Mask
from ssmkit.typing import Array, Float, Inputs, Scalar


class Filtered(NamedTuple):
    """A filtered series: the final state and, where kept, the report of every step."""

    state: GaussianState
    steps: GaussianStep | None


def filter_series(
    kernel: GaussianKernel,
    ys: Float[Array, "T M"],
    us: Inputs,
    mask: Mask,
    *,
    keep: bool,
) -> Filtered:
    """Filter a series.

    Args:
        kernel: the filter.
        ys: flattened observations ``(T, M)``; what ``mask`` excludes is ignored.
        us: inputs with leading axis ``T``, or None.
        mask: booleans ``(T, M)``, or None when nothing is missing; or `RowMasks`.
        keep: whether to keep the history; without it memory does not grow with ``T``.
    """
    ys, us, mask = jax.tree.map(jnp.asarray, (ys, us, mask))  # numpy cannot be indexed by tracers
    dtype = jnp.result_type(float if not jnp.issubdtype(ys.dtype, jnp.floating) else ys.dtype)
    begin = start(kernel, input_at(us, 0))
    dtype = jnp.result_type(begin.means, dtype)
    ys = ys.astype(dtype)
    begin = jax.tree.map(lambda a: a.astype(dtype), begin)
    state, report = first(kernel, begin, 0, input_at(us, 0), ys[0], input_at(mask, 0))
    transition = kernel.transition

    def body(carry: tuple, _: None) -> tuple[tuple, GaussianStep | None]:
        t, before = carry
        # indexed here and not scanned over: a scan would copy all but the first row
        u, y, m = input_at((us, ys, mask), t)
        after, info = step(kernel, before, t, u, y, m)
        after = jax.tree.map(lambda a: a.astype(dtype), after)
        return (t + 1, after), info if keep else None

    # rematerialised: the gradient stores one state a step instead of every intermediate
    initial = (jnp.asarray(1), jax.tree.map(lambda a: a.astype(dtype), state))
    (_, final), later = jax.lax.scan(jax.checkpoint(body), initial, length=ys.shape[0] - 1)
    if not keep:
        return Filtered(final, None)
    if transition is None:
        blank = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), later.transition)
        report = report._replace(transition=blank)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), report, later)
    return Filtered(final, joined)


def log_evidence_of(state: GaussianState) -> Scalar:
    """Log evidence in nats of all that a state has seen."""
    return _log_evidence(state.evidence[0])


def _log_evidence(evidence: Evidence) -> Scalar:
    flat = flat_posterior(evidence.gram)
    return evidence.log_norm - 0.5 * (flat.log_det + flat.quadratic)


def log_likelihood(steps: GaussianStep) -> Float[Array, " T"]:
    """One-step-ahead log likelihood per time, in nats; its sum is the log evidence."""
    if steps.gram.shape[-1] == 1:
        return steps.evidence.log_norm - 0.5 * steps.evidence.gram[:, 0, 0]
    running = Evidence(steps.gram, jnp.cumsum(steps.evidence.log_norm))
    return jnp.diff(jax.vmap(_log_evidence)(running), prepend=0.0)


def flat_series(steps: GaussianStep) -> tuple[FlatPosterior, FlatPosterior]:
    """Laws of the flat coefficients before and after each observation."""
    before = jnp.concatenate([jnp.zeros_like(steps.gram[:1]), steps.gram[:-1]])
    return jax.vmap(flat_posterior)(before), jax.vmap(flat_posterior)(steps.gram)


def beliefs(
    kernel: GaussianKernel, steps: GaussianStep
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Means and covariances of the predicted and the filtered beliefs."""
    before, after = flat_series(steps)
    cov = kernel.form.covariance
    predicted = jax.vmap(resolve)(steps.predicted[0], cov(steps.predicted[1]), before)
    filtered = jax.vmap(resolve)(steps.filtered[0], cov(steps.filtered[1]), after)
    return predicted, filtered


def predicted_observations(
    kernel: GaussianKernel, steps: GaussianStep
) -> tuple[Float[Array, "T M"], Float[Array, "T M M"]]:
    """Mean and covariance of each observation given those before it."""
    before, _ = flat_series(steps)
    cov = kernel.form.covariance(steps.predicted[1])
    emission = steps.emission
    if emission is None:
        constant: Any = kernel.emission
        (matrix, offset, std), lower = constant
        colour = jnp.diag(std) if lower is None else lower
        undo = (lambda a: a) if lower is None else (lambda a: lower @ a)
        matrix, offset = undo(matrix), undo(offset)
        noise, axis = colour @ colour.T, None
    else:
        matrix, offset = emission.matrix, emission.offset
        noise, axis = jax.vmap(lambda e: e.covariance)(emission), 0

    def one(means: Array, p: Array, flat: FlatPosterior, h: Array, b: Array, r: Array) -> tuple:
        return resolve((h @ means).at[:, 0].add(b), h @ p @ h.T + r, flat)

    axes = (0, 0, 0, axis, axis, axis)
    return jax.vmap(one, in_axes=axes)(steps.predicted[0], cov, before, matrix, offset, noise)
