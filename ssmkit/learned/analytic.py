r"""Twists that are computed: the backward information filter, and messages over finite states.

With Gaussian transitions and emissions that are quadratic in the state (made so around a path where
they are not) the twist is \(\log\psi_t(x) = -\tfrac12 x^\top L_t x + h_t^\top x + k_t\), and

\[\bar L = L_{t+1} + C^\top R^{-1} C, \quad \bar h = \dots, \qquad
L_t = A^\top \bar L (I + Q\bar L)^{-1} A, \quad
h_t = A^\top (I + \bar L Q)^{-1} (\bar h - \bar L b).\]

No matrix needs an inverse of its own: transition and information may be singular.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.hidden_markov.terms import finite_terms, log_sum_exp
from ssmkit.learned.reading import Setting
from ssmkit.linalg import cholesky_psd, solve_lower, solve_lower_transposed
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import moments
from ssmkit.reprs import call_repr
from ssmkit.smc.proposals import own_law, require_gaussian
from ssmkit.smc.recipes import Step, log_emission, steps_of
from ssmkit.typing import Array, Float, Inputs, Key, Law, PyTree, Scalar

SHARES = (1.0, 0.5, 0.25, 0.1, 0.02, 0.0)  # of a Newton step, of which the best is taken


class Quadratics(NamedTuple):
    """Log twists ``-x'Lx/2 + h'x + k`` with leading axis ``T``."""

    matrix: Float[Array, "*T D D"]
    slope: Float[Array, "*T D"]
    level: Float[Array, "*T"]


@dataclasses.dataclass(frozen=True, repr=False)
class Analytic:
    r"""The twist in closed form: exact for linear Gaussian models and for finite states.

    Other models with Gaussian transitions are made linear Gaussian around the path that is most
    probable given the data, which damped Newton steps find (a Laplace approximation).
    Nothing is learned, and it serves every series.

    Args:
        iterations: Newton steps; 1 for a linear Gaussian model, which needs none.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 50).observations
        >>> engine = sk.SIXO(num_particles=32, twist=sk.learned.Analytic())
        >>> bool(sk.infer(1, engine, model, ys).log_evidence_se < 0.2)
        True

    Source: F. Lindsten, J. Helske and M. Vihola (2018), Graphical model inference: sequential Monte
    Carlo meets deterministic approximations.
    """

    iterations: int = 10

    amortised = True

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting) -> GaussianMessages | FiniteMessages:
        """Nothing is learned here.

        Raises:
            ModelError: the state is neither finite nor moved by a Gaussian transition.
        """
        if setting.state.num_categories is not None:
            return FiniteMessages()
        model, u = setting.model, setting.first_input
        require_gaussian(lambda: own_law(model, None, Step(0, None, u, None)), repr(self))
        x = jnp.zeros(jax.eval_shape(lambda: model.at(0).initial(u).mean).shape, setting.dtype)
        require_gaussian(lambda: own_law(model, x, Step(0, None, u, None)), repr(self))
        return GaussianMessages(self.iterations)


class FiniteMessages(eqx.Module):
    """Backward messages over a finite state."""

    def read(self, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any) -> Float[Array, "T K"]:
        """Log twists of every state at every time."""
        mask = None if mask is None else jnp.asarray(mask)
        _, transition, emission = finite_terms(model, ys, us, mask)
        moves = jnp.broadcast_to(transition, (ys.shape[0] - 1, *transition.shape[-2:]))

        def back(beyond: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            log_move, log_seen = at
            here = log_sum_exp(log_move + (log_seen + beyond), axis=-1)
            return here, here

        zeros = jnp.zeros_like(emission[0])
        later = jax.lax.scan(back, zeros, (moves, emission[1:]), reverse=True)[1]
        return jnp.concatenate([zeros[None], later])  # the first is of no state

    def log_twist(self, model: StateSpaceModel, x: Array, features: PyTree) -> Scalar:
        """Log twist in nats of one state."""
        return features[x]


class GaussianMessages(eqx.Module):
    """The backward information filter around a path."""

    iterations: int = eqx.field(static=True)

    def read(self, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any) -> Quadratics:
        """Log twists at every time, as quadratics."""
        steps = steps_of(ys, us, None if mask is None else jnp.asarray(mask))
        times = jnp.arange(ys.shape[0])

        def again(_: Any, noise: Array) -> Array:
            terms = _terms(model, _rolled(model, steps, times, noise), steps, times)
            goal = _most_probable(terms, _messages(terms))
            tried = noise + jnp.asarray(SHARES)[:, None, None] * (goal - noise)
            values = jax.vmap(lambda n: _log_joint(model, steps, times, n))(tried)
            return tried[jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))]

        path = jax.lax.stop_gradient(_rolled(model, steps, times, None))
        start = _terms(model, path, steps, times)
        if self.iterations <= 1:
            return _messages(start)
        noise = jnp.zeros((ys.shape[0], start.factor.shape[-1]), start.bias.dtype)
        noise = jax.lax.fori_loop(0, self.iterations - 1, again, noise)
        path = jax.lax.stop_gradient(_rolled(model, steps, times, noise))
        return _messages(_terms(model, path, steps, times))

    def log_twist(self, model: StateSpaceModel, x: Array, features: PyTree) -> Scalar:
        """Log twist in nats of one state."""
        return quadratic(features, jnp.ravel(x))


def quadratic(at: Quadratics, x: Array) -> Scalar:
    """The value of one quadratic."""
    return -0.5 * x @ at.matrix @ x + at.slope @ x + at.level


class Terms(NamedTuple):
    """A model made linear Gaussian around a path, with leading axis ``T``.

    Attributes:
        matrix: of the step into each time; zero at the first.
        bias: its constant part; the initial mean at the first.
        factor: factor of its covariance.
        seen: the emission as a quadratic in the state.
    """

    matrix: Float[Array, "T D D"]
    bias: Float[Array, "T D"]
    factor: Float[Array, "T D K"]
    seen: Quadratics


def _rolled(
    model: StateSpaceModel, steps: Any, times: Array, noise: Array | None
) -> Float[Array, "T D"]:
    """The path that the model takes with given noise; on its means with None."""
    start = own_law(model, None, steps(0))
    columns = 0 if noise is None else noise.shape[1]

    def moved(law: Law, eps: Array | None) -> Array:
        mean, factor = moments(law)
        if eps is not None:
            mean = mean + _padded(factor, columns) @ eps
        return mean.reshape(law.event_shape)

    def on(x: Array, at: tuple[Array, Array | None]) -> tuple[Array, Array]:
        t, eps = at
        x = moved(own_law(model, x, steps(t)), eps).astype(x.dtype)
        return x, jnp.ravel(x)

    x = moved(start, None if noise is None else noise[0])
    later = None if noise is None else noise[1:]
    return jnp.concatenate([jnp.ravel(x)[None], jax.lax.scan(on, x, (times[1:], later))[1]])


def _log_joint(model: StateSpaceModel, steps: Any, times: Array, noise: Array) -> Scalar:
    """Log density of noise and observations in nats, up to a constant."""
    shape = own_law(model, None, steps(0)).event_shape
    path = _rolled(model, steps, times, noise)
    seen = jax.vmap(lambda t, x: log_emission(model, x.reshape(shape), steps(t)))(times, path)
    return jnp.sum(seen) - 0.5 * jnp.sum(noise**2)


def _terms(model: StateSpaceModel, path: Array, steps: Any, times: Array) -> Terms:
    shape = own_law(model, None, steps(0)).event_shape

    def mean_after(x: Array, s: Step) -> Array:
        return jnp.ravel(own_law(model, x.reshape(shape), s).mean)

    def move(x: Array, t: Array) -> tuple[Array, Array, Array]:
        s = steps(t)
        matrix = jax.jacfwd(mean_after)(x, s)
        factor = _full(moments(own_law(model, x.reshape(shape), s))[1])
        return matrix, mean_after(x, s) - matrix @ x, factor

    def seen(x: Array, t: Array) -> Quadratics:
        s = steps(t)
        log_seen = lambda x: log_emission(model, x.reshape(shape), s)  # noqa: E731 - one line
        value, slope = jax.value_and_grad(log_seen)(x)
        root = cholesky_psd(-jax.hessian(log_seen)(x))  # without what is not concave
        matrix = root @ root.T
        slope = slope + matrix @ x
        return Quadratics(matrix, slope, value - slope @ x + 0.5 * x @ matrix @ x)

    start, root = moments(own_law(model, None, steps(0)))
    moves = jax.vmap(move)(path[:-1], times[1:])
    columns = moves[2].shape[-1]
    first = (jnp.zeros((path.shape[1], path.shape[1]), path.dtype), start, _padded(root, columns))
    joined: Any = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, moves)
    return Terms(joined[0], joined[1], joined[2], jax.vmap(seen)(path, times))


def _full(factor: Array) -> Array:
    return jnp.diag(factor) if factor.ndim == 1 else factor


def _padded(factor: Array, columns: int) -> Array:
    """A factor with as many columns as the others."""
    factor = _full(factor)
    if factor.shape[1] > columns:
        return cholesky_psd(factor @ factor.T)[:, :columns]
    return jnp.pad(factor, ((0, 0), (0, columns - factor.shape[1])))


def _gain(factor: Array, matrix: Array) -> tuple[Array, Array]:
    """Factor of the covariance after a quadratic was seen, and the factor of ``I + F'LF``."""
    root = cholesky_psd(jnp.eye(factor.shape[1], dtype=factor.dtype) + factor.T @ matrix @ factor)
    return solve_lower(root, factor.T).T, root


def _messages(terms: Terms) -> Quadratics:
    def back(beyond: Quadratics, at: Terms) -> tuple[Quadratics, Quadratics]:
        seen = jax.tree.map(jnp.add, beyond, at.seen)
        after, root = _gain(at.factor, seen.matrix)
        inner = seen.matrix @ after
        information = seen.matrix - inner @ inner.T
        pull = seen.slope - inner @ (after.T @ seen.slope)
        spread = after.T @ seen.slope
        level = seen.level - jnp.sum(jnp.log(jnp.diagonal(root))) + 0.5 * spread @ spread
        level = level + pull @ at.bias - 0.5 * at.bias @ information @ at.bias
        slope = at.matrix.T @ (pull - information @ at.bias)
        here = Quadratics(at.matrix.T @ information @ at.matrix, slope, level)
        return here, here

    zero = jax.tree.map(lambda a: jnp.zeros_like(a[0]), terms.seen)
    return jax.lax.scan(back, zero, terms, reverse=True)[1]


def _most_probable(terms: Terms, messages: Quadratics) -> Float[Array, "T K"]:
    """The noise of the most probable path."""
    later = jax.tree.map(lambda a: jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]), messages)
    seen = jax.tree.map(jnp.add, terms.seen, later)

    def on(x: Array, at: tuple[Terms, Quadratics]) -> tuple[Array, Array]:
        term, here = at
        mean = term.matrix @ x + term.bias
        after, root = _gain(term.factor, here.matrix)
        pull = after.T @ (here.slope - here.matrix @ mean)
        eps = solve_lower_transposed(root, pull[:, None])[:, 0]
        return mean + term.factor @ eps, eps

    return jax.lax.scan(on, jnp.zeros_like(terms.bias[0]), (terms, seen))[1]
