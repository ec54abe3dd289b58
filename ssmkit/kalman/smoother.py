r"""The Gaussian smoother, from backward kernels.

Given the filter, \(x_t \mid x_{t+1}, y_{1:t} \sim N(J_t x_{t+1} + g_t, C_t)\). The kernels do
not depend on each other and are computed for all times at once; what is left for the scan is an
affine recursion in which covariances are only added, so that it is stable in float32. Singular
transitions are exact: directions in which the prediction does not vary are left out.

Source: Rauch, Tung and Striebel (1965); gains and covariances by orthogonal projection of factors.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.kalman.affine import AffineGaussian
from ssmkit.kalman.diffuse import FlatPosterior, flat_posterior, resolve
from ssmkit.kalman.filter import GaussianKernel, GaussianState, GaussianStep, predict
from ssmkit.linalg import cholesky_psd
from ssmkit.models.distributions import square_factor
from ssmkit.typing import Array, Float, Inputs, Int, Key


class GaussianPaths(eqx.Module):
    """The joint law of a path given all data, as a chain of backward kernels.

    Attributes:
        gain: ``(T-1, D, D)``.
        offset: ``(T-1, D, p)``, affine in the flat coefficients.
        covariance: ``(T-1, D, D)``, of ``x_t`` given ``x_{t+1}``.
        last: mean matrix ``(D, p)`` and covariance ``(D, D)`` of the last state.
        flat: the law of the flat coefficients given all data.
        event_shape: shape of one state.
    """

    gain: Array
    offset: Array
    covariance: Array
    last: tuple[Array, Array]
    flat: FlatPosterior
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def marginals(self) -> tuple[Float[Array, "T D"], Float[Array, "T D D"]]:
        """Smoothed means and covariances."""
        means, covariances = self._smoothed()
        if means.shape[-1] == 1:
            return means[:, :, 0], covariances
        return jax.vmap(resolve, in_axes=(0, 0, None))(means, covariances, self.flat)

    def until(self, length: int) -> GaussianPaths:
        """The law of the first ``length`` states, when nothing after them was observed."""
        means, covariances = self._smoothed()
        last = (means[length - 1], covariances[length - 1])
        before = slice(length - 1)
        return GaussianPaths(
            self.gain[before],
            self.offset[before],
            self.covariance[before],
            last,
            self.flat,
            self.event_shape,
        )

    def _smoothed(self) -> tuple[Float[Array, "T D p"], Float[Array, "T D D"]]:
        def back(carry: tuple, kernel: tuple) -> tuple[tuple, tuple]:
            means, cov = carry
            gain, offset, noise = kernel
            smoothed = (gain @ means + offset, gain @ cov @ gain.T + noise)
            return smoothed, smoothed

        kernels = (self.gain, self.offset, self.covariance)
        earlier = jax.lax.scan(back, self.last, kernels, reverse=True)[1]
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), earlier, self.last)

    def sample(self, key: Key, num_paths: int) -> Float[Array, "N T ..."]:
        """Draw whole paths by backward sampling; nan where the smoothed variance is infinite."""
        factors = cholesky_psd(self.covariance)
        last = cholesky_psd(self.last[1])

        def draw(path_key: Key) -> Array:
            flat_key, noise_key = jax.random.split(path_key)
            length, size = self.gain.shape[0] + 1, last.shape[0]
            coefficients = self._coefficients(flat_key)
            noise = jax.random.normal(noise_key, (length, size), last.dtype)
            end = self.last[0] @ coefficients + last @ noise[-1]

            def back(x: Array, kernel: tuple) -> tuple[Array, Array]:
                gain, offset, factor, eps = kernel
                x = gain @ x + offset @ coefficients + factor @ eps
                return x, x

            kernels = (self.gain, self.offset, factors, noise[:-1])
            path = jax.lax.scan(back, end, kernels, reverse=True)[1]
            return jnp.concatenate([path, end[None]]).reshape(length, *self.event_shape)

        paths = jax.vmap(draw)(jax.random.split(key, num_paths))
        if self.last[0].shape[1] == 1:
            return paths
        # a flat law has no draws
        variances = jnp.diagonal(self.marginals()[1], axis1=1, axis2=2)
        return jnp.where(jnp.isinf(variances).reshape(paths.shape[1:]), jnp.nan, paths)

    def _coefficients(self, key: Key) -> Array:
        noise = jax.random.normal(key, self.flat.mean.shape, self.last[0].dtype)
        flat = self.flat.mean + self.flat.factor @ noise
        return jnp.concatenate([jnp.ones(1, flat.dtype), flat])


def backward_kernels(kernel: GaussianKernel, steps: GaussianStep) -> GaussianPaths:
    """Turn a kept filter history into the joint law of the path."""
    ahead, transition = jax.tree.map(lambda a: a[1:], (steps.predicted, steps.transition))
    return _chain(kernel, steps.filtered, ahead, transition, steps.gram[-1])


def window_paths(
    kernel: GaussianKernel, states: GaussianState, times: Int[Array, " n"], us: Inputs
) -> GaussianPaths:
    """The joint law of the last states, given all that the last one has seen.

    Args:
        kernel: the filter.
        states: what it carried after each of the steps, with leading axis ``n``.
        times: of these steps.
        us: their inputs, or None.
    """
    before = jax.tree.map(lambda a: a[:-1], states)
    at = jax.tree.map(lambda a: a[1:], (times, us))
    ahead, transition = jax.vmap(lambda state, t, u: predict(kernel, state, t, u))(before, *at)
    filtered, predicted = ((s.means, s.spread) for s in (states, ahead))
    return _chain(kernel, filtered, predicted, transition, states.evidence[0].gram[-1])


def _chain(
    kernel: GaussianKernel,
    filtered: tuple[Array, Array],
    ahead: tuple[Array, Array],
    transition: AffineGaussian | None,
    gram: Array,
) -> GaussianPaths:
    """Backward kernels from filtered beliefs and the predictions after all but the last."""
    cov = kernel.form.covariance

    def one(before: tuple, ahead: tuple, transition: AffineGaussian) -> tuple[Array, Array, Array]:
        factor = kernel.form.factor(before[1])
        noise = square_factor(transition.factor)
        past = jnp.concatenate([factor, jnp.zeros_like(noise)], axis=1)
        future = jnp.concatenate([transition.matrix @ factor, noise], axis=1)
        gain, rest = _regress(past, future)
        return gain, before[0] - gain @ ahead[0], rest @ rest.T

    before, last = (jax.tree.map(lambda a, at=at: a[at], filtered) for at in (slice(-1), -1))
    used: Any = transition if kernel.transition is None else kernel.transition[0]
    axis = 0 if kernel.transition is None else None
    gain, offset, noise = jax.vmap(one, in_axes=(0, 0, axis))(before, ahead, used)
    end = (last[0], cov(last[1]))
    return GaussianPaths(gain, offset, noise, end, flat_posterior(gram), kernel.event_shape)


def _regress(past: Float[Array, "D k"], future: Float[Array, "D k"]) -> tuple[Array, Array]:
    """Regress rows on rows, ``past = gain @ future + rest`` with ``rest`` orthogonal to ``future``.

    Gram–Schmidt, the row with the largest share left to explain first, which keeps the rounding
    of a dependent row from growing until it passes for information: the gain would explode.
    """
    size = future.shape[0]
    scale = jnp.sum(future**2, axis=1)
    weight = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1.0), 0.0)
    tolerance = 64 * size * jnp.finfo(future.dtype).eps

    def project(carry: tuple, _: None) -> tuple[tuple, tuple]:
        past, future = carry
        share = jax.lax.stop_gradient(jnp.sum(future**2, axis=1) * weight)
        pick = jnp.arange(size) == jnp.argmax(share)
        row = jnp.where(pick, 1.0, 0.0) @ future
        keep = jnp.max(share) > tolerance
        length = jnp.sqrt(jnp.where(keep, row @ row, 1.0))
        unit = jnp.where(keep, row / length, 0.0)
        score, column = past @ unit, future @ unit
        carry = (past - jnp.outer(score, unit), future - jnp.outer(column, unit))
        return carry, (score, column, jnp.where(pick & keep, 1 / length, 0.0))

    def substitute(gain: Array, at: tuple) -> tuple[Array, None]:
        score, column, pick = at
        return gain + jnp.outer(score - gain @ column, pick), None

    (rest, _), found = jax.lax.scan(project, (past, future), length=size)
    start = jnp.zeros((past.shape[0], size), past.dtype)
    return jax.lax.scan(substitute, start, found, reverse=True)[0], rest
