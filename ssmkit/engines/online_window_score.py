"""The score of parameters that are learned as data arrive, rolled back over the last steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ssmkit.engines.online_learning import Adaptive, ascend
from ssmkit.engines.online_step import Carried, Outcome
from ssmkit.engines.online_window import entry, where
from ssmkit.learned.backward import Filter
from ssmkit.objectives.online_elbo import log_terms
from ssmkit.objectives.online_window import Span, roll
from ssmkit.typing import Array, Key, Scalar


def learn_refitting(
    settings: Any, key: Key, model: Adaptive, last: Carried, done: Outcome, span: Span
) -> Outcome:
    r"""Carry the score on, and step along its increment.

    \[\nabla \log p(y_t \mid y_{0:t-1}) \approx \mathrm{E}_t\Big[S_b + \sum_{k=b+1}^{t} s_k\Big]
    - \mathrm{E}_{t-1}\Big[S_b + \sum_{k=b+1}^{t-1} s_k\Big]\]

    Both paths follow the refitted kernels by the same noise, from this filter and from the one
    before, so that what they share cancels.

    Args:
        settings: the engine.
        key: of the fit.
        model: the model at the parameters of this step.
        last: what the step before left.
        done: the step, with the noise of its paths.
        span: the steps that it looked back on, with their kernels.
    """
    learning, carried = last.learning, last.learning.score
    past = carried.past(last.window.base)
    before = jax.tree.map(lambda a: a[:-1], span)

    def along(filter: Filter, span: Span, noise: Array) -> tuple[Array, Array]:
        """The score of a path, and the states of its steps."""

        def total(params: Any) -> tuple[Scalar, tuple[Array, Array]]:
            here = dataclasses.replace(model, params=params).built()
            add = lambda step, _, before, x: log_terms(here, step, before, x)  # noqa: E731
            value, end, states = roll(span, add, filter.draw(noise[0]), noise[1:])
            return value, (end, states)

        slope, (end, states) = jax.grad(total, has_aux=True)(model.params)
        return ravel_pytree(slope)[0] + past.value(end), states

    def one(noise: Array) -> tuple[Array, Array]:
        score, states = along(done.carried.filter, span, noise)
        # the state before this one comes from the last filter, by the noise of the newest kernel
        shorter = jnp.concatenate([noise[-1:], noise[1:-1]])
        return score - along(last.filter, before, shorter)[0], states[0]

    increments, oldest = jax.vmap(one)(done.noise)
    filter, kernel = entry(last.window.filters, 0), entry(span.kernels, 0)
    step = entry(span.steps, 0)

    def score_at(x: Array, noise: Array) -> Array:
        """The carried score one step on, at a state of the oldest step."""
        earlier = kernel.draw(x, noise)

        def term(params: Any) -> Scalar:
            here = dataclasses.replace(model, params=params).built()
            return log_terms(here, step, earlier, x)

        return ravel_pytree(jax.grad(term)(model.params))[0] + past.value(earlier)

    scores = jax.vmap(score_at)(oldest, done.noise[:, 1])
    centred = scores - jnp.mean(scores, axis=0)
    fitted = settings.carried_score.fit(key, jax.vmap(filter.white)(oldest), centred, carried)
    score = where(span.there[0], fitted, carried)
    learned = ascend(settings.ascent, model, learning, jnp.mean(increments, axis=0), score)
    return done._replace(carried=done.carried._replace(learning=learned))
