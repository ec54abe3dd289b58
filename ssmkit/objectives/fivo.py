"""The filtering variational objective."""

from __future__ import annotations

import dataclasses

from ssmkit.objectives.bound import Bound


@dataclasses.dataclass(frozen=True, repr=False)
class FIVO(Bound):
    r"""The log evidence of a particle filter, whose targets are the filtering laws.

    \[\mathrm{E}\log\prod_t \frac{\sum_k w_t^k}{\sum_k w_{t-1}^k}\]

    Not sharp: with the best proposal it stays below \(\log p(y)\) wherever what comes later says
    something of a state.

    Source: C. Maddison et al. (2017), Filtering variational objectives; C. Naesseth et al. (2018);
    T. A. Le et al. (2018).
    """

    uses_twist = False
