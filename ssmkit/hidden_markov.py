r"""Exact inference for models with a finite state: forward filter, smoother, paths, Viterbi.

The state is an integer in ``0 … K-1``; ``initial`` and ``transition`` return numpyro Categorical
laws, ``emission`` any law. All is done in log space, where a probability of zero is ``-inf``; it
counts as structural, and its derivative is taken to be zero. A row that no state can emit makes
the log evidence ``-inf``; the beliefs after it are those without that row.

Source: L. R. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.errors import ModelError
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.models.distributions import base_distribution, is_a
from ssmkit.models.observation import observed_log_prob, supports_coordinates
from ssmkit.typing import Array, Float, Inputs, Int, Key, Law, PyTree, Scalar


class FiniteKernel(NamedTuple):
    """A forward filter for one model; ``log_transition`` ``(K, K)`` where it never changes."""

    model: StateSpaceModel
    log_transition: Array | None


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
        law = kernel.model.at(t).emission(x, u)
        if mask is not None and not supports_coordinates(law):
            return observed_log_prob(law, y, jnp.all(mask))
        return observed_log_prob(law, y, mask)

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


def start(kernel: FiniteKernel, u: PyTree) -> FiniteState:
    """The belief before the first observation."""
    belief = log_initial_vector(kernel.model, u)
    zero = jnp.zeros((), belief.dtype)
    return FiniteState(belief, zero, zero)


def predict(kernel: FiniteKernel, state: FiniteState, t: int | Array, u: PyTree) -> FiniteState:
    """Move the belief one step ahead."""
    ahead = _log_sum_exp(state.belief[:, None] + log_transition_matrix(kernel, t, u), axis=0)
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
    log_likelihood = _log_sum_exp(joint, axis=0)
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
    kernel: FiniteKernel, ys: Array, us: Inputs, mask: Array | None, *, keep: bool
) -> tuple[FiniteState, FiniteStep | None]:
    r"""Forward filter: \(\alpha_t(j) \propto p(y_t \mid j) \sum_i \alpha_{t-1}(i) P_{ij}\).

    Pure: safe under ``jit``, ``grad`` and ``vmap``.

    Args:
        kernel: the filter, from `finite_kernel`.
        ys: observations ``(T, *event)``; what ``mask`` excludes is ignored.
        us: inputs with leading axis ``T``, or None.
        mask: booleans ``(T,)`` or ``(T, M)``, or None when nothing is missing.
        keep: whether to keep the history; without it memory does not grow with ``T``.

    Returns:
        The final state, whose ``log_evidence`` is in nats, and the steps: ``predicted`` and
        ``filtered`` log probabilities ``(T, K)``, ``log_likelihood`` ``(T,)``.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
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


class CategoricalPaths(eqx.Module):
    """The joint law of a path given all data.

    Attributes:
        predicted: log probabilities ``(T, K)`` before each observation.
        filtered: log probabilities ``(T, K)`` after it.
        log_emission: ``(T, K)``.
        log_transition: ``(K, K)``, or ``(T-1, K, K)``.
    """

    predicted: Float[Array, "T K"]
    filtered: Float[Array, "T K"]
    log_emission: Float[Array, "T K"]
    log_transition: Array

    def marginals(self) -> Float[Array, "T K"]:
        """Smoothed log probabilities."""

        def back(after: Array, at: tuple) -> tuple[Array, Array]:
            filtered, ahead, matrix = at
            reached = ahead > -jnp.inf
            ratio = jnp.where(reached, after - jnp.where(reached, ahead, 0.0), -jnp.inf)
            smoothed = filtered + _log_sum_exp(matrix + ratio, axis=1)
            smoothed = smoothed - _log_sum_exp(smoothed, axis=0)
            return smoothed, smoothed

        end, inputs = self.filtered[-1], (self.filtered[:-1], self.predicted[1:])
        earlier = _scan(back, end, inputs, self.log_transition, True)[1]
        return jnp.concatenate([earlier, end[None]])

    def until(self, length: int) -> CategoricalPaths:
        """The law of the first ``length`` states, when nothing after them was observed."""
        matrix = self.log_transition
        matrix = matrix[: length - 1] if matrix.ndim == 3 else matrix
        return CategoricalPaths(
            self.predicted[:length], self.filtered[:length], self.log_emission[:length], matrix
        )

    def sample(self, key: Key, num_paths: int) -> Int[Array, "N T"]:
        """Draw whole paths by backward sampling."""

        def draw(path_key: Key) -> Array:
            keys = jax.random.split(path_key, self.filtered.shape[0])

            def back(after: Array, at: tuple) -> tuple[Array, Array]:
                filtered, step_key, matrix = at
                x = jax.random.categorical(step_key, filtered + matrix[:, after])
                return x, x

            end = jax.random.categorical(keys[-1], self.filtered[-1])
            inputs = (self.filtered[:-1], keys[:-1])
            return jnp.append(_scan(back, end, inputs, self.log_transition, True)[1], end)

        return jax.vmap(draw)(jax.random.split(key, num_paths))

    def most_likely(self) -> Int[Array, " T"]:
        r"""The Viterbi path \(\arg\max_{x} p(x_{0:T-1} \mid y_{0:T-1})\).

        Source: A. J. Viterbi (1967), IEEE Transactions on Information Theory 13.
        """

        def ahead(score: Array, at: tuple) -> tuple[Array, Array]:
            emission, matrix = at
            candidates = score[:, None] + matrix
            score = jnp.max(candidates, axis=0) + emission
            return score - jnp.max(score), jnp.argmax(candidates, axis=0)

        first = self.predicted[0] + self.log_emission[0]
        score, origin = _scan(ahead, first, (self.log_emission[1:],), self.log_transition)
        end = jnp.argmax(score)
        earlier = jax.lax.scan(lambda x, o: (o[x], o[x]), end, origin, reverse=True)[1]
        return jnp.append(earlier, end)


def categorical_paths(kernel: FiniteKernel, steps: FiniteStep) -> CategoricalPaths:
    """Turn a kept filter history into the joint law of the path."""
    constant, changing = kernel.log_transition, steps.log_transition
    matrix: Any = changing if constant is None else constant
    return CategoricalPaths(steps.predicted, steps.filtered, steps.log_emission, matrix)


def _scan(
    body: Callable, begin: Array, inputs: tuple, matrix: Array, reverse: bool = False
) -> tuple[Array, Array]:
    """Scan with the transition matrix as last input, whether it changes with time or not."""
    if matrix.ndim == 3:
        return jax.lax.scan(body, begin, (*inputs, matrix), reverse=reverse)
    return jax.lax.scan(lambda c, at: body(c, (*at, matrix)), begin, inputs, reverse=reverse)


def _states(model: StateSpaceModel, u: PyTree) -> Int[Array, " K"]:
    return jnp.arange(jax.eval_shape(lambda: log_initial_vector(model, u)).shape[0])


def _log_probabilities(law: Law, method: str) -> Array:
    base = base_distribution(law)
    if is_a(base, dist.CategoricalLogits) and law.batch_shape == ():
        return base.logits - _log_sum_exp(base.logits, axis=-1)
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


def _log_sum_exp(a: Array, axis: int) -> Array:
    """Log of a sum of exponentials whose gradient is finite where all terms are -inf."""
    top = jax.lax.stop_gradient(jnp.max(a, axis=axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.sum(jnp.exp(a - top), axis=axis)
    empty = total == 0
    log_total = jnp.log(jnp.where(empty, 1.0, total)) + jnp.squeeze(top, axis)
    return jnp.where(empty, -jnp.inf, log_total)


def _as_dtype(state: FiniteState, dtype: jnp.dtype) -> FiniteState:
    return jax.tree.map(lambda a: a.astype(dtype), state)
