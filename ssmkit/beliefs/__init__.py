"""Beliefs: what is known of a state or an observation, at one time or at many.

All answer ``mean() cov() std() quantile(q) sample(key, n) to_frame()``; categorical ones answer
``probabilities()`` and refuse ``mean()``. Leading axes (time, series) come first, the event last.
"""

from typing import TypeAlias

from ssmkit.beliefs.base import Labels as Labels
from ssmkit.beliefs.categorical import Categorical as Categorical
from ssmkit.beliefs.gaussian import Gaussian as Gaussian
from ssmkit.beliefs.gaussian import GaussianMixture as GaussianMixture
from ssmkit.beliefs.mixing import mix as mix
from ssmkit.beliefs.particles import Particles as Particles

Belief: TypeAlias = Gaussian | GaussianMixture | Particles | Categorical
