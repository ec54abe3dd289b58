"""Learned pieces: twists and proposals of particle algorithms, the networks in them, and flows.

The builders come first; then what pieces of your own get (`Setting`, `Scale`) and give (`Draw`, by
`from_law` and `own_law`), and what an engine hands back (`Learned`, with `Pieces`).
"""

from ssmkit.learned.amortised import Amortised as Amortised
from ssmkit.learned.analytic import Analytic as Analytic
from ssmkit.learned.corrected import Corrected as Corrected
from ssmkit.learned.encoders import PerStep as PerStep
from ssmkit.learned.encoders import Recurrent as Recurrent
from ssmkit.learned.encoders import Windowed as Windowed
from ssmkit.learned.flows import CouplingFlow as CouplingFlow
from ssmkit.learned.flows import Flow as Flow
from ssmkit.learned.heads import Network as Network
from ssmkit.learned.heads import Quadratic as Quadratic
from ssmkit.learned.heads import Sum as Sum
from ssmkit.learned.network_regression import NetworkRegression as NetworkRegression
from ssmkit.learned.path_flow import PathFlow as PathFlow
from ssmkit.learned.pieces import Learned as Learned
from ssmkit.learned.pieces import Pieces as Pieces
from ssmkit.learned.proposals import Gaussian as Gaussian
from ssmkit.learned.proposals import Induced as Induced
from ssmkit.learned.proposals import PerStepGaussian as PerStepGaussian
from ssmkit.learned.quadrature import Quadrature as Quadrature
from ssmkit.learned.reading import Scale as Scale
from ssmkit.learned.reading import Setting as Setting
from ssmkit.learned.recursive import RecursiveMonteCarlo as RecursiveMonteCarlo
from ssmkit.learned.regression import KernelRidge as KernelRidge
from ssmkit.learned.regression import Polynomial as Polynomial
from ssmkit.learned.replay_buffer import ReplayBuffer as ReplayBuffer
from ssmkit.learned.starts import LinearisedStart as LinearisedStart
from ssmkit.learned.starts import PredictedStart as PredictedStart
from ssmkit.learned.twists import Twist as Twist
from ssmkit.smc.proposals import Draw as Draw
from ssmkit.smc.proposals import from_law as from_law
from ssmkit.smc.proposals import own_law as own_law
