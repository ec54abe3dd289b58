"""Two ways to carry a covariance through a filter: itself, or a square root of it.

The covariance form is the fastest in float64. The square-root form keeps twice the digits and is
the default in float32. Both answer the same four questions, so that the filter is written once.
"""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp

from ssmkit.linalg import cholesky_psd, triangularise
from ssmkit.models.distributions import covariance_of, square_factor
from ssmkit.typing import Array, Float, Scalar


class Form(Protocol):
    """How the second moment of a belief is stored (its *spread*)."""

    def noise(self, factor: Array) -> Array:
        """Prepare a noise factor once, outside the loop."""
        ...

    def predict(self, spread: Array, matrix: Array, noise: Array) -> Array:
        """Return the spread of ``matrix @ x + noise``."""
        ...

    def update(
        self, spread: Array, row: Float[Array, " D"], std: Scalar
    ) -> tuple[Array, Array, Scalar]:
        """Condition on one scalar: new spread, gain and innovation variance."""
        ...

    def factor(self, spread: Array) -> Array:
        """Return a square factor of the covariance."""
        ...

    def covariance(self, spread: Array) -> Array:
        """Return the covariance."""
        ...


class CovarianceForm:
    """The spread is the covariance."""

    def noise(self, factor: Array) -> Array:
        """Covariance of the noise."""
        return covariance_of(factor)

    def predict(self, spread: Array, matrix: Array, noise: Array) -> Array:
        """``F P F' + Q``."""
        return matrix @ spread @ matrix.T + noise

    def update(self, spread: Array, row: Array, std: Scalar) -> tuple[Array, Array, Scalar]:
        """``P - k (P h)'`` with ``k = P h / s``."""
        cross = spread @ row
        variance = row @ cross + std**2
        gain = cross / variance
        return spread - jnp.outer(gain, cross), gain, variance

    def factor(self, spread: Array) -> Array:
        """Cholesky factor."""
        return cholesky_psd(spread)

    def covariance(self, spread: Array) -> Array:
        """The spread itself."""
        return spread


class SquareRootForm:
    """The spread is a square factor ``L`` with ``P = L L'`` (Potter's update)."""

    def noise(self, factor: Array) -> Array:
        """A square factor of the noise."""
        return square_factor(factor)

    def predict(self, spread: Array, matrix: Array, noise: Array) -> Array:
        """Triangularise ``[F L, Q_factor]``."""
        return triangularise(jnp.concatenate([matrix @ spread, noise], axis=1))

    def update(self, spread: Array, row: Array, std: Scalar) -> tuple[Array, Array, Scalar]:
        """Potter: ``L (I - a f f')`` with ``f = L' h``, ``a = 1 / (s + sqrt(s) std)``."""
        half = spread.T @ row
        variance = half @ half + std**2
        cross = spread @ half
        shrink = 1 / (variance + jnp.sqrt(variance) * std)
        return spread - shrink * jnp.outer(cross, half), cross / variance, variance

    def factor(self, spread: Array) -> Array:
        """The spread itself."""
        return spread

    def covariance(self, spread: Array) -> Array:
        """``L L'``."""
        return spread @ jnp.swapaxes(spread, -1, -2)


FORMS: dict[str, Form] = {"covariance": CovarianceForm(), "square_root": SquareRootForm()}


def choose_form(name: str, dtype: jnp.dtype) -> Form:
    """Resolve ``"auto"``: covariance in float64, square root in float32."""
    if name == "auto":
        name = "covariance" if jnp.finfo(dtype).bits >= 64 else "square_root"
    return FORMS[name]
