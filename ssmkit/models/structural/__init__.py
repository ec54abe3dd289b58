"""Structural components: trends, seasons, cycles, regression effects, autoregressions."""

from ssmkit.models.structural.autoregressive import AutoRegressive
from ssmkit.models.structural.base import Structural
from ssmkit.models.structural.cycle import Cycle
from ssmkit.models.structural.level import LocalLevel
from ssmkit.models.structural.regression import Regression
from ssmkit.models.structural.seasonal import Seasonal
from ssmkit.models.structural.sums import StructuralSum
from ssmkit.models.structural.trend import LocalLinearTrend

__all__ = [
    "AutoRegressive",
    "Cycle",
    "LocalLevel",
    "LocalLinearTrend",
    "Regression",
    "Seasonal",
    "Structural",
    "StructuralSum",
]
