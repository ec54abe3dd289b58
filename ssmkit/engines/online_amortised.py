"""Learning the network that serves all times and series, by the bound of simulated ones."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.engines.amortised_bound import loss
from ssmkit.engines.options import RunOptions
from ssmkit.engines.progress import Progress, next_chunk
from ssmkit.errors import EngineError, OptionError
from ssmkit.learned.amortised import AmortisedMoves, AmortisedStart
from ssmkit.learned.reading import setting_of
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.following import Following
from ssmkit.posterior import Data
from ssmkit.smc.filter import Series, floating_type
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Key, PyTree

DAMPING = 1e-3


class Guided(Following):
    """A model, and the network that was learned for it: both are arguments of compiled steps.

    Attributes:
        model: the model.
        network: where its filters and kernels stand.
    """

    model: StateSpaceModel
    network: AmortisedMoves

    @property
    def followed(self) -> StateSpaceModel:
        """The model without the network."""
        return self.model

    def settings(self, engine: Any, last: Any, s: Step) -> tuple[Any, Array, StateSpaceModel]:
        """The engine that starts where the network says, what it has read, and the model."""
        before = self.network.nothing_read if last is None else last.hidden
        hidden = self.network.read(before, s)
        start = AmortisedStart(engine.start, self.network, hidden)
        return dataclasses.replace(engine, start=start), hidden, self.model


class Learner(NamedTuple):
    """A network, the state of its optimiser, steps so far, those left out, and the last loss."""

    network: AmortisedMoves
    state: PyTree
    step: Array
    skipped: Array
    loss: Array


def _rule(options: Any) -> Any:
    import optax

    if options.optimizer is not None:
        return options.optimizer.build()
    rate = optax.cosine_decay_schedule(3e-3, max(options.steps, 1), 0.01)
    # damped, so that what rounding leaves of a slope that is zero is not taken for one
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, eps=DAMPING))


@eqx.filter_jit
def take_steps(
    engine: Any, key: Key, model: StateSpaceModel, series: Series, learner: Learner, count: Array
) -> Learner:
    """Steps of the optimiser, on series that are simulated anew for each."""
    import optax

    arrays, static = eqx.partition(learner.network, eqx.is_inexact_array)
    rule = _rule(engine.amortised)

    def step(_: Any, carry: tuple) -> tuple:
        arrays, state, number, skipped, sum_ = carry
        own = jax.random.fold_in(key, number)
        of = lambda a: loss(eqx.combine(a, static), engine, own, model, series)  # noqa: E731
        value, slope = jax.value_and_grad(of)(arrays)
        change, after = rule.update(slope, state, arrays)
        moved = optax.apply_updates(arrays, change)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(slope)]))
        pick = lambda new, old: jnp.where(finite, new, old).astype(old.dtype)  # noqa: E731
        arrays, state = jax.tree.map(pick, (moved, after), (arrays, state))
        skipped = skipped + (~finite).astype(jnp.int32)
        return arrays, state, number + 1, skipped, pick(sum_ + value, sum_)

    nothing = jnp.zeros_like(learner.loss)
    carry = (arrays, learner.state, learner.step, learner.skipped, nothing)
    arrays, state, number, skipped, sum_ = jax.lax.fori_loop(0, count, step, carry)
    taken = jnp.maximum(count - (skipped - learner.skipped), 1)
    return Learner(eqx.combine(arrays, static), state, number, skipped, sum_ / taken)


def network_for(
    engine: Any, key: Key, model: StateSpaceModel, data: Data, options: RunOptions
) -> tuple[AmortisedMoves, dict[str, Any]]:
    """The network that was handed over, or one that is learned now; and a report."""
    if options.learned is not None:
        return check_network(engine, options.learned), {}
    series = (data.ys, data.us, data.mask)
    if not options.batched:
        series = jax.tree.map(lambda a: jnp.asarray(a)[None], series)
    return learn_network(engine, key, model, series, options)


def learn_network(
    engine: Any, key: Key, model: StateSpaceModel, series: Series, options: RunOptions
) -> tuple[AmortisedMoves, dict[str, Any]]:
    """Learn the network, in chunks that report and can be interrupted.

    Args:
        engine: says what is built and how long it learns.
        key: random key.
        model: the model that series are simulated from.
        series: observations ``(B, T, *event)``, inputs and mask: lengths, gaps and inputs of the
            simulations, and scales.
        options: progress and callback.

    Returns:
        The network, and a report: its history of the bound a step, in nats.
    """
    scale_key, build_key, run_key = jax.random.split(key, 3)
    first = jax.tree.map(lambda a: a[0], series)
    setting = setting_of(scale_key, model, first, floating_type(model, first[0]))
    kind = {"full": engine.filter == "full", "network": engine.kernel == "network"}
    network = engine.amortised.build(build_key, setting, **kind)
    zero = jnp.zeros((), jnp.int32)
    state = _rule(engine.amortised).init(eqx.filter(network, eqx.is_inexact_array))
    learner = Learner(network, state, zero, zero, jnp.zeros((), setting.dtype))
    learner = jax.tree.map(lambda a: a.astype(a.dtype) if eqx.is_array(a) else a, learner)
    return _run(engine, run_key, model, series, learner, options)


def _run(
    engine: Any, key: Key, model: StateSpaceModel, series: Series, learner: Learner, options: Any
) -> tuple[AmortisedMoves, dict[str, Any]]:
    total, done, chunk, interrupted = engine.amortised.steps, 0, 1, False
    history: list[tuple[int, float]] = []
    with Progress("learn", total, options.progress) as bar:
        try:
            while done < total and not interrupted:
                count, clock = min(chunk, total - done), time.perf_counter()
                learner = take_steps(engine, key, model, series, learner, jnp.asarray(count))
                done += count
                history.append((done, -float(learner.loss)))
                chunk = next_chunk(chunk, time.perf_counter() - clock)
                bar.advance_to(done, history[-1][1])
                told = {"step": done, "bound_per_step": history[-1][1]}
                interrupted = options.callback is not None and bool(options.callback(told))
        except KeyboardInterrupt:
            interrupted = True
    steps, bounds = np.array(history).reshape(-1, 2).T
    told = {"step": steps.astype(int), "bound_per_step": bounds}
    report = {"history": told, "interrupted": interrupted, "skipped_steps": int(learner.skipped)}
    return learner.network, report


def require_network(engine: Any, model: StateSpaceModel) -> Guided:
    """The model with its network; one without is refused.

    Raises:
        EngineError: says how one is learned.
    """
    if isinstance(model, Guided):
        return model
    raise EngineError(
        "the amortised network has not been learned.",
        got=f"{engine!r} and {type(model).__name__}",
        expected="a posterior of the same engine, which holds it",
        fix="posterior = sk.infer(key, engine, model, ys), then sk.stream(key, engine, posterior)",
    )


def check_network(engine: Any, learned: Any) -> AmortisedMoves:
    """What was learned before, if it fits the engine.

    Raises:
        OptionError: it is something else, or the engine has no network.
    """
    if engine.amortised is None or not isinstance(learned, AmortisedMoves):
        raise OptionError(
            f"{engine!r} has no use for what was learned.",
            got=f"learned={type(learned).__name__}, amortised={engine.amortised!r}",
            expected="posterior.learned of an engine with amortised=sk.learned.Amortised()",
            fix="drop learned=" if engine.amortised is None else None,
        )
    options, count = engine.amortised, learned.state.size
    told = options.num_moves(count, full=engine.filter == "full")
    has = (learned.cell.hidden_size, learned.inner.out_features, learned.outer.out_features)
    has_network = learned.network is not None
    if has == (options.size, options.width, told) and has_network == (engine.kernel == "network"):
        return learned
    raise OptionError(
        "what was learned belongs to an engine with other options.",
        got=f"a network of {learned.cell.hidden_size} and {learned.inner.out_features} units for "
        f"{count} coordinates",
        expected=f"one of {options!r}, filter={engine.filter!r}, kernel={engine.kernel!r}",
        fix="the engine that learned it",
    )
