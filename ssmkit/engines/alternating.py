"""Learning in alternating blocks: the twist on simulations, the rest by ascending an objective.

Each block is one compiled loop for any number of steps. Random numbers belong to the number of the
step, so that a run that was interrupted and taken up again is the run that was not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.learned.pieces import Pieces, frozen
from ssmkit.models.programs import Program, build_with_prior, constrain, free_sites
from ssmkit.objectives.sweep import sweep, told_of
from ssmkit.smc.filter import Series
from ssmkit.typing import Array, Key, PyTree, Scalar


class Learner(NamedTuple):
    """What is learned so far, with the state of both optimisers and the steps they have taken.

    Attributes:
        params: unconstrained values of the program's sites; empty for a model.
        twist: the twist, or None.
        proposal: the proposal, or None.
        optimisers: states of the twist's optimiser and of the other one.
        steps: steps of both blocks ``(2,)``.
        skipped: steps that were left out since a gradient was not finite.
    """

    params: dict[str, PyTree]
    twist: Any
    proposal: Any
    optimisers: tuple[PyTree, PyTree]
    steps: Array
    skipped: Array

    @property
    def pieces(self) -> Pieces:
        """Twist and proposal."""
        return Pieces(self.twist, self.proposal)


class Task(eqx.Module):
    """What is learned from.

    Attributes:
        target: the model or program.
        series: observations ``(B, T, *event)``, inputs and mask.
        key: random key of the whole run.
        objective: of the block for parameters and proposal.
        twist_learning: of the block for the twist.
        total: steps of each block that are planned, twist first.
    """

    target: Any
    series: Series
    key: Key
    objective: Any = eqx.field(static=True)
    twist_learning: Any = eqx.field(static=True)
    total: tuple[int, int] = eqx.field(static=True)

    def model(self, params: dict[str, PyTree]) -> tuple[Any, Scalar]:
        """The model at unconstrained values, and their log prior density."""
        if not isinstance(self.target, Program):
            return self.target, jnp.zeros(())
        return build_with_prior(self.target, constrain(free_sites(self.target), params))


TWIST, REST = 0, 1


def learns(part: Any) -> bool:
    """Whether a part has numbers to learn."""
    return bool(jax.tree.leaves(eqx.filter(part, eqx.is_inexact_array)))


def default_optimiser(block: int, total: int) -> Any:
    """Adam, with a step that falls to a hundredth along a cosine; clipped for noisy bounds."""
    import optax

    steps = optax.cosine_decay_schedule(3e-3, max(total, 1), 0.01)
    if block == TWIST:
        return optax.adam(steps)
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(steps))


def optimiser_of(task: Task, block: int) -> Any:
    """The optax object of a block."""
    chosen = (task.twist_learning, task.objective)[block].optimizer
    return default_optimiser(block, task.total[block]) if chosen is None else chosen.build()


def part_of(learner: Learner, block: int) -> PyTree:
    """What a block learns."""
    return learner.twist if block == TWIST else (learner.params, learner.proposal)


def begin(task: Task, params: dict[str, PyTree], pieces: Pieces) -> Learner:
    """A learner that has taken no step."""
    zero = jnp.zeros((), jnp.int32)
    # a weak type would compile the second chunk anew
    strong = lambda a: a.astype(a.dtype) if eqx.is_array(a) else a  # noqa: E731 - one line
    params, pieces = jax.tree.map(strong, (params, pieces))
    learner = Learner(params, pieces.twist, pieces.proposal, (None, None), zero, zero)
    states = []
    for block in (TWIST, REST):
        part = eqx.filter(part_of(learner, block), eqx.is_inexact_array)
        is_trained = learns(part) and task.total[block] > 0
        states.append(optimiser_of(task, block).init(part) if is_trained else None)
    return learner._replace(optimisers=tuple(states), steps=jnp.zeros(2, jnp.int32))


@eqx.filter_jit
def take_steps(
    task: Task, learner: Learner, block: int, count: Array
) -> tuple[Learner, dict[str, Array]]:
    """Take ``count`` steps of a block; what was told is averaged over them."""
    optimiser = optimiser_of(task, block)
    learned, rest = eqx.partition(part_of(learner, block), eqx.is_inexact_array)
    key = jax.random.fold_in(task.key, block)

    def value(learned: PyTree, step: Array) -> tuple[Scalar, dict[str, Array]]:
        part = eqx.combine(learned, rest)
        return _loss(task, learner, block, part, jax.random.fold_in(key, step))

    def step(_: Array, carry: tuple) -> tuple:
        learned, state, number, skipped, sums = carry
        (loss, told), gradient = jax.value_and_grad(value, has_aux=True)(learned, number)
        updates, after = optimiser.update(gradient, state, learned)
        moved = jax.tree.map(lambda p, u: p + u.astype(p.dtype), learned, updates)
        good = jnp.isfinite(loss) & _all_finite(gradient)
        keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731 - one line
        learned, state = jax.tree.map(keep, (moved, after), (learned, state))
        sums = jax.tree.map(lambda total, new: total + new, sums, told)
        return learned, state, number + 1, skipped + ~good, sums

    shapes = jax.eval_shape(value, learned, learner.steps[block])[1]
    sums = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    carry = (learned, learner.optimisers[block], learner.steps[block], learner.skipped, sums)
    learned, state, number, skipped, sums = jax.lax.fori_loop(0, count, step, carry)
    told = jax.tree.map(lambda a: a / count, sums)
    states = list(learner.optimisers)
    states[block] = state
    steps = learner.steps.at[block].set(number)
    part = eqx.combine(learned, rest)
    if block == TWIST:
        learner = learner._replace(twist=part)
    else:
        learner = learner._replace(params=part[0], proposal=part[1])
    return learner._replace(optimisers=tuple(states), steps=steps, skipped=skipped), told


def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(tree)]))


def _loss(
    task: Task, learner: Learner, block: int, part: PyTree, key: Key
) -> tuple[Scalar, dict[str, Array]]:
    if block == TWIST:
        model = frozen(task.model(learner.params)[0])
        pieces = Pieces(part, frozen(learner.proposal))
        return task.twist_learning.loss(key, model, pieces, task.series)
    params, proposal = part
    model, log_prior = task.model(params)
    twist = learner.twist if task.objective.uses_twist else None
    pieces = Pieces(frozen(twist), proposal)
    count = task.series[0].shape[0]
    size = min(task.objective.batch_size, count)
    which_key, run_key = jax.random.split(key)
    which = jax.random.choice(which_key, count, (size,), replace=False)

    def one(key: Key, b: Array) -> tuple[Scalar, dict[str, Array]]:
        series = jax.tree.map(lambda a: a[b], task.series)
        return task.objective.loss(key, model, pieces, series)

    losses, told = jax.vmap(one)(jax.random.split(run_key, size), which)
    told = jax.tree.map(lambda a: jnp.mean(a, axis=0), told)
    return jnp.mean(losses) - log_prior / count, told


@eqx.filter_jit
def held_out(
    task: Task, learner: Learner, key: Key, series: Series, num_particles: int
) -> dict[str, Array]:
    """The bound per series, and the smallest effective number, on numbers of its own."""
    model = task.model(learner.params)[0]
    twist = learner.twist if task.objective.uses_twist else None
    pieces = Pieces(twist, learner.proposal)
    threshold = getattr(task.objective, "threshold", 0.5)

    def one(key: Key, series: Series) -> dict[str, Array]:
        how = {"num_particles": num_particles, "scheme": "systematic", "threshold": threshold}
        return told_of(sweep(key, model, pieces, series, **how))

    keys = jax.random.split(key, series[0].shape[0])
    return jax.tree.map(lambda a: jnp.mean(a, axis=0), jax.vmap(one)(keys, series))
