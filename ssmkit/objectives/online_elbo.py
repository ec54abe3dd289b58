r"""The evidence lower bound of a backward factorisation, one observation at a time.

\[V_t(x_t) = \mathrm{E}_{q_t(x_{t-1} \mid x_t)}\big[V_{t-1}(x_{t-1}) + r_t(x_{t-1}, x_t)\big],
\qquad \mathcal{L}_t = \mathrm{E}_{q_t}[V_t]\]

\[r_t = \log p(x_t \mid x_{t-1}) + \log p(y_t \mid x_t) + \log q_{t-1}(x_{t-1})
- \log q_t(x_{t-1} \mid x_t) - \log q_t(x_t)\]

Its gradient in what belongs to time ``t`` needs the slope \(T_t = \partial V_t / \partial x_t\),
and its gradient in the model's parameters \(S_t = \partial V_t / \partial\theta\); both follow
recursions of the same kind. With \(T = 0\) and \(S = 0\) what remains is the bound of one step
(AELBO-2).

Source: A. Campbell, Y. Shi, T. Rainforth and A. Doucet (2021), Online variational filtering and
parameter learning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.learned.backward import Filter, Kernel, Moves, moved
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import log_density
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Step, log_emission
from ssmkit.typing import Array, Float, Scalar

Carried = Callable[[Float[Array, " D"]], Float[Array, " k"]]


class Past(NamedTuple):
    """What a step goes on from; None at the first.

    Attributes:
        filter: the filter of the time before.
        value: slopes ``T`` and, last, the value ``V`` at a state of that time.
    """

    filter: Filter
    value: Carried


def log_terms(model: StateSpaceModel, s: Step, before: Array | None, x: Array) -> Scalar:
    """Log density of a move and of what was observed then, of flat states, in nats."""
    shape = own_law(model, None, s).event_shape
    here = x.reshape(shape)
    law = own_law(model, None if before is None else before.reshape(shape), s)
    return log_density(law, here) + log_emission(model, here, s)


def reward(
    terms: Callable[[Any, Array], Scalar],
    past: Past | None,
    family: tuple[Filter, Kernel | None],
    path: tuple[Any, Array],
) -> Scalar:
    """What one step adds to the bound at a state and the one before, in nats."""
    filter, kernel = family
    before, x = path
    own = terms(before, x) - filter.log_density(x)
    if past is None or kernel is None:
        return own
    return own + past.filter.log_density(before) - kernel.log_density(before, x)


def path_of(family: tuple[Filter, Kernel | None], noise: Float[Array, "2 D"]) -> tuple[Any, Array]:
    """The state before, and the state, that belong to noise."""
    filter, kernel = family
    x = filter.draw(noise[0])
    return (None if kernel is None else kernel.draw(x, noise[1])), x


def surrogate(
    terms: Callable[[Any, Array], Scalar],
    past: Past | None,
    start: tuple[Filter, Kernel | None],
    moves: Moves,
    noise: Float[Array, "2 D"],
    *,
    path_gradient: bool,
) -> Scalar:
    """A function with the value of the bound and its gradient in the moves, for one draw.

    Args:
        terms: log density of move and observation.
        past: what the step goes on from, or None.
        start: where filter and kernel start.
        moves: how far they stand from it.
        noise: of the state, and of the state before.
        path_gradient: leave out the score of the family, whose mean is zero: at the optimum no
            variance remains (G. Roeder, Y. Wu and D. Duvenaud, 2017).
    """
    family = moved(start, moves)
    path = path_of(family, noise)
    scored = jax.lax.stop_gradient(family) if path_gradient else family
    value = reward(terms, past, scored, path)
    if past is None:
        return value
    slope_and_value = jax.lax.stop_gradient(past.value(path[0]))
    along = slope_and_value[:-1] @ path[0]
    return value + along - jax.lax.stop_gradient(along) + slope_and_value[-1]


def targets(
    terms: Callable[[Any, Array], Scalar],
    past: Past | None,
    family: tuple[Filter, Kernel | None],
    x: Float[Array, " D"],
    noise: Float[Array, " D"],
) -> Float[Array, " D1"]:
    """Slope and value at one state, whose conditional means are those of the recursion."""
    family = jax.lax.stop_gradient(family)

    def value(x: Array) -> Scalar:
        kernel = family[1]
        if past is None or kernel is None:
            return reward(terms, past, family, (None, x))
        before = kernel.draw(x, noise)
        total = reward(terms, past, family, (before, x))
        carried = jax.lax.stop_gradient(past.value(before))
        along = carried[:-1] @ before
        return total + along - jax.lax.stop_gradient(along) + carried[-1]

    level, slope = jax.value_and_grad(value)(x)
    return jnp.append(slope, level)


def score(
    terms_at: Callable[[Any], Callable[[Any, Array], Scalar]], params: Any, path: tuple[Any, Array]
) -> Float[Array, " P"]:
    """Gradient of one step's log densities in the parameters, as one vector."""
    slope = jax.grad(lambda at: terms_at(at)(*path))(params)
    return jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(eqx.filter(slope, eqx.is_array))])
