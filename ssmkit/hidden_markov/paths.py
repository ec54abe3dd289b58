"""Whole paths: smoothed marginals, draws, the most likely one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.hidden_markov.filter import FiniteState, FiniteStep
from ssmkit.hidden_markov.terms import FiniteKernel, log_sum_exp, log_transition_matrix
from ssmkit.typing import Array, Float, Inputs, Int, Key


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
            smoothed = filtered + log_sum_exp(matrix + ratio, axis=1)
            smoothed = smoothed - log_sum_exp(smoothed, axis=0)
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


def window_paths(
    kernel: FiniteKernel, states: FiniteState, times: Int[Array, " n"], us: Inputs
) -> CategoricalPaths:
    """The joint law of the last states, given all that the last one has seen.

    Args:
        kernel: the filter.
        states: what it carried after each of the steps, with leading axis ``n``.
        times: of these steps.
        us: their inputs, or None.
    """
    filtered = states.belief
    matrix = kernel.log_transition
    if matrix is None:
        at = jax.tree.map(lambda a: a[1:], (times, us))
        matrix = jax.vmap(lambda t, u: log_transition_matrix(kernel, t, u))(*at)
    ahead = log_sum_exp(filtered[:-1, :, None] + matrix, axis=1)
    predicted = jnp.concatenate([filtered[:1], ahead])
    # what was observed stands in the filtered beliefs
    return CategoricalPaths(predicted, filtered, jnp.zeros_like(filtered), matrix)


def _scan(
    body: Callable, begin: Array, inputs: tuple, matrix: Array, reverse: bool = False
) -> tuple[Array, Array]:
    """Scan with the transition matrix as last input, whether it changes with time or not."""
    if matrix.ndim == 3:
        return jax.lax.scan(body, begin, (*inputs, matrix), reverse=reverse)
    return jax.lax.scan(lambda c, at: body(c, (*at, matrix)), begin, inputs, reverse=reverse)
