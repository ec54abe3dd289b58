r"""The evidence lower bound of a backward factorisation, one observation at a time.

\[V_t(x_t) = \mathrm{E}_{q_t(x_{t-1} \mid x_t)}\big[V_{t-1}(x_{t-1}) + r_t(x_{t-1}, x_t)\big],
\qquad \mathcal{L}_t = \mathrm{E}_{q_t}[V_t]\]

\[r_t = \log p(x_t \mid x_{t-1}) + \log p(y_t \mid x_t) + \log q_{t-1}(x_{t-1})
- \log q_t(x_{t-1} \mid x_t) - \log q_t(x_t)\]

Its gradient in what belongs to time ``t`` needs the slope \(T_t = \partial V_t / \partial x_t\),
and its gradient in the model's parameters \(S_t = \partial V_t / \partial\theta\); both follow
recursions of the same kind. Where values at a cloud of draws are carried and the kernel weighs them
(`CloudPast`), the slope is that of the weights. With \(T = 0\) and \(S = 0\) what remains is the
bound of one step (AELBO-2).

Source: A. Campbell, Y. Shi, T. Rainforth and A. Doucet (2021), Online variational filtering and
parameter learning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.learned.backward import Filter, Kernel, Moves, moved
from ssmkit.learned.past import CloudPast, Past
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import log_density
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Step, log_emission
from ssmkit.typing import Array, Float, Scalar

Family = tuple[Filter, Kernel | None]
Terms = Callable[[Any, Array], Scalar]


def log_terms(model: StateSpaceModel, s: Step, before: Array | None, x: Array) -> Scalar:
    """Log density of a move and of what was observed then, of flat states, in nats."""
    shape = own_law(model, None, s).event_shape
    here = x.reshape(shape)
    law = own_law(model, None if before is None else before.reshape(shape), s)
    return log_density(law, here) + log_emission(model, here, s)


def reward(
    terms: Terms,
    past: Past | CloudPast | None,
    family: Family,
    path: tuple[Any, Array],
) -> Scalar:
    """What one step adds to the bound at a state and the one before, in nats."""
    filter, kernel = family
    before, x = path
    own = terms(before, x) - filter.log_density(x)
    if past is None or kernel is None:
        return own
    return own + past.filter.log_density(before) - kernel.log_density(before, x)


def path_of(family: Family, noise: Float[Array, "2 D"]) -> tuple[Any, Array]:
    """The state before, and the state, that belong to noise."""
    filter, kernel = family
    x = filter.draw(noise[0])
    return (None if kernel is None else kernel.draw(x, noise[1])), x


def surrogate(
    terms: Terms,
    past: Past | CloudPast | None,
    start: Family,
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
    scored = jax.lax.stop_gradient(family) if path_gradient else family
    return value_of(terms, past, family, scored, family[0].draw(noise[0]), noise[1])


def value_of(
    terms: Terms,
    past: Past | CloudPast | None,
    family: Family,
    scored: Family,
    x: Float[Array, " D"],
    noise: Float[Array, " D"],
) -> Scalar:
    r"""The recursion's right-hand side at one state: past and reward, averaged by the kernel.

    Args:
        terms: log density of move and observation.
        past: what the step goes on from, or None.
        family: filter and kernel, by which states before are drawn or weighed.
        scored: the same in the reward, where its own gradient may be left out.
        x: the state.
        noise: of the state before, where one is drawn.
    """
    if past is None or family[1] is None:
        return reward(terms, past, scored, (None, x))

    def behind(before: Array, carried: Array) -> Scalar:
        return reward(terms, past, scored, (before, x)) + with_slope(carried, before)

    return past.average(behind, family[1], x, noise)


def with_slope(carried: Float[Array, " k"], before: Float[Array, " D"]) -> Scalar:
    """The carried value, whose slope in the state is the carried slope, where there is one."""
    carried = jax.lax.stop_gradient(carried)
    if carried.shape[0] == 1:
        return carried[0]
    along = carried[:-1] @ before
    return along - jax.lax.stop_gradient(along) + carried[-1]


def targets(
    terms: Terms,
    past: Past | CloudPast | None,
    family: Family,
    x: Float[Array, " D"],
    noise: Float[Array, " D"],
) -> Float[Array, " D1"]:
    """Slope and value at one state, whose conditional means are those of the recursion."""
    family = jax.lax.stop_gradient(family)
    value = lambda x: value_of(terms, past, family, family, x, noise)  # noqa: E731 - one line
    level, slope = jax.value_and_grad(value)(x)
    return jnp.append(slope, level)
