r"""Structural time series: components that add up to one scalar observation.

\[y_t = \sum_i h_i(u_t)^\top x^{(i)}_t + N(0, \sigma^2), \qquad
x^{(i)}_t = F_i x^{(i)}_{t-1} + s_i \odot N(0, I)\]

Source: A. C. Harvey (1989), Forecasting, Structural Time Series Models and the Kalman Filter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import Number, root
from ssmkit.models.distributions import Diffuse, SingularNormal
from ssmkit.models.laws import multivariate_normal, normal
from ssmkit.typing import Array, Float, PyTree


class StateEquation(NamedTuple):
    """How the states of a component move.

    Attributes:
        matrix: transition matrix ``(D, D)``.
        noise: standard deviations of the state noise ``(D,)``; zero where there is none.
        has_density: whether every state has noise of its own.
    """

    matrix: Float[Array, "D D"]
    noise: Float[Array, " D"]
    has_density: bool


class Observation(NamedTuple):
    """What is seen of a component.

    Attributes:
        loading: row ``(D,)`` that maps the state to its contribution to the observation.
        noise_variance: variance of the observation noise.
    """

    loading: Float[Array, " D"]
    noise_variance: Number


class Start(NamedTuple):
    """Where the states of a component start, around zero.

    Attributes:
        factor: lower factor of the proper part of the covariance ``(D, D)``.
        directions: flat directions ``(D, q)``.
    """

    factor: Float[Array, "D D"]
    directions: Float[Array, "D q"]


class Structural(StateSpaceModel):
    r"""Base of structural models; ``a + b`` adds their contributions and noise variances.

    Every component is a model by itself, with a scalar observation.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(1.0, 2.0) + sk.models.Seasonal(4, 0.5)
        >>> model.state_names
        ('level', 'seasonal1', 'seasonal2', 'seasonal3')

    Source: A. C. Harvey (1989), Forecasting, Structural Time Series Models and the Kalman Filter.
    """

    def equation(self) -> StateEquation:
        """Return the state equation."""
        raise NotImplementedError

    def start(self) -> Start:
        """Return the start; diffuse in all states unless a component says otherwise."""
        matrix = self.equation().matrix
        return Start(jnp.zeros_like(matrix), jnp.eye(len(matrix), dtype=matrix.dtype))

    def observation(self, u: PyTree) -> Observation:
        """Return the loading and the noise variance of the observation."""
        raise NotImplementedError

    @property
    def labels(self) -> tuple[str, tuple[str, ...]]:
        """Name of the component, and of its states."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Structural, ...]:
        """The components of a sum; of one component, itself."""
        return (self,)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return self.labels[1]

    def components(self, u: PyTree = None) -> dict[str, Float[Array, " D"]]:
        """Rows ``(D,)`` that map the full state to the contribution of each component.

        Args:
            u: the input at that time, for a `Regression`.

        Returns:
            Component name to row; ``row @ x`` is its contribution to the observation.

        Example:
            >>> import ssmkit as sk
            >>> model = sk.models.LocalLevel(1.0, 2.0) + sk.models.Seasonal(3, 0.5)
            >>> {name: row.tolist() for name, row in model.components().items()}
            {'level': [1.0, 0.0, 0.0], 'seasonal': [0.0, 1.0, 0.0]}
        """
        rows = [part.observation(u).loading for part in self.parts]
        zeros = [jnp.zeros_like(row) for row in rows]
        return {
            part.labels[0]: jnp.concatenate([*zeros[:i], rows[i], *zeros[i + 1 :]])
            for i, part in enumerate(self.parts)
        }

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_0``: diffuse for trends, seasons and regression effects."""
        factor, directions = self.start()
        mean = jnp.zeros(len(factor), factor.dtype)
        if directions.shape[1]:
            return Diffuse(mean, factor, directions)
        is_singular = not self.equation().has_density
        return multivariate_normal(mean, factor, is_singular=is_singular)

    def transition(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_t``: normal, singular where a state has no noise of its own."""
        matrix, noise, has_density = self.equation()
        if has_density:
            return normal(matrix @ x, noise)
        return SingularNormal(matrix @ x, jnp.diag(noise))

    def emission(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of ``y_t``, a scalar."""
        loading, noise_variance = self.observation(u)
        return normal(loading @ x, root(noise_variance))

    def with_initial(self, mean: Any, covariance: Any) -> Structural:
        r"""Return the same model with a proper start \(N(m, P)\) instead of a diffuse one.

        Engines other than the Kalman filter need one.

        Args:
            mean: \(m\), ``(D,)``, in the order of ``state_names``.
            covariance: \(P\), ``(D, D)``, or variances ``(D,)``.

        Raises:
            ShapeError: they do not have one entry a state.
            ParameterError: the covariance is not one.

        Example:
            >>> import ssmkit as sk
            >>> model = sk.models.LocalLevel(1.0, 2.0).with_initial([1000.0], [400.0])
            >>> model.initial(None).mean.tolist()
            [1000.0]
        """
        from ssmkit.models.structural.sums import with_initial

        return with_initial(self, mean, covariance)

    def __add__(self, other: object) -> Structural:
        """Add the components of another structural model."""
        from ssmkit.models.structural.sums import StructuralSum

        if not isinstance(other, Structural):
            return NotImplemented
        return StructuralSum((*self.parts, *other.parts))

    def __radd__(self, other: object) -> Structural:
        """Let ``sum([a, b, c])`` work, which starts at 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented
