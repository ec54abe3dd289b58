"""The unscented Kalman filter and smoother."""

from __future__ import annotations

import dataclasses

from ssmkit.engines.options import short_repr
from ssmkit.errors import OptionError
from ssmkit.kalman.affine import Linearisation, sigma_points
from ssmkit.kalman.engine import GaussianEngine
from ssmkit.models.base import StateSpaceModel
from ssmkit.typing import Inputs


@dataclasses.dataclass(frozen=True, repr=False)
class UnscentedKalman(GaussianEngine):
    """Filter and smoother for nonlinear models by statistical linear regression on sigma points.

    The evidence is that of the regressed model: ``approximate``.

    Args:
        alpha: spread of the points.
        beta: extra weight of the central point in covariances.
        kappa: second spread parameter; points lie ``alpha * sqrt(D + kappa)`` standard
            deviations out.
        form: as in `Kalman`.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.PoissonCounts(0.9, 0.3, 1.0)
        >>> ys = sk.simulate(0, model, 30).observations
        >>> sk.infer(0, sk.UnscentedKalman(), model, ys).states.mean().shape
        (30,)

    Source: Julier and Uhlmann (2004); Särkkä (2008) for the smoother.
    """

    alpha: float = 1.0
    beta: float = 0.0
    kappa: float = 1.0
    form: str = "auto"

    __repr__ = short_repr

    @property
    def rule(self) -> Linearisation:
        """Regress on sigma points."""
        return sigma_points(self.alpha, self.beta, self.kappa)

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Check the options, then the model."""
        if not self.alpha > 0 or not self.kappa > -1:
            raise OptionError(
                "the sigma points would collapse.",
                got=f"alpha={self.alpha}, kappa={self.kappa}",
                expected="alpha > 0 and kappa > -1",
            )
        super().check(model, us)
