"""A particle filter for one model: the recipe, the selection and what they run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.beliefs import Particles
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.smc import feynman_kac
from ssmkit.smc.collectors import Collector
from ssmkit.smc.feynman_kac import Cloud, Recipe, Select, StepReport
from ssmkit.smc.lineage import num_unique
from ssmkit.smc.noise import draw, noise_shape
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Choose, Proposed, Step, steps_of
from ssmkit.typing import Array, Inputs, Key, PyTree

Series = tuple[Array, Inputs, Any]  # observations, inputs and mask


class ParticleFilter(NamedTuple):
    """What runs a recipe: who has offspring, how many particles, their type, what goes along."""

    recipe: Recipe
    select: Select
    num_particles: int
    dtype: Any
    collector: Collector | None = None

    def first(self, key: Key, s: Step) -> tuple[Cloud, StepReport]:
        """The cloud at time zero."""
        key, size = jax.random.fold_in(key, 0), (self.num_particles, s, self.dtype)
        return feynman_kac.first(self.recipe, key, *size, collector=self.collector)

    def advance(self, key: Key, cloud: Cloud, s: Step) -> tuple[Cloud, StepReport]:
        """One step, with the numbers that belong to its time."""
        given = (self.recipe, self.select, jax.random.fold_in(key, s.t), cloud, s)
        return feynman_kac.advance(*given, collector=self.collector)

    def run(
        self, key: Key, series: tuple[Array, Inputs, Array | None], *, keep: bool
    ) -> tuple[Cloud, StepReport | None]:
        """The whole series: a scan of `advance`."""
        steps = steps_of(*jax.tree.map(jnp.asarray, series))
        return self.run_steps(key, steps, series[0].shape[0], keep=keep)

    def run_steps(
        self,
        key: Key,
        steps: Callable[[Any], Step],
        length: int,
        *,
        keep: bool,
        remat: bool = False,
    ) -> tuple[Cloud, StepReport | None]:
        """The whole series, given by its steps."""
        begin = self.first(key, steps(0))
        given = (self.recipe, self.select, key, begin, steps, length)
        return feynman_kac.scan(*given, keep=keep, remat=remat, collector=self.collector)


class Prepared(NamedTuple):
    """A particle filter with the series that it is to be run on.

    Attributes:
        particle_filter: the filter.
        steps: ``t -> s``.
        length: number of steps ``T``.
        choose: ``(x_before or None, s) -> Draw`` of its proposal; None for the transition.
    """

    particle_filter: ParticleFilter
    steps: Callable[[Any], Step]
    length: int
    choose: Choose | None

    def run(self, key: Key, *, keep: bool) -> tuple[Cloud, StepReport | None]:
        """The whole series."""
        return self.particle_filter.run_steps(key, self.steps, self.length, keep=keep)


def floating_type(model: StateSpaceModel, ys: Array) -> Any:
    """The floating type of states and weights: that of the model's arrays and the data."""
    arrays = [leaf for leaf in (*jax.tree.leaves(model), ys) if hasattr(leaf, "dtype")]
    kinds = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    return jnp.result_type(*kinds) if kinds else jnp.result_type(float)


def states_of(particles: PyTree) -> Array:
    """The states of a model's particles, whatever rides along with them."""
    return particles.state if isinstance(particles, Proposed) else particles


def particles_like(particles: PyTree, steps: StepReport) -> PyTree:
    """The particles of every step, from the history of their states."""
    if isinstance(particles, Proposed):
        return Proposed(steps.states, jnp.zeros_like(steps.log_weights))
    return steps.states


def step_diagnostics(steps: StepReport) -> dict[str, Array]:
    """What happened to the cloud at each time ``(T,)``."""
    return {
        "ess": steps.ess,
        "unique_ancestors": jax.vmap(num_unique)(steps.ancestors),
        "resampled": steps.resampled,
    }


def forecast(
    key: Key,
    model: StateSpaceModel,
    cloud: Cloud,
    times: Array,
    us: Inputs,
) -> dict[str, Any]:
    """Move the particles by the transition, and let each emit one observation.

    Args:
        key: random key; the step at time ``t`` uses ``fold_in(key, t)``.
        model: the model.
        cloud: where the data end.
        times: the times to forecast ``(h,)``.
        us: their inputs, or None.
    """
    states, log_weights = states_of(cloud.particles), cloud.log_weights
    count, dtype = log_weights.shape[0], log_weights.dtype
    step = Step(times[0], None, input_at(us, 0), None)
    shape = noise_shape(lambda: own_law(model, states[0], step))

    def emit(key: Key, x: Array, t: Array, u: PyTree) -> Array:
        return draw(model.at(t).emission(x, u), key, dtype)

    def move(noise: PyTree, x: Array, s: Step) -> Array:
        return draw(own_law(model, x, s), noise, dtype)

    def ahead(x: Array, at: tuple[Array, PyTree]) -> tuple[Array, tuple[Array, Array]]:
        t, u = at
        move_key, emit_key = jax.random.split(jax.random.fold_in(key, t))
        noise = feynman_kac.draw_noise(move_key, count, shape, dtype)
        x = jax.vmap(move, (0, 0, None))(noise, x, Step(t, None, u, None))
        ys = jax.vmap(emit, (0, 0, None, None))(jax.random.split(emit_key, count), x, t, u)
        return x, (x, ys)

    xs, ys = jax.lax.scan(ahead, states, (times, us))[1]
    weights = jnp.broadcast_to(log_weights, xs.shape[:2])
    return {
        "states": Particles(xs, weights, xs.shape[2:]),
        "observations": Particles(ys, weights, ys.shape[2:]),
    }
