"""The twisted particle filter: a model, a twist and a proposal put into the one loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax

from ssmkit.learned.twists import Beyond, read_series
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.smc.feynman_kac import Recipe
from ssmkit.smc.proposals import Draw
from ssmkit.smc.recipes import Choose, Step, bootstrap, guided, steps_of, twisted
from ssmkit.typing import Array, Inputs, PyTree, Scalar


class Pieces(eqx.Module):
    """What is learned beside the parameters of a model: a twist and a proposal, or None."""

    twist: Any
    proposal: Any


class Learned(eqx.Module):
    """What an engine has learned, and how: it serves new series without training.

    Attributes:
        params: unconstrained values of the program's sites; empty for a model.
        pieces: twist and proposal.
        twist_builder: what made the twist.
        proposal_builder: what made the proposal.
    """

    params: dict[str, PyTree]
    pieces: Pieces
    twist_builder: Any = eqx.field(static=True)
    proposal_builder: Any = eqx.field(static=True)


def frozen(tree: PyTree) -> PyTree:
    """The same numbers without a gradient."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


class Read(NamedTuple):
    """What a step knows of the whole series.

    Attributes:
        now: what the twist has read from this time on; None without one.
        beyond: what it has read from the next time on.
        proposal: what the proposal has read for this time.
    """

    now: Any
    beyond: Any
    proposal: Any


class Sweepable(NamedTuple):
    """A recipe with what it is to be run on.

    Attributes:
        recipe: what happens to one particle.
        steps: ``t -> s``.
        length: number of steps ``T``.
        choose: ``(x_before or None, s) -> Draw`` of the proposal; None for the transition.
        log_twist: ``(x_{t-1}, s_t) -> scalar``; None without a twist.
    """

    recipe: Recipe
    steps: Callable[[Any], Step]
    length: int
    choose: Choose | None
    log_twist: Callable[[Array, Step], Scalar] | None


def sweepable(
    pieces: Pieces, model: StateSpaceModel, series: tuple[Array, Inputs, Any], dtype: Any
) -> Sweepable:
    """Let twist and proposal read a series, and make the recipe that uses them.

    Args:
        pieces: twist and proposal.
        model: the model.
        series: observations ``(T, *event)``, inputs and mask of one series.
        dtype: floating type of states and weights.
    """
    ys, us, mask = series
    reading: Any = None if pieces.twist is None else read_series(pieces.twist, model, series)
    known = None
    if pieces.proposal is not None:
        known = pieces.proposal.read(model, ys, us, mask)

    def read(t: Any) -> Read:
        if reading is None:
            return Read(None, None, input_at(known, t))
        return Read(reading.at(t), reading.at(t + 1), input_at(known, t))

    def choose(before: Array | None, s: Step) -> Draw:
        beyond = None if reading is None else Beyond(reading, s.read.beyond)
        return pieces.proposal.draw(model, before, s, beyond, dtype)

    steps = steps_of(ys, us, mask, read)
    if pieces.proposal is None:
        recipe = bootstrap(model, steps(0), dtype)
    else:
        recipe = guided(model, steps(0), dtype, choose)
    chosen = None if pieces.proposal is None else choose
    if reading is None:
        return Sweepable(recipe, steps, ys.shape[0], chosen, None)

    def log_twist(x: Array, s: Step) -> Scalar:
        return reading.log_twist(x, s.read.now)

    return Sweepable(twisted(recipe, log_twist), steps, ys.shape[0], chosen, log_twist)
