"""The forward filter, and one step of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.hidden_markov.terms import (
    FiniteKernel,
    log_emission_vector,
    log_initial_vector,
    log_sum_exp,
    log_transition_matrix,
)
from ssmkit.models.base import input_at
from ssmkit.models.observation import Mask
from ssmkit.typing import Array, Float, Inputs, PyTree, Scalar


class FiniteState(NamedTuple):
    """What the filter carries: log probabilities ``(K,)``, the evidence, and its rounding error."""

    belief: Float[Array, " K"]
    log_evidence: Scalar
    owed: Scalar


class FiniteStep(NamedTuple):
    """What one step reports: log probabilities ``(K,)``, the log likelihood, the terms used."""

    predicted: Array
    filtered: Array
    log_likelihood: Array
    log_emission: Array
    log_transition: Array | None


def start(kernel: FiniteKernel, u: PyTree) -> FiniteState:
    """The belief before the first observation."""
    belief = log_initial_vector(kernel.model, u)
    zero = jnp.zeros((), belief.dtype)
    return FiniteState(belief, zero, zero)


def predict(kernel: FiniteKernel, state: FiniteState, t: int | Array, u: PyTree) -> FiniteState:
    """Move the belief one step ahead."""
    ahead = log_sum_exp(state.belief[:, None] + log_transition_matrix(kernel, t, u), axis=0)
    return state._replace(belief=ahead)


def update(
    kernel: FiniteKernel,
    state: FiniteState,
    t: int | Array,
    u: PyTree,
    y: Array,
    mask: Array | None,
) -> tuple[FiniteState, FiniteStep]:
    """Condition a predicted belief on one observation."""
    emission = log_emission_vector(kernel, t, u, y, mask)
    joint = state.belief + emission
    log_likelihood = log_sum_exp(joint, axis=0)
    if mask is not None:  # a prediction step, to the last bit
        log_likelihood = jnp.where(jnp.any(mask), log_likelihood, 0.0)
    impossible = log_likelihood == -jnp.inf  # a nan is not: it must be seen
    shift = jnp.where(impossible, 0.0, log_likelihood)
    belief = jnp.where(impossible, state.belief, joint - shift)
    used = jnp.where(impossible, 0.0, emission)
    report = FiniteStep(state.belief, belief, log_likelihood, used, None)
    # compensated addition: long series in float32 keep their digits
    increment = log_likelihood - state.owed
    total = state.log_evidence + increment
    fixed = jax.lax.stop_gradient((total - state.log_evidence) - increment)
    owed = jnp.where(jnp.isfinite(total), fixed, 0.0)
    return FiniteState(belief, total, owed), report


def step(
    kernel: FiniteKernel,
    state: FiniteState,
    t: int | Array,
    u: PyTree,
    y: Array,
    mask: Array | None,
) -> tuple[FiniteState, FiniteStep]:
    """One step of the filter: predict with ``u_t``, then condition on ``y_t``."""
    changing = kernel.log_transition is None
    matrix = log_transition_matrix(kernel, t, u)
    predicted = predict(kernel._replace(log_transition=matrix), state, t, u)
    state, report = update(kernel, predicted, t, u, y, mask)
    return state, report._replace(log_transition=matrix if changing else None)


def filter_finite(
    kernel: FiniteKernel, ys: Array, us: Inputs, mask: Mask, *, keep: bool
) -> tuple[FiniteState, FiniteStep | None]:
    r"""Forward filter: \(\alpha_t(j) \propto p(y_t \mid j) \sum_i \alpha_{t-1}(i) P_{ij}\).

    Pure: safe under ``jit``, ``grad`` and ``vmap``.

    Args:
        kernel: the filter, from `finite_kernel`.
        ys: observations ``(T, *event)``; what ``mask`` excludes is ignored.
        us: inputs with leading axis ``T``, or None.
        mask: booleans ``(T,)`` or ``(T, M)``, or None when nothing is missing; or `RowMasks`.
        keep: whether to keep the history; without it memory does not grow with ``T``.

    Returns:
        The final state, whose ``log_evidence`` is in nats, and the steps: ``predicted`` and
        ``filtered`` log probabilities ``(T, K)``, ``log_likelihood`` ``(T,)``.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> from ssmkit.hidden_markov import finite_kernel
        >>> from ssmkit.models.base import StateSpaceModel
        >>> class Coin(StateSpaceModel):
        ...     def initial(self, u): return dist.Categorical(jnp.array([0.5, 0.5]))
        ...     def transition(self, x, u): return dist.Categorical(jnp.array([0.5, 0.5]))
        ...     def emission(self, x, u): return dist.Bernoulli(jnp.array([0.25, 0.75])[x])
        >>> ys = jnp.array([1, 0, 1])
        >>> state, _ = filter_finite(finite_kernel(Coin(), None), ys, None, None, keep=False)
        >>> jnp.exp(state.log_evidence).round(3).item()
        0.125
    """
    ys, us, mask = jax.tree.map(jnp.asarray, (ys, us, mask))  # numpy cannot be indexed by tracers
    begin = start(kernel, input_at(us, 0))
    state, report = update(kernel, begin, 0, input_at(us, 0), ys[0], input_at(mask, 0))
    state = _as_dtype(state, jnp.result_type(*state))

    def body(carry: tuple, _: None) -> tuple[tuple, FiniteStep | None]:
        t, before = carry
        # indexed here and not scanned over: a scan would copy all but the first row
        u, y, m = input_at((us, ys, mask), t)
        after, info = step(kernel, before, t, u, y, m)
        return (t + 1, _as_dtype(after, before.belief.dtype)), info if keep else None

    # rematerialised: the gradient stores one belief a step and no (K, K) array
    initial = (jnp.asarray(1), state)
    (_, final), later = jax.lax.scan(jax.checkpoint(body), initial, length=ys.shape[0] - 1)
    if later is None:
        return final, None
    steps = jax.tree.map(
        lambda a, b: jnp.concatenate([a[None], b]), report, later._replace(log_transition=None)
    )
    return final, steps._replace(log_transition=later.log_transition)


def _as_dtype(state: FiniteState, dtype: jnp.dtype) -> FiniteState:
    return jax.tree.map(lambda a: a.astype(dtype), state)
