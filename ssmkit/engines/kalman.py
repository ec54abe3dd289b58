"""The Kalman filter and smoother."""

from __future__ import annotations

import dataclasses

from ssmkit.engines.options import short_repr
from ssmkit.kalman.affine import Linearisation, exact
from ssmkit.kalman.engine import GaussianEngine


@dataclasses.dataclass(frozen=True, repr=False)
class Kalman(GaussianEngine):
    r"""Exact filter, smoother, path draws and evidence for linear Gaussian models.

    \[x_t \mid y_{0:t} \sim N(m_t, P_t), \qquad
      \log p(y) = \sum_t \log N(y_t; H m_{t|t-1} + d, H P_{t|t-1} H^\top + R)\]

    Linearity is read off the model's three methods and proven before compilation. Singular
    transitions and diffuse starts are exact; the diffuse log evidence follows Durbin and Koopman.

    Args:
        form: ``"covariance"`` (fast), ``"square_root"`` (twice the digits) or ``"auto"``: the
            first in float64, the second in float32.

    Example:
        >>> import ssmkit as sk
        >>> nile = sk.data.load("nile")
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, nile)
        >>> round(float(posterior.log_evidence), 2)
        -633.46

    Source: Kalman (1960); Rauch, Tung and Striebel (1965); de Jong (1991) for diffuse starts;
    Potter's update for the square-root form.
    """

    form: str = "auto"

    evidence_kind = "exact"

    __repr__ = short_repr

    @property
    def rule(self) -> Linearisation:
        """Read matrices off the model."""
        return exact()
