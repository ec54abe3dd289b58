"""Comparing posteriors on the same data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmkit.errors import ComparisonError
from ssmkit.posterior import Posterior
from ssmkit.summary import convention, information_criteria

if TYPE_CHECKING:
    import pandas as pd


def compare(posteriors: Mapping[str, Posterior]) -> pd.DataFrame:
    """Put the log evidences of several posteriors side by side, the largest first.

    Evidence of the data and evidence of the data *given parameters* are different numbers and are
    never mixed. Kinds (exact, unbiased, lower bound, approximate) and conventions for the start
    (proper, diffuse) may differ; each row says its own.

    Args:
        posteriors: name to posterior, all of the same data.

    Returns:
        One row per posterior: ``log evidence`` (nats), ``kind``, ``of``, ``start``,
        ``parameters``, ``AIC``, ``BIC`` (nan where there is no point fit), ``engine``.

    Raises:
        ComparisonError: fewer than two posteriors, other data, or evidences of different things.
        NotComputed: a posterior has no evidence.

    Example:
        >>> import ssmkit as sk
        >>> nile = sk.data.load("nile")
        >>> rows = {
        ...     name: sk.infer(0, sk.Kalman(), sk.models.LocalLevel(variance, 15099.0), nile)
        ...     for name, variance in {"still": 1.0, "moving": 1469.0}.items()}
        >>> sk.compare(rows).index.tolist()
        ['moving', 'still']
    """
    import pandas as pd

    if len(posteriors) < 2:
        raise ComparisonError(
            "a comparison needs at least two posteriors.",
            got=f"{len(posteriors)} in a {type(posteriors).__name__}",
            fix='sk.compare({"one": posterior, "other": posterior})',
        )
    _check_same_target({name: p.evidence_of for name, p in posteriors.items()})
    _check_same_data(posteriors)
    table = pd.DataFrame.from_dict({n: _row(p) for n, p in posteriors.items()}, orient="index")
    return table.sort_values("log evidence", ascending=False)


def _row(posterior: Posterior) -> dict[str, Any]:
    count, aic, bic = information_criteria(posterior) or (0, np.nan, np.nan)
    return {
        "log evidence": float(np.sum(np.asarray(posterior.log_evidence))),
        "kind": posterior.evidence_kind,
        "of": posterior.evidence_of,
        "start": convention(posterior),
        "parameters": count,
        "AIC": aic,
        "BIC": bic,
        "engine": repr(posterior.engine),
    }


def _check_same_target(of: dict[str, str | None]) -> None:
    if len(set(of.values())) > 1:
        raise ComparisonError(
            "these log evidences are of different things and cannot be compared.",
            got=", ".join(f"{name}: of {what}" for name, what in of.items()),
            expected="all of 'data', or all of 'data given parameters'",
            fix="compare point fits with point fits, and marginal evidences with each other",
        )


def _check_same_data(posteriors: Mapping[str, Posterior]) -> None:
    (first, one), *others = posteriors.items()
    for name, other in others:
        one.require_series("compare")
        other.require_series("compare")
        same = one.data.ys.shape == other.data.ys.shape and np.array_equal(
            _observed(one), _observed(other), equal_nan=True
        )
        if not same:
            raise ComparisonError(
                f"{first!r} and {name!r} have seen different data.",
                got=f"ys of shapes {one.data.ys.shape} and {other.data.ys.shape}",
                expected="the same observations, with the same entries missing",
            )


def _observed(posterior: Posterior) -> np.ndarray:
    ys, mask = np.asarray(posterior.data.ys, float), posterior.data.mask
    return ys if mask is None else np.where(np.asarray(mask), ys, np.nan)
