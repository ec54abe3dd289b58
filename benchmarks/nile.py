"""Maximum likelihood of the local level model on the Nile series, next to statsmodels."""

import importlib.util
import time
from typing import Any, NamedTuple

import numpyro
import numpyro.distributions as dist

import ssmkit as sk

PUBLISHED = {"level": 1469.0, "noise": 15099.0}  # Durbin and Koopman (2012), 2.10


class Fit(NamedTuple):
    """Variances with standard errors, log likelihood in nats, seconds of two fits in a row."""

    library: str
    level: float
    level_error: float
    noise: float
    noise_error: float
    log_likelihood: float
    first: float
    again: float

    def cells(self) -> list[str]:
        if self.level != self.level:
            return [self.library, *["missing"] * 5]
        return [
            self.library,
            f"{self.level:.1f} ± {self.level_error:.0f}",
            f"{self.noise:.1f} ± {self.noise_error:.0f}",
            f"{self.log_likelihood:.4f}",
            f"{self.first:.2f}",
            f"{self.again:.2f}",
        ]


HEADER = [
    "library",
    "level variance ± se",
    "noise variance ± se",
    "log likelihood",
    "first s",
    "again s",
]


def local_level() -> Any:
    positive = dist.constraints.positive
    return sk.models.LocalLevel(
        level_variance=numpyro.param("level", 1e3, constraint=positive),
        noise_variance=numpyro.param("noise", 1e4, constraint=positive),
    )


def ours() -> Fit:
    series, seconds = sk.data.load("nile"), []
    for _ in range(2):
        clock = time.perf_counter()
        engine = sk.GradientFit(evidence=sk.Kalman())
        fit = sk.infer(0, engine, local_level, series, progress=False)
        found = fit.estimates
        seconds.append(time.perf_counter() - clock)
    level, noise = (found.names.index(name) for name in ("level", "noise"))
    values, errors = found.values, found.standard_errors
    numbers = (values[level], errors[level], values[noise], errors[noise], fit.log_evidence)
    return Fit("ssmkit", *map(float, numbers), *seconds)


def statsmodels() -> Fit:
    if importlib.util.find_spec("statsmodels") is None:
        return Fit("statsmodels", *[float("nan")] * 7)
    series, seconds = sk.data.load("nile").to_numpy(), []
    for _ in range(2):
        clock = time.perf_counter()
        model = _peer(series)
        fit = model.fit(disp=False, cov_type="approx")
        noise, level = fit.params
        noise_error, level_error = fit.bse
        seconds.append(time.perf_counter() - clock)
    return Fit("statsmodels", level, level_error, noise, noise_error, fit.llf, *seconds)


def statsmodels_log_likelihood(fit: Fit) -> float:
    """Log likelihood by statsmodels at the variances of a fit; nan where it is not installed."""
    if importlib.util.find_spec("statsmodels") is None:
        return float("nan")
    return float(_peer(sk.data.load("nile").to_numpy()).loglike([fit.noise, fit.level]))


def _peer(series: Any) -> Any:
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    return UnobservedComponents(series, "local level", use_exact_diffuse=True)
