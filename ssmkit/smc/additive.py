"""Additive functionals of a path, whose smoothed means a particle filter carries along.

What is averaged over the states before is here; the averages are in `forward_smoothing`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp

from ssmkit.models.base import StateSpaceModel
from ssmkit.reprs import call_repr
from ssmkit.smc.recipes import Step, log_emission, log_transition
from ssmkit.smc.started import Started
from ssmkit.typing import Array, PyTree

METHODS = ("backward_mcmc", "backward", "all_pairs", "genealogy")
NEED_DENSITY = METHODS[:3]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Additive:
    """How an additive functional is averaged over the states before."""

    method: str = "backward_mcmc"
    num_draws: int = 2
    num_moves: int = 5

    always_shown = ("method",)
    __repr__ = call_repr

    def term(self, model: StateSpaceModel, before: Array | None, x: Array, s: Step) -> PyTree:
        """What one step adds, of a state and the one before (None at time zero)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, repr=False)
class AdditiveFunctional(Additive):
    r"""A sum over time, whose smoothed mean a particle filter carries along.

    \[\mathrm{E}\Big[\sum_{s \le t} h_s(x_{s-1}, x_s) \,\Big|\, y_{0:t}\Big]\]

    at every time ``t``, in memory and time a step that do not grow with ``t``: expected numbers of
    jumps, sufficient statistics, sums of squares. An option of `SMC` and `GuidedSMC`, by
    ``additive=``; the answer is ``diagnostics["additive"]`` of a posterior or a stream.

    Args:
        function: ``(model, x_before, x, y, u)`` to what a step adds: an array, or a pytree of
            arrays, of the same shapes at every time. At time zero ``x_before`` is None. What is
            missing of ``y`` is nan; -1 where ``y`` is made of integers.
        method: how states before are drawn, for each particle. ``"backward_mcmc"``: the ancestor,
            and Metropolis moves away from it, at ``num_draws * num_moves`` transition densities;
            ``"backward"``: exactly, at ``N``; ``"all_pairs"``: all of them by their weights,
            without noise, at ``N`` and ``N`` calls of ``function``; ``"genealogy"``: the ancestor
            alone, which needs no transition density; in the long run one path is left.
        num_draws: draws for each particle. With one draw too only one path is left in the long
            run; with two the variance stays in proportion to the length over ``N``. Ignored where
            nothing is drawn.
        num_moves: Metropolis moves from draw to draw.

    Raises:
        OptionError: an option has an impossible value.
        ShapeError: ``function`` returns other shapes at time zero than later.
        SingularTransitionError: a transition without a density, unless by the genealogy.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> def squares(model, x_before, x, y, u):
        ...     return 0.0 if x_before is None else (x - x_before) ** 2
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 50).observations
        >>> engine = sk.SMC(num_particles=200, additive=sk.AdditiveFunctional(squares))
        >>> posterior = sk.infer(1, engine, model, ys)
        >>> posterior.diagnostics["additive"].shape
        ()
        >>> posterior.diagnostics["running_additive"].shape
        (50,)

    Source: J. Olsson and J. Westerborn (2017), Efficient particle-based online smoothing in general
    hidden Markov models: the PaRIS algorithm.
    """

    function: Callable[..., PyTree]

    def term(self, model: StateSpaceModel, before: Array | None, x: Array, s: Step) -> PyTree:
        """What one step adds."""
        return self.function(_own(model).at(s.t), before, x, _seen(s), s.u)


@dataclasses.dataclass(frozen=True, repr=False)
class Score(Additive):
    r"""The gradient of the log evidence in a model's parameters, carried along.

    \[\nabla \log p_\theta(y_{0:t}) = \mathrm{E}\Big[\sum_{s \le t} \nabla \log
    p_\theta(x_s \mid x_{s-1})\, p_\theta(y_s \mid x_s) \,\Big|\, y_{0:t}\Big]\]

    (Fisher's identity). Parameters are the floating array fields of the model: the answer is a
    model with its derivatives in their place, and `Program.pull_back` makes it one in the sites of
    a program. Options as of `AdditiveFunctional`.

    Args:
        method: how states before are drawn.
        num_draws: draws for each particle.
        num_moves: Metropolis moves from draw to draw.

    Raises:
        OptionError: an option has an impossible value.
        SingularTransitionError: a transition without a density.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 50).observations
        >>> posterior = sk.infer(1, sk.SMC(num_particles=200, additive=sk.Score()), model, ys)
        >>> posterior.diagnostics["additive"].persistence.shape
        ()

    Source: G. Poyiadjis, A. Doucet and S. Singh (2011), Particle approximations of the score and
    observed information matrix in state space models.
    """

    def term(self, model: StateSpaceModel, before: Array | None, x: Array, s: Step) -> PyTree:
        """The score of a step, as if the states had been observed."""

        def value(model: StateSpaceModel) -> Array:
            return log_transition(model)(before, x, s) + log_emission(model, x, s)

        return eqx.filter_grad(value)(_own(model))


def _own(model: StateSpaceModel) -> StateSpaceModel:
    return model.model if isinstance(model, Started) else model


def _seen(s: Step) -> Array:
    """The observation, with a mark where there is none."""
    if s.mask is None:
        return s.y
    is_float = jnp.issubdtype(s.y.dtype, jnp.inexact)
    mask = jnp.reshape(s.mask, s.mask.shape + (1,) * (s.y.ndim - s.mask.ndim))
    return jnp.where(mask, s.y, jnp.nan if is_float else -1)
