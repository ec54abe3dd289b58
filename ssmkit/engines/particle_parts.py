"""The parts of a posterior that a finished particle filter has made."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, Particles
from ssmkit.engines.smc_checks import require_density
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.smc.additive import Additive
from ssmkit.smc.feynman_kac import Cloud, StepReport
from ssmkit.smc.filter import floating_type, particles_like, states_of, step_diagnostics
from ssmkit.smc.forward_smoothing import begun
from ssmkit.smc.lineage import first_lineage, log_evidence_se, num_survivors
from ssmkit.smc.recipes import Proposed, Step
from ssmkit.smc.resampling import SCHEMES, Scheme, multinomial
from ssmkit.smc.smoothers import ParticlePaths, window_marginals
from ssmkit.smc.started import started
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar


def scheme_of(engine: Any) -> Scheme:
    """The resampling scheme that an engine names, or holds."""
    if isinstance(engine.resampling, str):
        return SCHEMES[engine.resampling]
    return engine.resampling


def parts_of(
    engine: Any,
    key: Key,
    model: StateSpaceModel,
    us: Inputs,
    run: tuple[Cloud, StepReport | None],
    kept: str = "all",
) -> dict[str, Any]:
    """Evidence, beliefs per time and smoothed paths.

    Args:
        engine: says how ancestors were drawn, and how paths are to be.
        key: the key of the run; smoothing has a tag of its own.
        model: the model.
        us: inputs with leading axis ``T``, or None.
        run: the last cloud, and the history or None.
        kept: "each" where the run may end at any of its times.
    """
    cloud, steps = run
    states = states_of(cloud.particles)
    event = states.shape[1:]
    is_multinomial = scheme_of(engine) is multinomial
    parts: dict[str, Any] = {
        "log_evidence": cloud.log_evidence,
        "log_evidence_se": log_evidence_se(
            cloud.lineage, cloud.log_weights, is_multinomial=is_multinomial
        ),
        "final": Particles(states, cloud.log_weights, event),
        "carry": cloud,
        "run": {"surviving_ancestors": num_survivors(cloud.lineage)} | _collected(cloud),
    }
    if steps is None:
        return parts
    parts |= {
        "log_likelihood": steps.log_likelihood,
        "predicted": Particles(steps.predicted_states, steps.predicted_log_weights, event),
        "filtered": Particles(steps.states, steps.log_weights, event),
        "steps": step_diagnostics(steps) | _collected(steps, "running_additive"),
        "carries": {
            "particles": particles_like(cloud.particles, steps),
            "log_weights": steps.log_weights,
        },
    }
    if kept == "each":
        parts["carries"] |= {"collected": steps.collected}
    return parts | _smoothed(engine, key, model, us, steps)


def read_cloud(cloud: Cloud) -> dict[str, Any]:
    """The belief about the present state, and the log evidence so far, in nats."""
    states = states_of(cloud.particles)
    belief = Particles(states, cloud.log_weights, states.shape[1:])
    return {"filtered": belief, "log_evidence": cloud.log_evidence}


def told_of(report: StepReport) -> dict[str, Any]:
    """What a step of a stream tells."""
    event = report.states.shape[1:]
    return {
        "predicted": Particles(report.predicted_states, report.predicted_log_weights, event),
        "log_likelihood": report.log_likelihood,
        "diagnostics": {"ess": report.ess, "resampled": report.resampled} | _collected(report),
    }


def smooth_clouds(
    engine: Any, key: Key, model: StateSpaceModel, clouds: Cloud, times: Array, us: Inputs
) -> Particles:
    """Beliefs about the last states of a stream, by backward sampling whatever the smoother.

    Args:
        engine: says how many paths are drawn.
        key: random key.
        model: the model.
        clouds: what the stream carried after each of the steps, with leading axis ``n``.
        times: of these steps.
        us: their inputs, or None.

    Raises:
        SingularTransitionError: the transition has no density.
    """
    require_density(f"smoothing a stream by {engine!r}", started(model, input_at(us, 0)), us)
    history = (states_of(clouds.particles), clouds.log_weights)
    return window_marginals(key, model, history, times, us, engine.num_paths)


def _collected(of: Cloud | StepReport, name: str = "additive") -> dict[str, Any]:
    """The smoothed mean of an additive functional, where one is carried along."""
    return {} if of.collected is None else {name: of.collected.mean()}


def begin_cloud(
    key: Key,
    num_particles: int,
    model: StateSpaceModel,
    belief: Belief,
    log_evidence: Scalar,
    u: PyTree,
    *,
    proposed: bool,
    additive: Additive | None = None,
) -> Cloud:
    """Equally weighted draws from a belief, for a filter with a proposal or without."""
    states = belief.sample(key, num_particles)
    is_float = jnp.issubdtype(states.dtype, jnp.floating)
    dtype = states.dtype if is_float else floating_type(model, states)
    zeros = jnp.zeros(num_particles, dtype)
    particles = Proposed(states, zeros) if proposed else states
    evidence = (log_evidence.astype(dtype), jnp.zeros((), dtype))
    cloud = Cloud(particles, zeros, evidence, first_lineage(num_particles))
    if additive is None:
        return cloud
    y = jax.eval_shape(lambda: model.at(0).emission(states[0], u).sample(key))
    s = Step(0, jnp.zeros(y.shape, y.dtype), u, None)
    return cloud._replace(collected=begun(additive, model, states, s, dtype))


def _smoothed(
    engine: Any, key: Key, model: StateSpaceModel, us: Inputs, steps: StepReport
) -> dict[str, Any]:
    if engine.smoother is None:
        return {}
    arrays, frame = eqx.partition(model, eqx.is_array)
    history = (steps.states, steps.log_weights, steps.ancestors)
    how = (engine.smoother, engine.num_moves, engine.lag)
    paths = ParticlePaths(*history, arrays, us, frame, *how)
    # times are folded in as 0, 1, …; no time has the largest tag
    smooth_key = jax.random.fold_in(key, jnp.iinfo(jnp.uint32).max)
    return {"states": (paths.marginals(smooth_key, engine.num_paths), paths)}
