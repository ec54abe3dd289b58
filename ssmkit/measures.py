"""Measures of beliefs and residuals, as functions of arrays."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from ssmkit.typing import Array, Float, Scalar


def effective_sample_size(log_weights: Float[Array, " N"]) -> Scalar:
    r"""Effective sample size of weighted draws, \(1 / \sum_i W_i^2\).

    Args:
        log_weights: unnormalised log weights ``(N,)``.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(effective_sample_size(jnp.zeros(10))), 6)
        10.0
    """
    weights = jax.nn.softmax(log_weights)
    return 1 / (weights**2).sum()


class TestResult(NamedTuple):
    """A test of standardised residuals: statistic and p-value."""

    name: str
    statistic: float
    p_value: float


def residual_tests(residuals: np.ndarray, lags: int = 10) -> list[TestResult]:
    """Test that standardised one-step residuals are normal, uncorrelated and of steady size.

    Jarque–Bera for normality, Ljung–Box for correlation up to ``lags``, and the ratio of the sums
    of squares of the last and first third for heteroskedasticity (two-sided F).

    Args:
        residuals: ``(T,)``; nan where nothing was observed.
        lags: number of autocorrelations.

    Returns:
        Three results; empty for fewer than 20 residuals.

    Source: Durbin and Koopman (2012), Time Series Analysis by State Space Methods, 2.12.
    """
    e = np.asarray(residuals, float)
    e = e[np.isfinite(e)]
    if e.size < 20:
        return []
    return [_normality(e), _correlation(e, min(lags, e.size // 4)), _steadiness(e)]


def _normality(e: np.ndarray) -> TestResult:
    from scipy.stats import chi2

    z = (e - e.mean()) / e.std()
    statistic = e.size * (np.mean(z**3) ** 2 / 6 + (np.mean(z**4) - 3) ** 2 / 24)
    return TestResult("normality (Jarque–Bera)", float(statistic), float(chi2.sf(statistic, 2)))


def _correlation(e: np.ndarray, lags: int) -> TestResult:
    from scipy.stats import chi2

    z = e - e.mean()
    r = np.array([np.sum(z[k:] * z[:-k]) for k in range(1, lags + 1)]) / np.sum(z**2)
    statistic = e.size * (e.size + 2) * np.sum(r**2 / (e.size - np.arange(1, lags + 1)))
    name = f"no correlation (Ljung–Box, {lags} lags)"
    return TestResult(name, float(statistic), float(chi2.sf(statistic, lags)))


def _steadiness(e: np.ndarray) -> TestResult:
    from scipy.stats import f

    third = e.size // 3
    statistic = np.sum(e[-third:] ** 2) / np.sum(e[:third] ** 2)
    one_sided = f.sf(statistic, third, third)
    p_value = 2 * min(one_sided, 1 - one_sided)
    return TestResult("steady variance (F, last third / first)", float(statistic), float(p_value))
