r"""Markov kernels that leave a bridge between two densities invariant.

\[\log \pi_\lambda(x) = (1 - \lambda)\, a(x) + \lambda\, b(x) + \mathrm{const}\]

A kernel is a pair of pure functions, as in optax. It remembers both log densities (and gradients)
where it stands, so that moving to another \(\lambda\) costs nothing.

Source: N. Metropolis et al. (1953); S. Duane, A. Kennedy, B. Pendleton and D. Roweth (1987), Hybrid
Monte Carlo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ssmkit.typing import Array, Float, Key, PyTree, Scalar

LogDensities = Callable[[PyTree], tuple[Scalar, Scalar]]


class Place(NamedTuple):
    """Where a kernel stands.

    Attributes:
        x: the position, any pytree of floating arrays.
        log_densities: ``(2,)``, of the start and the end of the bridge, in nats.
        gradients: their gradients ``(2, d)`` in the flattened position; None where not needed.
    """

    x: PyTree
    log_densities: Float[Array, " 2"]
    gradients: Float[Array, "2 d"] | None


class Kernel(NamedTuple):
    """A Markov kernel.

    Attributes:
        init: ``(x, log_densities) -> Place``, with ``log_densities`` a function of ``x`` to the log
            densities of the start and the end.
        step: ``(key, place, log_densities, temperature, step_size) -> (place, acceptance)``, with
            the probability of acceptance. ``step_size`` is a scalar, or one entry for each
            coordinate of the flattened position.
        acceptance: what the step size is best adapted to.
    """

    init: Callable[[PyTree, LogDensities], Place]
    step: Callable[[Key, Place, LogDensities, Scalar, Array], tuple[Place, Scalar]]
    acceptance: float


def bridge(pair: Any, temperature: Scalar) -> Array:
    """The log density (or gradient) at a temperature; an end that does not count may be −inf."""
    start = jnp.where(temperature < 1, (1 - temperature) * pair[0], 0.0)
    end = jnp.where(temperature > 0, temperature * pair[1], 0.0)
    return start + end


def random_walk() -> Kernel:
    """Metropolis steps with normal increments; no gradients.

    Example:
        >>> import jax
        >>> kernel = random_walk()
        >>> def log_densities(x): return -0.5 * x**2, -2.0 * x**2
        >>> place = kernel.init(jax.numpy.array(0.0), log_densities)
        >>> place, acceptance = kernel.step(jax.random.key(0), place, log_densities, 0.5, 1.0)
        >>> place.log_densities.shape
        (2,)

    Source: N. Metropolis et al. (1953).
    """

    def init(x: PyTree, log_densities: LogDensities) -> Place:
        return Place(x, jnp.stack(log_densities(x)), None)

    def step(
        key: Key, place: Place, log_densities: LogDensities, temperature: Scalar, step_size: Array
    ) -> tuple[Place, Scalar]:
        propose_key, accept_key = jax.random.split(key)
        flat, unravel = ravel_pytree(place.x)
        flat = flat + step_size * jax.random.normal(propose_key, flat.shape, flat.dtype)
        new = init(unravel(flat), log_densities)
        log_ratio = bridge(new.log_densities, temperature)
        log_ratio = log_ratio - bridge(place.log_densities, temperature)
        return _accept(accept_key, place, new, log_ratio)

    return Kernel(init, step, acceptance=0.3)


def hamiltonian(num_leapfrog: int = 5) -> Kernel:
    r"""Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

    A momentum \(p \sim N(0, I)\) is drawn, \((x, p)\) moves along the flow of
    \(-\log \pi_\lambda(x) + \tfrac12 |p|^2\), and the error of the energy decides.

    Args:
        num_leapfrog: steps of length ``step_size``; each costs one gradient.

    Example:
        >>> hamiltonian(num_leapfrog=3).acceptance
        0.8

    Source: R. Neal (2011), MCMC using Hamiltonian dynamics.
    """

    def init(x: PyTree, log_densities: LogDensities) -> Place:
        flat, unravel = ravel_pytree(x)
        pair, pull = jax.vjp(lambda z: jnp.stack(log_densities(unravel(z))), flat)
        (gradients,) = jax.vmap(pull)(jnp.eye(2, dtype=pair.dtype))
        return Place(x, pair, gradients)

    def step(
        key: Key, place: Place, log_densities: LogDensities, temperature: Scalar, step_size: Array
    ) -> tuple[Place, Scalar]:
        momentum_key, accept_key = jax.random.split(key)
        flat, unravel = ravel_pytree(place.x)
        momentum = jax.random.normal(momentum_key, flat.shape, flat.dtype)

        def half(place: Place) -> Array:
            return 0.5 * step_size * bridge(place.gradients, temperature)

        def leap(_: int, at: tuple[Place, Array]) -> tuple[Place, Array]:
            place, momentum = at
            momentum = momentum + half(place)
            flat = ravel_pytree(place.x)[0] + step_size * momentum
            place = init(unravel(flat.astype(momentum.dtype)), log_densities)
            return place, momentum + half(place)

        new, final = jax.lax.fori_loop(0, num_leapfrog, leap, (place, momentum))
        log_ratio = bridge(new.log_densities, temperature) - 0.5 * jnp.sum(final**2)
        log_ratio = log_ratio - bridge(place.log_densities, temperature)
        return _accept(accept_key, place, new, log_ratio + 0.5 * jnp.sum(momentum**2))

    return Kernel(init, step, acceptance=0.8)


def _accept(key: Key, old: Place, new: Place, log_ratio: Scalar) -> tuple[Place, Scalar]:
    """Choose; a log ratio that is nan (outside the support) stays."""
    accepted = jnp.log1p(-jax.random.uniform(key, dtype=log_ratio.dtype)) < log_ratio
    chosen = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)
    return chosen, jnp.nan_to_num(jnp.exp(jnp.minimum(log_ratio, 0.0)))


def moves(
    kernel: Kernel, num_moves: int, log_densities: LogDensities
) -> Callable[[Key, Place, Scalar, Any], tuple[Place, Scalar]]:
    """Several steps of a kernel as one: ``(key, place, temperature, step_size)``."""

    def run(key: Key, place: Place, temperature: Scalar, step_size: Any) -> tuple[Place, Scalar]:
        def move(place: Place, key: Key) -> tuple[Place, Scalar]:
            return kernel.step(key, place, log_densities, temperature, step_size)

        place, acceptance = jax.lax.scan(move, place, jax.random.split(key, num_moves))
        return place, jnp.mean(acceptance)

    return run
