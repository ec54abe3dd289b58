"""Neural adaptive sequential Monte Carlo."""

from __future__ import annotations

import dataclasses

from ssmkit.objectives.reweighted import Reweighted


@dataclasses.dataclass(frozen=True, repr=False)
class NASMC(Reweighted):
    r"""Wake-sleep with the weights of the filtering laws.

    \[W_t^k \propto w_t^k\]

    Source: S. Gu, Z. Ghahramani and R. Turner (2015), Neural adaptive sequential Monte Carlo.
    """

    uses_twist = False
