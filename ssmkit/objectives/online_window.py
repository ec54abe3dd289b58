r"""The lower bound of a backward factorisation, rolled back over the last steps.

\[V_t(x_t) = \mathrm{E}\Big[V_b(x_b) + \log q_b(x_b) - \log q_t(x_t) + \sum_{k=b+1}^{t}
\big(\log p(x_k \mid x_{k-1}) + \log p(y_k \mid x_k) - \log q_k(x_{k-1} \mid x_k)\big)\Big]\]

along a path of the kernels from \(x_t\) back to \(x_b\): the rewards of the steps after ``b``, in
which the filters between drop out. What was fitted enters at \(x_b\) alone, and the gradient
reaches every kernel on the way. With one step it is the recursion of `online_elbo`.

Source: A. Campbell, Y. Shi, T. Rainforth and A. Doucet (2021), Online variational filtering and
parameter learning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.learned.backward import Filter, Kernel
from ssmkit.learned.past import Past
from ssmkit.models.base import StateSpaceModel
from ssmkit.objectives.online_elbo import log_terms, with_slope
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Bool, Float, Scalar

Add = Callable[[Step, Kernel, Array, Array], Scalar]


class Span(NamedTuple):
    """Steps since the time whose value is carried, oldest first, with leading axis ``L``.

    Attributes:
        kernels: from their times back.
        steps: what was observed.
        there: which of them there are.
    """

    kernels: Kernel
    steps: Step
    there: Bool[Array, " L"]


def roll(
    span: Span, add: Add, x: Float[Array, " D"], noise: Float[Array, "L D"]
) -> tuple[Scalar, Float[Array, " D"], Float[Array, "L D"]]:
    """Follow the kernels back from a state.

    Args:
        span: the steps; one that is not there leaves the state where it is.
        add: what a step adds, given its kernel, the state before, and its state.
        x: the last state.
        noise: of the states before, in the order of the steps.

    Returns:
        The sum of what was added, the state at the end, and the states of the steps.
    """

    def back(carry: tuple, row: tuple) -> tuple[tuple, Array]:
        x, total = carry
        kernel, step, is_there, eps = row
        before = kernel.draw(x, eps)
        # counts make wider floats than a model in single precision has
        more = jnp.where(is_there, add(step, kernel, before, x), 0.0).astype(x.dtype)
        return (jnp.where(is_there, before, x), total + more), x

    rows = (span.kernels, span.steps, span.there, noise)
    (end, total), states = jax.lax.scan(back, (x, jnp.zeros((), x.dtype)), rows, reverse=True)
    return total, end, states


def rolled_value(
    model: StateSpaceModel,
    past: Past,
    filter: Filter,
    span: Span,
    noise: Float[Array, "L1 D"],
    *,
    path_gradient: bool,
) -> tuple[Scalar, Float[Array, "L D"]]:
    """A function with the value of the bound and its gradient in filter and kernels, for one draw.

    Args:
        model: the model.
        past: what was fitted at the end of the span, and the filter that it belongs to.
        filter: of the last time.
        span: the steps up to the last.
        noise: of the last state, then of the states before in the order of the steps.
        path_gradient: leave out the score of the family, as in `online_elbo.surrogate`.

    Returns:
        The value, and the states of the steps.
    """

    def held(part: Any) -> Any:
        return jax.lax.stop_gradient(part) if path_gradient else part

    def add(step: Step, kernel: Kernel, before: Array, x: Array) -> Scalar:
        return log_terms(model, step, before, x) - held(kernel).log_density(before, x)

    x = filter.draw(noise[0])
    total, end, states = roll(span, add, x, noise[1:])
    carried = past.filter.log_density(end) + with_slope(past.value(end), end)
    return total + carried - held(filter).log_density(x), states
