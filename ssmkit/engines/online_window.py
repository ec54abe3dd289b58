"""Steps of online variational inference that refit the last kernels."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.engines.online_step import Carried, Outcome, descend, draw_noise
from ssmkit.learned.backward import Filter, Kernel, Moves, independent, moved, still
from ssmkit.linalg import compensated_add
from ssmkit.models.base import StateSpaceModel, abstract_law
from ssmkit.models.observation import observed_mask
from ssmkit.objectives.online_elbo import log_terms, targets
from ssmkit.objectives.online_window import Span, rolled_value
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Key, PyTree, Scalar


class Window(NamedTuple):
    """The last steps but one of a span: their kernels will be refitted.

    Attributes:
        base: the filter of the time before them, to which what is carried belongs.
        filters: of the steps, oldest first, with leading axis ``L - 1``.
        span: the steps; those that are not there yet stand in front.
        above: what the bound gained over them, in nats.
    """

    base: Filter
    filters: Filter
    span: Span
    above: Scalar


def empty_window(length: int, filter: Filter, network: Any, s: Step) -> Window:
    """No steps yet; what stands in their place is never looked at, but is regular."""
    flat = dataclasses.replace(independent(filter), network=network)
    row = (filter, flat, kept_step(s))
    filters, kernels, steps = jax.tree.map(lambda a: jnp.stack([a] * (length - 1)), row)
    span = Span(kernels, steps, jnp.zeros(length - 1, bool))
    return Window(filter, filters, span, jnp.zeros((), filter.mean.dtype))


def with_window(length: int, done: Outcome, s: Step) -> Outcome:
    """The first step, to which all that is carried belongs."""
    carried = done.carried
    window = empty_window(length, carried.filter, carried.moves.network, s)
    return done._replace(carried=carried._replace(window=window))


def blank_step(model: StateSpaceModel, u: PyTree) -> Step:
    """A step of which nothing was observed, where no observation has been seen."""
    here = model.at(0)
    x = jnp.zeros_like(own_law(model, None, Step(0, None, u, None)).mean)
    law = abstract_law(lambda: here.emission(x, u))
    y = jax.eval_shape(lambda: here.emission(x, u).sample(jax.random.key(0)))
    return Step(0, jnp.zeros(law.event_shape, y.dtype), u, jnp.zeros((), bool))


def kept_step(s: Step) -> Step:
    """A step as it is carried on: always with a mask, and zeros where nothing was observed."""
    y = jnp.asarray(s.y)
    seen = observed_mask(y, s.mask, y.ndim, start=0)
    mask = jnp.ones(y.shape, bool) if seen is None else seen
    u = jax.tree.map(jnp.asarray, s.u)
    return Step(jnp.asarray(s.t, jnp.int32), jnp.where(mask, y, jnp.zeros_like(y)), u, mask)


def take_refitting(
    settings: Any, key: Key, model: StateSpaceModel, last: Carried, s: Step
) -> tuple[Outcome, Span]:
    """Take one observation, and refit the kernels of the window on the way.

    Args:
        settings: the engine.
        key: of this step.
        model: the model.
        last: what the step before left.
        s: the observation.

    Returns:
        The step, and the span that it looked back on, refitted.
    """
    optimise_key, *fit_keys = jax.random.split(key, 3)
    window = last.window
    start, moves = settings.start.later(model, s, last.filter, last.moves)
    past = last.value.past(window.base)
    steps = _pushed(window.span.steps, kept_step(s))
    there = jnp.append(window.span.there, True)

    def at(moves: tuple[Moves, Moves]) -> tuple[Filter, Span]:
        now, others = moves
        filter, kernel = moved(start, now)
        refitted = jax.vmap(moved)((window.filters, window.span.kernels), others)[1]
        return filter, Span(_pushed(refitted, kernel), steps, there)

    def values(filter: Filter, span: Span, noise: Array) -> Any:
        one = lambda e: rolled_value(  # noqa: E731 - one line
            model, past, filter, span, e, path_gradient=settings.path_gradient
        )
        return jax.vmap(one)(noise)

    def loss(moves: tuple[Moves, Moves], noise: Array) -> Scalar:
        return -jnp.mean(values(*at(moves), noise)[0])

    # kernels that were fitted before start where they stand, in units of their own noise
    others = jax.vmap(lambda kernel: still(_noise_of(kernel), kernel.network))(window.span.kernels)
    shape = (there.shape[0] + 1, start[0].mean.shape[0])
    moves, others = descend(settings, optimise_key, loss, (moves, others), shape)
    filter, span = jax.lax.stop_gradient(at((moves, others)))
    noise = _fresh(settings, fit_keys[0], shape, filter.mean.dtype)
    level, states = values(filter, span, noise)
    done = _carry_on(settings, fit_keys[1], model, last, (filter, span), (noise, states), level)
    return done._replace(carried=done.carried._replace(moves=moves)), span


def _noise_of(kernel: Kernel) -> Filter:
    return Filter(kernel.offset, kernel.factor)


def _fresh(settings: Any, key: Key, shape: tuple[int, int], dtype: Any) -> Array:
    count = settings.carried_value.num_points
    return draw_noise(key, count, shape, dtype, settings.antithetic)


def _pushed(stack: PyTree, last: PyTree) -> PyTree:
    """A stack with one more entry at its end."""
    push = lambda a, b: jnp.concatenate([a, jnp.asarray(b, a.dtype)[None]])  # noqa: E731
    return jax.tree.map(push, stack, last)


def entry(stack: PyTree, index: int) -> PyTree:
    """One entry of a stack."""
    return jax.tree.map(lambda a: a[index], stack)


def where(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """One of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _carry_on(
    settings: Any,
    key: Key,
    model: StateSpaceModel,
    last: Carried,
    family: tuple[Filter, Span],
    paths: tuple[Array, Array],
    level: Array,
) -> Outcome:
    """Fit the value at the oldest step, whose kernel is final; on paths that reach back to it."""
    (filter, span), (noise, states) = family, paths
    window, approximator = last.window, settings.carried_value
    filters = _pushed(window.filters, filter)
    oldest, kernel = entry(filters, 0), entry(span.kernels, 0)
    past, step = last.value.past(window.base), entry(span.steps, 0)
    terms = lambda before, x: log_terms(model, step, before, x)  # noqa: E731 - one line
    one = lambda x, e: targets(terms, past, (oldest, kernel), x, e)  # noqa: E731 - one line
    values = jax.vmap(one)(states[:, 0], noise[:, 1])
    centre = jnp.mean(values[:, -1])
    values = values.at[:, -1].add(-centre)
    kept = values if approximator.needs_slopes else values[:, -1:]
    fitted = approximator.fit(key, jax.vmap(oldest.white)(states[:, 0]), kept, last.value)
    is_full = span.there[0]  # else the value stays that of the first step
    reached = jnp.mean(level)
    gain = reached - window.above
    above = reached - jnp.where(is_full, centre, 0.0)
    others, rest = jax.tree.map(lambda a: a[1:], (filters, span))
    carried = last._replace(
        filter=filter,
        kernel=kernel,
        value=where(is_full, fitted, last.value),
        elbo=compensated_add(last.elbo, gain),
        window=Window(where(is_full, oldest, window.base), others, rest, above),
    )
    return Outcome(carried, entry(span.kernels, -1), gain, noise)


def final_kernels(settled: Kernel, window: Window) -> Kernel:
    """Kernels between neighbours as they were fitted last, with leading axis ``T - 1``.

    Args:
        settled: the kernel that left the window at each of ``T`` times.
        window: what was left at the last of them.
    """
    length, count = window.span.there.shape[0] + 1, settled.offset.shape[0]
    join = lambda a, b: jnp.concatenate([a[length:], b[max(length - count, 0) :]])  # noqa: E731
    return jax.tree.map(join, settled, window.span.kernels)
