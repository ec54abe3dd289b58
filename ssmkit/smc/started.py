"""Models past their start: a stream that begins at a belief never draws from the initial law."""

from __future__ import annotations

import jax.numpy as jnp

from ssmkit.models.base import StateSpaceModel, abstract_law
from ssmkit.models.distributions import Diffuse, is_a
from ssmkit.models.following import Following
from ssmkit.typing import Array, Law, PyTree


class Started(Following):
    """A model whose initial law is of use for its shape only; diffuse ones cannot be drawn from."""

    model: StateSpaceModel

    @property
    def followed(self) -> StateSpaceModel:
        """The model with its own start."""
        return self.model

    def initial(self, u: PyTree) -> Law:
        """Return a law of a state, with what can be asked of one."""
        start = abstract_law(lambda: self.model.initial(u))
        return self.model.transition(jnp.zeros(start.event_shape, start.mean.dtype), u)

    def at(self, t: int | Array) -> StateSpaceModel:
        """Return the model that rules the step into time ``t``, past its start as well."""
        return Started(self.model.at(t))


def started(model: StateSpaceModel, u: PyTree) -> StateSpaceModel:
    """The model, fit for steps after the first one even where its start is diffuse."""
    start = abstract_law(lambda: model.at(0).initial(u))
    return Started(model) if is_a(start, Diffuse) else model
