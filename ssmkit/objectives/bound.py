"""What bounds by particle filters share: options, and a loss that is minus the bound."""

from __future__ import annotations

import dataclasses
from typing import Any

from ssmkit.learned.pieces import Pieces
from ssmkit.models.base import StateSpaceModel
from ssmkit.objectives.sweep import check_gradient, score_of_choices, sweep, told_of
from ssmkit.reprs import call_repr
from ssmkit.smc.filter import Series
from ssmkit.typing import Array, Key, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class Bound:
    r"""A lower bound \(\mathrm{E}\log\hat p(y) \le \log p(y)\), ascended by its gradient.

    Of whole series, also where the twist learns on a window of them. A piece from the middle has
    the evidence \(p(y_{s:t} \mid y_{0:s-1})\), and so begins with the filtering law at \(s\). To
    begin with stored particles takes their dependence on the parameters for zero: the gradient is
    then of no bound, and is off by as much as the model remembers. To begin with ``initial`` is
    right for a stationary start alone, and a free number for each step never sees its neighbours.
    A sweep of the whole takes a time linear in its length; from 1,000 steps on its memory is small.

    Args:
        num_particles: ``K``.
        threshold: resample when the effective number is at most this share of ``K``.
        scheme: how ancestors are drawn.
        gradient: ``"biased"`` takes ancestors for constants; ``"score"`` adds the derivative of
            their choice (multinomial, at every step).
        steps: steps of the optimiser in a round.
        batch_size: series in a step.
        optimizer: ``sk.optimizer(...)``; None for clipped Adam, 3e-3 falling along a cosine.
    """

    num_particles: int = 4
    threshold: float = 0.5
    scheme: str = "multinomial"
    gradient: str = "biased"
    steps: int = 100
    batch_size: int = 8
    optimizer: Any = None

    uses_twist = True

    __repr__ = call_repr

    def check(self) -> None:
        """Refuse impossible options.

        Raises:
            OptionError: names the option.
        """
        check_gradient(self)

    def loss(
        self, key: Key, model: StateSpaceModel, pieces: Pieces, series: Series
    ) -> tuple[Scalar, dict[str, Array]]:
        """Minus the bound of one series, in nats, and what is told of it."""
        run = sweep(
            key,
            model,
            pieces,
            series,
            num_particles=self.num_particles,
            scheme=self.scheme,
            threshold=self.threshold,
        )
        value = run.log_evidence
        if self.gradient == "score":
            value = value + score_of_choices(run)
        return -value, told_of(run)
