"""Online variational inference of a whole series: its steps in one scan, and what they tell."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, Gaussian
from ssmkit.engines.online_learning import model_now
from ssmkit.engines.online_paths import BackwardPaths
from ssmkit.engines.online_points import by_time
from ssmkit.engines.online_step import Carried, Outcome
from ssmkit.engines.online_window import final_kernels
from ssmkit.learned.backward import Filter, Kernel
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Step, steps_of
from ssmkit.typing import Array, Float, Key, PyTree


class Told(NamedTuple):
    """What is kept of each step, with leading axis ``T``.

    Attributes:
        filter: beliefs about the present state.
        gain: what the steps added to the bound, in nats.
        ahead: beliefs before the observations.
        params: those learned so far, and their means; None where nothing is learned.
        carried: all that went on, where it was asked for.
        settled: kernels that left the window; None without one.
    """

    filter: Filter
    gain: Float[Array, " T"]
    ahead: Belief
    params: PyTree
    carried: Carried | None
    settled: Kernel | None


def run_series(
    engine: Any, key: Key, model: StateSpaceModel, series: tuple, keep: str
) -> tuple[Carried, tuple[Told, Kernel] | None]:
    """Take every step of one series.

    Args:
        engine: takes the steps.
        key: random key.
        model: the model, or a program whose parameters move.
        series: observations ``(T, *event)``, inputs and mask.
        keep: ``"final"``, ``"all"``, or ``"each"``: all, and what is carried at each time.

    Returns:
        What is carried at the end; what was told, and the kernels from ``t`` to ``t - 1`` as they
        were at ``t``.
    """
    ys, us, mask = jax.tree.map(jnp.asarray, series)
    at = steps_of(ys, us, mask)

    def told(done: Outcome, ahead: Belief) -> Told:
        carried = done.carried
        learning = carried.learning
        params = None if learning is None else (learning.params, learning.average)
        each = carried if keep == "each" else None
        settled = None if carried.window is None else carried.kernel
        return Told(carried.filter, done.gain, ahead, params, each, settled)

    def on(last: Carried, t: Array) -> tuple[Carried, Any]:
        done, ahead = engine.step(key, model, last, at(t))
        return done.carried, (told(done, ahead), done.kernel) if keep != "final" else None

    first, ahead = engine.step(key, model, None, at(0))
    last, kept = jax.lax.scan(on, first.carried, jnp.arange(1, ys.shape[0]))
    if kept is None:
        return last, None
    later, kernels = kept
    join = lambda a, b: jnp.concatenate([a[None], b])  # noqa: E731 - one line
    return last, (jax.tree.map(join, told(first, ahead), later), kernels)


def infer_series(
    engine: Any, key: Key, model: StateSpaceModel, series: tuple, keep: str
) -> dict[str, Any]:
    """The parts of a posterior of one series; arguments as in `run_series`."""
    last, kept = run_series(engine, key, model, series, keep)
    ys, us, _ = series
    step = Step(0, ys[0], input_at(us, 0), None)
    shape = own_law(model_now(model, last), None, step).event_shape
    final = Gaussian(last.filter.mean, last.filter.covariance, shape)
    parts: dict[str, Any] = {"log_evidence": last.elbo[0], "final": final, "carry": last}
    if kept is None:
        return parts
    told, kernels = kept
    if told.settled is not None:
        kernels = final_kernels(told.settled, last.window)
    paths = BackwardPaths(told.filter, kernels, shape)
    # times are folded in as 0, 1, …; no time has the largest tag
    last_key = jax.random.fold_in(key, jnp.iinfo(jnp.uint32).max)
    smooth_key, bound_key = jax.random.split(last_key)
    covariances = jax.vmap(lambda filter: filter.covariance)(told.filter)
    parts |= {
        "log_likelihood": told.gain,
        "filtered": Gaussian(told.filter.mean, covariances, shape),
        "predicted": told.ahead,
        "states": (paths.marginals(smooth_key, engine.num_paths), paths),
        "run": {"online_log_evidence": last.elbo[0]},
    }
    if told.carried is not None:
        parts["carries"] = told.carried._asdict()
    if told.params is not None:
        return parts | {"steps": by_time(model, told.params)}
    bound = paths.bounds(bound_key, engine.num_paths, model, series)
    parts["log_evidence"] = jnp.mean(bound)
    parts["log_evidence_se"] = jnp.std(bound) / jnp.sqrt(bound.shape[0])
    return parts
