"""The contract of a model: three methods that return distributions.

A model is an `equinox.Module`; its array fields are its parameters. It is written for one state
and one observation, and the library lifts it over particles, time and series.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit import keys
from ssmkit.errors import ModelError, ShapeError
from ssmkit.models.observation import (
    RowMasks,
    observed_log_prob,
    observed_mask,
    supports_coordinates,
    whole_rows,
)
from ssmkit.typing import Array, Inputs, Key, Law, PyTree, Scalar


class StateSpaceModel(eqx.Module):
    r"""A state-space model: subclass it and write three methods.

    \[x_0 \sim p(x_0), \qquad x_t \sim p(x_t \mid x_{t-1}), \qquad y_t \sim p(y_t \mid x_t)\]

    ``u`` is the input at that time (``u_t`` for the step into ``x_t``), or None.

    Example:
        >>> import ssmkit as sk, numpyro.distributions as dist
        >>> class Walk(sk.StateSpaceModel):
        ...     scale: float
        ...     def initial(self, u): return dist.Normal(0.0, 1.0)
        ...     def transition(self, x, u): return dist.Normal(x, self.scale)
        ...     def emission(self, x, u): return dist.Normal(x, 1.0)
        >>> Walk(0.5)
        Walk(scale=0.5)
    """

    def initial(self, u: PyTree) -> Law:
        """Return the law of ``x_0``."""
        raise _missing_method(self, "initial(self, u)")

    def transition(self, x: Array, u: PyTree) -> Law:
        """Return the law of ``x_t`` given ``x_{t-1} = x``."""
        raise _missing_method(self, "transition(self, x, u)")

    def emission(self, x: Array, u: PyTree) -> Law:
        """Return the law of ``y_t`` given ``x_t = x``."""
        raise _missing_method(self, "emission(self, x, u)")

    def at(self, t: int | Array) -> StateSpaceModel:
        """Return the model that rules the step into time ``t``; by default itself."""
        return self

    @property
    def num_steps(self) -> int | None:
        """Number of steps of a model whose parameters change with time, else None."""
        return None

    @property
    def time_varying(self) -> bool:
        """Whether `at` depends on its argument."""
        return type(self).at is not StateSpaceModel.at

    @property
    def state_names(self) -> tuple[str, ...] | None:
        """Names of the state coordinates, or None for ``x0, x1, …``."""
        return None

    @property
    def observation_names(self) -> tuple[str, ...] | None:
        """Names of the observation coordinates, or None for ``y0, y1, …``."""
        return None


def _missing_method(model: StateSpaceModel, signature: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} has no method {signature.split('(')[0]}.",
        expected=f"a method {signature} that returns a numpyro distribution",
        fix=f"def {signature}: return dist.Normal(...)",
    )


class Simulation(NamedTuple):
    """Draws of `simulate`: ``states`` and ``observations``, each with time in front."""

    states: Array
    observations: Array


def as_arrays(tree: PyTree) -> PyTree:
    """Turn Python and numpy numbers in a pytree into arrays, so that they are traced."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, bool) or eqx.is_array(leaf):
            return leaf
        if isinstance(leaf, int | float | complex | np.ndarray | np.generic):
            return jnp.asarray(leaf)
        return leaf

    return jax.tree.map(convert, tree)


def abstract_law(call: Callable[[], Law]) -> Law:
    """Make a distribution without computing it: only its type and shapes may be looked at."""
    found: list[Any] = []
    jax.eval_shape(lambda: found.append(call()))
    return found[0]


def input_at(us: Inputs, t: int | Array) -> PyTree:
    """Return the inputs, observation or mask at time ``t``; None stays None."""
    return jax.tree.map(lambda a: a[t], us, is_leaf=lambda a: isinstance(a, RowMasks))


def simulate_series(
    key: Key, model: StateSpaceModel, num_steps: int, us: Inputs = None
) -> Simulation:
    """Draw one series; pure, for use under ``jit`` and ``vmap``."""

    def emit(step_key: Key, t: int | Array, x: Array) -> Array:
        return model.at(t).emission(x, input_at(us, t)).sample(jax.random.fold_in(step_key, 1))

    def step(x: Array, t: Array) -> tuple[Array, tuple[Array, Array]]:
        step_key = jax.random.fold_in(key, t)
        law = model.at(t).transition(x, input_at(us, t))
        x = law.sample(jax.random.fold_in(step_key, 0)).astype(x.dtype)
        return x, (x, emit(step_key, t, x))

    start_key = jax.random.fold_in(key, 0)
    x0 = model.at(0).initial(input_at(us, 0)).sample(jax.random.fold_in(start_key, 0))
    first = (x0, emit(start_key, 0, x0))
    rest = jax.lax.scan(step, x0, jnp.arange(1, num_steps))[1]
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    return Simulation(*joined)


def simulate(
    key: Key | int,
    model: StateSpaceModel,
    num_steps: int,
    us: Inputs = None,
    *,
    num_series: int | None = None,
) -> Simulation:
    """Draw states and observations from a model.

    Args:
        key: a typed random key, or an integer seed.
        model: the model; a diffuse start cannot be sampled.
        num_steps: number of time steps ``T``.
        us: inputs with leading axis ``T``, or None.
        num_series: number of series ``B``; None for one series without that axis.

    Returns:
        A `Simulation` of ``states`` ``(T, *state)`` and ``observations`` ``(T, *observation)``,
        with ``B`` first when asked for.

    Raises:
        ImproperStartError: the model starts diffuse.
        OptionError: ``num_steps`` is below one.
        ShapeError: inputs, or parameters that change with time, of another length.

    Example:
        >>> import ssmkit as sk
        >>> path = sk.simulate(0, sk.models.StochasticVolatility(-1.0, 0.97, 0.2), 50)
        >>> path.observations.shape
        (50,)
    """
    from ssmkit.errors import OptionError

    key = keys.purpose(keys.as_key(key), "simulation")
    if num_steps < 1:
        raise OptionError("num_steps is too small.", got=num_steps, expected="at least 1")
    model = as_arrays(model)
    # inside the compiled loop an index past the end would take the last entry
    lengths = {jnp.shape(a)[:1] for a in jax.tree.leaves(us)} | {(model.num_steps or num_steps,)}
    if lengths != {(num_steps,)}:
        raise ShapeError(
            "num_steps does not fit the inputs, or the parameters of a time-varying model.",
            got=f"num_steps={num_steps}, leading axes {sorted(lengths - {(num_steps,)})}",
            expected=f"one entry per step: leading axis {num_steps}",
        )
    draw = eqx.filter_jit(simulate_series)
    if num_series is None:
        return draw(key, model, num_steps, us)
    return eqx.filter_vmap(draw, in_axes=(0, None, None, None))(
        jax.random.split(key, num_series), model, num_steps, us
    )


def log_joint(
    model: StateSpaceModel,
    states: Array,
    ys: Array,
    us: Inputs = None,
    observed: Array | None = None,
) -> Scalar:
    r"""Joint log density of a path and its observations, in nats.

    \[\log p(x_0) + \sum_{t \ge 1} \log p(x_t \mid x_{t-1}) + \sum_t \log p(y_t \mid x_t)\]

    Pure: safe under ``jit``, ``grad`` and ``vmap``; nan in ``ys`` is missing.

    Args:
        model: the model.
        states: one path ``(T, *state)``.
        ys: observations ``(T, *observation)``.
        us: inputs with leading axis ``T``, or None.
        observed: booleans ``(T,)`` or ``(T, M)``, or None.

    Returns:
        The log density, a scalar.

    Raises:
        SingularTransitionError: the transition has no density.
        MissingDataError: part of a row is missing under a law without marginals.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> round(float(log_joint(model, jnp.full(3, -1.0), jnp.zeros(3))), 3)
        -0.6
    """
    event_ndim = jnp.ndim(ys) - 1
    mask = observed_mask(jnp.asarray(ys), observed, event_ndim)
    law = model.at(0).emission(states[0], input_at(us, 0))
    if mask is not None and not supports_coordinates(law):
        mask = whole_rows(mask)
    times = jnp.arange(ys.shape[0])

    def emission(t: Array, x: Array, y: Array, m: Array | None, u: PyTree) -> Array:
        return observed_log_prob(model.at(t).emission(x, u), y, m)

    def transition(t: Array, before: Array, after: Array, u: PyTree) -> Array:
        return model.at(t).transition(before, u).log_prob(after)

    initial = model.at(0).initial(input_at(us, 0)).log_prob(states[0])
    later = jax.tree.map(lambda a: a[1:], us)
    moves = jax.vmap(transition)(times[1:], states[:-1], states[1:], later)
    emissions = jax.vmap(emission)(times, states, ys, mask, us)
    return initial + jnp.sum(moves) + jnp.sum(emissions)
