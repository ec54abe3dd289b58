"""Training a flow by annealed draws: one compiled loop for any number of iterations.

Random numbers belong to the number of the iteration, so that a run that was interrupted and taken
up again is the run that was not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.engines.clipping import Norms, clipped, no_norms
from ssmkit.engines.fab_target import Defended
from ssmkit.learned.replay_buffer import Rows, corrected
from ssmkit.measures import effective_sample_size
from ssmkit.objectives.fab import annealed_loss, annealing_end, replayed_loss, target_of_end
from ssmkit.smc.annealed_importance import Annealed, anneal
from ssmkit.typing import Array, Float, Key, PyTree, Scalar

FIRST_STEP = 0.3  # of the moves, in standard deviations of the draws
GAIN = 0.1  # how fast the log step size follows the acceptance rate
MEMORY = 0.95  # of the draws' scales, by iteration
MIDDLE = (0.159, 0.841)  # quantiles that are two standard deviations apart where all is normal
STUCK = 100  # updates left out in a row, after which the buffer is emptied


class Task(eqx.Module):
    """What does not change while a flow learns.

    Attributes:
        engine: the options.
        target: the density.
        key: random key of the whole run.
    """

    engine: Any = eqx.field(static=True)
    target: Any
    key: Key


class Learner(NamedTuple):
    """How far learning has come.

    Attributes:
        flow: the flow.
        optimiser: state of Adam.
        rows: what the buffer holds; None without one.
        log_steps: log step sizes of the moves ``(K,)``, in standard deviations of the draws.
        log_scales: of the draws ``(d,)``, by coordinate.
        norms: of the last gradients.
        iteration: number of iterations taken.
        flushed: how often the buffer was emptied.
        invalid: annealed draws that began where the target is zero or not a number.
    """

    flow: Any
    optimiser: PyTree
    rows: Any
    log_steps: Float[Array, " K"]
    log_scales: Float[Array, " d"]
    norms: Norms
    iteration: Array
    flushed: Array
    invalid: Array


class Told(NamedTuple):
    """What an iteration tells, averaged over a chunk.

    Attributes:
        loss: of the updates.
        flow_ess: effective share of the flow's own draws, as weighted towards the target.
        annealed_ess: effective share of the annealed draws.
        acceptance: of the moves.
        log_evidence: of the batch of the flow's own draws, in nats.
    """

    loss: Scalar
    flow_ess: Scalar
    annealed_ess: Scalar
    acceptance: Scalar
    log_evidence: Scalar


def begin(task: Task, flow: Any) -> Learner:
    """A learner that has taken no iteration."""
    engine, dtype = task.engine, task.target.dtype
    arrays = eqx.filter(flow, eqx.is_inexact_array)
    x = jnp.zeros(task.target.dim, dtype)
    zero = jnp.zeros((), jnp.int32)
    count = engine.num_temperatures
    learner = Learner(
        flow,
        engine.rule().init(arrays),
        None if engine.buffer is None else engine.buffer.empty(engine.batch_size, x),
        jnp.full(count, jnp.log(FIRST_STEP), dtype),
        jnp.zeros_like(x),
        no_norms(dtype),
        zero,
        zero,
        zero,
    )
    # a weak type would compile the second chunk anew
    return jax.tree.map(lambda a: a.astype(a.dtype) if eqx.is_array(a) else a, learner)


@eqx.filter_jit
def take_iterations(task: Task, learner: Learner, count: Array) -> tuple[Learner, Told]:
    """Take ``count`` iterations; what they told is averaged over them."""
    arrays, static = eqx.partition(learner, eqx.is_array)

    def body(_: Array, carry: tuple[PyTree, Told]) -> tuple[PyTree, Told]:
        arrays, sums = carry
        after, told = iterate(task, eqx.combine(arrays, static))
        like = jax.tree.map(lambda new, old: new.astype(old.dtype), told, sums)
        return eqx.filter(after, eqx.is_array), jax.tree.map(jnp.add, sums, like)

    nothing = Told(*(jnp.zeros((), task.target.dtype),) * len(Told._fields))
    arrays, sums = jax.lax.fori_loop(0, count, body, (arrays, nothing))
    return eqx.combine(arrays, static), jax.tree.map(lambda a: a / count, sums)


def iterate(task: Task, learner: Learner) -> tuple[Learner, Told]:
    """Anneal a batch, keep it, and update the flow."""
    key = jax.random.fold_in(task.key, learner.iteration)
    anneal_key, update_key = jax.random.split(key)
    drawn = annealed(task, learner, anneal_key)
    learner = _adapted(task, learner, drawn)
    if learner.rows is None:
        learner, loss = _update_fresh(task, learner, drawn)
    else:
        add = task.engine.buffer.add
        rows = add(learner.rows, drawn.x, drawn.log_weights, drawn.log_densities[:, 0])
        learner, loss = _update_replayed(task, learner._replace(rows=rows), update_key)
    log_q, end = drawn.first.T
    log_ratio = target_of_end(log_q, end, task.engine.alpha) - log_q
    log_ratio = jnp.where(jnp.isfinite(log_ratio), log_ratio, -jnp.inf)
    size = log_ratio.shape[0]
    told = Told(
        loss,
        effective_sample_size(log_ratio) / size,
        effective_sample_size(drawn.log_weights) / size,
        jnp.mean(drawn.acceptance_rates) if task.engine.num_temperatures else jnp.ones(()),
        jax.nn.logsumexp(log_ratio) - jnp.log(size),
    )
    told = jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, 0.0), told)
    return learner._replace(iteration=learner.iteration + 1), told


def annealed(task: Task, learner: Learner, key: Key) -> Annealed:
    """Annealed draws from the flow towards the target to the power of alpha."""
    steps, engine = step_sizes(learner), task.engine
    return anneal_from(task, learner.flow, steps, key, engine.alpha, engine.batch_size)


def step_sizes(learner: Learner) -> Float[Array, "K d"]:
    """Of the moves, at each temperature and in each coordinate."""
    return jnp.exp(learner.log_steps[:, None] + learner.log_scales)


def anneal_from(
    task: Task, flow: Any, step_sizes: Array, key: Key, alpha: float, count: int
) -> Annealed:
    """Annealed draws from a flow; ``alpha=1`` ends at the target itself."""
    engine, target = task.engine, task.target
    start = Defended(jax.lax.stop_gradient(flow), target, engine.share_of(target))

    def log_densities(u: Array) -> tuple[Scalar, Scalar]:
        log_q = start.log_prob(u)
        return log_q, annealing_end(log_q, target.log_prob(u), alpha)

    return anneal(
        key,
        start.sample,
        log_densities,
        engine.kernel(),
        engine.temperatures(target.dtype),
        step_sizes,
        num_particles=count,
        num_moves=engine.num_moves,
        threshold=engine.threshold,
    )


def _adapted(task: Task, learner: Learner, drawn: Annealed) -> Learner:
    """Step sizes follow the acceptance, scales the draws, from the next iteration on."""
    there = jnp.isfinite(drawn.log_weights)
    invalid = jnp.sum(~jnp.isfinite(drawn.first[:, 1])).astype(jnp.int32)
    excess = drawn.acceptance_rates - task.engine.kernel().acceptance
    # by quantiles: a flow in the making sends single draws far away
    x = jnp.where(there[:, None], drawn.x, jnp.nan)
    low, high = jnp.nanquantile(x, jnp.asarray(MIDDLE, x.dtype), axis=0)
    new = jnp.log(0.5 * (high - low))
    new = jnp.where(jnp.isfinite(new), new, learner.log_scales)
    return learner._replace(
        log_steps=learner.log_steps + GAIN * excess,
        log_scales=MEMORY * learner.log_scales + (1 - MEMORY) * new,
        invalid=learner.invalid + invalid,
    )


def _step(task: Task, learner: Learner, loss: Any) -> tuple[Learner, Scalar, Any]:
    """One gradient step of the flow on ``loss(flow) -> (value, aux)``."""
    import optax

    (value, aux), slope = eqx.filter_value_and_grad(loss, has_aux=True)(learner.flow)
    slope, take, norms = clipped(slope, learner.norms)
    arrays, static = eqx.partition(learner.flow, eqx.is_inexact_array)
    change, state = task.engine.rule().update(slope, learner.optimiser, arrays)
    moved = optax.apply_updates(arrays, change)

    def pick(new: Array, old: Array) -> Array:
        return jnp.where(take, new, old).astype(old.dtype)

    arrays, state = jax.tree.map(pick, (moved, state), (arrays, learner.optimiser))
    learner = learner._replace(flow=eqx.combine(arrays, static), optimiser=state, norms=norms)
    return learner, jnp.where(take, value, 0.0), aux


def _log_q(task: Task, flow: Any, x: Array) -> Array:
    target = task.target
    return jax.vmap(Defended(flow, target, task.engine.share_of(target)).log_prob)(x)


def _update_fresh(task: Task, learner: Learner, drawn: Annealed) -> tuple[Learner, Scalar]:
    def loss(flow: Any) -> tuple[Scalar, None]:
        return annealed_loss(_log_q(task, flow, drawn.x), drawn.log_weights), None

    learner, value, _ = _step(task, learner, loss)
    return learner, value


def _update_replayed(task: Task, learner: Learner, key: Key) -> tuple[Learner, Scalar]:
    """Several steps on rows drawn by weight, whose weights are then those of the new flow."""
    engine, buffer, rows = task.engine, task.engine.buffer, learner.rows
    size = engine.batch_size
    index = buffer.draw(key, rows, buffer.num_updates * size).reshape(buffer.num_updates, size)
    drawn = jax.tree.map(lambda a: a[index], rows._replace(cursor=index))
    arrays, static = eqx.partition(learner, eqx.is_array)

    def update(carry: PyTree, here: tuple[Array, Rows]) -> tuple[PyTree, Scalar]:
        learner = eqx.combine(carry, static)
        where, row = here

        def loss(flow: Any) -> tuple[Scalar, Array]:
            log_q = _log_q(task, flow, row.x)
            return replayed_loss(log_q, row.log_q, engine.alpha, buffer.clip), log_q

        learner, value, log_q = _step(task, learner, loss)
        kept = corrected(row.log_weights, row.log_q, log_q, engine.alpha)
        known = jnp.where(jnp.isfinite(log_q), log_q, row.log_q)
        rows = learner.rows._replace(
            log_weights=learner.rows.log_weights.at[where].set(kept),
            log_q=learner.rows.log_q.at[where].set(known),
        )
        return eqx.filter(learner._replace(rows=rows), eqx.is_array), value

    def learn(arrays: PyTree) -> tuple[PyTree, Scalar]:
        arrays, values = jax.lax.scan(update, arrays, (index, drawn))
        return arrays, jnp.mean(values)

    def wait(arrays: PyTree) -> tuple[PyTree, Scalar]:
        return arrays, jnp.zeros((), task.target.dtype)

    ready = rows.size >= buffer.begin * size
    arrays, value = jax.lax.cond(ready, learn, wait, arrays)
    return _unstuck(eqx.combine(arrays, static)), value


def _unstuck(learner: Learner) -> Learner:
    """Empty a buffer on which no step can be taken any more, and fill it again."""
    stuck = learner.norms.in_a_row >= STUCK
    rows = learner.rows
    log_weights = jnp.where(stuck, -jnp.inf, rows.log_weights)
    norms = learner.norms
    norms = norms._replace(in_a_row=jnp.where(stuck, 0, norms.in_a_row))
    return learner._replace(
        rows=rows._replace(log_weights=log_weights),
        norms=norms,
        flushed=learner.flushed + stuck.astype(jnp.int32),
    )
