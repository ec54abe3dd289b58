r"""The linear Gaussian state-space model, constant or time-varying, with inputs.

\[x_0 \sim N(m, P), \qquad x_t = A_t x_{t-1} + b_t + B_t u_t + N(0, Q_t), \qquad
y_t = H_t x_t + d_t + D_t u_t + N(0, R_t)\]

Source: J. Durbin and S. J. Koopman (2012), Time Series Analysis by State Space Methods, ch. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ssmkit.errors import ParameterError, ShapeError
from ssmkit.linalg import psd_factor
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import as_float, is_singular, require_input, root
from ssmkit.models.distributions import Diffuse
from ssmkit.models.laws import multivariate_normal, normal
from ssmkit.models.slices import check_sizes, slice_at
from ssmkit.typing import Array, Float, PyTree

SIZES = {
    "initial_mean": "D",
    "initial_cov": "DD",
    "initial_directions": "Dq",
    "transition_matrix": "DD",
    "transition_cov": "DD",
    "transition_bias": "D",
    "transition_input": "DP",
    "emission_matrix": "MD",
    "emission_cov": "MM",
    "emission_bias": "M",
    "emission_input": "MP",
}
CONSTANT = ("initial_mean", "initial_cov", "initial_directions")
COVARIANCES = ("initial_cov", "transition_cov", "emission_cov")


class LinearGaussian(StateSpaceModel):
    r"""A linear Gaussian model; observations are vectors ``(M,)``, also when ``M`` is one.

    \(x_t = A_t x_{t-1} + b_t + B_t u_t + N(0, Q_t)\), \(y_t = H_t x_t + d_t + D_t u_t + N(0, R_t)\)

    All but the initial law may be given a leading axis ``T``; the entry at ``t`` leads from
    ``x_{t-1}`` to ``x_t``, so that the first entry of a transition array is unused.
    Covariances may be singular. A singular ``transition_cov`` gives a transition without a
    density (`SingularNormal`).

    Args:
        initial_mean: ``(D,)``.
        initial_cov: ``(D, D)``; of the proper part where the start is diffuse.
        transition_matrix: \(A\), ``(D, D)`` or ``(T, D, D)``.
        transition_cov: \(Q\), ``(D, D)`` or ``(T, D, D)``.
        emission_matrix: \(H\), ``(M, D)`` or ``(T, M, D)``.
        emission_cov: \(R\), ``(M, M)`` or ``(T, M, M)``.
        transition_bias: \(b\), ``(D,)`` or ``(T, D)``.
        emission_bias: \(d\), ``(M,)`` or ``(T, M)``.
        transition_input: \(B\), ``(D, P)`` or ``(T, D, P)``, for inputs ``(P,)``.
        emission_input: \(D\), ``(M, P)`` or ``(T, M, P)``.
        initial_directions: flat directions ``(D, q)`` of a diffuse start, as in `Diffuse`.
        singular: names of the covariances without full rank. Found from their values when not
            given; to be said for a covariance that is singular whatever its parameters are
            and is built inside a program.
        state_names: names of the ``D`` states.
        observation_names: names of the ``M`` observations.

    Raises:
        ShapeError: shapes that do not fit together.
        ParameterError: a covariance that is not one.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> one = jnp.eye(1)
        >>> model = sk.models.LinearGaussian(jnp.zeros(1), one, 0.5 * one, one, one, one)
        >>> model.transition(jnp.array([2.0]), None).mean.tolist()
        [1.0]
    """

    initial_mean: Float[Array, " D"]
    initial_cov: Float[Array, "D D"]
    transition_matrix: Float[Array, "*T D D"]
    transition_cov: Float[Array, "*T D D"]
    emission_matrix: Float[Array, "*T M D"]
    emission_cov: Float[Array, "*T M M"]
    transition_bias: Float[Array, "*T D"] | None
    emission_bias: Float[Array, "*T M"] | None
    transition_input: Float[Array, "*T D P"] | None
    emission_input: Float[Array, "*T M P"] | None
    initial_directions: Float[Array, "D q"] | None
    singular: tuple[str, ...] = eqx.field(static=True)
    names: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = eqx.field(static=True)
    varying: tuple[str, ...] = eqx.field(static=True)
    length: int | None = eqx.field(static=True)

    def __init__(
        self,
        initial_mean: Any,
        initial_cov: Any,
        transition_matrix: Any,
        transition_cov: Any,
        emission_matrix: Any,
        emission_cov: Any,
        transition_bias: Any = None,
        emission_bias: Any = None,
        transition_input: Any = None,
        emission_input: Any = None,
        *,
        initial_directions: Any = None,
        singular: Sequence[str] | None = None,
        state_names: Sequence[str] | None = None,
        observation_names: Sequence[str] | None = None,
    ) -> None:
        given = locals()
        for name in SIZES:
            setattr(self, name, None if given[name] is None else as_float(given[name]))
        self.varying, self.length = check_sizes(self, SIZES, CONSTANT)
        self.names = (
            _names("state_names", state_names, self.initial_mean.shape[0]),
            _names("observation_names", observation_names, self.emission_matrix.shape[-2]),
        )
        if singular is None:
            singular = [n for n in COVARIANCES if is_singular(self, n, given[n])]
            if "emission_cov" in singular:
                _require_diagonal(given["emission_cov"])
        self.singular = tuple(singular)

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_0``: normal, singular or diffuse."""
        factor = psd_factor(self.initial_cov)
        if self.initial_directions is not None:
            return Diffuse(self.initial_mean, factor, self.initial_directions)
        is_singular = "initial_cov" in self.singular
        return multivariate_normal(self.initial_mean, factor, is_singular=is_singular)

    def transition(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_t``: normal, or singular."""
        mean = self._affine("transition", x, u)
        factor = psd_factor(self.transition_cov)
        is_singular = "transition_cov" in self.singular
        return multivariate_normal(mean, factor, is_singular=is_singular)

    def emission(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``y_t``, a vector."""
        mean = self._affine("emission", x, u)
        if "emission_cov" in self.singular:  # some coordinates are seen without noise
            return normal(mean, root(jnp.diagonal(self.emission_cov)))
        return multivariate_normal(mean, psd_factor(self.emission_cov))

    def at(self, t: int | Array) -> LinearGaussian:
        """Return the constant model that rules the step into time ``t``."""
        if not self.varying:
            return self
        arrays = slice_at(self, SIZES, self.varying, self.length, t)
        states, observations = self.names
        return LinearGaussian(
            **arrays,
            singular=self.singular,
            state_names=states,
            observation_names=observations,
        )

    def _affine(self, step: str, x: Array, u: PyTree) -> Array:
        mean = getattr(self, f"{step}_matrix") @ x
        bias, loading = getattr(self, f"{step}_bias"), getattr(self, f"{step}_input")
        if bias is not None:
            mean = mean + bias
        if loading is None:
            return mean
        u = jnp.atleast_1d(require_input(self, u))
        if u.shape != loading.shape[-1:]:
            raise ShapeError(
                f"LinearGaussian: one input does not fit {step}_input.",
                got=f"u of shape {u.shape}",
                expected=f"shape {loading.shape[-1:]}",
                fix=f"us of shape (T, {loading.shape[-1]})",
            )
        return mean + loading @ u

    @property
    def num_steps(self) -> int | None:
        """Number of steps of a time-varying model, else None."""
        return self.length

    @property
    def time_varying(self) -> bool:
        """Whether some array has a leading axis ``T``."""
        return bool(self.varying)

    @property
    def state_names(self) -> tuple[str, ...] | None:
        """Names of the states, where given."""
        return self.names[0]

    @property
    def observation_names(self) -> tuple[str, ...] | None:
        """Names of the observations, where given."""
        return self.names[1]


def _names(option: str, names: Sequence[str] | None, size: int) -> tuple[str, ...] | None:
    if names is None or (not isinstance(names, str) and len(names) == size):
        return None if names is None else tuple(names)
    raise ShapeError(
        f"LinearGaussian: {option} does not fit.",
        got=repr(names),
        expected=f"{size} names",
        fix=f'{option}=("level", ...)',
    )


def _require_diagonal(covariance: Any) -> None:
    """Coordinates without noise are served one by one, so their noise must not be correlated."""
    matrix = np.asarray(covariance)
    if np.any((matrix != 0) & ~np.eye(matrix.shape[-1], dtype=bool)):
        raise ParameterError(
            "LinearGaussian: emission_cov is singular and not diagonal.",
            got=matrix.tolist(),
            expected="full rank, or a diagonal matrix (zeros where there is no noise)",
            fix="make the common noise a state, or add a small variance",
        )
