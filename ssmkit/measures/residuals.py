"""Tests of residuals, and of probabilities that should be uniform; on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EDGE = 1e-10  # a probability is kept this far from 0 and 1, where its normal score is infinite


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


def normal_scores(pit: np.ndarray) -> np.ndarray:
    r"""Normal scores \(\Phi^{-1}(u)\) of probabilities; nan stays nan.

    Args:
        pit: any shape, in [0, 1].
    """
    from scipy.special import ndtri

    return ndtri(np.clip(np.asarray(pit, float), EDGE, 1 - EDGE))


def pit_tests(pit: np.ndarray, lags: int = 10) -> list[TestResult]:
    r"""Test that probability integral transforms are independent and uniform.

    Kolmogorov–Smirnov for uniformity; then on the normal scores \(z = \Phi^{-1}(u)\) the sum of
    squares for unit variance (two-sided \(\chi^2\)) and the three of `residual_tests`, which do
    not look at mean and scale.

    Args:
        pit: ``(T,)``; nan where nothing was observed.
        lags: number of autocorrelations.

    Returns:
        Five results; empty for fewer than 20 values.

    Source: F. X. Diebold, T. A. Gunther and A. S. Tay (1998), Evaluating density forecasts.
    """
    from scipy.stats import chi2, kstest

    u = np.asarray(pit, float)
    u = u[np.isfinite(u)]
    if u.size < 20:
        return []
    distance, p_value = kstest(u, "uniform")
    uniform = TestResult("uniformity (Kolmogorov–Smirnov)", float(distance), float(p_value))
    z = normal_scores(u)
    square = float(np.sum(z**2))
    two_sided = 2 * min(chi2.sf(square, u.size), chi2.cdf(square, u.size))
    scale = TestResult("unit variance (χ² / n)", square / u.size, float(two_sided))
    return [uniform, scale, *residual_tests(z, lags)]


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
