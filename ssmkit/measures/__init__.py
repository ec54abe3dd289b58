"""Measures of weights, predictions and residuals, as functions of arrays."""

from ssmkit.measures.predictions import Bounds as Bounds
from ssmkit.measures.predictions import as_sampled as as_sampled
from ssmkit.measures.predictions import bounds_by_draw as bounds_by_draw
from ssmkit.measures.predictions import cdf_bounds as cdf_bounds
from ssmkit.measures.predictions import crps as crps
from ssmkit.measures.predictions import crps_normal as crps_normal
from ssmkit.measures.predictions import pit as pit
from ssmkit.measures.predictions import weighted_bounds as weighted_bounds
from ssmkit.measures.residuals import TestResult as TestResult
from ssmkit.measures.residuals import normal_scores as normal_scores
from ssmkit.measures.residuals import pit_tests as pit_tests
from ssmkit.measures.residuals import residual_tests as residual_tests
from ssmkit.measures.weights import effective_sample_size as effective_sample_size
from ssmkit.measures.weights import pareto_k as pareto_k
