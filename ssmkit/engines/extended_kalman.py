"""The extended Kalman filter and smoother."""

from __future__ import annotations

import dataclasses

from ssmkit.engines.options import short_repr
from ssmkit.errors import OptionError
from ssmkit.kalman.affine import Linearisation, taylor
from ssmkit.kalman.engine import GaussianEngine
from ssmkit.models.base import StateSpaceModel
from ssmkit.typing import Inputs


@dataclasses.dataclass(frozen=True, repr=False)
class ExtendedKalman(GaussianEngine):
    """Filter and smoother for nonlinear models by first-order expansion at the mean.

    Any law with a mean and a variance can stand in the model; it enters by these moments. The
    evidence is that of the linearised model: ``approximate``.

    Args:
        iterations: how often the emission is expanded anew at the updated mean; 1 is the
            plain filter, more is the iterated one (Gauss–Newton on each update).
        form: as in `Kalman`.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.PoissonCounts(0.9, 0.3, 1.0)
        >>> ys = sk.simulate(0, model, 30).observations
        >>> posterior = sk.infer(0, sk.ExtendedKalman(iterations=3), model, ys)
        >>> posterior.evidence_kind
        'approximate'

    Source: Särkkä (2013), Bayesian Filtering and Smoothing, ch. 5; Bell and Cathey (1993).
    """

    iterations: int = 1
    form: str = "auto"

    __repr__ = short_repr

    @property
    def rule(self) -> Linearisation:
        """Expand to first order."""
        return taylor(self.iterations)

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Check the options, then the model."""
        if self.iterations < 1:
            raise OptionError("iterations is too small.", got=self.iterations, expected="≥ 1")
        super().check(model, us)
