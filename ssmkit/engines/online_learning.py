"""Parameters that are learned as data arrive: the score of each step, and what follows it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ssmkit.engines.online_step import Carried, Outcome, blank
from ssmkit.learned.backward import Filter
from ssmkit.models.base import StateSpaceModel, as_arrays
from ssmkit.models.following import Following
from ssmkit.models.programs import (
    Program,
    build,
    build_with_prior,
    constrain,
    free_sites,
    unconstrain,
)
from ssmkit.objectives.online_elbo import log_terms
from ssmkit.reprs import call_repr
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Key, PyTree


class Adaptive(Following):
    """The model of a program at parameters that move on as data arrive.

    Attributes:
        params: unconstrained values by site.
        program: the program.
    """

    params: dict[str, PyTree]
    program: Program

    def built(self) -> StateSpaceModel:
        """The model at these parameters."""
        return build(self.program, self.values())

    def values(self) -> dict[str, PyTree]:
        """The parameters on their own scale."""
        return constrain(free_sites(self.program), self.params)

    @property
    def followed(self) -> StateSpaceModel:
        """The model at these parameters."""
        return self.built()


def adaptive(program: Program, values: dict[str, PyTree] | None = None) -> Adaptive:
    """The model of a program at given values, or at its start values."""
    sites = free_sites(program)
    values = values or {name: site.value for name, site in sites.items()}
    return as_arrays(Adaptive(unconstrain(sites, values), program))


def model_now(model: StateSpaceModel, carried: Carried | None) -> StateSpaceModel:
    """The model at the parameters learned so far."""
    if carried is None or carried.learning is None or not isinstance(model, Adaptive):
        return model
    return dataclasses.replace(model, params=carried.learning.params)


def model_told(model: Adaptive, carried: Carried) -> Adaptive:
    """The model at the parameters that are reported: their mean over time, where one is kept."""
    learning = carried.learning
    average = learning.params if learning.average is None else learning.average
    return dataclasses.replace(model, params=average)


@dataclasses.dataclass(frozen=True, repr=False)
class StochasticAscent:
    r"""Steps of the parameters along the increments of the score, by Adam.

    \[\gamma_k = \gamma \frac{10}{10 + k^{p}}\]

    Args:
        rate: \(\gamma\), in unconstrained units.
        power: \(p\), between one half and one for parameters that stay (Robbins and Monro); 0, and
            steps that never shrink, for parameters that drift.
        burn_in: observations before the first step: filters must settle first.
        clip: longest gradient that is believed; longer ones are shortened.
        averaging_from: observations before the parameters, unconstrained, are averaged over time
            (B. Polyak and A. Juditsky, 1992); ``params`` are then their mean, and beliefs and
            predictions still those of the parameters as they stand. None for no mean.

    Example:
        >>> import ssmkit as sk
        >>> sk.OnlineVariational(ascent=sk.StochasticAscent(rate=3e-3, burn_in=100)).ascent
        StochasticAscent(rate=0.003, burn_in=100)
    """

    rate: float = 1e-2
    power: float = 0.6
    burn_in: int = 5
    clip: float = 100.0
    averaging_from: int | None = None

    __repr__ = call_repr

    def build(self) -> Any:
        """Make the optax object."""
        import optax

        schedule = lambda count: self.rate * 10 / (10 + count**self.power)  # noqa: E731
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(schedule))


class Learning(NamedTuple):
    r"""Parameters and what learns them.

    Attributes:
        params: unconstrained.
        state: of the optimiser.
        score: what is carried of the score: of the state, in units of the filter; or, of filters
            that are differentiated, the slopes of what they carry.
        increment: estimate of the last observation's score, \(\nabla \log p(y_t \mid y_{0:t-1})\).
        count: observations of this series so far.
        average: of the parameters over time; None where there is none.
    """

    params: dict[str, PyTree]
    state: Any
    score: Any
    increment: Array
    count: Array
    average: dict[str, PyTree] | None


def begin(ascent: Any, model: StateSpaceModel) -> Learning | None:
    """Before the first observation; None where nothing is learned."""
    if not isinstance(model, Adaptive):
        return None
    flat = ravel_pytree(model.params)[0]
    state, count = ascent.build().init(model.params), jnp.zeros((), jnp.int32)
    average = None if ascent.averaging_from is None else model.params
    return Learning(model.params, state, None, jnp.zeros_like(flat), count, average)


def begin_score(settings: Any, key: Key, noise: Array, learning: Learning | None) -> Any:
    """The same with a score of which nothing is known, at draws."""
    if learning is None:
        return None
    score = blank(settings.carried_score, key, noise, learning.increment.shape[0])
    return learning._replace(score=score)


def learn(
    settings: Any,
    key: Key,
    model: Adaptive,
    last: tuple[Filter, Learning] | None,
    s: Step,
    done: Outcome,
) -> Outcome:
    """Carry the score on, and step along its increment.

    Args:
        settings: the engine.
        key: of the fit.
        model: the model at the parameters of this step.
        last: filter and learning of the step before; None at the first.
        s: the observation.
        done: the step, with the noise of draws of the state and the state before.
    """
    learning: Learning = done.carried.learning
    past = None if last is None else last[1].score.past(last[0])
    scores, earlier = _scores(model, past, s, done)
    increment = jnp.mean(scores, axis=0)
    if past is not None:
        increment = increment + jnp.mean(earlier - past.level(done.noise[:, 1]), axis=0)
        scores = scores + earlier
    centred = scores - jnp.mean(scores, axis=0)
    before = None if last is None else last[1].score
    score = settings.carried_score.fit(key, done.noise[:, 0], centred, before)
    learned = ascend(settings.ascent, model, learning, increment, score)
    return done._replace(carried=done.carried._replace(learning=learned))


def _scores(model: Adaptive, past: Any, s: Step, done: Outcome) -> tuple[Array, Any]:
    """At each draw the score of this step, and the carried score of the past."""
    filter, kernel = done.carried.filter, done.kernel

    def terms(params: Any, before: Any, x: Array) -> Array:
        return log_terms(dataclasses.replace(model, params=params).built(), s, before, x)

    def one(noise: Array) -> tuple[Array, Any]:
        x = filter.draw(noise[0])
        average = lambda function: past.average(function, kernel, x, noise[1])  # noqa: E731
        if past is None:
            value, earlier = lambda params: terms(params, None, x), None
        else:
            value = lambda params: average(lambda before, _: terms(params, before, x))  # noqa: E731
            earlier = average(lambda _, carried: carried)
        return ravel_pytree(jax.grad(value)(model.params))[0], earlier

    return jax.vmap(one)(done.noise)


def ascend(
    ascent: StochasticAscent, model: Adaptive, learning: Learning, increment: Array, score: Any
) -> Learning:
    """Step along the score of one observation, and hold what is carried of the score."""
    params, state = _stepped(ascent, model, learning, increment)
    average = _averaged(ascent, learning, params)
    return Learning(params, state, score, increment, learning.count + 1, average)


def _averaged(ascent: StochasticAscent, learning: Learning, params: Any) -> Any:
    if ascent.averaging_from is None:
        return None
    count = learning.count + 1 - ascent.averaging_from

    def mix(old: Array, new: Array) -> Array:
        share = 1 / jnp.maximum(count, 1).astype(new.dtype)
        return (1 - share) * old + share * new

    return jax.tree.map(mix, learning.average, params)


def _stepped(
    ascent: StochasticAscent, model: Adaptive, learning: Learning, increment: Array
) -> tuple[Any, Any]:
    import optax

    unravel = ravel_pytree(model.params)[1]
    sites = free_sites(model.program)

    def log_prior(params: Any) -> Array:
        return build_with_prior(model.program, constrain(sites, params))[1]

    # one observation's share of the prior
    share = jax.tree.map(lambda a: a / (learning.count + 1), jax.grad(log_prior)(model.params))
    slope = jax.tree.map(lambda a, b: -(a + b), unravel(increment), share)
    change, state = ascent.build().update(slope, learning.state, learning.params)
    moved = optax.apply_updates(learning.params, change)
    finite = jnp.all(jnp.isfinite(ravel_pytree((slope, moved))[0]))
    use = finite & (learning.count >= ascent.burn_in)
    pick = lambda new, old: jnp.where(use, new, old)  # noqa: E731 - one line
    params = jax.tree.map(pick, moved, learning.params)
    return params, jax.tree.map(pick, state, learning.state)
