r"""Parameters and states jointly, as the noise that states are made of.

\[x_0 = F_0(e_0; \theta), \qquad x_t = F(x_{t-1}, e_t; \theta), \qquad e_t \sim N(0, I),\]

\[\log p(u, e \mid y) = \log p(\theta(u)) + \log|\partial \theta / \partial u|
+ \sum_t \log N(e_t; 0, I) + \sum_t \log p(y_t \mid x_t, \theta) + \mathrm{const}\]

In these coordinates the prior is white whatever the parameters are, which no flow has to learn.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ssmkit.beliefs import Particles
from ssmkit.errors import EngineError
from ssmkit.learned.path_flow import PathFlow
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.models.distributions import is_gaussian, moments
from ssmkit.models.observation import emission_log_prob, observed_mask
from ssmkit.models.programs import Program, build, build_with_prior, free_sites
from ssmkit.models.whitening import Frame, Settled, frame_of, normal_form, sample_prior, settle
from ssmkit.posterior import Data, States
from ssmkit.smc.noise import place
from ssmkit.typing import Array, Float, Key, Law, PyTree, Scalar


class JointTarget(eqx.Module):
    """The posterior of parameters and states.

    Attributes:
        target: the program, or a model whose parameters are known.
        data: the series.
        frame: where laws without a closed form lie.
        zeros: shapes of the coordinates by site; empty for a model.
        size: coordinates of the noise at one time.
        bound: how far out, in standard deviations of the prior, the target is not zero; or None.
    """

    target: Any
    data: Data
    frame: Frame
    zeros: dict[str, Array]
    size: int = eqx.field(static=True)
    bound: float | None = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    has_prior = True

    @property
    def num_steps(self) -> int:
        """Length of the series."""
        return self.data.ys.shape[0]

    @property
    def num_params(self) -> int:
        """Coordinates of the parameters."""
        return sum(a.size for a in self.zeros.values())

    @property
    def dim(self) -> int:
        """Number of coordinates, those of the parameters first."""
        return self.num_params + self.num_steps * self.size

    def builder(self, flow: Any) -> Any:
        """A flow of the parameters, and Gaussian noise given them."""
        return PathFlow(self.num_steps, self.size, parameters=flow)

    def _settled(self, u: Float[Array, " d"]) -> Settled:
        return settle(self.target, self.frame, ravel_pytree(self.zeros)[1](u[: self.num_params]))

    def _built(self, u: Float[Array, " d"]) -> tuple[StateSpaceModel, Scalar]:
        """The model, and log prior and log Jacobian of its parameters."""
        if not self.zeros:
            return self.target, jnp.zeros((), self.dtype)
        settled = self._settled(u)
        model, log_prior = build_with_prior(self.target, settled.values)
        return model, log_prior + settled.log_jacobian

    def _noise(self, u: Float[Array, " d"]) -> Float[Array, "T D"]:
        return u[self.num_params :].reshape(self.num_steps, self.size)

    def path(self, u: Float[Array, " d"]) -> Array:
        """States ``(T, *state)``."""
        return path_of(self._built(u)[0], self.data.us, self._noise(u))

    def log_prob(self, u: Float[Array, " d"]) -> Scalar:
        """Log density of parameters, noise and data, in nats."""
        (model, log_prior), noise, data = self._built(u), self._noise(u), self.data
        states = path_of(model, data.us, noise)

        def seen(x: Array, t: Array) -> Scalar:
            law = model.at(t).emission(x, input_at(data.us, t))
            return emission_log_prob(law, data.ys[t], input_at(mask, t))

        mask = observed_mask(data.ys, data.mask, data.ys.ndim - 1)
        terms = jax.vmap(seen)(states, jnp.arange(self.num_steps))
        value = log_prior + jnp.sum(jax.scipy.stats.norm.logpdf(noise)) + jnp.sum(terms)
        if self.bound is None:
            return value
        return jnp.where(jnp.all(jnp.abs(u) <= self.bound), value, -jnp.inf)

    def renewed(self, key: Key) -> JointTarget:
        """Itself: there is no noise in it."""
        return self

    def values(self, u: Float[Array, " d"]) -> dict[str, PyTree]:
        """The sites by name, each on its own scale."""
        return self._settled(u).values if self.zeros else {}

    def log_prior(self, u: Float[Array, " d"]) -> Scalar:
        """Log density of the prior, in nats."""
        noise = jnp.sum(jax.scipy.stats.norm.logpdf(self._noise(u)))
        return self._settled(u).log_prior + noise if self.zeros else noise

    def sample_prior(self, key: Key) -> Float[Array, " d"]:
        """A draw of the prior."""
        params_key, noise_key = jax.random.split(key)
        count = self.num_steps * self.size
        noise = jax.random.normal(noise_key, (count,), self.dtype)
        if not self.zeros:
            return noise
        drawn = sample_prior(self.target, self.frame, self.zeros, params_key)
        return jnp.concatenate([ravel_pytree(drawn)[0], noise])


def from_noise(law: Law, noise: Float[Array, " D"]) -> Array:
    """A state as a function of standard normals; what a law does not need is not looked at."""
    if is_gaussian(law):
        factor = moments(law)[1]
        size = factor.shape[-1] if factor.ndim == 2 else factor.size
        shape = (size,) if factor.ndim == 2 else law.event_shape
        return place(law, noise[:size].reshape(shape))
    form: Any = normal_form(law)
    return form(noise[: math.prod(law.event_shape)].reshape(law.event_shape))


def path_of(model: StateSpaceModel, us: PyTree, noise: Float[Array, "T D"]) -> Array:
    """States ``(T, *state)`` made of noise."""
    first = from_noise(model.at(0).initial(input_at(us, 0)), noise[0])

    def step(x: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
        t, e = here
        x = from_noise(model.at(t).transition(x, input_at(us, t)), e).astype(x.dtype)
        return x, x

    times = jnp.arange(1, noise.shape[0])
    later = jax.lax.scan(step, first, (times, noise[1:]))[1]
    return jnp.concatenate([first[None], later])


def noise_size(model: StateSpaceModel, us: PyTree) -> int:
    """Coordinates of the noise at one time.

    Raises:
        EngineError: a law that is no function of standard normals here.
    """
    sizes: list[int] = []

    def look(law: Law, name: str) -> Array:
        if is_gaussian(law):
            factor = moments(law)[1]
            sizes.append(factor.shape[-1] if factor.ndim == 2 else factor.size)
            return place(law, jnp.zeros((sizes[-1],) if factor.ndim == 2 else law.event_shape))
        if normal_form(law) is None:
            raise EngineError(
                f"sk.FAB makes states of standard normals, and {type(model).__name__}.{name} is "
                "no such function.",
                got=type(law).__name__,
                expected="a normal law, or Laplace, logistic, uniform, exponential, half-normal, "
                "half-Cauchy, or a transformation of a normal one coordinate by coordinate",
                fix="sk.FAB(evidence=sk.SMC()) for the parameters, with the states integrated out",
            )
        sizes.append(math.prod(law.event_shape))
        return from_noise(law, jnp.zeros(sizes[-1]))

    def both() -> Array:
        u = input_at(us, 0)
        x = look(model.at(0).initial(u), "initial")
        return look(model.at(0).transition(x, u), "transition")

    jax.eval_shape(both)
    return max(sizes)


def joint_target(engine: Any, key: Key, target: Any, data: Data) -> JointTarget:
    """What a flow is to learn of parameters and states.

    Raises:
        EngineError: a law that is no function of standard normals here.
    """
    if isinstance(target, Program) and free_sites(target):
        values = {name: site.value for name, site in free_sites(target).items()}
        zeros, frame = frame_of(target, key, whiten=engine.whiten)
        model = build(target, values)
    else:
        zeros, frame = {}, {}
        target = model = build(target, {}) if isinstance(target, Program) else target
    dtype = jnp.result_type(float)
    return JointTarget(target, data, frame, zeros, noise_size(model, data.us), engine.bound, dtype)


class DrawnPaths(eqx.Module):
    """Whole paths, one for each draw of the parameters.

    Attributes:
        states: ``(N, T, *state)``.
    """

    states: Array

    def sample(self, key: Key, num_paths: int) -> Array:
        """The path of one draw, as often as asked ``(n, T, *state)``."""
        return jnp.broadcast_to(self.states, (num_paths, *self.states.shape))


@eqx.filter_jit
def joint_parts(
    target: JointTarget, u: Float[Array, "N d"], log_weights: Float[Array, " N"]
) -> dict[str, Any]:
    """Paths that belong to their parameters, and beliefs by time."""
    paths = jax.lax.map(target.path, u, batch_size=256)
    event = paths.shape[2:]
    by_time = jnp.swapaxes(paths, 0, 1)
    weights = jnp.broadcast_to(log_weights, by_time.shape[:2])
    marginals = Particles(by_time, weights, event)
    return {
        "states": States(marginals, DrawnPaths(paths), log_weights),
        "final": Particles(by_time[-1], log_weights, event),
        "state_log_weights": log_weights,
        "state_index": jnp.arange(u.shape[0]),
    }
