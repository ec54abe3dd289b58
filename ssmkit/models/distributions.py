"""Distributions that numpyro lacks, and the Gaussian moments of those it has.

``SingularNormal`` is a normal law with a covariance that need not be invertible; ``Diffuse`` is
an initial law that is flat in some directions.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ssmkit.errors import ImproperStartError, ModelError, SingularTransitionError
from ssmkit.linalg import SMALL, cholesky_psd, solve_lower
from ssmkit.typing import Array, Float, Key, Law


class SingularNormal(dist.Distribution):
    r"""A normal law \(N(m, F F^\top)\) whose covariance may be singular.

    Args:
        mean: mean ``(..., D)``.
        factor: any factor of the covariance ``(..., D, K)``; ``K < D`` is fine.

    Raises:
        SingularTransitionError: by ``log_prob``; such a law has no density.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> law = SingularNormal(jnp.zeros(2), jnp.array([[1.0], [1.0]]))
        >>> x = law.sample(jax.random.key(0))
        >>> bool(x[0] == x[1])
        True
    """

    arg_constraints: ClassVar = {"mean": constraints.real_vector, "factor": constraints.real_matrix}
    support: Any = constraints.real_vector
    pytree_data_fields = ("location", "factor")

    def __init__(self, mean: Float[Array, "... D"], factor: Float[Array, "... D K"]) -> None:
        """Hold the mean and the factor."""
        self.location = mean
        self.factor = factor
        batch = jnp.broadcast_shapes(jnp.shape(mean)[:-1], jnp.shape(factor)[:-2])
        super().__init__(batch, jnp.shape(mean)[-1:], validate_args=False)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw ``mean + factor @ noise``."""
        shape = sample_shape + self.batch_shape + jnp.shape(self.factor)[-1:]
        noise = jax.random.normal(key, shape, jnp.result_type(self.location, self.factor))
        return self.location + jnp.einsum("...dk,...k->...d", self.factor, noise)

    def log_prob(self, value: Array) -> Array:
        """Refuse: there is no density.

        Raises:
            SingularTransitionError: always.
        """
        raise SingularTransitionError(
            "a density is needed, and a SingularNormal has none.",
            got="a transition with a singular covariance",
            expected="a transition with a density",
            fix="use an engine that needs only draws or moments (sk.Kalman()), or a transition "
            "covariance of full rank",
        )

    @property
    def mean(self) -> Array:
        """Mean ``(..., D)``."""
        return jnp.broadcast_to(self.location, self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> Array:
        """Covariance ``(..., D, D)``."""
        return self.factor @ jnp.swapaxes(self.factor, -1, -2)

    @property
    def variance(self) -> Array:
        """Marginal variances ``(..., D)``."""
        return jnp.sum(self.factor**2, axis=-1)


class Diffuse(dist.Distribution):
    r"""An initial law that is flat in some directions.

    \(x_0 = m + F\epsilon + A\delta\) with \(\epsilon \sim N(0, I)\) and \(\delta\) flat on
    \(\mathbb{R}^q\): the limit of \(\delta \sim N(0, \kappa I)\) as \(\kappa \to \infty\).
    Exact in Kalman engines; refused by name elsewhere.

    Args:
        mean: ``(D,)``.
        factor: factor of the proper part ``(D, K)``; zeros where there is none.
        directions: the flat directions ``(D, q)``; the identity when not given.

    Example:
        >>> import jax.numpy as jnp
        >>> Diffuse(jnp.zeros(2)).directions.shape
        (2, 2)
    """

    support: Any = constraints.real_vector
    pytree_data_fields = ("location", "factor", "directions")

    def __init__(
        self,
        mean: Float[Array, " D"],
        factor: Float[Array, "D K"] | None = None,
        directions: Float[Array, "D q"] | None = None,
    ) -> None:
        """Hold mean, proper factor and flat directions."""
        mean = jnp.asarray(mean)
        size = mean.shape[-1]
        self.location = mean
        self.factor = jnp.zeros((size, size), mean.dtype) if factor is None else factor
        self.directions = jnp.eye(size, dtype=mean.dtype) if directions is None else directions
        super().__init__((), (size,), validate_args=False)

    def _refuse(self, what: str) -> ImproperStartError:
        return ImproperStartError(
            f"a diffuse start cannot be {what}.",
            got="initial(u) returned sk.Diffuse",
            expected="a proper initial distribution",
            fix="use sk.Kalman(), or give the model a proper initial law",
        )

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Refuse: a flat law has no draws.

        Raises:
            ImproperStartError: always.
        """
        raise self._refuse("sampled")

    def log_prob(self, value: Array) -> Array:
        """Refuse: a flat law has no normalised density.

        Raises:
            ImproperStartError: always.
        """
        raise self._refuse("scored")

    @property
    def mean(self) -> Array:
        """The centre ``(D,)`` from which the flat directions go out."""
        return self.location


GAUSSIAN = (
    dist.Normal,
    dist.MultivariateNormal,
    dist.LowRankMultivariateNormal,
    dist.Delta,
    SingularNormal,
)


def is_a(law: Law, kind: Any) -> bool:
    """``isinstance`` that does not bring numpyro's annotations back in."""
    return isinstance(law, kind)


def base_distribution(distribution: Law) -> Law:
    """Strip ``Independent`` and ``ExpandedDistribution`` wrappers."""
    while is_a(distribution, dist.Independent | dist.ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution


def is_gaussian(distribution: Law) -> bool:
    """Whether the law is exactly Gaussian (point masses and singular ones included)."""
    return isinstance(base_distribution(distribution), GAUSSIAN)


def moments(distribution: Law) -> tuple[Array, Array]:
    """Mean and covariance factor of one law, with the event flattened.

    Args:
        distribution: a law over real arrays with ``n`` coordinates.

    Returns:
        Mean ``(n,)`` and factor: ``(n,)`` standard deviations where the coordinates are
        independent, ``(n, k)`` otherwise.

    Raises:
        ModelError: when the law has no variance that can be computed.
    """
    mean = jnp.ravel(distribution.mean)
    base = base_distribution(distribution)
    if is_a(base, SingularNormal):
        return mean, base.factor
    if is_a(base, dist.MultivariateNormal):
        return mean, base.scale_tril
    if is_a(base, dist.LowRankMultivariateNormal):
        return mean, jnp.concatenate([base.cov_factor, jnp.diag(jnp.sqrt(base.cov_diag))], axis=1)
    if is_a(base, dist.MultivariateStudentT):
        factor = base.scale_tril * jnp.sqrt(base.df / (base.df - 2))
        return mean, factor
    return mean, jnp.ravel(_standard_deviation(distribution, base))


def _standard_deviation(distribution: Law, base: Any) -> Array:
    if is_a(base, dist.Normal):
        return jnp.broadcast_to(base.scale, distribution.batch_shape + distribution.event_shape)
    if is_a(base, dist.Delta):
        return jnp.zeros_like(distribution.mean)
    try:
        variance = distribution.variance
    except NotImplementedError as error:
        raise ModelError(
            "a Gaussian engine needs the mean and variance of this distribution.",
            got=type(base).__name__,
            expected="a numpyro distribution with .mean and .variance",
            fix="use another distribution, or a particle engine",
        ) from error
    if len(distribution.event_shape) == 1 and is_a(base, dist.MixtureSameFamily):
        raise ModelError("a Gaussian engine cannot use vector mixtures.", got=type(base).__name__)
    return jnp.sqrt(variance)


def log_density(distribution: Law, value: Array) -> Array:
    """Log density in nats, without LAPACK for one small multivariate normal.

    Args:
        distribution: a law.
        value: of the shape of its event.
    """
    is_plain = type(distribution) is dist.MultivariateNormal and distribution.batch_shape == ()
    if not is_plain or distribution.event_shape[0] > SMALL:
        return distribution.log_prob(value)
    factor: Any = distribution.scale_tril
    # the inverse is made once for all particles that share the factor
    inverse = solve_lower(factor, jnp.eye(factor.shape[-1], dtype=factor.dtype))
    white = inverse @ (value - distribution.loc)
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
    return -0.5 * (white @ white) - log_det - 0.5 * white.shape[0] * math.log(2 * math.pi)


def covariance_of(factor: Array) -> Array:
    """Covariance ``(n, n)`` of a factor from `moments`."""
    if factor.ndim == 1:
        return jnp.diag(factor**2)
    return factor @ factor.T


def square_factor(factor: Array) -> Array:
    """A square factor ``(n, n)`` with the same covariance."""
    if factor.ndim == 1:
        return jnp.diag(factor)
    if factor.shape[0] == factor.shape[1]:
        return factor
    return cholesky_psd(factor @ factor.T)
