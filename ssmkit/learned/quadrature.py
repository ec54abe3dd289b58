"""The twist one step ahead, by Gauss–Hermite quadrature."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.errors import ModelError
from ssmkit.learned.apart import coordinates, leaves_coordinates_apart
from ssmkit.learned.reading import Setting
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import moments
from ssmkit.reprs import call_repr
from ssmkit.smc.proposals import own_law, require_gaussian
from ssmkit.smc.recipes import Step, log_emission
from ssmkit.smc.weights import log_mean_exp
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar

MOST_POINTS = 1000


@dataclasses.dataclass(frozen=True, repr=False)
class Quadrature:
    r"""A twist that looks one step ahead: nothing is learned.

    \[\log\psi_t(x) = \log\int p(y_t \mid x_t)\, p(x_t \mid x_{t-1} = x)\, dx_t\]

    by Gauss–Hermite points under a Gaussian transition: for each coordinate by itself where
    transition and emission leave the coordinates apart, on a grid of few dimensions elsewhere.

    Args:
        degree: points in each coordinate.

    Raises:
        ModelError: a transition that is not Gaussian, or a grid of more than 1,000 points.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 30).observations
        >>> engine = sk.SIXO(num_particles=32, twist=sk.learned.Quadrature(), proposal=None)
        >>> sk.infer(1, engine, model, ys).evidence_kind
        'unbiased'

    Source: D. Lawson, A. Raventós, A. Warrington and S. Linderman (2022), SIXO, section 5.2.
    """

    degree: int = 5

    amortised = True

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting) -> QuadratureTwist:
        """Choose the points."""
        model, u = setting.model, setting.first_input
        step = Step(0, None, u, None)
        x = jax.eval_shape(lambda: model.at(0).initial(u).sample(jax.random.key(0)))
        x = jnp.zeros(x.shape, setting.dtype)
        require_gaussian(lambda: own_law(model, x, step), repr(self))
        apart = x.size == 1 or leaves_coordinates_apart(setting)
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.degree)
        size = 1 if apart else x.size
        if self.degree**size > MOST_POINTS:
            raise ModelError(
                "the states' coordinates are not apart, and a grid over all of them is too large.",
                got=f"{self.degree}**{size} points",
                expected=f"at most {MOST_POINTS}",
                fix="learned.Analytic() or learned.Twist()",
            )
        grid = np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), -1).reshape(-1, size)
        shares = np.stack(np.meshgrid(*[weights] * size, indexing="ij"), -1).reshape(-1, size)
        log_shares = np.log(shares).sum(axis=1) - size * 0.5 * math.log(2 * math.pi)
        return QuadratureTwist(tuple(map(tuple, grid.tolist())), tuple(log_shares.tolist()), apart)


class QuadratureTwist(eqx.Module):
    """The points of `Quadrature`.

    Attributes:
        points: ``P`` of them, with one coordinate where these are apart; not to be learned.
        log_shares: logarithms of their weights.
        apart: whether each coordinate is integrated by itself.
    """

    points: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    log_shares: tuple[float, ...] = eqx.field(static=True)
    apart: bool = eqx.field(static=True)

    def read(self, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any) -> PyTree:
        """The series itself, row by row."""
        there = None if mask is None else jnp.asarray(mask)
        return jnp.arange(ys.shape[0]), ys, us, there

    def log_twist(self, model: StateSpaceModel, x: Array, features: PyTree) -> Scalar:
        """Log twist in nats of one state."""
        s = Step(*features)
        mean, factor = moments(own_law(model, x, s))
        points = jnp.asarray(self.points, mean.dtype)
        log_shares = jnp.asarray(self.log_shares, mean.dtype)

        def of_point(point: Array) -> Array:
            if self.apart:
                return coordinates(model, (mean + factor * point).reshape(x.shape), s)
            moved = factor * point if factor.ndim == 1 else factor @ point
            return log_emission(model, (mean + moved).reshape(x.shape), s)

        values = jax.vmap(of_point)(points).reshape(points.shape[0], -1)
        terms = values + (log_shares + math.log(points.shape[0]))[:, None]
        return jnp.sum(jax.vmap(log_mean_exp, 1)(terms))
