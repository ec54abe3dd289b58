"""Equally weighted joint draws of parameters and states out of a posterior."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ssmkit import keys
from ssmkit.posterior import Posterior
from ssmkit.typing import Array, Key

PATHS_AT_ONCE = 64


class JointDraws(NamedTuple):
    """Which draws an export holds; both index arrays are ``(chains, draws)``.

    Attributes:
        states: index into the draws for which states were computed.
        params: index into the flattened parameter draws; None when parameters are fixed.
        resampled: whether draws were picked by weight, so that chains are gone.
    """

    states: np.ndarray
    params: np.ndarray | None
    resampled: bool


def has_drawn_params(posterior: Posterior) -> bool:
    """Whether there are several parameter draws, and not a fitted point or none at all."""
    return "params" in posterior.parts and posterior.params.num_draws > 1


def has_states(posterior: Posterior) -> bool:
    """Whether paths of states can be drawn."""
    return posterior.parts.get("states") is not None


def choose_draws(posterior: Posterior, num_draws: int, key: Key) -> JointDraws:
    """Choose equally weighted draws: whole chains where weights are equal, else by weight.

    Args:
        posterior: of one series.
        num_draws: number of draws; at most this many where draws are kept in their chains.
        key: random key for picking by weight.
    """
    if not has_drawn_params(posterior):
        return JointDraws(np.zeros((1, num_draws), int), None, False)
    num_chains, per_chain = posterior.params.log_weights.shape
    available, log_weights = _available(posterior)
    if not are_equal(log_weights):
        picked = systematic(key, log_weights, num_draws)[None]
        return JointDraws(picked, available[picked], True)
    rows = [np.flatnonzero(available // per_chain == c) for c in range(num_chains)]
    shortest = min(map(len, rows))
    if shortest == 0:  # fewer draws with states than chains
        rows, shortest = [np.arange(len(available))], len(available)
    count = min(shortest, max(1, num_draws // len(rows)))
    picked = np.stack([row[_evenly(len(row), count)] for row in rows])
    return JointDraws(picked, available[picked], False)


def _available(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the draws that have states (all, when none has) and their log weights."""
    parts = posterior.parts
    if not has_states(posterior):
        log_weights = np.asarray(posterior.params.log_weights).ravel()
        return np.arange(log_weights.size), log_weights
    log_weights = np.asarray(parts["state_log_weights"])
    index = parts.get("state_index")
    return np.arange(log_weights.size) if index is None else np.asarray(index), log_weights


def _evenly(size: int, count: int) -> np.ndarray:
    return np.linspace(0, size - 1, count).round().astype(int)


def are_equal(log_weights: np.ndarray) -> bool:
    """Whether all weights are the same up to rounding."""
    return bool(np.isfinite(log_weights).all() and np.ptp(log_weights) < 1e-6)


def systematic(key: Key, log_weights: np.ndarray, num_draws: int) -> np.ndarray:
    """Systematic resampling: indices in increasing order.

    The order is kept on purpose: copies of one draw stay neighbours, which ArviZ then sees as
    autocorrelation, so that its effective sample size falls with the weights' own.
    """
    weights = np.exp(np.asarray(log_weights, float) - np.max(log_weights))
    mass = np.cumsum(weights)
    start = float(jax.random.uniform(key))
    levels = (np.arange(num_draws) + start) / num_draws * mass[-1]
    return np.minimum(np.searchsorted(mass, levels, side="right"), mass.size - 1)


def draw_paths(key: Key, posterior: Posterior, draws: JointDraws) -> np.ndarray:
    """Draw a path of states given each chosen parameter draw, ``(chains, draws, T, *state)``."""
    key = keys.purpose(key, "states")
    paths = posterior.states.paths
    if draws.params is None:
        drawn = _paths_at_point(key, paths, draws.states.size)
    else:
        drawn = _paths_given(key, paths, draws.states.ravel())
    length = posterior.data.ys.shape[0]  # of a padded batch, the paths are longer
    return np.asarray(drawn[:, :length]).reshape(*draws.states.shape, length, *drawn.shape[2:])


@eqx.filter_jit
def _paths_at_point(key: Key, paths: Any, num_paths: int) -> Array:
    return jax.tree.map(lambda a: a[0], paths).sample(key, num_paths)


@eqx.filter_jit
def _paths_given(key: Key, paths: Any, index: np.ndarray) -> Array:
    def one(at: tuple[Array, Key]) -> Array:
        return jax.tree.map(lambda a: a[at[0]], paths).sample(at[1], 1)[0]

    each = (jax.numpy.asarray(index), jax.random.split(key, index.shape[0]))
    return jax.lax.map(one, each, batch_size=PATHS_AT_ONCE)
