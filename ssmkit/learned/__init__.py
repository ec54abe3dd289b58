"""Learned pieces of particle algorithms: twists and proposals, and the networks in them."""

from ssmkit.learned.analytic import Analytic as Analytic
from ssmkit.learned.corrected import Corrected as Corrected
from ssmkit.learned.encoders import PerStep as PerStep
from ssmkit.learned.encoders import Recurrent as Recurrent
from ssmkit.learned.encoders import Windowed as Windowed
from ssmkit.learned.heads import Network as Network
from ssmkit.learned.heads import Quadratic as Quadratic
from ssmkit.learned.heads import Sum as Sum
from ssmkit.learned.proposals import Gaussian as Gaussian
from ssmkit.learned.proposals import Induced as Induced
from ssmkit.learned.proposals import PerStepGaussian as PerStepGaussian
from ssmkit.learned.quadrature import Quadrature as Quadrature
from ssmkit.learned.twists import Twist as Twist
