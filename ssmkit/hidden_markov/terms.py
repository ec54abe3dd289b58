"""The terms of a model with a finite state: log probabilities of each state and step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.errors import ModelError
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.models.distributions import base_distribution, is_a
from ssmkit.models.observation import emission_log_prob
from ssmkit.typing import Array, Float, Inputs, Int, Law, PyTree


class FiniteKernel(NamedTuple):
    """A forward filter for one model; ``log_transition`` ``(K, K)`` where it never changes."""

    model: StateSpaceModel
    log_transition: Array | None


def finite_kernel(model: StateSpaceModel, us: Inputs) -> FiniteKernel:
    """Build the filter; the transition matrix of a constant model is read off once, here."""
    kernel = FiniteKernel(model, None)
    if us is not None or model.time_varying:
        return kernel
    return kernel._replace(log_transition=log_transition_matrix(kernel, 0, None))


def log_initial_vector(model: StateSpaceModel, u: PyTree) -> Float[Array, " K"]:
    """Log probabilities of the first state."""
    return _log_probabilities(model.at(0).initial(u), "initial(u)")


def log_transition_matrix(kernel: FiniteKernel, t: int | Array, u: PyTree) -> Float[Array, "K K"]:
    """Log probabilities of the step into time ``t``: row from, column to."""
    if kernel.log_transition is not None:
        return kernel.log_transition

    def row(x: Array) -> Array:
        return _log_probabilities(kernel.model.at(t).transition(x, u), "transition(x, u)")

    return jax.vmap(row)(_states(kernel.model, u))


def log_emission_vector(
    kernel: FiniteKernel, t: int | Array, u: PyTree, y: Array, mask: Array | None
) -> Float[Array, " K"]:
    """Log density of the observed part of ``y`` under each state; 0 where nothing is observed."""

    # scored inside vmap: a distribution returned out of it would have lost its batch
    def one(x: Array) -> Array:
        return emission_log_prob(kernel.model.at(t).emission(x, u), y, mask)

    return jax.vmap(one)(_states(kernel.model, u))


def finite_terms(
    model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None
) -> tuple[Float[Array, " K"], Array, Float[Array, "T K"]]:
    r"""The terms of \(\log p(x_{0:T-1}, y_{0:T-1})\) for every state, in nats.

    Args:
        model: a model with a finite state.
        ys: observations ``(T, *event)``; what ``mask`` excludes is ignored.
        us: inputs with leading axis ``T``, or None.
        mask: booleans ``(T,)`` or ``(T, M)``, or None when nothing is missing.

    Returns:
        Log initial probabilities ``(K,)``; log transition probabilities ``(K, K)``, or
        ``(T-1, K, K)`` with one entry for each step into ``1 … T-1`` when they change with time
        or inputs; log emission densities ``(T, K)``, exactly 0 in rows that are missing.

    Raises:
        ModelError: the initial or transition law is not Categorical.
    """
    kernel, times = finite_kernel(model, us), jnp.arange(ys.shape[0])
    transition = kernel.log_transition
    if transition is None:
        later = jax.tree.map(lambda a: a[1:], us)
        transition = jax.vmap(lambda t, u: log_transition_matrix(kernel, t, u))(times[1:], later)
    emission = jax.vmap(lambda *at: log_emission_vector(kernel, *at))(times, us, ys, mask)
    return log_initial_vector(model, input_at(us, 0)), transition, emission


def _states(model: StateSpaceModel, u: PyTree) -> Int[Array, " K"]:
    return jnp.arange(jax.eval_shape(lambda: log_initial_vector(model, u)).shape[0])


def _log_probabilities(law: Law, method: str) -> Array:
    base = base_distribution(law)
    if is_a(base, dist.CategoricalLogits) and law.batch_shape == ():
        return base.logits - log_sum_exp(base.logits, axis=-1)
    if is_a(base, dist.CategoricalProbs) and law.batch_shape == ():
        # double where: the gradient of a logarithm at zero must not be nan
        zero = base.probs == 0
        return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, base.probs)))
    raise ModelError(
        f"{method} of a model with a finite state must be one Categorical law.",
        got=f"{type(base).__name__} with batch shape {law.batch_shape}",
        expected="a Categorical with batch shape ()",
        fix="dist.Categorical(probs=...) or dist.Categorical(logits=...) over the K states",
    )


def log_sum_exp(a: Array, axis: int) -> Array:
    """Log of a sum of exponentials whose gradient is finite where all terms are -inf."""
    top = jax.lax.stop_gradient(jnp.max(a, axis=axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.sum(jnp.exp(a - top), axis=axis)
    empty = total == 0
    log_total = jnp.log(jnp.where(empty, 1.0, total)) + jnp.squeeze(top, axis)
    return jnp.where(empty, -jnp.inf, log_total)
