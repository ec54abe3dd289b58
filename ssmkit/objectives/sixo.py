"""The smoothing variational objective."""

from __future__ import annotations

import dataclasses

from ssmkit.objectives.bound import Bound


@dataclasses.dataclass(frozen=True, repr=False)
class SIXO(Bound):
    r"""The log evidence of a twisted particle filter, whose targets are the smoothing laws.

    \[\mathrm{E}\log\prod_t \frac{\sum_k w_t^k \psi_{t+1}(x_t^k)}{\sum_k w_{t-1}^k
    \psi_t(x_{t-1}^k)}, \qquad \psi_T = 1\]

    with ancestors drawn by the weights times \(\psi\). Sharp: with \(\psi_{t+1}(x_t) \propto
    p(y_{t+1:T-1} \mid x_t)\) and the proposal that it induces the bound is \(\log p(y)\), for any
    number of particles, without variance. The twist is not learned by this bound, whose biased
    gradient makes it diverge.

    Source: D. Lawson, A. Raventós, A. Warrington and S. Linderman (2022), SIXO: smoothing inference
    with twisted objectives.
    """
