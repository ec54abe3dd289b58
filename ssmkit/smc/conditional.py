r"""Conditional sequential Monte Carlo: a Markov kernel on whole paths.

A particle filter is run around a reference path, which sits in slot 0 and cannot die; a path drawn
from the end of the run is the next one. The kernel leaves \(p(x_{0:T-1} \mid y_{0:T-1})\) invariant
with any number of particles from two on. So that it also mixes, the past of the reference is drawn
anew: on the way, by *ancestor sampling*,

\[P(a_t^0 = i) \propto w_{t-1}^i\, f(x_t^{\mathrm{ref}} \mid x_{t-1}^i)\]

or afterwards, by *backward sampling*.

Ancestors are drawn independently (multinomial), whatever scheme the engine has: only then is the
law of the other ancestors, given that slot 0 has kept its own, the one they have without it. Any
other scheme would need a conditional form of its own.

Source: C. Andrieu, A. Doucet and R. Holenstein (2010), Particle Markov chain Monte Carlo methods;
N. Whiteley (2010), in its discussion; F. Lindsten, M. Jordan and T. Schön (2014), Particle Gibbs
with ancestor sampling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.errors import EngineError, OptionError
from ssmkit.models.base import StateSpaceModel, as_arrays, input_at
from ssmkit.models.observation import needed_mask
from ssmkit.smc.feynman_kac import Recipe, StepReport
from ssmkit.smc.filter import ParticleFilter
from ssmkit.smc.proposals import Linearised
from ssmkit.smc.recipes import Step, example_state, steps_of
from ssmkit.smc.reference import (
    as_reference,
    log_transitions,
    run_around,
    scored_anew,
    select_around,
)
from ssmkit.smc.smoothers import draw_index, trace_back
from ssmkit.typing import Array, Inputs, Key, Scalar

METHODS = ("ancestor", "backward")


class ConditionalRun(NamedTuple):
    """The next path ``(T, *state)``, and the log evidence of the run around the last one, in nats.

    The reference is in the cloud, so that this evidence is no unbiased estimate: its *inverse* is,
    for the inverse evidence, when the reference comes from the smoothing law.
    """

    path: Array
    log_evidence: Scalar


def conditional_smc(
    key: Key,
    engine: Any,
    model: StateSpaceModel,
    path: Array,
    ys: Array,
    us: Inputs = None,
    observed: Array | None = None,
    *,
    method: str = "ancestor",
) -> ConditionalRun:
    r"""One step of a Markov chain on paths that leaves the smoothing law invariant.

    \[x'_{0:T-1} \sim K(x_{0:T-1}, \cdot), \qquad
    p(x' \mid y) = \int p(x \mid y)\, K(x, x')\, dx\]

    for any number of particles; iterate it for particle Gibbs. Pure: safe under ``jit`` and
    ``vmap``. Ancestors are drawn independently; the engine's scheme and smoother are not looked at.

    Args:
        key: a typed random key.
        engine: ``sk.SMC(...)``; its particles, proposal, lookahead and threshold are used.
        model: the model; it needs a transition density.
        path: the reference ``(T, *state)``; it must be possible under the model.
        ys: one series ``(T, *observation)``; nan is missing.
        us: inputs with leading axis ``T``, or None.
        observed: booleans ``(T,)`` or ``(T, M)``, or None.
        method: ``"ancestor"`` sampling, or ``"backward"`` sampling.

    Returns:
        The next path and the log evidence of the run.

    Raises:
        OptionError: an unknown method, or a proposal whose density cannot be evaluated.
        EngineError: the engine is not one by particles.
        ShapeError: the path is not one of the model's.
        SingularTransitionError: the transition has no density.

    Example:
        >>> import jax, ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> path, ys = sk.simulate(0, model, 30)
        >>> step = jax.jit(lambda key, path: sk.smc.conditional_smc(
        ...     key, sk.SMC(num_particles=10), model, path, ys))
        >>> for i in range(3):
        ...     path, _ = step(jax.random.key(i), path)
        >>> path.shape
        (30,)

    Source: Lindsten, Jordan and Schön (2014); Whiteley (2010).
    """
    model, ys = as_arrays(model), jnp.asarray(ys)
    mask: Any = needed_mask(ys, observed)  # rows of it are made when they are asked for
    steps = steps_of(ys, us, mask)
    _check(engine, method)
    start = Step(0, ys[0], input_at(us, 0), steps(0).mask)
    particle_filter: ParticleFilter = engine.filter(model, start)
    path = as_reference(path, example_state(model, start, particle_filter.dtype), ys.shape[0])
    recipe = scored_anew(particle_filter.recipe, model, engine.proposal)
    particle_filter = particle_filter._replace(
        recipe=recipe, select=select_around(recipe, path, engine.threshold, method)
    )
    run_key, last_key, back_key = jax.random.split(key, 3)
    cloud, report = run_around(particle_filter, run_key, path, steps)
    last = draw_index(last_key, report.log_weights[-1], 1)
    if method == "ancestor":
        index = trace_back(report.ancestors, last)[:, 0]
    else:
        index = _backward(back_key, recipe, report, last[0], steps)
    return ConditionalRun(report.states[jnp.arange(ys.shape[0]), index], cloud.log_evidence)


def _check(engine: Any, method: str) -> None:
    if method not in METHODS:
        raise OptionError(
            "sk.smc.conditional_smc: unknown method.", got=repr(method), expected=METHODS
        )
    if not hasattr(engine, "filter") or isinstance(engine, type):
        raise EngineError(
            "conditional SMC needs a particle filter.",
            got=repr(engine),
            expected="sk.SMC(...)",
            fix="sk.SMC(num_particles=20)",
        )
    if isinstance(engine.proposal, Linearised):
        raise OptionError(
            "conditional SMC must score the reference under the proposal, and the linearised one "
            "has no density that can be evaluated at a given state.",
            got=repr(engine),
            expected="the bootstrap filter, or an sk.Proposal",
            fix="proposal=None, or proposal=sk.Proposal(your_function)",
        )


def _backward(key: Key, recipe: Recipe, report: StepReport, last: Array, steps: Any) -> Array:
    """Draw the past of the last particle ``(T,)``, index by index.

    It does not matter whether ancestors were selected at a step: those that are not chosen at the
    later time are integrated out.
    """

    def back(index: Array, t: Array) -> tuple[Array, Array]:
        after, s = report.states[t + 1][index], steps(t + 1)
        log_values = report.log_weights[t] + log_transitions(recipe, report.states[t], after, s)
        drawn = draw_index(jax.random.fold_in(key, t), log_values, 1)[0]
        return drawn, drawn

    times = jnp.arange(report.log_weights.shape[0] - 1)
    earlier = jax.lax.scan(back, last, times, reverse=True)[1]
    return jnp.concatenate([earlier, last[None]])
