r"""What is carried of the past, and its mean under a backward kernel.

\[\mathrm{E}_{q_t(x_{t-1} \mid x)}\big[f(x_{t-1}, c(x_{t-1}))\big],\]

where ``c`` is what was carried: a function that was fitted, seen through one draw of the kernel, or
values at a cloud of draws, which the kernel weighs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.learned.backward import Filter, Kernel
from ssmkit.typing import Array, Float

Function = Callable[[Float[Array, " D"], Float[Array, " k"]], Any]


class Past(NamedTuple):
    """A fitted function of the state of the time before.

    Attributes:
        filter: of that time.
        value: of a state; of the bound, slopes and, last, the value.
    """

    filter: Filter
    value: Callable[[Float[Array, " D"]], Float[Array, " k"]]

    def average(self, function: Function, kernel: Kernel, x: Array, noise: Array) -> Any:
        """Mean of a function of a state and what is carried there, by one draw of the kernel."""
        before = kernel.draw(x, noise)
        return function(before, self.value(before))

    def level(self, noise: Float[Array, "N D"]) -> Float[Array, " k"]:
        """Mean of what is carried, under the filter of its time."""
        return jnp.mean(jax.vmap(lambda one: self.value(self.filter.draw(one)))(noise), axis=0)


class CloudPast(NamedTuple):
    r"""Values at draws of the filter of the time before.

    \[w_j(x) \propto q_t(x^j \mid x) / q_{t-1}(x^j), \qquad x^j \sim q_{t-1}\]

    Attributes:
        filter: of that time.
        states: draws of it, ``(N, D)``.
        values: ``(N, k)``.
    """

    filter: Filter
    states: Float[Array, "N D"]
    values: Float[Array, "N k"]

    def weights(self, kernel: Kernel, x: Float[Array, " D"]) -> Float[Array, " N"]:
        """Weights of the draws, seen from a state; they sum to one."""
        ratio = lambda one: kernel.log_density(one, x) - self.filter.log_density(one)  # noqa: E731
        return jax.nn.softmax(jax.vmap(ratio)(self.states))

    def average(self, function: Function, kernel: Kernel, x: Array, noise: Array) -> Any:
        """Mean of a function of a state and what is carried there, by weights: no draw is made."""
        return self.weights(kernel, x) @ jax.vmap(function)(self.states, self.values)

    def level(self, noise: Float[Array, "N D"]) -> Float[Array, " k"]:
        """Mean of what is carried, under the filter of its time: over the draws it belongs to."""
        return jnp.mean(self.values, axis=0)
