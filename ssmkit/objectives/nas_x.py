"""Neural adaptive smoothing via twisting."""

from __future__ import annotations

import dataclasses

from ssmkit.objectives.reweighted import Reweighted


@dataclasses.dataclass(frozen=True, repr=False)
class NASX(Reweighted):
    r"""Wake-sleep with the weights of the smoothing laws, by a twist.

    \[W_t^k \propto w_t^k\, \psi_{t+1}(x_t^k)\]

    Source: D. Lawson, M. Li and S. Linderman (2023), NAS-X: neural adaptive smoothing via twisting.
    """
