"""Where online variational inference begins, and what it expects before an observation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, Particles
from ssmkit.engines.online_amortised import Guided
from ssmkit.engines.online_learning import begin, begin_score
from ssmkit.engines.online_step import Carried, blank
from ssmkit.engines.online_window import blank_step, empty_window
from ssmkit.learned.backward import Filter, no_kernel, residual, still
from ssmkit.learned.starts import nearest
from ssmkit.linalg import cholesky_psd
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.smc.feynman_kac import Cloud
from ssmkit.smc.lineage import first_lineage
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Step
from ssmkit.typing import Inputs, Key, PyTree, Scalar


def first_parts(engine: Any, key: Key, model: StateSpaceModel, s: Step) -> tuple[Any, Any]:
    """The network of the kernels and the state of learning, or None."""
    mean = jnp.ravel(own_law(model, None, s).mean)
    network = None
    if engine.kernel == "network":
        network = residual(key, mean.shape[0], engine.width, mean.dtype)
    return network, begin(engine.ascent, model)


def begin_at(
    engine: Any, key: Key, model: StateSpaceModel, belief: Belief, log_evidence: Scalar, u: PyTree
) -> Carried:
    """What is carried by a stream that begins at a belief: its mean and covariance."""
    mean = jnp.ravel(belief.mean())
    root = cholesky_psd(belief.cov().reshape(mean.shape[0], mean.shape[0]))
    filter = Filter(mean, nearest(root, full=engine.filter == "full"))
    noise_key, begin_key, *fit_keys = jax.random.split(key, 4)
    network, learning = first_parts(engine, begin_key, model, Step(0, None, u, None))
    count = engine.carried_value.num_points
    noise = jax.random.normal(noise_key, (count, mean.shape[0]), mean.dtype)
    value = blank(engine.carried_value, fit_keys[0], noise)
    learning = begin_score(engine, fit_keys[1], noise, learning)
    bound = (log_evidence.astype(mean.dtype), jnp.zeros((), mean.dtype))
    moves, behind = still(filter, network), no_kernel(filter, network)
    hidden = model.network.nothing_read if isinstance(model, Guided) else None
    window = None
    if engine.window > 1:
        window = empty_window(engine.window, filter, network, blank_step(model, u))
    return Carried(filter, behind, moves, value, bound, learning, hidden, window)


def draws_ahead(
    engine: Any, key: Key, model: StateSpaceModel, last: Carried | None, s: Step
) -> Particles:
    """Draws of the state before its observation is seen."""
    law = own_law(model, None, s)
    shape, dtype, count = law.event_shape, law.mean.dtype, engine.num_paths
    place, move = jax.random.split(key)
    moves = jax.random.split(move, count)
    if last is None:
        states = jax.vmap(law.sample)(moves)
    else:
        noise = jax.random.normal(place, (count, last.filter.mean.shape[0]), dtype)
        before = jax.vmap(last.filter.draw)(noise).reshape(count, *shape)
        states = jax.vmap(lambda x, k: own_law(model, x, s).sample(k))(before, moves)
    return Particles(states, jnp.zeros(count, dtype), shape)


def draws_now(key: Key, model: StateSpaceModel, carry: Carried, count: int, us: Inputs) -> Cloud:
    """Draws of the present state, as particles of equal weight."""
    noise = jax.random.normal(key, (count, carry.filter.mean.shape[0]), carry.filter.mean.dtype)
    shape = own_law(model, None, Step(0, None, input_at(us, 0), None)).event_shape
    states = jax.vmap(carry.filter.draw)(noise).reshape(count, *shape)
    zeros = jnp.zeros(count, states.dtype)
    return Cloud(states, zeros, carry.elbo, first_lineage(count))
