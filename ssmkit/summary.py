"""The summary of a posterior: what was seen, how well it fits, what to be wary of."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ssmkit.beliefs import Particles
from ssmkit.diagnose import Diagnosis, diagnose
from ssmkit.diagnostics import residuals
from ssmkit.measures import TestResult, residual_tests
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import Diffuse
from ssmkit.posterior import Draws, Posterior

if TYPE_CHECKING:
    import pandas as pd

CONVENTIONS = {
    "diffuse": "diffuse, Durbin–Koopman: the limit of log p + (r/2) log κ, all observations count",
    "proper": "proper start: log p(y), all observations count",
}

LARGE_ERROR = 1.0  # nats, beyond which the log evidence of a single run says little


def describe(posterior: Posterior) -> str:
    """Three lines on a posterior, for its ``repr``."""
    lines = [f"Posterior by {posterior.engine!r}"]
    if posterior.data is None:
        lines.append(f"  target: {posterior.target!r}")
    else:
        shape = posterior.data.ys.shape
        lines.append(f"  data: ys {shape}, {_count_missing(posterior)} missing")
    if posterior.parts.get("log_evidence") is not None:
        lines.append(f"  {evidence_line(posterior)}")
    if "params" in posterior.parts:
        draws = posterior.params
        kind = "point" if draws.num_draws == 1 else f"{draws.num_draws} draws"
        lines.append(f"  params: {', '.join(sorted(draws.values))} ({kind}{_worth(draws)})")
    lines.extend(f"  WARNING: {text}" for text in posterior.diagnostics.get("severe", ()))
    return "\n".join(lines)


def _worth(draws: Draws) -> str:
    """What weighted draws are worth; nothing of equal ones."""
    shares = _shares(draws)
    return "" if shares is None else f" by weight, worth {1 / np.sum(shares**2):.1f}"


def evidence_line(posterior: Posterior) -> str:
    """The log evidence with what it is and of what."""
    value = np.asarray(posterior.log_evidence)
    shown = f"{float(value):.4f}" if value.ndim == 0 else f"{value.size} values"
    error = posterior.parts.get("log_evidence_se")
    if error is not None and value.ndim == 0:
        shown += f" ± {float(error):.2g}" if np.isfinite(error) else " ± unknown"
    return f"log evidence: {shown} nats ({posterior.evidence_kind}, of {posterior.evidence_of})"


def _count_missing(posterior: Posterior) -> int:
    mask = posterior.data.mask
    return 0 if mask is None else int(mask.size - mask.sum())


@dataclasses.dataclass(frozen=True)
class Summary:
    """A readable report on a posterior; ``table`` holds the parameters as a frame.

    Attributes:
        lines: engine, data, likelihood and its convention, information criteria.
        table: one row per scalar parameter, or None.
        tests: residual tests.
        warnings: what a reader should know before using the numbers.
    """

    lines: tuple[str, ...]
    table: pd.DataFrame | None
    tests: tuple[TestResult, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        """Show the report."""
        parts = ["\n".join(self.lines)]
        if self.table is not None:
            parts.append(self.table.to_string(float_format=lambda v: f"{v:.5g}"))
        if self.tests:
            rows = [f"  {t.name}: {t.statistic:.3f}, p = {t.p_value:.3f}" for t in self.tests]
            parts.append("\n".join(["residual tests (small p: the model misses something)", *rows]))
        if self.warnings:
            parts.append("\n".join(["warnings", *(f"  {w}" for w in self.warnings)]))
        return "\n\n".join(parts)


def summarise(posterior: Posterior) -> Summary:
    """Build the report of `Posterior.summary`."""
    lines = describe(posterior).splitlines()
    if posterior.data is not None:
        lines.append(f"  {_observations_line(posterior)}")
        lines.extend(_likelihood_lines(posterior))
    table, warnings = _parameter_table(posterior)
    diagnosis = _diagnosis(posterior)
    tests = _tests(posterior) if diagnosis is None else diagnosis.tests
    cloud = () if diagnosis is None else _cloud_warnings(posterior, diagnosis)
    warnings = (*warnings, *cloud, *_evidence_warnings(posterior))
    return Summary(tuple(lines), table, tuple(tests), warnings)


def _diagnosis(posterior: Posterior) -> Diagnosis | None:
    """Of particle posteriors; Gaussian engines have residuals."""
    if posterior.is_batch or posterior.num_state_draws > 1:
        return None
    kept = isinstance(posterior.parts.get("predicted"), Particles)
    return diagnose(posterior) if kept else None


def _cloud_warnings(posterior: Posterior, diagnosis: Diagnosis) -> tuple[str, ...]:
    """Judge the cloud by the target that it follows, which is not the filter's under a twist."""
    twisted = posterior.diagnostics.get("twisted_ess")
    if twisted is not None:
        diagnosis = dataclasses.replace(diagnosis, ess=np.asarray(twisted), k_hat=None)
    return diagnosis.cloud_warnings


def _evidence_warnings(posterior: Posterior) -> list[str]:
    """What the standard error of a random evidence says."""
    if posterior.parts.get("log_evidence_se") is None:
        return []
    error = np.asarray(posterior.parts["log_evidence_se"])
    remedy = "sk.replicate_evidence(key, posterior)"
    if posterior.is_batch:
        remedy += " for each posterior[b]"
    said = []
    if np.isnan(error).any():
        said.append(
            "fewer than five first ancestors survive to the end, too few for a standard error of "
            f"the log evidence: {remedy} gives one from independent runs"
        )
    if (error > LARGE_ERROR).any():
        said.append(
            f"the standard error of the log evidence is up to {np.nanmax(error):.2g} nats: more "
            f"particles, another proposal, or {remedy}"
        )
    return said


def _tests(posterior: Posterior) -> list[TestResult]:
    if posterior.is_batch or posterior.parts.get("predicted_observations") is None:
        return []
    errors = residuals(posterior)
    tests: list[TestResult] = []
    for m in range(errors.shape[1]):
        suffix = "" if errors.shape[1] == 1 else f" y{m}"
        found = residual_tests(errors[:, m])
        tests.extend(t._replace(name=t.name + suffix) for t in found)
    return tests


def _observations_line(posterior: Posterior) -> str:
    data = posterior.data
    times = data.labels.times
    span = "" if times is None else f", {_date(times[0])} to {_date(times[-1])}"
    return f"observations: {data.ys.size - _count_missing(posterior)} of {data.ys.size}{span}"


def _date(stamp: Any) -> str:
    return str(stamp.date()) if hasattr(stamp, "date") else str(stamp)


def convention(posterior: Posterior) -> str:
    """What the log-likelihood counts: a proper start, or which of the diffuse conventions."""
    model: StateSpaceModel = posterior.model
    if posterior.num_state_draws > 1:
        model = jax.tree.map(lambda a: a[0], model)
    u = None
    if posterior.data.us is not None:
        lead = 2 if posterior.is_batch else 1
        u = jax.tree.map(lambda a: a[(0,) * lead], posterior.data.us)
    start = model.at(0).initial(u)
    return CONVENTIONS["diffuse" if isinstance(start, Diffuse) else "proper"]


def _likelihood_lines(posterior: Posterior) -> list[str]:
    if posterior.parts.get("log_evidence") is None:
        return []
    lines = [f"  convention: {convention(posterior)}"]
    criteria = information_criteria(posterior)
    if criteria is not None:
        count, aic, bic = criteria
        lines.append(f"  AIC {aic:.2f}, BIC {bic:.2f} ({count} parameters)")
    return lines


def information_criteria(posterior: Posterior) -> tuple[int, float, float] | None:
    r"""Number of parameters, \(2k - 2\log L\) and \(k \log n - 2 \log L\); None if not a maximum.

    Only a maximum-likelihood point has them: with priors the estimate is a mode.
    """
    estimates = posterior.parts.get("estimates")
    if estimates is None or posterior.evidence_of != "data given parameters":
        return None
    if estimates.log_prior != 0.0:
        return None
    count = len(estimates.names)
    size = posterior.data.ys.size - _count_missing(posterior)
    value = float(np.sum(np.asarray(posterior.log_evidence)))
    return count, 2 * count - 2 * value, count * float(np.log(size)) - 2 * value


def _parameter_table(posterior: Posterior) -> tuple[Any, tuple[str, ...]]:
    import pandas as pd

    if "params" not in posterior.parts:
        return None, ()
    estimates = posterior.parts.get("estimates")
    if estimates is not None:
        columns = {
            "estimate": estimates.values,
            "std error": estimates.standard_errors,
            "2.5%": estimates.lower,
            "97.5%": estimates.upper,
        }
        table = pd.DataFrame(columns, index=list(estimates.names))
        return table.iloc[:40], tuple(estimates.warnings)
    return _draws_table(posterior), _draw_warnings(posterior.diagnostics)


def _draws_table(posterior: Posterior) -> pd.DataFrame:
    import pandas as pd
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    rows = {}
    shares = _shares(posterior.params)
    for name, values in sorted(posterior.params.values.items()):
        array = np.asarray(values)
        for index in np.ndindex(array.shape[2:]):
            one = array[(slice(None), slice(None), *index)]
            label = name + (f"[{','.join(map(str, index))}]" if index else "")
            if shares is not None:
                rows[label] = (*_weighted_moments(one.ravel(), shares), np.nan)
                continue
            low, high = np.quantile(one, [0.025, 0.975])
            ess, rhat = float(effective_sample_size(one)), float(split_gelman_rubin(one))
            rows[label] = (one.mean(), one.std(), low, high, ess, rhat)
    columns = ["mean", "std", "2.5%", "97.5%", "ESS", "R-hat"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).iloc[:40]


def _shares(draws: Draws) -> np.ndarray | None:
    """Normalised weights; None where all draws count the same."""
    log_weights = np.asarray(draws.log_weights, float).ravel()
    if np.ptp(log_weights) == 0:
        return None
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _weighted_moments(values: np.ndarray, shares: np.ndarray) -> tuple[float, ...]:
    """Mean, standard deviation, both ends of the interval, and effective number."""
    mean = float(shares @ values)
    std = float(np.sqrt(shares @ (values - mean) ** 2))
    order = np.argsort(values)
    ends = np.searchsorted(np.cumsum(shares[order]), [0.025, 0.975])
    low, high = values[order][np.minimum(ends, values.size - 1)]
    return mean, std, float(low), float(high), float(1 / np.sum(shares**2))


def _draw_warnings(report: dict[str, Any]) -> tuple[str, ...]:
    warnings = list(report.get("warnings", ()))
    if report.get("interrupted", False):
        count = next(iter(report["sample_stats"].values())).shape[1]
        warnings.append(f"the run was interrupted after {count} draws of each chain")
    if report.get("divergences", 0):
        warnings.append(
            f"{report['divergences']} divergent transitions: the draws may miss a region; raise "
            "target_accept, or reparametrise the program"
        )
    if report.get("max_rhat", 1.0) > 1.01:
        warnings.append(f"R-hat is up to {report['max_rhat']:.3f}: the chains have not mixed")
    if report.get("min_ess", np.inf) < 100:
        warnings.append(f"effective sample size is down to {report['min_ess']:.0f}")
    return tuple(dict.fromkeys(warnings))  # an engine may have said the same
