r"""Autoregression in companion form.

\[z_t = \phi_1 z_{t-1} + \dots + \phi_p z_{t-p} + N(0, \sigma^2)\]

Sources: A. C. Harvey (1989), Forecasting, Structural Time Series Models and the Kalman Filter;
J. F. Monahan (1984), A note on enforcing stationarity in autoregressive-moving average models,
Biometrika 71.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ssmkit.errors import ParameterError, ShapeError
from ssmkit.linalg import psd_factor
from ssmkit.models.checks import (
    Number,
    as_float,
    float_type,
    is_known,
    is_zero,
    require_at_least_zero,
    root,
)
from ssmkit.models.structural.base import Observation, Start, StateEquation, Structural
from ssmkit.typing import Array, Float, PyTree


class AutoRegressive(Structural):
    r"""A stationary autoregression of order ``p``; it starts from its stationary law.

    \(z_t = \sum_i \phi_i z_{t-i} + N(0, \sigma^2)\); the state holds \(z_t, \dots, z_{t-p+1}\).

    Args:
        coefficients: \(\phi\), ``(p,)``. See `from_partial` for a form that is stationary
            whatever its values, to be learned.
        variance: \(\sigma^2\), scalar.
        noise_variance: variance of the observation noise, scalar.
        name: name of the component, ``"ar"`` when not given.

    Raises:
        ShapeError: coefficients that are no vector.
        ParameterError: coefficients that are not stationary (inside a program: nan), or a
            negative variance.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.AutoRegressive([0.5], variance=0.75)
        >>> round(float(model.initial(None).variance[0]), 6)
        1.0

    Source: A. C. Harvey (1989).
    """

    coefficients: Float[Array, " p"]
    variance: Number
    noise_variance: Number = 0.0
    name: str | None = eqx.field(static=True, default=None)
    has_density: bool = eqx.field(static=True, init=False)

    def __post_init__(self) -> None:
        """Check shapes and, where they are known, the values."""
        require_at_least_zero(self, variance=self.variance, noise_variance=self.noise_variance)
        given, self.coefficients = self.coefficients, as_float(self.coefficients)
        if jnp.ndim(self.coefficients) != 1 or jnp.size(self.coefficients) == 0:
            raise ShapeError(
                "AutoRegressive: coefficients must be a vector.",
                got=f"shape {jnp.shape(self.coefficients)}",
                expected="shape (p,) with p ≥ 1",
                fix="jnp.array([0.9]) for order one",
            )
        if is_known(given):
            _require_stationary(np.asarray(given))
        self.has_density = self.coefficients.shape == (1,) and not is_zero(self.variance)

    @classmethod
    def from_partial(cls, partial: Any, variance: Number, **options: Any) -> AutoRegressive:
        r"""Build from partial autocorrelations: stationary for all values in (-1, 1).

        \(\phi^{(k)}_k = r_k\), \(\phi^{(k)}_i = \phi^{(k-1)}_i - r_k \phi^{(k-1)}_{k-i}\)

        Args:
            partial: partial autocorrelations \(r\), ``(p,)``, each in (-1, 1).
            variance: \(\sigma^2\), scalar.
            options: ``noise_variance`` and ``name``.

        Example:
            >>> import ssmkit as sk
            >>> sk.models.AutoRegressive.from_partial([0.5, 0.5], 1.0).coefficients.tolist()
            [0.25, 0.5]

        Source: J. F. Monahan (1984), Biometrika 71.
        """
        partial = as_float(partial)
        coefficients = partial[:1]
        for r in partial[1:]:
            coefficients = jnp.append(coefficients - r * coefficients[::-1], r)
        return cls(coefficients, variance, **options)

    @property
    def labels(self) -> tuple[str, tuple[str, ...]]:
        """Name of the component, and of its states."""
        name = self.name or "ar"
        return name, tuple(f"{name}{i}" for i in range(1, len(self.coefficients) + 1))

    def equation(self) -> StateEquation:
        """Return the companion form."""
        size, dtype = len(self.coefficients), float_type(self.coefficients, self.variance)
        matrix = jnp.eye(size, k=-1, dtype=dtype).at[0].set(self.coefficients)
        noise = jnp.zeros(size, dtype).at[0].set(root(self.variance))
        return StateEquation(matrix, noise, self.has_density)

    def start(self) -> Start:
        """Return the stationary law."""
        matrix, noise, _ = self.equation()
        factor = noise[0] * psd_factor(stationary_covariance(matrix))
        return Start(factor, jnp.zeros((len(matrix), 0), matrix.dtype))

    def observation(self, u: PyTree) -> Observation:
        """Return the row that picks the present value."""
        dtype = float_type(self.coefficients, self.variance)
        row = jnp.zeros(len(self.coefficients), dtype).at[0].set(1)
        return Observation(row, self.noise_variance)


def stationary_covariance(matrix: Float[Array, "p p"]) -> Float[Array, "p p"]:
    r"""Solve \(P = F P F^\top + e_1 e_1^\top\), linear in \(P\)."""
    size = len(matrix)
    system = jnp.eye(size**2, dtype=matrix.dtype) - jnp.kron(matrix, matrix)
    noise = jnp.zeros(size**2, matrix.dtype).at[0].set(1)
    covariance = jnp.linalg.solve(system, noise).reshape(size, size)
    return (covariance + covariance.T) / 2


def _require_stationary(coefficients: np.ndarray) -> None:
    size = len(coefficients)
    companion = np.eye(size, k=-1)
    companion[0] = coefficients
    largest = np.max(np.abs(np.linalg.eigvals(companion))) if np.all(np.isfinite(companion)) else 2
    if largest >= 1:
        raise ParameterError(
            "AutoRegressive: the coefficients are not stationary.",
            got=f"{coefficients.tolist()}, whose largest root has modulus {largest:.3g}",
            expected="all roots inside the unit circle",
            fix="AutoRegressive.from_partial(values in (-1, 1), variance)",
        )
