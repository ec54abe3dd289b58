"""Models that do what another model does, and hold something besides."""

from __future__ import annotations

import abc

from ssmkit.models.base import StateSpaceModel
from ssmkit.typing import Array, Law, PyTree


class Following(StateSpaceModel):
    """A model whose laws are those of ``followed``."""

    @property
    @abc.abstractmethod
    def followed(self) -> StateSpaceModel:
        """The model that is followed."""

    def initial(self, u: PyTree) -> Law:
        """Return the law of ``x_0``."""
        return self.followed.initial(u)

    def transition(self, x: Array, u: PyTree) -> Law:
        """Return the law of ``x_t`` given ``x_{t-1} = x``."""
        return self.followed.transition(x, u)

    def emission(self, x: Array, u: PyTree) -> Law:
        """Return the law of ``y_t`` given ``x_t = x``."""
        return self.followed.emission(x, u)

    def at(self, t: int | Array) -> StateSpaceModel:
        """Return the model that rules the step into time ``t``."""
        return self.followed.at(t)

    @property
    def num_steps(self) -> int | None:
        """Number of steps of a model whose parameters change with time, else None."""
        return self.followed.num_steps

    @property
    def state_names(self) -> tuple[str, ...] | None:
        """Names of the state coordinates."""
        return self.followed.state_names

    @property
    def observation_names(self) -> tuple[str, ...] | None:
        """Names of the observation coordinates."""
        return self.followed.observation_names
