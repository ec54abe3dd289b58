"""What a diagnosis says: arrays by step, tests, warnings in words, a table."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmkit.beliefs import Labels
from ssmkit.measures import TestResult, pit_tests

if TYPE_CHECKING:
    import pandas as pd

TOO_HEAVY = 0.7  # k-hat beyond which no practical number of particles helps
TOO_FEW = 10  # effective particles
SMALL = 0.01  # p-values that are spoken of
CLOUD = ("ess", "unique_ancestors", "resampled", "k_hat")


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """How each observation was predicted, and how the particles fared; made by `diagnose`.

    Attributes:
        log_score: log predictive density of each observation in nats ``(T,)``; zero where nothing
            was observed.
        pit: probability integral transforms ``(T, M)``, uniform when the model is right; nan where
            nothing was observed.
        crps: ranked probability scores in units of the observations ``(T, M)``.
        ess: effective number of particles after each observation ``(T,)``, or None.
        unique_ancestors: number of different parents ``(T,)``, or None.
        resampled: whether ancestors were drawn before the step ``(T,)``, or None.
        k_hat: Pareto shape of the filtered weights ``(T,)``, or None. Above 0.7 a few particles
            carry what the others miss: means and evidence of that step cannot be trusted, and more
            particles help but slowly.
        labels: dates of the series, and names of the observation's coordinates.
    """

    log_score: np.ndarray
    pit: np.ndarray
    crps: np.ndarray
    ess: np.ndarray | None
    unique_ancestors: np.ndarray | None
    resampled: np.ndarray | None
    k_hat: np.ndarray | None
    labels: Labels

    @cached_property
    def tests(self) -> tuple[TestResult, ...]:
        """Tests that the transforms are independent and uniform; empty below 20 observations."""
        found: list[TestResult] = []
        for m, name in enumerate(self.names):
            suffix = "" if len(self.names) == 1 else f" {name}"
            results = pit_tests(self.pit[:, m])
            found.extend(t._replace(name=t.name + suffix) for t in results)
        return tuple(found)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the observation's coordinates."""
        size = self.pit.shape[1]
        given = self.labels.names
        if given is not None and len(given) == size:
            return tuple(given)
        return ("y",) if size == 1 else tuple(f"y{m}" for m in range(size))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong, in words."""
        said = [
            f"the predictions are not calibrated: {t.name}, p = {t.p_value:.2g}"
            for t in self.tests
            if t.p_value < SMALL
        ]
        return (*self.cloud_warnings, *said)

    @property
    def cloud_warnings(self) -> tuple[str, ...]:
        """What is wrong with the particles, in words."""
        said = []
        if self.k_hat is not None and (heavy := self.k_hat > TOO_HEAVY).any():
            said.append(
                f"k-hat of the weights is above {TOO_HEAVY} at {self._where(heavy)}: the proposal "
                "covers too little; more particles, or another proposal"
            )
        if self.ess is not None and (few := self.ess < TOO_FEW).any():
            said.append(
                f"fewer than {TOO_FEW} effective particles (ESS) at {self._where(few)}: the belief "
                "there rests on a handful of draws; more particles, or another proposal"
            )
        return tuple(said)

    def _where(self, bad: np.ndarray) -> str:
        first = int(np.argmax(bad))
        times = self.labels.times
        date = "" if times is None else f" ({_date(times[first])})"
        return f"{int(bad.sum())} of {bad.size} steps, first at t={first}{date}"

    def to_frame(self) -> pd.DataFrame:
        """Table with one row per time, dated where the data are."""
        import pandas as pd

        columns: dict[str, Any] = {"log score": self.log_score}
        for measure in ("pit", "crps"):
            for m, name in enumerate(self.names):
                label = measure if len(self.names) == 1 else f"{name} {measure}"
                columns[label] = getattr(self, measure)[:, m]
        for name in CLOUD:
            if getattr(self, name) is not None:
                columns[name.replace("_", " ")] = getattr(self, name)
        times = self.labels.times
        index = pd.RangeIndex(len(self.log_score), name="time") if times is None else times
        return pd.DataFrame(columns, index=index)

    def __repr__(self) -> str:
        """Say how well the observations were predicted, and what is wrong."""
        there = np.isfinite(self.pit).any(axis=1)
        score = self.log_score[there].mean() if there.any() else np.nan
        lines = [
            f"Diagnosis of {there.sum()} observations in {there.size} steps",
            f"  mean log score: {score:.4f} nats, mean CRPS: {_mean(self.crps):.4g}",
        ]
        if self.ess is not None:
            lines.append(f"  effective particles: {self.ess.min():.1f} or more")
        if self.k_hat is not None and np.isfinite(self.k_hat).any():
            lines.append(f"  k-hat of the weights: up to {np.nanmax(self.k_hat):.2f}")
        if self.tests:
            lines.append("  tests of the PIT (small p: the model misses something)")
            lines += [f"    {t.name}: {t.statistic:.3f}, p = {t.p_value:.3f}" for t in self.tests]
        lines += ["  warnings", *(f"    {w}" for w in self.warnings)] if self.warnings else []
        return "\n".join(lines)


def _mean(values: np.ndarray) -> float:
    there = np.isfinite(values)
    return float(values[there].mean()) if there.any() else np.nan


def _date(stamp: Any) -> str:
    return str(stamp.date()) if hasattr(stamp, "date") else str(stamp)
