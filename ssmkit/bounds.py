"""The evidence from both sides, on simulated data."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ssmkit import keys
from ssmkit.errors import EngineError, OptionError
from ssmkit.models.base import StateSpaceModel, as_arrays, simulate_series
from ssmkit.smc.reference import pinned_evidence
from ssmkit.typing import Array, Inputs, Key
from ssmkit.validation import refuse_tracers


@dataclasses.dataclass(frozen=True, eq=False)
class EvidenceBounds:
    r"""Bounds of the log evidence from below and above; made by `evidence_bounds`.

    Attributes:
        lower: \(\log\hat p\) of a run on each simulated series ``(n,)``, in nats.
        upper: the same of a run around the path that made the series ``(n,)``, in nats.
    """

    lower: np.ndarray
    upper: np.ndarray

    @property
    def gap(self) -> tuple[float, float]:
        """Mean of upper minus lower, in nats, and its standard error."""
        return _mean(self.upper - self.lower)

    def __repr__(self) -> str:
        """Say both means and the gap with their errors."""
        (low, low_se), (high, high_se), (gap, gap_se) = (
            _mean(self.lower),
            _mean(self.upper),
            self.gap,
        )
        return (
            f"EvidenceBounds: mean log evidence between {low:.4f} ± {low_se:.2g} and "
            f"{high:.4f} ± {high_se:.2g} nats, {gap:.4f} ± {gap_se:.2g} apart "
            f"({self.lower.size} simulated series)"
        )


def _mean(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))


def evidence_bounds(
    key: Key | int,
    engine: Any,
    model: StateSpaceModel,
    num_steps: int,
    us: Inputs = None,
    *,
    learned: Any = None,
    num_series: int = 64,
) -> EvidenceBounds:
    r"""How far an engine can be from the log evidence: bounds from both sides.

    \[\mathrm{E}\log\hat p(y) \;\le\; \mathrm{E}\log p(y) \;\le\; \mathrm{E}\log\hat p(y \mid x),\]

    the second by conditional SMC: the path that made the data is an exact draw from the smoothing
    law, and is kept in the cloud. So this needs data that are simulated from the model.

    Args:
        key: a typed random key, or an integer seed.
        engine: ``sk.SMC(...)``, or ``sk.SIXO(...)`` with what it has learned.
        model: the model; it needs a transition density where the engine has a proposal.
        num_steps: length of the simulated series.
        us: inputs with leading axis ``num_steps``, or None.
        learned: ``posterior.learned`` of ``sk.SIXO``.
        num_series: number of simulated series.

    Returns:
        `EvidenceBounds`.

    Raises:
        EngineError: no particle engine, or one that has learned nothing yet.
        OptionError: fewer than two series.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> bounds = sk.evidence_bounds(0, sk.SMC(num_particles=50), model, 40)
        >>> bool(-0.1 < bounds.gap[0] < 1)
        True

    Source: R. Grosse, Z. Ghahramani and R. Adams (2015), Sandwiching the marginal likelihood using
    bidirectional Monte Carlo.
    """
    refuse_tracers("evidence_bounds", key, model, us, learned)
    key = keys.purpose(keys.as_key(key), "replicates")
    if learned is not None and hasattr(engine, "with_learned"):
        runner = engine.with_learned(learned)
    else:
        runner = engine
    if not hasattr(runner, "prepare"):
        raise EngineError(
            "bounds from both sides need a particle engine that is ready to run.",
            got=repr(engine),
            expected="sk.SMC(...), or sk.SIXO(...) with learned=posterior.learned",
        )
    if num_series < 2:
        raise OptionError("num_series is too small.", got=num_series, expected="≥ 2")
    engine.check(model, us)
    lower, upper = _bounds(
        runner, engine.threshold, jax.random.split(key, num_series), as_arrays(model), us, num_steps
    )
    return EvidenceBounds(np.asarray(lower, float), np.asarray(upper, float))


@eqx.filter_jit
def _bounds(
    runner: Any, threshold: Any, run_keys: Key, model: Any, us: Inputs, num_steps: int
) -> tuple[Array, Array]:
    def one(key: Key) -> tuple[Array, Array]:
        data_key, low_key, high_key = jax.random.split(key, 3)
        path, ys = simulate_series(data_key, model, num_steps, us)
        prepared = runner.prepare(model, (ys, us, None))
        low = prepared.run(low_key, keep=False)[0].log_evidence
        path = path.astype(prepared.particle_filter.dtype) if path.dtype.kind == "f" else path
        return low, pinned_evidence(high_key, prepared, path, threshold)

    return jax.lax.map(one, run_keys)
