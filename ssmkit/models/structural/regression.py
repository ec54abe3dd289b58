r"""Regression on inputs, with constant coefficients.

\[y_t = u_t^\top \beta + N(0, \sigma_\epsilon^2), \qquad \beta_t = \beta_{t-1}\]

Source: J. Durbin and S. J. Koopman (2012), Time Series Analysis by State Space Methods, 3.2.5.
"""

from __future__ import annotations

from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp

from ssmkit.errors import DataError, ParameterError, ShapeError
from ssmkit.models.checks import Number, float_type, require_at_least_zero, require_input
from ssmkit.models.structural.base import Observation, StateEquation, Structural
from ssmkit.typing import Array, PyTree


class Regression(Structural):
    r"""Effects of known inputs; the coefficients are states that start diffuse and stay put.

    \(y_t = u_t^\top \beta + N(0, \sigma_\epsilon^2)\)

    Args:
        num_inputs: number of coefficients ``P``; inputs are ``us`` of shape ``(T, P)``.
        input: the key of the inputs, where ``us`` is a dictionary.
        noise_variance: variance of the observation noise, scalar.
        name: name of the component; ``input``, else ``"regression"``, when not given.

    Raises:
        ParameterError: ``num_inputs`` below one, or a negative variance.
        DataError: from the methods, where there is no such input.
        ShapeError: from the methods, where it does not have ``num_inputs`` entries.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.LocalLevel(1.0, 2.0) + sk.models.Regression(1, input="price")
        >>> model.state_names
        ('level', 'beta[price]')
        >>> model.components({"price": 3.0})["price"].tolist()
        [0.0, 3.0]

    Source: J. Durbin and S. J. Koopman (2012), 3.2.5.
    """

    num_inputs: int = eqx.field(static=True)
    input: str | None = eqx.field(static=True, default=None)
    noise_variance: Number = 0.0
    name: str | None = eqx.field(static=True, default=None)

    def __post_init__(self) -> None:
        """Check the number of inputs and the variance."""
        if not isinstance(self.num_inputs, int) or self.num_inputs < 1:
            raise ParameterError(
                "Regression: num_inputs must be a number of columns.",
                got=self.num_inputs,
                expected="a Python int ≥ 1",
                fix="Regression(us.shape[1])",
            )
        require_at_least_zero(self, noise_variance=self.noise_variance)

    @property
    def labels(self) -> tuple[str, tuple[str, ...]]:
        """Name of the component, and of its states."""
        name = self.name or self.input
        indices = [str(i) for i in range(self.num_inputs)]
        if name is None:
            return "regression", tuple(f"beta[{i}]" for i in indices)
        if self.num_inputs == 1:
            return name, (f"beta[{name}]",)
        return name, tuple(f"beta[{name},{i}]" for i in indices)

    def equation(self) -> StateEquation:
        """Return constant states."""
        dtype = float_type(self.noise_variance)
        eye = jnp.eye(self.num_inputs, dtype=dtype)
        return StateEquation(eye, jnp.zeros(self.num_inputs, dtype), False)

    def observation(self, u: PyTree) -> Observation:
        """Return the input itself."""
        u = require_input(self, u)
        if self.input is not None or isinstance(u, Mapping):
            u = self._entry(u)
        row = jnp.atleast_1d(u)
        if row.shape != (self.num_inputs,):
            raise ShapeError(
                "Regression: the input does not have num_inputs entries.",
                got=f"one input of shape {jnp.shape(u)}",
                expected=f"shape ({self.num_inputs},)",
                fix=f"us of shape (T, {self.num_inputs})",
            )
        return Observation(row.astype(float_type(row)), self.noise_variance)

    def _entry(self, u: PyTree) -> Array:
        if isinstance(u, Mapping) and self.input in u:
            return u[self.input]
        raise DataError(
            "Regression: the inputs and input= do not fit together.",
            got=f"keys {sorted(u)}" if isinstance(u, Mapping) else "inputs that are no dictionary",
            expected="an array" if self.input is None else f"a dictionary with {self.input!r}",
            fix='Regression(1, input="price") for us={"price": array}',
        )
