r"""Proposals that have seen the observation.

A proposal may be any law that covers the transition; the weight corrects for it. `Linearised` is
the Gaussian approximation to the locally optimal one, \(p(x_t \mid x_{t-1}, y_t)\).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.errors import ModelError
from ssmkit.linalg import cholesky_psd, solve_lower, solve_lower_transposed
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import base_distribution, log_density, moments
from ssmkit.models.observation import feasible
from ssmkit.smc.noise import NoiseShape, draw, is_differentiable, noise_shape, place, score
from ssmkit.typing import Array, Law, PyTree, Scalar

PROPOSAL = "a proposal around the mode"


@dataclasses.dataclass(frozen=True)
class Proposal:
    r"""A proposal of your own: two functions that return distributions.

    \[x_0 \sim q(x_0 \mid y_0), \qquad x_t \sim q(x_t \mid x_{t-1}, y_t)\]

    It is asked where the whole observation is there; elsewhere the model's own law proposes. Its
    support must cover that law; how well it does shows in the k-hat of the weights.

    Args:
        transition: ``(model, x, y, u)`` to the law of ``x_t`` given ``x_{t-1} = x`` and ``y_t``.
        initial: ``(model, y, u)`` to the law of ``x_0`` given ``y_0``; None for the model's own.

    Example:
        >>> import numpyro.distributions as dist, ssmkit as sk
        >>> def nearer(model, x, y, u): return dist.Normal(0.5 * (x + y), 1.0)
        >>> engine = sk.SMC(num_particles=100, proposal=sk.Proposal(nearer))

    Source: A. Doucet, S. Godsill and C. Andrieu (2000).
    """

    transition: Callable[..., Law]
    initial: Callable[..., Law] | None = None

    def law(self, model: StateSpaceModel, x: Array | None, y: Array, u: PyTree) -> Law | None:
        """The law at one time; None where the model's own is meant."""
        if x is not None:
            return self.transition(model, x, y, u)
        return None if self.initial is None else self.initial(model, y, u)


@dataclasses.dataclass(frozen=True)
class Linearised:
    r"""The locally optimal proposal, by a Gaussian approximation: for Gaussian transitions.

    With \(x_t = m(x_{t-1}) + F\epsilon\), \(\epsilon \sim N(0, I)\), Newton steps find the mode of
    \(-\tfrac12|\epsilon|^2 + \log p(y_t \mid m + F\epsilon)\); the proposal is the normal law with
    the curvature there (its negative part left out). Exact for linear Gaussian emissions. No
    transition density is needed, so that it serves singular transitions as well.

    Args:
        iterations: Newton steps; one is exact for linear Gaussian emissions.

    Example:
        >>> import ssmkit as sk
        >>> sk.SMC(num_particles=100, proposal=sk.Linearised())
        sk.SMC(num_particles=100, proposal=Linearised(iterations=2), smoother='backward')

    Source: A. Doucet, S. Godsill and C. Andrieu (2000), section II.D.
    """

    iterations: int = 2


class Draw(NamedTuple):
    """How to draw one state.

    Attributes:
        noise_shape: of its noise.
        draw: ``noise -> (state, log transition / proposal)``.
        log_ratio: ``state -> log transition / proposal`` of a state that was not drawn; None where
            the proposal has no density that can be evaluated.
    """

    noise_shape: NoiseShape
    draw: Callable[[Any], tuple[Array, Scalar]]
    log_ratio: Callable[[Array], Scalar] | None = None


def own_law(model: StateSpaceModel, x: Array | None, s: Any) -> Law:
    """The model's own law of a state: its initial one where there is no state before."""
    return model.at(0).initial(s.u) if x is None else model.at(s.t).transition(x, s.u)


def from_proposal(
    proposal: Proposal, model: StateSpaceModel, x: Array | None, s: Any, dtype: Any
) -> Draw:
    """Draw from a user's proposal where the observation is complete, else from the model."""

    def asked(y: Array) -> Law:
        law = proposal.law(model.at(0 if x is None else s.t), x, y, s.u)
        return own_law(model, x, s) if law is None else law

    own_shape = noise_shape(lambda: own_law(model, x, s))
    shape = noise_shape(lambda: asked(s.y))
    shared = shape if shape == own_shape else None

    def one(noise: Any) -> tuple[Array, Scalar]:
        own = own_law(model, x, s)
        if s.mask is None:
            return _draw_and_score(asked(s.y), own, noise, dtype)
        plain = draw(own, noise, dtype)
        # what is missing is nan, and must not reach the user's function or its gradient
        y = feasible(model.at(s.t).emission(plain, s.u), s.y, s.mask)
        seen, log_ratio = _draw_and_score(asked(y), own, noise, dtype)
        complete = jnp.all(s.mask)
        return (
            jnp.where(complete, seen, plain),
            jnp.where(complete, log_ratio, score(own, plain)),
        )

    def of_state(value: Array) -> Scalar:
        own = own_law(model, x, s)
        if s.mask is None:
            return log_density(own, value) - log_density(asked(s.y), value)
        y = feasible(model.at(s.t).emission(value, s.u), s.y, s.mask)
        log_ratio = log_density(own, value) - log_density(asked(y), value)
        return jnp.where(jnp.all(s.mask), log_ratio, 0.0)

    return Draw(shared, one, of_state)


def from_law(make: Callable[[], Law], own: Callable[[], Law], dtype: Any) -> Draw:
    """Draw from a law, and score it against the model's own.

    Args:
        make: makes the law of one state.
        own: makes the model's own law of that state.
        dtype: floating type of the state.
    """
    return Draw(
        noise_shape(make),
        lambda noise: _draw_and_score(make(), own(), noise, dtype),
        lambda x: log_density(own(), x) - log_density(make(), x),
    )


def _draw_and_score(law: Law, own: Law, noise: Any, dtype: Any) -> tuple[Array, Scalar]:
    x = draw(law, noise, dtype)
    log_proposal = log_density(law, x)
    if not is_differentiable(law):
        # the score of the draw cancels against the proposal's own gradient
        log_proposal = jax.lax.stop_gradient(log_proposal)
    return x, log_density(own, x) - log_proposal


def from_linearised(
    proposal: Linearised,
    model: StateSpaceModel,
    x: Array | None,
    s: Any,
    log_emission: Callable[[Array], Scalar],
    dtype: Any,
) -> Draw:
    """Draw from the Gaussian approximation in the space of the transition's noise."""
    shape = require_gaussian(own := lambda: own_law(model, x, s))
    size = math.prod(shape or ())

    def around(law: Law) -> tuple[Callable[[Array], Array], Array, Array]:
        def state(eps: Array) -> Array:
            return place(law, eps.reshape(shape)).astype(dtype)

        zero = jnp.zeros(size, dtype)
        # the proposal is a choice: the gradient is that of the target at fixed noise
        found = _mode(lambda eps: log_emission(state(eps)), zero, proposal.iterations)
        return state, *jax.lax.stop_gradient(found)

    def log_ratio(eps: Array, flat: Array, precision: Array) -> Scalar:
        log_det = jnp.sum(jnp.log(jnp.diagonal(precision)))
        return 0.5 * (flat @ flat - eps @ eps) - log_det

    def one(noise: Array) -> tuple[Array, Scalar]:
        state, centre, precision = around(own())
        flat = jnp.ravel(noise)
        eps = centre + solve_lower_transposed(precision, flat[:, None])[:, 0]
        return state(eps), log_ratio(eps, flat, precision)

    def of_state(value: Array) -> Scalar:
        law = own()
        _, centre, precision = around(law)
        mean, factor = moments(law)
        gone = (jnp.ravel(value) - mean)[:, None]
        eps = gone[:, 0] / factor if factor.ndim == 1 else solve_lower(factor, gone)[:, 0]
        return log_ratio(eps, precision.T @ (eps - centre), precision)

    return Draw(shape, one, of_state if _has_density(own) else None)


def _has_density(make: Callable[[], Law]) -> bool:
    """Whether noise can be read off a state."""
    kinds: list[type] = []
    jax.eval_shape(lambda: kinds.append(type(base_distribution(make()))))
    return issubclass(kinds[0], dist.Normal | dist.MultivariateNormal)


def _mode(
    log_target: Callable[[Array], Scalar], start: Array, iterations: int
) -> tuple[Array, Array]:
    """Newton steps from the prior mean: the centre, and the factor of the precision there."""
    eye = jnp.eye(start.shape[0], dtype=start.dtype)
    centre, precision = start, eye
    for _ in range(iterations):
        slope, curvature = jax.grad(log_target)(centre), -jax.hessian(log_target)(centre)
        # a factor of the curvature without its negative pivots
        root = cholesky_psd(curvature)
        precision = cholesky_psd(eye + root @ root.T)
        step = solve_lower(precision, (slope - centre)[:, None])
        centre = centre + solve_lower_transposed(precision, step)[:, 0]
    return centre, precision


def require_gaussian(make: Callable[[], Law], needs: str = PROPOSAL) -> NoiseShape:
    """The noise of a law, which must be Gaussian.

    Args:
        make: makes the law.
        needs: who asks.

    Raises:
        ModelError: it is not.
    """
    found: list[str] = []
    shape = noise_shape(lambda: _noted(make(), found))
    if shape is None:
        raise ModelError(
            f"{needs} needs a Gaussian transition and start.",
            got=found[0],
            expected="Normal, MultivariateNormal or SingularNormal",
            fix="proposal=None (bootstrap); sk.Proposal(your_function) in sk.SMC, "
            "sk.learned.Gaussian() in sk.SIXO",
        )
    return shape


def _noted(law: Law, found: list[str]) -> Law:
    found.append(type(law).__name__)
    return law
