"""A particle filter around a reference path, which sits in slot 0 and cannot die."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.errors import EngineError, ShapeError
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import log_density
from ssmkit.models.observation import feasible
from ssmkit.smc import feynman_kac
from ssmkit.smc.feynman_kac import Cloud, Recipe, Select, Selection
from ssmkit.smc.filter import ParticleFilter, Prepared
from ssmkit.smc.proposals import Proposal, own_law
from ssmkit.smc.recipes import Proposed, Step, log_emission
from ssmkit.smc.resampling import multinomial, selector
from ssmkit.typing import Array, Key, PyTree, Scalar


def as_reference(path: Array, state: Array, length: int) -> Array:
    """The path in the type of the states.

    Raises:
        ShapeError: it is no path of such states.
    """
    if jnp.shape(path) != (length, *state.shape):
        raise ShapeError(
            "the reference is no path of this model.",
            got=f"shape {jnp.shape(path)}",
            expected=f"{length} states of shape {state.shape}: {(length, *state.shape)}",
        )
    return jnp.asarray(path, state.dtype)


def scored_anew(recipe: Recipe, model: StateSpaceModel, proposal: Proposal | None) -> Recipe:
    """Let the weight itself evaluate transition over proposal: a pinned state was not drawn."""
    if proposal is None:
        return recipe

    def log_ratio(before: Array | None, x: Array, s: Step) -> Scalar:
        here = model.at(0 if before is None else s.t)

        def ratio(y: Array) -> Scalar:
            law = proposal.law(here, before, y, s.u)
            if law is None:  # the model's own law proposes
                return jnp.zeros(())
            return log_density(own_law(model, before, s), x) - log_density(law, x)

        if s.mask is None:
            return ratio(s.y)
        y = feasible(here.emission(x, s.u), s.y, s.mask)
        return jnp.where(jnp.all(s.mask), ratio(y), 0.0)

    def weigh(before: Proposed | None, x: Proposed, s: Step) -> Scalar:
        state = None if before is None else before.state
        return log_emission(model, x.state, s) + log_ratio(state, x.state, s)

    return recipe._replace(
        log_weight_0=lambda x, s: weigh(None, x, s), log_weight=weigh, predict=None
    )


def run_around(
    particle_filter: ParticleFilter, key: Key, path: Array, steps: Any
) -> tuple[Cloud, Any]:
    """The filter with the reference in slot 0 at every time."""
    recipe, select, count, dtype, _ = particle_filter

    def pin(particles: PyTree, s: Step) -> PyTree:
        if isinstance(particles, Proposed):
            return particles._replace(state=particles.state.at[0].set(path[s.t]))
        return particles.at[0].set(path[s.t])

    first_key = jax.random.fold_in(key, 0)
    begin = feynman_kac.first(recipe, first_key, count, steps(0), dtype, pin)
    length = path.shape[0]
    return feynman_kac.scan(recipe, select, key, begin, steps, length, keep=True, pin=pin)


def pinned_evidence(key: Key, prepared: Prepared, path: Array, threshold: Any) -> Scalar:
    """Log evidence of a run in which slot 0 follows a path from beginning to end, in nats.

    Its other ancestors are drawn independently, whatever scheme the filter has.

    Args:
        key: random key.
        prepared: the filter, and the series it is run on.
        path: ``(T, *state)``.
        threshold: of the engine.
    """
    particle_filter, steps, length, choose = prepared

    def pin(particles: PyTree, s: Step) -> PyTree:
        if choose is None:
            return particles.at[0].set(path[s.t])
        is_first = isinstance(s.t, int)  # of the first step alone the time is known
        ratio = choose(None if is_first else path[s.t - 1], s).log_ratio
        if ratio is None:
            raise EngineError(
                "a given path must be scored under the proposal, which has no density.",
                got="a proposal of a singular transition",
                expected="a transition with a density",
                fix="the bootstrap filter: proposal=None",
            )
        log_ratio = particles.log_ratio.at[0].set(ratio(path[s.t]))
        return Proposed(particles.state.at[0].set(path[s.t]), log_ratio)

    recipe, _, count, dtype, _ = particle_filter
    select = selector(_keep_first, threshold)
    begin = feynman_kac.first(recipe, jax.random.fold_in(key, 0), count, steps(0), dtype, pin)
    run = feynman_kac.scan(recipe, select, key, begin, steps, length, keep=False, pin=pin)
    return run[0].log_evidence


def _keep_first(key: Key, weights: Array) -> Array:
    """Independent ancestors for all but slot 0, which descends from itself."""
    return multinomial(key, weights).at[0].set(0)


def select_around(recipe: Recipe, path: Array, threshold: Any, method: str) -> Select:
    """Selection that leaves slot 0 to the reference, or draws its ancestor.

    Args:
        recipe: of the filter.
        path: the reference ``(T, *state)``.
        threshold: of the engine.
        method: ``"ancestor"`` draws the reference's ancestor too.
    """
    around = selector(_keep_first, threshold)
    if method == "backward":
        return around

    def select(
        key: Key, particles: PyTree, log_weights: Array, log_lookahead: Array | None, s: Step
    ) -> Selection:
        select_key, ancestor_key = jax.random.split(key)
        selection = around(select_key, particles, log_weights, log_lookahead, s)
        states = jax.vmap(recipe.state)(particles)
        log_values = log_weights + log_transitions(recipe, states, path[s.t], s)
        chosen = jax.random.categorical(ancestor_key, log_values)
        return _redirect(selection, chosen, log_lookahead)

    return select


def log_transitions(recipe: Recipe, before: Array, after: Array, s: Step) -> Array:
    """Log density of the step from each of many states to one ``(N,)``.

    Raises:
        EngineError: the recipe knows no transition density.
    """
    if recipe.log_density is None:
        raise EngineError(
            "conditional SMC needs a transition density.",
            got="a recipe without log_density",
            expected="the recipe of a model with a transition density",
        )
    return jax.vmap(recipe.log_density, (0, None, None))(before, after, s)


def _redirect(selection: Selection, chosen: Array, log_lookahead: Array | None) -> Selection:
    """Give slot 0 another parent.

    Where nobody was selected each slot descends from one parent, with its weight: then the two
    slots change places, and the former past of the reference goes on as a free particle.
    """
    ancestors, log_weights, resampled = selection
    slots = jnp.arange(ancestors.shape[0], dtype=ancestors.dtype)
    chosen = chosen.astype(ancestors.dtype)
    swapped = slots.at[chosen].set(0).at[0].set(chosen)
    after = log_weights
    if log_lookahead is not None:
        after = after.at[0].add(log_lookahead[0] - log_lookahead[chosen])
    return Selection(
        jnp.where(resampled, ancestors.at[0].set(chosen), swapped),
        jnp.where(resampled, after, log_weights[swapped]),
        resampled,
    )
