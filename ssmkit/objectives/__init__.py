"""Objectives by which engines learn: one file a paper."""

from ssmkit.objectives.contrastive import Contrastive as Contrastive
from ssmkit.objectives.density_ratio import DensityRatio as DensityRatio
from ssmkit.objectives.fivo import FIVO as FIVO
from ssmkit.objectives.iwae import IWAE as IWAE
from ssmkit.objectives.least_squares import LeastSquares as LeastSquares
from ssmkit.objectives.nas_x import NASX as NASX
from ssmkit.objectives.nasmc import NASMC as NASMC
from ssmkit.objectives.sixo import SIXO as SIXO
