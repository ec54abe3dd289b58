"""ssmkit: probabilistic inference in state-space models.

A *model* is three distributions; a *program* declares or samples its parameters; an *engine* says
how; ``infer(key, engine, target, ys)`` returns a *posterior*. All public names are here and in
``ssmkit.models``, ``ssmkit.data`` and ``ssmkit.plots``.
"""

from ssmkit import data as data
from ssmkit import errors as errors
from ssmkit import learned as learned
from ssmkit import models as models
from ssmkit import objectives as objectives
from ssmkit import plots as plots
from ssmkit import smc as smc
from ssmkit.alarm import Alarm as Alarm
from ssmkit.beliefs import Categorical as Categorical
from ssmkit.beliefs import Gaussian as Gaussian
from ssmkit.beliefs import GaussianMixture as GaussianMixture
from ssmkit.beliefs import Particles as Particles
from ssmkit.bounds import EvidenceBounds as EvidenceBounds
from ssmkit.bounds import evidence_bounds as evidence_bounds
from ssmkit.compare import compare as compare
from ssmkit.diagnose import Diagnosis as Diagnosis
from ssmkit.diagnose import diagnose as diagnose
from ssmkit.diagnostics import components as components
from ssmkit.diagnostics import residuals as residuals
from ssmkit.engines.ensemble_kalman import EnsembleKalman as EnsembleKalman
from ssmkit.engines.extended_kalman import ExtendedKalman as ExtendedKalman
from ssmkit.engines.fab import FAB as FAB
from ssmkit.engines.forward_backward import ForwardBackward as ForwardBackward
from ssmkit.engines.gradient_fit import GradientFit as GradientFit
from ssmkit.engines.guided_smc import GuidedSMC as GuidedSMC
from ssmkit.engines.kalman import Kalman as Kalman
from ssmkit.engines.nuts import NUTS as NUTS
from ssmkit.engines.online_learning import StochasticAscent as StochasticAscent
from ssmkit.engines.online_variational import OnlineVariational as OnlineVariational
from ssmkit.engines.options import optimizer as optimizer
from ssmkit.engines.particle_metropolis_hastings import (
    ParticleMetropolisHastings as ParticleMetropolisHastings,
)
from ssmkit.engines.recursive_likelihood import RecursiveLikelihood as RecursiveLikelihood
from ssmkit.engines.sixo import SIXO as SIXO
from ssmkit.engines.smc import SMC as SMC
from ssmkit.engines.unscented_kalman import UnscentedKalman as UnscentedKalman
from ssmkit.evidence import log_evidence as log_evidence
from ssmkit.forecast import Forecast as Forecast
from ssmkit.forecast import forecast as forecast
from ssmkit.infer import infer as infer
from ssmkit.models.base import Simulation as Simulation
from ssmkit.models.base import StateSpaceModel as StateSpaceModel
from ssmkit.models.base import log_joint as log_joint
from ssmkit.models.base import simulate as simulate
from ssmkit.models.density import Density as Density
from ssmkit.models.distributions import Diffuse as Diffuse
from ssmkit.models.distributions import SingularNormal as SingularNormal
from ssmkit.models.observation import observed_log_prob as observed_log_prob
from ssmkit.models.programs import Program as Program
from ssmkit.models.programs import program as program
from ssmkit.posterior import Posterior as Posterior
from ssmkit.replicates import Replicates as Replicates
from ssmkit.replicates import replicate_evidence as replicate_evidence
from ssmkit.serialise import load_posterior as load_posterior
from ssmkit.smc.additive import AdditiveFunctional as AdditiveFunctional
from ssmkit.smc.additive import Score as Score
from ssmkit.smc.proposals import Linearised as Linearised
from ssmkit.smc.proposals import Proposal as Proposal
from ssmkit.stream import Stream as Stream
from ssmkit.stream import load_stream as load_stream
from ssmkit.stream import stream as stream

__version__ = "0.1.0"
