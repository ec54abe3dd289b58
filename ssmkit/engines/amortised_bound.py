"""The bound that an amortised network is learned by: of simulated series, up to random times."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.engines.online_paths import BackwardPaths
from ssmkit.learned.amortised import AmortisedMoves, AmortisedStart
from ssmkit.learned.backward import moved
from ssmkit.learned.pieces import frozen
from ssmkit.models.base import StateSpaceModel
from ssmkit.objectives.density_ratio import simulate_like
from ssmkit.objectives.online_elbo import log_terms
from ssmkit.smc.filter import Series
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import steps_of
from ssmkit.typing import Array, Key, Scalar


def paths_of(
    engine: Any, network: AmortisedMoves, model: StateSpaceModel, series: Series
) -> BackwardPaths:
    """The law of the states of one series, by the network alone."""
    ys, us, mask = series
    at = steps_of(ys, us, mask)
    shape = own_law(model, None, at(0)).event_shape

    def start(hidden: Array) -> AmortisedStart:
        return AmortisedStart(engine.start, network, hidden)

    hidden = network.read(network.nothing_read, at(0))
    begun, moves = start(hidden).first(model, at(0), None, full=engine.filter == "full")
    first, _ = moved(begun, moves)

    def on(carry: tuple, t: Array) -> tuple[tuple, Any]:
        last, hidden = carry
        hidden = network.read(hidden, at(t))
        # where a step starts is taken as given: what a filter is learned by is the bound up to it
        family = moved(*start(hidden).later(model, at(t), frozen(last), moves))
        return (family[0], hidden), family

    later, kernels = jax.lax.scan(on, (first, hidden), jnp.arange(1, ys.shape[0]))[1]
    filters = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)
    return BackwardPaths(filters, kernels, shape)


def prefix_bound(
    key: Key, paths: BackwardPaths, model: StateSpaceModel, series: Series, end: Array
) -> Scalar:
    r"""The bound of the observations up to a time, by one path, in nats.

    \[\log p(x_{0:t}, y_{0:t}) - \log q_t(x_t) - \sum_{k \le t} \log q_k(x_{k-1} \mid x_k)\]

    The path is moved and the density of the family is not, so that a family that is exact has a
    gradient of zero, draw by draw.
    """
    at = steps_of(*series)
    noise = jax.random.normal(key, paths.filters.mean.shape, paths.filters.mean.dtype)
    from_filters = jax.vmap(lambda filter, eps: filter.draw(eps))(paths.filters, noise)
    times = jnp.arange(noise.shape[0])

    def back(x: Array, of: tuple) -> tuple[Array, Array]:
        t, kernel, eps, own = of
        x = jnp.where(t < end, kernel.draw(x, eps), own)
        return x, x

    rows = (times[:-1], paths.kernels, noise[:-1], from_filters[:-1])
    earlier = jax.lax.scan(back, from_filters[-1], rows, reverse=True)[1]
    path = jnp.concatenate([earlier, from_filters[-1:]])
    fixed = frozen(paths)

    def term(t: Array, kernel: Any) -> Scalar:
        """What one move adds."""
        own = kernel.log_density(path[t - 1], path[t])
        return log_terms(model, at(t), path[t - 1], path[t]) - own

    moves = jax.vmap(term)(times[1:], fixed.kernels)
    last = jax.tree.map(lambda a: a[end], fixed.filters)
    first = log_terms(model, at(0), None, path[0]) - last.log_density(path[end])
    return first + jnp.sum(jnp.where(times[1:] <= end, moves, 0.0))


def loss(
    network: AmortisedMoves, engine: Any, key: Key, model: StateSpaceModel, series: Series
) -> Scalar:
    r"""Less the bound of simulated series up to times drawn at random, a step and in nats.

    So every filter is learned by the bound that it ends, and every kernel by all bounds after it.
    """
    simulate_key, end_key, path_key = jax.random.split(key, 3)
    options = engine.amortised
    drawn = simulate_like(simulate_key, model, series, options.batch_size, options.window)[1]
    length = drawn[0].shape[1]

    def one(key: Key, series: Series, end: Array) -> Scalar:
        paths = paths_of(engine, network, model, series)
        return prefix_bound(key, paths, model, series, end)

    keys = jax.random.split(path_key, options.batch_size)
    ends = jax.random.randint(end_key, (options.batch_size,), 0, length)
    return -jnp.mean(jax.vmap(one)(keys, drawn, ends)) / length
