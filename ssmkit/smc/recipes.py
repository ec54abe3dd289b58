"""Recipes for state-space models: bootstrap, guided and auxiliary filters.

The state is drawn from the model's transition or from a proposal, and weighed by the emission
(times transition over proposal). A look-ahead makes it an auxiliary filter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.models.distributions import log_density
from ssmkit.models.observation import emission_log_prob, feasible
from ssmkit.smc.feynman_kac import Recipe
from ssmkit.smc.noise import draw, noise_shape, score
from ssmkit.smc.proposals import (
    Draw,
    Linearised,
    Proposal,
    from_linearised,
    from_proposal,
    own_law,
)
from ssmkit.typing import Array, Inputs, PyTree, Scalar

Lookahead = Callable[..., Any]


class Step(NamedTuple):
    """What a recipe for a model is given at one time.

    Attributes:
        t: the time.
        y: the observation; what ``mask`` excludes is not looked at. None in a forecast.
        u: the input, or None.
        mask: what of ``y`` is there; None for all of it.
        read: what twists and proposals have read of the whole series for this time.
    """

    t: Any
    y: Any
    u: PyTree
    mask: Array | None
    read: Any = None


class Proposed(NamedTuple):
    """A particle of a guided filter: its state, and log transition minus log proposal density."""

    state: Array
    log_ratio: Scalar


def steps_of(
    ys: Array, us: Inputs, mask: Array | None, read: Callable[[Any], Any] | None = None
) -> Callable[[Any], Step]:
    """The steps of a series, indexed and not sliced: a scan would copy them."""

    def step(t: Any) -> Step:
        known = None if read is None else read(t)
        return Step(t, ys[t], input_at(us, t), input_at(mask, t), known)

    return step


def log_emission(model: StateSpaceModel, x: Array, s: Step) -> Scalar:
    """Log density of what was observed, in nats."""
    return emission_log_prob(model.at(s.t).emission(x, s.u), s.y, s.mask)


def log_transition(model: StateSpaceModel) -> Callable[[Array | None, Array, Any], Scalar]:
    """The log density of a step between two states, in nats."""
    return lambda before, x, s: log_density(own_law(model, before, s), x)


def example_state(model: StateSpaceModel, s: Step, dtype: Any) -> Array:
    """A state of the right shape and type; its value means nothing."""
    abstract = jax.eval_shape(lambda: own_law(model, None, s).sample(jax.random.key(0)))
    is_float = jnp.issubdtype(abstract.dtype, jnp.floating)
    return jnp.zeros(abstract.shape, dtype if is_float else abstract.dtype)


def bootstrap(model: StateSpaceModel, s: Step, dtype: Any) -> Recipe:
    """Propose by the transition, weigh by the emission.

    Args:
        model: the model.
        s: some step; its shapes are what matters.
        dtype: floating type of the states.

    Source: N. Gordon, D. Salmond and A. Smith (1993).
    """
    example = example_state(model, s, dtype)

    def weigh(before: Array | None, x: Array, s: Step) -> Scalar:
        return log_emission(model, x, s) + score(own_law(model, before, s), x)

    return Recipe(
        init=lambda noise, s: draw(own_law(model, None, s), noise, dtype),
        log_weight_0=lambda x, s: weigh(None, x, s),
        propose=lambda noise, before, s: draw(own_law(model, before, s), noise, dtype),
        log_weight=weigh,
        log_density=log_transition(model),
        noise_shapes=(
            noise_shape(lambda: own_law(model, None, s)),
            noise_shape(lambda: own_law(model, example, s)),
        ),
    )


Choose = Callable[[Array | None, Step], Draw]


def chooser(model: StateSpaceModel, dtype: Any, proposal: Proposal | Linearised) -> Choose:
    """How one state is drawn by a law that has seen the observation.

    Args:
        model: the model.
        dtype: floating type of the states.
        proposal: the law to draw from.
    """

    def choose(before: Array | None, s: Step) -> Draw:
        if isinstance(proposal, Proposal):
            return from_proposal(proposal, model, before, s, dtype)
        score_of = lambda x: log_emission(model, x, s)  # noqa: E731 - one line
        return from_linearised(proposal, model, before, s, score_of, dtype)

    return choose


def guided(model: StateSpaceModel, s: Step, dtype: Any, choose: Choose) -> Recipe:
    """Propose by a law that has seen the observation; weigh by emission × transition / proposal.

    Args:
        model: the model.
        s: some step; its shapes are what matters.
        dtype: floating type of the states.
        choose: how one state is drawn, ``(x_before or None, s) -> Draw``.

    Source: A. Doucet, S. Godsill and C. Andrieu (2000).
    """

    def weigh(x: Proposed, s: Step) -> Scalar:
        return log_emission(model, x.state, s) + x.log_ratio

    example = example_state(model, s, dtype)
    return Recipe(
        init=lambda noise, s: Proposed(*choose(None, s).draw(noise)),
        log_weight_0=weigh,
        propose=lambda noise, before, s: Proposed(*choose(before.state, s).draw(noise)),
        log_weight=lambda before, x, s: weigh(x, s),
        log_density=log_transition(model),
        predict=lambda key, before, s: draw(
            own_law(model, None if before is None else before.state, s), key, dtype
        ),
        state=lambda x: x.state,
        noise_shapes=(choose(None, s).noise_shape, choose(example, s).noise_shape),
    )


def auxiliary(recipe: Recipe, model: StateSpaceModel, lookahead: Lookahead) -> Recipe:
    """Select by what the next observation says of the particles; divided out afterwards.

    Args:
        recipe: the recipe to which the look-ahead is added.
        model: the model.
        lookahead: ``(model, x, y, u) -> scalar``, log of roughly ``p(y_t | x_{t-1} = x)``. Where
            something of the observation is missing it is not asked.

    Source: M. Pitt and N. Shephard (1999).
    """

    def log_lookahead(before: PyTree, s: Step) -> Scalar:
        x, here = recipe.state(before), model.at(s.t)
        if s.mask is None:
            return lookahead(here, x, s.y, s.u)
        y = feasible(here.emission(x, s.u), s.y, s.mask)
        return jnp.where(jnp.all(s.mask), lookahead(here, x, y, s.u), 0.0)

    return recipe._replace(log_lookahead=log_lookahead)


def twisted(recipe: Recipe, log_twist: Callable[[Array, Step], Scalar]) -> Recipe:
    r"""Select by what all observations to come say of the particles; divided out afterwards.

    Args:
        recipe: the recipe that is twisted.
        log_twist: ``(x_{t-1}, s_t) -> scalar``, log of roughly \(p(y_{t:T-1} \mid x_{t-1})\).

    Source: N. Whiteley and A. Lee (2014), Twisted particle filters.
    """
    return recipe._replace(log_lookahead=lambda before, s: log_twist(recipe.state(before), s))


def at_the_mean(model: StateSpaceModel, x: Array, y: Array, u: PyTree) -> Scalar:
    """Log density of the observation at the mean of the transition: the usual first stage."""
    return log_density(model.emission(model.transition(x, u).mean, u), y)
