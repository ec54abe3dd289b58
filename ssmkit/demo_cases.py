"""What ``ssmkit demo`` fits: one entry a case.

A case is a series, a program, an engine, and what to draw. Another engine joins with one entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import ssmkit as sk

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the demo.

    Attributes:
        name: stem of the file names.
        series: name of the data set.
        model: the model in words.
        program: a program that builds the model.
        engine: the engine.
        forecast_steps: steps to forecast.
        units: label of the data.
        panels: states to draw with their units; ``"components"`` draws these, ``"volatility"``
            the standard deviation of returns whose log variance is the state.
        remark: what a reader should know, in a line or two.
        stride: take every so many observations.
        last: take the last so many observations; None takes all.
        centred: subtract the mean of these observations.
    """

    name: str
    series: str
    model: str
    program: Callable[[], Any]
    engine: Any
    forecast_steps: int
    units: str
    panels: tuple[tuple[str, str], ...]
    remark: str
    stride: int = 1
    last: int | None = None
    centred: bool = False

    def load(self) -> Any:
        """The series, with its dates."""
        data = sk.data.load(self.series).iloc[:: self.stride]
        data = data if self.last is None else data.iloc[-self.last :]
        return data - data.mean() if self.centred else data


def _positive(name: str, start: float) -> Any:
    return numpyro.param(name, start, constraint=dist.constraints.positive)


def _half_normal(name: str, scale: float) -> Any:
    return numpyro.sample(name, dist.HalfNormal(scale))


def nile_level() -> Any:
    """Local level, both variances fitted."""
    return sk.models.LocalLevel(
        level_variance=_positive("level_variance", 1e3),
        noise_variance=_positive("noise_variance", 1e4),
    )


def nile_level_with_priors() -> Any:
    """Local level; priors on standard deviations, in the units of the data."""
    return sk.models.LocalLevel(
        level_variance=_half_normal("level_std", 100.0) ** 2,
        noise_variance=_half_normal("noise_std", 300.0) ** 2,
    )


def co2_structural() -> Any:
    """Trend, fixed season, first-order autoregression and noise; variances in ppm².

    A season that may change is estimated as fixed (its variance goes to zero), so it is fixed
    here. The autoregression lowers AIC from 326 to 318; a cycle in its place, to 319.
    """
    trend = sk.models.LocalLinearTrend(
        level_variance=_positive("level_variance", 0.05),
        slope_variance=_positive("slope_variance", 1e-5),
        noise_variance=_positive("noise_variance", 0.02),
    )
    inside = dist.constraints.interval(-1.0, 1.0)
    coefficient: Any = numpyro.param("ar_coefficient", jnp.array(0.5), constraint=inside)
    short = sk.models.AutoRegressive(coefficient[None], _positive("ar_variance", 0.02))
    return trend + sk.models.Seasonal(12, 0.0) + short


def co2_yearly() -> Any:
    """Smooth trend with noise, for ``--quick``."""
    return sk.models.LocalLinearTrend(
        level_variance=0.0,
        slope_variance=_positive("slope_variance", 0.01),
        noise_variance=_positive("noise_variance", 0.1),
    )


def volatility_with_priors() -> Any:
    """Stochastic volatility of returns in per cent; the prior of the persistence is near 0.95."""
    mean: Any = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    persistence: Any = numpyro.sample("persistence", dist.Beta(20.0, 1.5))
    return sk.models.StochasticVolatility(mean, persistence, scale=_half_normal("scale", 0.5))


FLOW, PPM = "flow, 10⁸ m³ a year", "CO₂, ppm"
ONE_START = sk.GradientFit(evidence=sk.Kalman(), num_starts=1)

CASES = (
    Case(
        name="nile-fit",
        series="nile",
        model="local level",
        program=nile_level,
        engine=sk.GradientFit(evidence=sk.Kalman()),
        forecast_steps=10,
        units=FLOW,
        panels=(("level", FLOW),),
        remark="maximum likelihood; the likelihood is skewed, so look at the interval as well",
    ),
    Case(
        name="nile-nuts",
        series="nile",
        model="local level, priors on both scales",
        program=nile_level_with_priors,
        engine=sk.NUTS(evidence=sk.Kalman(), num_warmup=1000, num_samples=1000),
        forecast_steps=10,
        units=FLOW,
        panels=(("level", FLOW),),
        remark="bands and forecast carry the uncertainty of the parameters as well",
    ),
    Case(
        name="co2-fit",
        series="co2",
        model="linear trend + season + AR(1)",
        program=co2_structural,
        engine=ONE_START,
        forecast_steps=36,
        units=PPM,
        panels=(("components", PPM), ("slope", "CO₂, ppm a month")),
        remark="monthly, five months missing. The season grows a little with the level, which a "
        "fixed\nseason misses: 100 log(ppm) would fit better (AIC 312 against 318, in ppm)",
    ),
    Case(
        name="sp500-pmmh",
        series="sp500",
        model="stochastic volatility, priors on all three",
        program=volatility_with_priors,
        engine=sk.ParticleMetropolisHastings(
            sk.SMC(num_particles=200, smoother="backward_mcmc", num_paths=100),
            num_warmup=600,
            num_samples=1200,
            num_particles=200,
        ),
        forecast_steps=20,
        units="return, per cent a day",
        panels=(("volatility", "per cent a day"),),
        remark="the last 500 trading days of 2017 and 2018, less their mean (0.02 per cent a day), "
        "for which\nthe model has no parameter; states averaged over 50 of the draws. R-hat near "
        "1.02 is what\na minute buys: means to 0.03 at best, and num_samples=10_000 for more",
        last=500,
        centred=True,
    ),
)

QUICK_CASES = (
    dataclasses.replace(CASES[0], engine=ONE_START),
    dataclasses.replace(
        CASES[2],
        model="smooth trend, every March",
        program=co2_yearly,
        forecast_steps=10,
        panels=(("components", PPM), ("slope", "CO₂, ppm a year")),
        remark="a smoke test of the plots and files",
        stride=12,
    ),
)
