"""Whole paths from the backward kernels of online variational inference."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs import Gaussian, Particles
from ssmkit.learned.backward import Filter, Kernel
from ssmkit.models.base import StateSpaceModel, log_joint
from ssmkit.models.distributions import covariance_of
from ssmkit.typing import Array, Float, Key, Scalar


class BackwardPaths(eqx.Module):
    """The joint law of a path: the last filter, then kernels back to the start.

    Attributes:
        filters: with leading axis ``T``.
        kernels: from time ``t`` to ``t - 1``, with leading axis ``T - 1``.
        event_shape: of one state.
    """

    filters: Filter
    kernels: Kernel
    event_shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def last(self) -> Filter:
        """The filter at the last time."""
        return jax.tree.map(lambda a: a[-1], self.filters)

    def until(self, length: int) -> BackwardPaths:
        """The law of the first ``length`` states, when nothing after them was observed."""
        filters = jax.tree.map(lambda a: a[:length], self.filters)
        kernels = jax.tree.map(lambda a: a[: length - 1], self.kernels)
        return dataclasses.replace(self, filters=filters, kernels=kernels)

    def sample(self, key: Key, num_paths: int) -> Array:
        """Draw whole paths ``(n, T, *state)``."""
        paths = jax.vmap(self.draw)(jax.random.split(key, num_paths))
        return paths.reshape(*paths.shape[:2], *self.event_shape)

    def draw(self, key: Key) -> Float[Array, "T D"]:
        """One path, flat."""
        noise = jax.random.normal(key, self.filters.mean.shape, self.filters.mean.dtype)
        end = self.last.draw(noise[-1])

        def back(x: Array, at: tuple[Kernel, Array]) -> tuple[Array, Array]:
            kernel, eps = at
            before = kernel.draw(x, eps)
            return before, before

        earlier = jax.lax.scan(back, end, (self.kernels, noise[:-1]), reverse=True)[1]
        return jnp.concatenate([earlier, end[None]])

    def log_density(self, path: Float[Array, "T D"]) -> Scalar:
        """Log density of a path, in nats."""
        each = jax.vmap(lambda kernel, before, x: kernel.log_density(before, x))
        moves = each(self.kernels, path[:-1], path[1:])
        return self.last.log_density(path[-1]) + jnp.sum(moves)

    def log_joint(self, path: Float[Array, "T D"], model: StateSpaceModel, series: tuple) -> Scalar:
        """Log density of a path and of what was observed, in nats."""
        return log_joint(model, path.reshape(-1, *self.event_shape), *series)

    def bounds(
        self, key: Key, num_paths: int, model: StateSpaceModel, series: tuple
    ) -> Float[Array, " n"]:
        """Log of joint over own density of fresh paths, whose mean is the bound, in nats."""

        def one(key: Key) -> Scalar:
            path = self.draw(key)
            return self.log_joint(path, model, series) - self.log_density(path)

        return jax.lax.map(one, jax.random.split(key, num_paths), batch_size=100)

    def marginals(self, key: Key, num_paths: int) -> Gaussian | Particles:
        """Beliefs at each time: in closed form where kernels are linear, else by paths."""
        if self.kernels.network is not None:
            paths = jnp.swapaxes(self.sample(key, num_paths), 0, 1)
            return Particles(paths, jnp.zeros(paths.shape[:2], paths.dtype), self.event_shape)
        last = (self.last.mean, self.last.covariance)

        def back(later: tuple[Array, Array], kernel: Kernel) -> Any:
            mean, covariance = later
            spread = kernel.matrix @ covariance @ kernel.matrix.T + covariance_of(kernel.factor)
            before = (kernel.mean(mean), 0.5 * (spread + spread.T))
            return before, before

        earlier = jax.lax.scan(back, last, self.kernels, reverse=True)[1]
        means, covariances = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), earlier, last)
        return Gaussian(means, covariances, self.event_shape)
