r"""The recipe of tempering: from a law that can be drawn from to one that cannot.

Time is temperature. The step into \(\lambda_t\) weighs a particle by

\[G_t(x_{t-1}) = \Big(\frac{e^{b(x_{t-1})}}{e^{a(x_{t-1})}}\Big)^{\lambda_t - \lambda_{t-1}}\]

which selection already looks at, and then moves it by a kernel that leaves
\(\pi_{\lambda_t} \propto e^{(1 - \lambda_t) a + \lambda_t b}\) invariant. Without selection this is
annealed importance sampling.

Source: R. Neal (2001), Annealed importance sampling; P. Del Moral, A. Doucet and A. Jasra (2006),
Sequential Monte Carlo samplers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from ssmkit.smc.feynman_kac import Recipe
from ssmkit.smc.kernels import Kernel, LogDensities, Place, moves
from ssmkit.typing import Array, Key, PyTree, Scalar


class Rung(NamedTuple):
    """What a step is given: its temperature, the difference to that before, and its step size."""

    temperature: Scalar
    increment: Scalar
    step_size: Array


class Walker(NamedTuple):
    """A particle: where its kernel stands, what rides along, and how well the last moves went."""

    place: Place
    rider: PyTree
    acceptance: Scalar


def annealed(
    sample: Callable[[Key], PyTree],
    log_densities: LogDensities,
    kernel: Kernel,
    *,
    num_moves: int = 1,
    rider: Callable[[PyTree], PyTree] | None = None,
) -> Recipe:
    """The recipe; a step is a `Rung`, a particle a `Walker`.

    Args:
        sample: ``key -> x``, a draw from the start.
        log_densities: ``x -> (log start, log end)``.
        kernel: what moves the particles.
        num_moves: steps of the kernel at each temperature.
        rider: ``x -> pytree`` of what is to ride along, made at the start and never moved.
    """
    move = moves(kernel, num_moves, log_densities)

    def init(key: Key, s: Rung) -> Walker:
        x = sample(key)
        place = kernel.init(x, log_densities)
        riding = None if rider is None else rider(x)
        return Walker(place, riding, jnp.zeros((), place.log_densities.dtype))

    def propose(key: Key, before: Walker, s: Rung) -> Walker:
        place, acceptance = move(key, before.place, s.temperature, s.step_size)
        return Walker(place, before.rider, acceptance)

    def gain(before: Walker, s: Rung) -> Scalar:
        start, end = before.place.log_densities
        # a step of length zero weighs nothing, also where the end is impossible
        return jnp.where(s.increment > 0, s.increment * (end - start), 0.0)

    return Recipe(
        init=init,
        log_weight_0=lambda x, s: jnp.zeros((), x.place.log_densities.dtype),
        propose=propose,
        log_weight=lambda before, x, s: gain(before, s),
        log_lookahead=gain,
        state=lambda x: x.acceptance,
    )
