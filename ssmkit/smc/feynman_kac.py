r"""The one Feynman–Kac loop: select, propose, weigh.

A recipe says what happens to *one* particle; the loop lifts it over the cloud and over time.
Bootstrap, guided, auxiliary, twisted, conditional and tempered algorithms are recipes, not copies.

\[\hat Z_t = \frac1N \sum_i w_t^i, \qquad
w_t^i = \frac{\overline v_{t-1}}{\psi(x_{t-1}^{a_i})}\, G_t(x_{t-1}^{a_i}, x_t^i)\]

after a selection with weights \(v = w\,\psi\); without one \(w_t^i = w_{t-1}^i G_t\). The mean of
the weights is the evidence at every time, so it is unbiased whether, when and how ancestors are
drawn.

Source: N. Chopin and O. Papaspiliopoulos (2020), An Introduction to Sequential Monte Carlo, ch. 10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.linalg import compensated_add
from ssmkit.measures import effective_sample_size
from ssmkit.smc.collectors import Collector, Move
from ssmkit.smc.lineage import Lineage, first_lineage, next_lineage
from ssmkit.smc.weights import log_mean_exp
from ssmkit.typing import Array, Bool, Float, Int, Key, PyTree, Scalar


class Recipe(NamedTuple):
    """What happens to one particle; ``s`` is what the step is given (time, data, temperature, …).

    Attributes:
        init: ``(noise, s) -> x``; a particle is any pytree.
        log_weight_0: ``(x, s) -> scalar``.
        propose: ``(noise, x_before, s) -> x``.
        log_weight: ``(x_before, x, s) -> scalar``.
        log_lookahead: ``(x_before, s) -> scalar``: selection multiplies the weights by it and
            divides it out again, so that beliefs stay those of the target without it.
        log_density: ``(state_before, state, s) -> scalar``, the transition density that backward
            and ancestor sampling need.
        predict: ``(key, x_before, s) -> state``, a draw from the prediction, which knows nothing
            of the observation; ``x_before`` is None at the first time. None where that is what
            ``propose`` does.
        state: ``(x) -> state``, the part of a particle that beliefs are about.
        noise_shapes: shapes of the standard normals that ``init`` and ``propose`` take as noise;
            None for a random key. Normals for the whole cloud are drawn at once, which is faster.
    """

    init: Callable[[Any, PyTree], PyTree]
    log_weight_0: Callable[[PyTree, PyTree], Scalar]
    propose: Callable[[Any, PyTree, PyTree], PyTree]
    log_weight: Callable[[PyTree, PyTree, PyTree], Scalar]
    log_lookahead: Callable[[PyTree, PyTree], Scalar] | None = None
    log_density: Callable[[PyTree, PyTree, PyTree], Scalar] | None = None
    predict: Callable[[Key, PyTree, PyTree], PyTree] | None = None
    state: Callable[[PyTree], PyTree] = lambda x: x
    noise_shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None)


class Cloud(NamedTuple):
    """Weighted particles after a step.

    Attributes:
        particles: pytree with leading axis ``N``.
        log_weights: ``(N,)``, scaled to mean one.
        evidence: log evidence of all that was seen, in nats, and the rounding error it owes.
        lineage: who descends from whom, for the standard error of the evidence.
        collected: the state of a collector; None without one.
    """

    particles: PyTree
    log_weights: Float[Array, " N"]
    evidence: tuple[Scalar, Scalar]
    lineage: Lineage
    collected: PyTree = None

    @property
    def log_evidence(self) -> Scalar:
        """Log evidence in nats."""
        return self.evidence[0]


class Selection(NamedTuple):
    """Who has offspring: ancestors ``(N,)``, log weights after it, and whether it took place."""

    ancestors: Int[Array, " N"]
    log_weights: Float[Array, " N"]
    resampled: Bool[Array, ""]


class StepReport(NamedTuple):
    """What one step tells.

    Attributes:
        states: the states of the particles ``(N, *state)``.
        log_weights: after the observation.
        predicted_states: draws from the prediction, before the observation.
        predicted_log_weights: their weights.
        ancestors: index of each particle's parent in the cloud before.
        log_likelihood: of this observation given those before it, in nats.
        ess: effective number of particles after the observation.
        resampled: whether ancestors were drawn before this step.
        collected: the state of a collector; None without one.
    """

    states: PyTree
    log_weights: Float[Array, " N"]
    predicted_states: PyTree
    predicted_log_weights: Float[Array, " N"]
    ancestors: Int[Array, " N"]
    log_likelihood: Scalar
    ess: Scalar
    resampled: Bool[Array, ""]
    collected: PyTree = None


Select = Callable[[Key, PyTree, Array, Array | None, PyTree], Selection]
Pin = Callable[[PyTree, PyTree], PyTree]


def draw_noise(key: Key, num_particles: int, shape: tuple[int, ...] | None, dtype: Any) -> Any:
    """Noise for a whole cloud: standard normals ``(N, *shape)``, or one key a particle."""
    if shape is None:
        return jax.random.split(key, num_particles)
    return jax.random.normal(key, (num_particles, *shape), dtype)


def first(
    recipe: Recipe,
    key: Key,
    num_particles: int,
    s: PyTree,
    dtype: Any = None,
    pin: Pin | None = None,
    collector: Collector | None = None,
) -> tuple[Cloud, StepReport]:
    """Draw the cloud at the first time and weigh it.

    Args:
        recipe: what happens to one particle.
        key: the key of time zero.
        num_particles: ``N``.
        s: what the first step is given.
        dtype: type of the noise; None for the default.
        pin: as in `advance`.
        collector: as in `advance`.
    """
    _, noise_key, predict_key = jax.random.split(key, 3)
    noise = draw_noise(noise_key, num_particles, recipe.noise_shapes[0], dtype)
    particles = jax.vmap(recipe.init, (0, None))(noise, s)
    if pin is not None:
        particles = pin(particles, s)
    gain = jax.vmap(recipe.log_weight_0, (0, None))(particles, s)
    zero = jnp.zeros_like(gain)
    nothing = jnp.zeros((), gain.dtype)
    selection = Selection(jnp.arange(num_particles, dtype=jnp.int32), zero, jnp.array(False))
    before = (nothing, nothing), first_lineage(num_particles)
    states = jax.vmap(recipe.state)(particles)
    predicted = _predicted(recipe, predict_key, None, states, s)
    cloud, report = _weigh(selection, (particles, states, predicted), gain, before)
    if collector is None:
        return cloud, report
    return _with(cloud, report, collector.first(states, cloud.log_weights, s))


def advance(
    recipe: Recipe,
    select: Select,
    key: Key,
    cloud: Cloud,
    s: PyTree,
    pin: Pin | None = None,
    collector: Collector | None = None,
) -> tuple[Cloud, StepReport]:
    """One step: select ancestors, propose, weigh.

    Args:
        recipe: what happens to one particle.
        select: ``(key, particles, log_weights, log_lookahead, s) -> Selection``.
        key: the key of this time.
        cloud: the cloud before.
        s: what this step is given.
        pin: ``(particles, s) -> particles`` puts a reference path into its slot (conditional
            algorithms); None for none.
        collector: what goes along with the cloud; None for nothing.
    """
    # one key more leaves the others as they are
    keys = jax.random.split(key, 3 if collector is None else 4)
    select_key, noise_key, predict_key = keys[:3]
    count = cloud.log_weights.shape[0]
    ahead = None
    if recipe.log_lookahead is not None:
        ahead = jax.vmap(recipe.log_lookahead, (0, None))(cloud.particles, s)
    selection = select(select_key, cloud.particles, cloud.log_weights, ahead, s)
    parents = jax.tree.map(lambda a: a[selection.ancestors], cloud.particles)
    noise = draw_noise(noise_key, count, recipe.noise_shapes[1], cloud.log_weights.dtype)
    particles = jax.vmap(recipe.propose, (0, 0, None))(noise, parents, s)
    if pin is not None:
        particles = pin(particles, s)
    gain = jax.vmap(recipe.log_weight, (0, 0, None))(parents, particles, s)
    lineage = next_lineage(cloud.lineage, selection.ancestors, selection.resampled)
    states = jax.vmap(recipe.state)(particles)
    predicted = _predicted(recipe, predict_key, parents, states, s)
    moved = (particles, states, predicted)
    after, report = _weigh(selection, moved, gain, (cloud.evidence, lineage))
    if collector is None:
        return after, report
    before = jax.vmap(recipe.state)(cloud.particles)
    move = Move(before, cloud.log_weights, selection.ancestors, states, after.log_weights)
    return _with(after, report, collector.step(keys[3], cloud.collected, move, s))


def scan(
    recipe: Recipe,
    select: Select,
    key: Key,
    begin: tuple[Cloud, StepReport],
    steps: Callable[[Array], PyTree],
    num_steps: int,
    *,
    keep: bool,
    pin: Pin | None = None,
    remat: bool = False,
    collector: Collector | None = None,
) -> tuple[Cloud, StepReport | None]:
    """Run the loop over times ``1 … num_steps - 1``, with ``fold_in(key, t)`` at time ``t``.

    Args:
        recipe: what happens to one particle.
        select: who has offspring.
        key: the key of the whole run.
        begin: the answer of `first`.
        steps: ``t -> s``, what the step at time ``t`` is given.
        num_steps: number of times ``T``, with the first.
        keep: whether to keep the reports; without them memory does not grow with ``T``.
        pin: as in `advance`.
        remat: compute each step anew for the gradient, instead of storing what it went through.
        collector: as in `advance`.
    """
    cloud, report = begin
    like = jax.tree.map(jnp.result_type, cloud)

    def body(carry: tuple[Array, Cloud], _: None) -> tuple[tuple, StepReport | None]:
        t, before = carry
        step_key = jax.random.fold_in(key, t)
        after, told = advance(recipe, select, step_key, before, steps(t), pin, collector)
        after = jax.tree.map(lambda a, kind: a.astype(kind), after, like)
        return (t + 1, after), told if keep else None

    body = jax.checkpoint(body) if remat else body
    (_, last), later = jax.lax.scan(body, (jnp.asarray(1), cloud), length=num_steps - 1)
    if later is None:
        return last, None
    return last, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), report, later)


def _predicted(recipe: Recipe, key: Key, parents: PyTree, states: PyTree, s: PyTree) -> PyTree:
    """Draws from the prediction: the particles themselves where they know nothing more."""
    if recipe.predict is None:
        return states
    keys = jax.random.split(key, jax.tree.leaves(states)[0].shape[0])
    return jax.vmap(recipe.predict, (0, None if parents is None else 0, None))(keys, parents, s)


def _with(cloud: Cloud, report: StepReport, collected: PyTree) -> tuple[Cloud, StepReport]:
    return cloud._replace(collected=collected), report._replace(collected=collected)


def _weigh(
    selection: Selection,
    moved: tuple[PyTree, PyTree, PyTree],
    gain: Array,
    before: tuple[tuple[Scalar, Scalar], Lineage],
) -> tuple[Cloud, StepReport]:
    """Scale the new weights to mean one; the mean that was there is the evidence of the step."""
    raw = selection.log_weights + gain
    total = log_mean_exp(raw)
    # when every particle has died the evidence says so, and beliefs hold equal weights, not nan
    log_weights = jnp.where(jnp.isfinite(total), raw - total, 0.0)
    particles, states, predicted = moved
    evidence, lineage = before
    cloud = Cloud(particles, log_weights, compensated_add(evidence, total), lineage)
    report = StepReport(
        states,
        log_weights,
        predicted,
        selection.log_weights,
        selection.ancestors,
        total,
        effective_sample_size(jax.lax.stop_gradient(log_weights)),
        selection.resampled,
    )
    return cloud, report
