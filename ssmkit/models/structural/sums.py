"""Sums of structural components."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import block_diag

from ssmkit.errors import ModelError, ShapeError
from ssmkit.linalg import psd_factor
from ssmkit.models.checks import as_float, is_singular
from ssmkit.models.laws import multivariate_normal
from ssmkit.models.structural.base import Observation, Start, StateEquation, Structural
from ssmkit.typing import Array, Float, PyTree


class StructuralSum(Structural):
    r"""The sum of structural components, as ``a + b`` makes it.

    \(y_t = \sum_i h_i(u_t)^\top x^{(i)}_t + N(0, \sum_i \sigma_i^2)\), the states concatenated in
    the order of the components.

    Args:
        terms: the components.
        initial_mean: ``(D,)``; with ``initial_cov`` it replaces the start of the components.
        initial_cov: ``(D, D)``.

    Raises:
        ModelError: two components or states with one name.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLinearTrend(1.0, 0.1, 2.0) + sk.models.Cycle(10.0, 0.9, 1.0)
        >>> model.state_names
        ('level', 'slope', 'cycle1', 'cycle2')
    """

    terms: tuple[Structural, ...]
    initial_mean: Float[Array, " D"] | None
    initial_cov: Float[Array, "D D"] | None

    def __init__(
        self, terms: Iterable[Structural], initial_mean: Any = None, initial_cov: Any = None
    ) -> None:
        self.terms = tuple(terms)
        self.initial_mean, self.initial_cov = initial_mean, initial_cov
        self._require_distinct_names()

    def _require_distinct_names(self) -> None:
        names = Counter(part.labels[0] for part in self.parts)
        states = Counter(self.state_names)
        twice = [n for n, count in (names | states).items() if count > 1]
        if twice:
            raise ModelError(
                "two components of a structural model have the same name.",
                got=f"{', '.join(twice)} more than once",
                expected="distinct names of components and of states",
                fix='a name for each: Seasonal(7, 1.0, name="weekly")',
            )

    @property
    def parts(self) -> tuple[Structural, ...]:
        """The components."""
        return self.terms

    @property
    def labels(self) -> tuple[str, tuple[str, ...]]:
        """Name of the sum, and of all states."""
        return "sum", tuple(name for part in self.parts for name in part.labels[1])

    def equation(self) -> StateEquation:
        """Return the joint state equation."""
        matrices, noises, dense = zip(*(part.equation() for part in self.parts), strict=True)
        return StateEquation(block_diag(*matrices), jnp.concatenate(noises), all(dense))

    def start(self) -> Start:
        """Return the joint start."""
        factors, directions = zip(*(part.start() for part in self.parts), strict=True)
        return Start(block_diag(*factors), block_diag(*directions))

    def observation(self, u: PyTree) -> Observation:
        """Return the joint row and the sum of the noise variances."""
        rows, variances = zip(*(part.observation(u) for part in self.parts), strict=True)
        return Observation(jnp.concatenate(rows), sum(variances))

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of ``x_0``: that of the components, or the one given."""
        if self.initial_mean is None or self.initial_cov is None:
            return super().initial(u)
        factor = psd_factor(self.initial_cov)
        is_singular = not self.equation().has_density
        return multivariate_normal(self.initial_mean, factor, is_singular=is_singular)

    def __add__(self, other: object) -> Structural:
        """Add components; a start that was given cannot be extended."""
        if self.initial_mean is not None:
            raise ModelError(
                "a structural model with a start of its own cannot be added to.",
                got="with_initial(...) + ...",
                expected="the sum first, then its start",
                fix="(a + b).with_initial(mean, covariance)",
            )
        return super().__add__(other)


def with_initial(model: Structural, mean: Any, covariance: Any) -> StructuralSum:
    """See `Structural.with_initial`."""
    mean, covariance = as_float(mean), as_float(covariance)
    size = len(model.state_names)
    if covariance.ndim == 1:
        covariance = jnp.diag(covariance)
    if mean.shape != (size,) or covariance.shape != (size, size):
        raise ShapeError(
            "the start does not fit the states.",
            got=f"mean of shape {mean.shape}, covariance of shape {covariance.shape}",
            expected=f"({size},) and ({size}, {size}) for states {', '.join(model.state_names)}",
            fix="one entry for each of model.state_names",
        )
    is_singular(model, "initial_cov", covariance)  # refuses what is no covariance
    return StructuralSum(model.parts, mean, covariance)
