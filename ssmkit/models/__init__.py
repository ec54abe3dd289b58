"""State-space models: the contract, and one file a model."""

from ssmkit.models.additive_gaussian import AdditiveGaussian
from ssmkit.models.base import Simulation, StateSpaceModel, log_joint, simulate
from ssmkit.models.chaotic_network import ChaoticNetwork
from ssmkit.models.discrete_hmm import DiscreteHMM
from ssmkit.models.distributions import Diffuse, SingularNormal
from ssmkit.models.gaussian_drift import GaussianDrift
from ssmkit.models.growth import Growth
from ssmkit.models.hodgkin_huxley import HodgkinHuxley
from ssmkit.models.linear_gaussian import LinearGaussian
from ssmkit.models.lorenz import Lorenz63
from ssmkit.models.multivariate_volatility import MultivariateStochasticVolatility
from ssmkit.models.observation import observed_log_prob
from ssmkit.models.pendulum import Pendulum
from ssmkit.models.poisson_counts import PoissonCounts
from ssmkit.models.stochastic_volatility import StochasticVolatility
from ssmkit.models.structural import (
    AutoRegressive,
    Cycle,
    LocalLevel,
    LocalLinearTrend,
    Regression,
    Seasonal,
    Structural,
    StructuralSum,
)

__all__ = [
    "AdditiveGaussian",
    "AutoRegressive",
    "ChaoticNetwork",
    "Cycle",
    "Diffuse",
    "DiscreteHMM",
    "GaussianDrift",
    "Growth",
    "HodgkinHuxley",
    "LinearGaussian",
    "LocalLevel",
    "LocalLinearTrend",
    "Lorenz63",
    "MultivariateStochasticVolatility",
    "Pendulum",
    "PoissonCounts",
    "Regression",
    "Seasonal",
    "Simulation",
    "SingularNormal",
    "StateSpaceModel",
    "StochasticVolatility",
    "Structural",
    "StructuralSum",
    "log_joint",
    "observed_log_prob",
    "simulate",
]
