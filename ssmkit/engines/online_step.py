"""One step of online variational inference: start, optimise, carry on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.learned.backward import Filter, Kernel, Moves, at_rest, independent, moved, no_kernel
from ssmkit.learned.past import CloudPast, Past
from ssmkit.linalg import compensated_add
from ssmkit.models.base import StateSpaceModel
from ssmkit.objectives.online_elbo import Family, Terms, log_terms, surrogate, targets
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Key, Scalar


class Carried(NamedTuple):
    """What goes from step to step.

    Attributes:
        filter: the belief about the present state.
        kernel: from that state to the one before; zeros where there is none before.
        moves: of the last step; a network goes on, and in the published start the kernel.
        value: of the bound, centred, with slopes where they are fitted; in units of the filter.
        elbo: lower bound of the log evidence in nats, and the rounding error it owes.
        learning: parameters, and what learns them; None where nothing is learned.
        hidden: what an amortised network has read; None without one.
        window: the last steps, whose kernels are refitted; None where they are not. With it
            ``kernel`` is the one that left it, and ``value`` belongs to the time before it.
    """

    filter: Filter
    kernel: Kernel
    moves: Moves
    value: Any
    elbo: tuple[Scalar, Scalar]
    learning: Any
    hidden: Any = None
    window: Any = None


class Outcome(NamedTuple):
    """A step's result.

    Attributes:
        carried: what goes on.
        kernel: the backward kernel; None at the first step.
        gain: what the step added to the bound, in nats.
        noise: of draws of the state, and of the states before, ``(N, 2, D)``.
    """

    carried: Carried
    kernel: Kernel | None
    gain: Scalar
    noise: Array


def blank(approximator: Any, key: Key, noise: Array, count: int | None = None) -> Any:
    """What is carried where nothing is known of the past: values, by default those of the bound."""
    columns = noise.shape[1] + 1 if approximator.needs_slopes else 1
    nothing = jnp.zeros((noise.shape[0], columns if count is None else count), noise.dtype)
    return approximator.fit(key, noise, nothing, None)


def take(
    settings: Any,
    key: Key,
    model: StateSpaceModel,
    last: Carried | None,
    s: Step,
    begun: Any,
    hidden: Any = None,
) -> Outcome:
    """Take one observation.

    Args:
        settings: the engine.
        key: of this step.
        model: the model.
        last: what the step before left; None at the first.
        s: the observation.
        begun: network (or None) and learning state (or None) at the first step; else None.
        hidden: what an amortised network has read, which goes on.
    """
    optimise_key, *fit_keys = jax.random.split(key, 3)
    past, (start, moves) = _begin(settings, model, last, s, begun)
    apart = settings.kernel == "independent"
    if apart and last is not None:
        start = (start[0], independent(last.filter))
    free = at_rest if apart else lambda moves: moves
    terms = lambda before, x: log_terms(model, s, before, x)  # noqa: E731 - one line

    def loss(moves: Moves, noise: Array) -> Scalar:
        one = lambda e: surrogate(  # noqa: E731 - one line
            terms, past, start, free(moves), e, path_gradient=settings.path_gradient
        )
        return -jnp.mean(jax.vmap(one)(noise))

    size = start[0].mean.shape[0]
    moves = free(descend(settings, optimise_key, loss, moves, (2, size)))
    family = jax.lax.stop_gradient(moved(start, moves))
    done = _carry_on(settings, fit_keys, terms, past, family, moves, last, begun)
    return done._replace(carried=done.carried._replace(hidden=hidden))


def _begin(settings: Any, model: StateSpaceModel, last: Carried | None, s: Step, begun: Any) -> Any:
    if last is None:
        network, _ = begun
        full = settings.filter == "full"
        return None, settings.start.first(model, s, network, full=full)
    return last.value.past(last.filter), settings.start.later(model, s, last.filter, last.moves)


def descend(
    settings: Any,
    key: Key,
    loss: Callable[[Any, Array], Scalar],
    moves: Any,
    shape: tuple[int, int],
) -> Any:
    """Gradient steps of moves, by draws whose noise has a shape."""
    if settings.num_steps == 0:
        return moves
    import optax

    rule, dtype = settings.rule(), jax.tree.leaves(moves)[0].dtype

    def step(carry: Any, key: Key) -> tuple[Any, None]:
        moves, state = carry
        noise = draw_noise(key, settings.num_samples, shape, dtype, settings.antithetic)
        slope = jax.grad(loss)(moves, noise)
        change, state = rule.update(slope, state, moves)
        return (optax.apply_updates(moves, change), state), None

    keys = jax.random.split(key, settings.num_steps)
    return jax.lax.scan(step, (moves, rule.init(moves)), keys)[0][0]


def draw_noise(key: Key, count: int, shape: tuple[int, int], dtype: Any, antithetic: bool) -> Array:
    """Noise ``(count, 2, D)`` of states and the states before; in pairs of opposite sign."""
    if not antithetic:
        return jax.random.normal(key, (count, *shape), dtype)
    half = jax.random.normal(key, ((count + 1) // 2, *shape), dtype)
    return jnp.concatenate([half, -half])[:count]


def _carry_on(
    settings: Any,
    keys: list[Key],
    terms: Terms,
    past: Past | CloudPast | None,
    family: Family,
    moves: Moves,
    last: Carried | None,
    begun: Any,
) -> Outcome:
    """Fit what the next step needs on fresh draws, which also say what the bound is now."""
    draw_key, fit_key = keys
    filter, kernel = family
    dtype = filter.mean.dtype
    approximator = settings.carried_value
    count = approximator.num_points
    noise = draw_noise(draw_key, count, (2, filter.mean.shape[0]), dtype, settings.antithetic)
    one = lambda e: targets(terms, past, family, filter.draw(e[0]), e[1])  # noqa: E731 - one line
    values = jax.vmap(one)(noise)
    gain = jnp.mean(values[:, -1])
    values = values.at[:, -1].add(-gain)
    before = None if last is None else last.value
    kept = values if approximator.needs_slopes else values[:, -1:]
    value = approximator.fit(fit_key, noise[:, 0], kept, before)
    nothing = jnp.zeros((), dtype)
    elbo = (nothing, nothing) if last is None else last.elbo
    elbo = compensated_add(elbo, gain)
    learning = begun[1] if last is None else last.learning
    looks_back = no_kernel(filter, moves.network) if kernel is None else kernel
    carried = Carried(filter, looks_back, moves, value, elbo, learning)
    return Outcome(carried, kernel, gain, noise)
