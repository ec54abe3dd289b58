"""The importance-weighted bound."""

from __future__ import annotations

import dataclasses

from ssmkit.objectives.bound import Bound


@dataclasses.dataclass(frozen=True, repr=False)
class IWAE(Bound):
    r"""Importance weighting of whole paths: nothing is ever resampled.

    \[\mathrm{E}\log\frac1K\sum_k \frac{p(x^k_{0:T-1}, y)}{q(x^k_{0:T-1} \mid y)}\]

    Args:
        threshold: 0; twists cancel.

    Source: Y. Burda, R. Grosse and R. Salakhutdinov (2016), Importance weighted autoencoders.
    """

    threshold: float = 0.0

    uses_twist = False
