"""Plots: axes in, axes out. Matplotlib is imported at the first plot.

Every function draws on ``ax`` (or ``axes``) where given and returns it; global settings of
matplotlib are left alone.
"""

from ssmkit.plots.lines import forecast, states
from ssmkit.plots.panels import components, residuals

__all__ = ["components", "forecast", "residuals", "states"]
