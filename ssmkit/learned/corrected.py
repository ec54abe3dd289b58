"""A computed twist with a learned correction."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax

from ssmkit.learned.analytic import Analytic
from ssmkit.learned.heads import Network
from ssmkit.learned.reading import Setting
from ssmkit.learned.twists import Twist
from ssmkit.models.base import StateSpaceModel
from ssmkit.reprs import call_repr
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class Corrected:
    r"""Start from one twist, and learn what is missing.

    \[\log\psi_t(x) = \log\psi^0_t(x) + \mathrm{head}(x, e_t)\]

    Learn it by `objectives.Contrastive` or `objectives.LeastSquares`: a classifier would have to
    learn the scale of the first twist as well, which may be hundreds of nats.

    Args:
        start: a twist that is computed.
        correction: a twist that is learned.

    Source: F. Lindsten, J. Helske and M. Vihola (2018), Graphical model inference: sequential Monte
    Carlo meets deterministic approximations, for the start.
    """

    start: Any = Analytic()
    correction: Any = Twist(head=Network(depth=1))

    __repr__ = call_repr

    @property
    def amortised(self) -> bool:
        """Whether what is learned serves other series."""
        return self.start.amortised and self.correction.amortised

    def build(self, key: Key, setting: Setting) -> CorrectedTwist:
        """Make the arrays."""
        first, second = jax.random.split(key)
        start = self.start.build(first, setting)
        return CorrectedTwist(start, self.correction.build(second, setting))


class CorrectedTwist(eqx.Module):
    """The twists of `Corrected`."""

    start: Any
    correction: Any

    def read(self, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any) -> PyTree:
        """Let both read a series."""
        return self.start.read(model, ys, us, mask), self.correction.read(model, ys, us, mask)

    def log_twist(self, model: StateSpaceModel, x: Array, features: PyTree) -> Scalar:
        """Log twist in nats of one state."""
        first, second = features
        start = self.start.log_twist(model, x, first)
        return start + self.correction.log_twist(model, x, second)
