"""Where filter and backward kernel of a step start before anything is optimised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.learned.backward import Filter, Kernel, Moves, Residual, inverse, still
from ssmkit.linalg import cholesky_psd, solve_lower_transposed, solve_psd
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import covariance_of, moments, square_factor
from ssmkit.reprs import call_repr
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Step, log_emission
from ssmkit.typing import Array, Float, Scalar

Start = tuple[tuple[Filter, Kernel | None], Moves]
SHARES = (1.0, 0.5, 0.25, 0.1, 0.02, 0.0)  # of a Newton step, of which the best is taken


@dataclasses.dataclass(frozen=True, repr=False)
class LinearisedStart:
    r"""The model made linear and Gaussian around the last filter: exact where it is so.

    The transition is expanded at the filter's mean \(m\), which gives the predicted law
    \(N(m^-, P^-)\) and the kernel with \(J = P A^\top (P^-)^{-1}\); the filter is the normal law at
    the mode of \(\log p(y_t \mid x) + \log N(x; m^-, P^-)\), with the curvature there. Independent
    coordinates take the normal law that is nearest, whose variances are those given all others.

    Args:
        iterations: damped Newton steps to the mode.

    Example:
        >>> import ssmkit as sk
        >>> sk.OnlineVariational(start=sk.learned.LinearisedStart(iterations=3)).start
        LinearisedStart(iterations=3)
    """

    iterations: int = 6

    serves_full = True

    __repr__ = call_repr

    def first(
        self, model: StateSpaceModel, s: Step, network: Residual | None, *, full: bool
    ) -> Start:
        """The filter at the first time."""
        mean, factor = moments(own_law(model, None, s))
        filter = self._update(model, s, mean, square_factor(factor), full=full)
        return (filter, None), still(filter, network)

    def later(self, model: StateSpaceModel, s: Step, last: Filter, moves: Moves) -> Start:
        """Filter and kernel at a later time; of the last moves the network is kept."""
        full = last.factor.ndim == 2
        shape = own_law(model, None, s).event_shape
        law_after = lambda x: own_law(model, x.reshape(shape), s)  # noqa: E731 - one line
        mean, noise = moments(law_after(last.mean))
        matrix = jax.jacfwd(lambda x: jnp.ravel(law_after(x).mean))(last.mean)
        covariance = covariance_of(last.factor)
        cross = matrix @ covariance
        root = cholesky_psd(cross @ matrix.T + covariance_of(noise))
        gain = solve_psd(root, cross).T
        left = covariance - gain @ cross
        filter = self._update(model, s, mean, root, full=full)
        factor = nearest(cholesky_psd(left, jnp.diagonal(covariance)), full=full)
        # the kernel is read at the filter's mean, where its states will be
        offset = last.mean + gain @ (filter.mean - mean)
        unit = inverse(filter.factor)
        kernel = Kernel(filter.mean, offset, gain, factor, unit, factor, moves.network)
        return (filter, kernel), still(filter, moves.network)

    def _update(
        self, model: StateSpaceModel, s: Step, mean: Array, root: Array, *, full: bool
    ) -> Filter:
        shape = own_law(model, None, s).event_shape

        def log_seen(noise: Array) -> Scalar:
            return log_emission(model, (mean + root @ noise).reshape(shape), s)

        mode, precision = newton(log_seen, jnp.zeros_like(mean), self.iterations)
        eye = jnp.eye(mean.shape[0], dtype=mean.dtype)
        wide = root @ solve_lower_transposed(precision, eye)
        return Filter(mean + root @ mode, nearest(cholesky_psd(wide @ wide.T), full=full))


@dataclasses.dataclass(frozen=True, repr=False)
class PredictedStart:
    r"""The start of the source: the predicted law as filter, the kernel of the time before.

    Means and log standard deviations are moved in the state's own units. Independent coordinates
    only.

    Args:
        log_scale: log standard deviation of filter and kernel at the first time.

    Example:
        >>> import ssmkit as sk
        >>> sk.OnlineVariational.as_published().start
        PredictedStart()
    """

    log_scale: float = 0.0

    serves_full = False

    __repr__ = call_repr

    def first(
        self, model: StateSpaceModel, s: Step, network: Residual | None, *, full: bool
    ) -> Start:
        """The filter at the first time, around zero."""
        mean = jnp.ravel(own_law(model, None, s).mean)
        filter = Filter(jnp.zeros_like(mean), jnp.ones_like(mean))
        scale = jnp.full_like(mean, self.log_scale)
        moves = still(filter, network)._replace(scale=scale, kernel_scale=scale)
        return (filter, None), moves

    def later(self, model: StateSpaceModel, s: Step, last: Filter, moves: Moves) -> Start:
        """Filter and kernel at a later time."""
        shape = own_law(model, None, s).event_shape
        law_after = lambda x: own_law(model, x.reshape(shape), s)  # noqa: E731 - one line
        mean, noise = moments(law_after(last.mean))
        matrix = jax.jacfwd(lambda x: jnp.ravel(law_after(x).mean))(last.mean)
        variance = jnp.sum((matrix * last.factor) ** 2, axis=1)
        variance = variance + jnp.diagonal(covariance_of(noise))
        zeros, ones = jnp.zeros_like(mean), jnp.ones_like(mean)
        flat = jnp.zeros_like(moves.kernel_matrix)
        kernel = Kernel(zeros, zeros, flat, ones, ones, ones, moves.network)
        begun = moves._replace(shift=zeros, scale=0.5 * jnp.log(variance))
        return (Filter(mean, ones), kernel), begun


def nearest(factor: Float[Array, "D D"], *, full: bool) -> Array:
    """A factor itself, or standard deviations of the nearest independent law: given all others."""
    if full:
        return factor
    inverse = solve_psd(factor, jnp.eye(factor.shape[0], dtype=factor.dtype))
    return 1 / jnp.sqrt(jnp.diagonal(inverse))


def newton(
    log_seen: Callable[[Array], Scalar], start: Float[Array, " D"], iterations: int
) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """The mode of a log likelihood times a standard normal prior, and the precision's factor."""
    eye = jnp.eye(start.shape[0], dtype=start.dtype)

    def target(noise: Array) -> Scalar:
        return log_seen(noise) - 0.5 * noise @ noise

    def precision_at(noise: Array) -> Array:
        root = cholesky_psd(-jax.hessian(log_seen)(noise))  # without what is not concave
        return cholesky_psd(eye + root @ root.T)

    def again(_: Any, noise: Array) -> Array:
        step = solve_psd(precision_at(noise), jax.grad(target)(noise)[:, None])[:, 0]
        tried = noise + jnp.asarray(SHARES, noise.dtype)[:, None] * step
        values = jax.vmap(target)(tried)
        return tried[jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))]

    mode = jax.lax.fori_loop(0, iterations, again, start)
    return mode, precision_at(mode)
