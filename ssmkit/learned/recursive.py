"""Values that are carried at the draws they belong to: recursive Monte Carlo, without a fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax

from ssmkit.learned.backward import Filter
from ssmkit.learned.past import CloudPast
from ssmkit.reprs import call_repr
from ssmkit.typing import Array, Float, Key


class Cloud(eqx.Module):
    """Values at draws.

    Attributes:
        points: in units of the filter, ``(N, D)``.
        values: ``(N, k)``.
    """

    points: Float[Array, "N D"]
    values: Float[Array, "N k"]

    def past(self, filter: Filter) -> CloudPast:
        """As the next step sees it."""
        return CloudPast(filter, jax.vmap(filter.draw)(self.points), self.values)


@dataclasses.dataclass(frozen=True, repr=False)
class RecursiveMonteCarlo:
    r"""Values at a cloud of draws, weighed by the backward kernel, in place of a regression.

    \[V_t(x) = \sum_j w_j(x)\big(V_{t-1}(x^j) + r_t(x^j, x)\big), \qquad
    w_j(x) \propto \frac{q_t(x^j \mid x)}{q_{t-1}(x^j)}, \quad x^j \sim q_{t-1}\]

    No bandwidth, no penalty, and an error that goes to zero as the cloud grows; its bias is of the
    order of ``1 / N``. Each draw of a gradient step looks at the whole cloud. Weights lose their
    draws to few in many dimensions, where a regression is better.

    Args:
        num_points: draws ``N`` in the cloud.

    Example:
        >>> import ssmkit as sk
        >>> sk.OnlineVariational(value=sk.learned.RecursiveMonteCarlo(num_points=50)).value
        RecursiveMonteCarlo(num_points=50)

    Source: Chagneux, Müller, Gloaguen, Le Corff and Olsson (2026), arXiv 2602.06579.
    """

    num_points: int = 100

    needs_slopes = False

    __repr__ = call_repr

    def fit(
        self, key: Key, z: Float[Array, "N D"], targets: Float[Array, "N k"], last: Any
    ) -> Cloud:
        """Keep values at draws in standard units."""
        return Cloud(z, targets)
