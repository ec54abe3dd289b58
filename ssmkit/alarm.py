r"""A running alarm on one-step predictions: an e-detector on probability integral transforms.

While the model is right each transform \(u_t\) is uniform given the past, and a density \(f_k\) on
(0, 1) is a fair bet against that: \(\mathrm{E} f_k(u_t) = 1\). The Shiryaev–Roberts recursion

\[R_{k,t} = (1 + R_{k,t-1})\, f_k(u_t)\]

begins a new bet at every step, and \(\mathrm{mean}_k R_{k,t} - t\) is a supermartingale. So the
mean time to a false alarm, raised when the mean reaches ``run_length``, is at least ``run_length``,
for any model and with no other assumption.

Source: J. Shin, A. Ramdas and A. Rinaldo (2023), E-detectors: a nonparametric framework for
sequential change detection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln

from ssmkit.typing import Array, Float, Int, Scalar

# Beta densities: observations further out than predicted, less far, too low, too high.
BETS = ((0.5, 0.5), (2.0, 2.0), (1.0, 2.0), (2.0, 1.0))
EDGE = 1e-6  # transforms are kept this far from 0 and 1, where a bet may be infinite


class AlarmState(NamedTuple):
    """What goes from step to step.

    Attributes:
        log_bets: log of the Shiryaev–Roberts statistics ``(M, K)``, by coordinate and bet.
        t: number of steps.
        since: the step at which the alarm was raised; −1 while it is not.
        pit: transforms of the last step ``(M,)``; nan where nothing was observed.
        log_score: log predictive density of the last observation, in nats.
        mean_log_score: its mean over the steps that were observed, in nats.
        num_scores: number of these steps.
        ess: effective number of particles after the last step; nan without particles.
    """

    log_bets: Float[Array, "M K"]
    t: Int[Array, ""]
    since: Int[Array, ""]
    pit: Float[Array, " M"]
    log_score: Scalar
    mean_log_score: Scalar
    num_scores: Int[Array, ""]
    ess: Scalar


class Alarm(NamedTuple):
    """Whether the observations still look like what the model predicts; of `Stream.alarm`.

    Of a bank each has one entry per series.

    Attributes:
        statistic: mean of the bets; the alarm is raised when it reaches ``run_length``.
        raised: whether it has been raised; it stays so.
        since: the step at which it was raised, counted from 0; −1 while it is not.
        pit: transforms of the last step ``(M,)``; nan where nothing was observed.
        log_score: log predictive density of the last observation, in nats.
        mean_log_score: its mean over the steps that were observed, in nats.
        ess: effective number of particles after the last step; nan without particles.
        run_length: the least mean number of steps to a false alarm.
    """

    statistic: Any
    raised: Any
    since: Any
    pit: np.ndarray
    log_score: Any
    mean_log_score: Any
    ess: Any
    run_length: float


def init_alarm(num_coordinates: int, dtype: Any = float, t: int | Array = 0) -> AlarmState:
    """An alarm that has seen nothing.

    Args:
        num_coordinates: ``M``, of one observation.
        dtype: floating type of the statistics.
        t: the time of the first step to come.
    """
    dtype = jnp.result_type(dtype)
    nothing, missing = jnp.zeros((), dtype), jnp.full((), jnp.nan, dtype)
    return AlarmState(
        jnp.full((num_coordinates, len(BETS)), -jnp.inf, dtype),
        jnp.asarray(t, jnp.int32),
        jnp.full((), -1, jnp.int32),
        jnp.full(num_coordinates, jnp.nan, dtype),
        missing,
        nothing,
        jnp.zeros((), jnp.int32),
        missing,
    )


def step_alarm(
    state: AlarmState,
    pit: Float[Array, " M"],
    run_length: float,
    log_score: Scalar | float = 0.0,
    ess: Scalar | float = jnp.nan,
) -> AlarmState:
    """One step; pure, safe under ``jit``, ``vmap`` and ``scan``.

    Args:
        state: before the step.
        pit: transforms of the coordinates ``(M,)``; those that are nan leave their bets alone.
        run_length: the least mean number of steps to a false alarm.
        log_score: log predictive density, in nats; does not count where nothing was observed, or
            where it is not finite.
        ess: effective number of particles.

    Example:
        >>> import jax.numpy as jnp
        >>> state = init_alarm(1)
        >>> for _ in range(20):
        ...     state = step_alarm(state, jnp.array([1e-4]), run_length=1000.0)
        >>> int(state.since)
        2
    """
    there = jnp.isfinite(pit)
    gain = log_bets(jnp.where(there, pit, 0.5))
    moved = jnp.logaddexp(0.0, state.log_bets) + gain
    bets = jnp.where(there[:, None], moved, state.log_bets).astype(state.log_bets.dtype)
    rises = (state.since < 0) & (log_statistic(bets) >= jnp.log(run_length))
    counts = jnp.any(there) & jnp.isfinite(log_score)
    num_scores = state.num_scores + counts.astype(jnp.int32)
    away = jnp.where(counts, log_score - state.mean_log_score, 0.0)
    mean = state.mean_log_score + away / jnp.maximum(num_scores, 1)
    kind = state.pit.dtype
    return AlarmState(
        bets,
        state.t + 1,
        jnp.where(rises, state.t, state.since),
        pit.astype(kind),
        jnp.asarray(log_score).astype(kind),
        mean.astype(kind),
        num_scores,
        jnp.asarray(ess).astype(kind),
    )


def log_bets(pit: Float[Array, " M"]) -> Float[Array, "M K"]:
    """Log densities of the bets."""
    u = jnp.clip(pit, EDGE, 1 - EDGE)[:, None]
    a, b = (jnp.asarray(side, u.dtype) for side in zip(*BETS, strict=True))
    return (a - 1) * jnp.log(u) + (b - 1) * jnp.log1p(-u) - betaln(a, b)


def log_statistic(bets: Float[Array, "M K"]) -> Scalar:
    """Log of the mean over coordinates and bets."""
    return jax.nn.logsumexp(bets) - jnp.log(bets.size)


def read_alarm(state: AlarmState, run_length: float) -> Alarm:
    """The record for the user; of a bank the state has the series in front."""
    bets = np.asarray(state.log_bets, float)
    with np.errstate(over="ignore"):
        statistic = np.exp(bets).mean(axis=(-2, -1))
    since = np.asarray(state.since)
    return Alarm(
        statistic=_host(statistic),
        raised=_host(since >= 0),
        since=_host(since),
        pit=np.asarray(state.pit),
        log_score=_host(state.log_score),
        mean_log_score=_host(state.mean_log_score),
        ess=_host(state.ess),
        run_length=run_length,
    )


def _host(value: Any) -> Any:
    value = np.asarray(value)
    return value.item() if value.ndim == 0 else value
