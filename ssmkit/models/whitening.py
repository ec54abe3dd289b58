r"""Coordinates in which a program's prior is a standard normal law, as far as it can be.

\[\theta = F^{-1}(\Phi(u)), \qquad u \sim N(0, I) \iff \theta \sim p(\theta)\]

site by site, in the order in which the program draws them, so that a law may depend on sites
before it. Laws without a closed form here move on the real line instead, shifted and scaled by
what draws from the prior show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import erfinv, log_ndtr, ndtr, ndtri
from numpyro import handlers

from ssmkit.errors import ParameterError
from ssmkit.models.programs import Program
from ssmkit.typing import Array, Key, Law, PyTree, Scalar

DRAWS = 1000  # of the prior, which show where a law without a closed form lies
Frame = dict[str, tuple[Array, Array]]  # centre and scale on the real line, by site


class Settled(NamedTuple):
    """Sites at a place in the coordinates ``u``.

    Attributes:
        values: by site, each on its own scale.
        log_prior: density of ``u`` under the prior, in nats.
        log_jacobian: log determinant of the derivative of ``values`` in ``u``.
    """

    values: dict[str, PyTree]
    log_prior: Scalar
    log_jacobian: Scalar


def normal_form(law: Law) -> Callable[[Array], Any] | None:
    r"""The map from standard normals to draws of a law, \(F^{-1} \circ \Phi\); None without one.

    Args:
        law: any distribution of numpyro.
    """
    if isinstance(law, dist.Independent | dist.ExpandedDistribution):
        return normal_form(law.base_dist)
    if isinstance(law, dist.MultivariateNormal):
        return lambda u: law.loc + jnp.einsum("...ij,...j->...i", law.scale_tril, u)
    if isinstance(law, dist.TransformedDistribution) and not law.base_dist.event_shape:
        inner = normal_form(law.base_dist)
        if inner is None or any(t.domain.event_dim or t.codomain.event_dim for t in law.transforms):
            return None
        return lambda u: _through(law.transforms, inner(u))
    for family, quantile in QUANTILES.items():
        if type(law) is family:
            return lambda u: quantile(law, u)
    return None


def _through(transforms: Any, x: Array) -> Any:
    for transform in transforms:
        x = transform(x)
    return x


def _by_halves(u: Array, low: Callable[[Array], Array], high: Callable[[Array], Array]) -> Array:
    """Each tail by the probability that is small there; what is not chosen stays finite."""
    is_low = u < 0
    return jnp.where(is_low, low(jnp.where(is_low, u, -1.0)), high(jnp.where(is_low, 1.0, u)))


def _half_normal(law: Any, u: Array) -> Array:
    root = jnp.sqrt(2.0)
    return law.scale * _by_halves(
        u, lambda u: root * erfinv(ndtr(u)), lambda u: -ndtri(0.5 * ndtr(-u))
    )


def _half_cauchy(law: Any, u: Array) -> Array:
    quarter = 0.5 * jnp.pi
    return law.scale * _by_halves(
        u, lambda u: jnp.tan(quarter * ndtr(u)), lambda u: 1 / jnp.tan(quarter * ndtr(-u))
    )


def _laplace(law: Any, u: Array) -> Array:
    two = jnp.log(2.0)
    return law.loc + law.scale * _by_halves(
        u, lambda u: two + log_ndtr(u), lambda u: -two - log_ndtr(-u)
    )


QUANTILES: dict[Any, Callable[[Any, Array], Array]] = {
    dist.Normal: lambda law, u: law.loc + law.scale * u,
    dist.Uniform: lambda law, u: law.low + (law.high - law.low) * ndtr(u),
    dist.HalfNormal: _half_normal,
    dist.HalfCauchy: _half_cauchy,
    dist.Exponential: lambda law, u: -log_ndtr(-u) / law.rate,
    dist.Laplace: _laplace,
    dist.Logistic: lambda law, u: law.loc + law.scale * (log_ndtr(u) - log_ndtr(-u)),
}


def refuse_improper(sites: dict[str, Any], engine: str) -> None:
    """Refuse laws that cannot be drawn from.

    Raises:
        ParameterError: names the sites.
    """
    found = [name for name, site in sites.items() if isinstance(site.law, dist.ImproperUniform)]
    if found:
        raise ParameterError(
            f"{engine} needs a proper prior, and that of {', '.join(found)} is improper.",
            got=f"dist.ImproperUniform for {found}",
            expected="a law that can be drawn from and adds up to one",
            fix=f'numpyro.sample("{found[0]}", dist.Normal(0.0, 10.0)), or another wide law',
        )


def frame_of(target: Program, key: Key, *, whiten: bool = True) -> tuple[dict[str, Array], Frame]:
    """Zeros of the shape of ``u``, and where laws without a closed form lie, by draws.

    Args:
        target: the program.
        key: random key.
        whiten: False takes every site to the real line and leaves it there as it is.
    """
    drawn = _drawn(target, key)
    exact = {name for name, (law, _) in drawn.items() if whiten and normal_form(law) is not None}
    zeros = {
        name: jnp.zeros_like(value if name in exact else _to_line(law, value))
        for name, (law, value) in drawn.items()
    }
    loose = [name for name in zeros if name not in exact]
    if not whiten:
        return zeros, {name: (zeros[name], jnp.ones_like(zeros[name])) for name in loose}
    if not loose:
        return zeros, {}

    def draw(key: Key) -> dict[str, Array]:
        drawn = _drawn(target, key)
        return {name: _to_line(*drawn[name]) for name in loose}

    draws = jax.jit(jax.vmap(draw))(jax.random.split(key, DRAWS))
    low, centre, high = (
        {name: jnp.asarray(np.quantile(np.asarray(a), level, axis=0), a.dtype)
         for name, a in draws.items()}
        for level in (0.159, 0.5, 0.841)
    )  # fmt: skip
    return zeros, {name: (centre[name], 0.5 * (high[name] - low[name])) for name in loose}


def _drawn(target: Program, key: Key) -> dict[str, tuple[Law, Array]]:
    """The law of each site, and a draw of it."""
    seeded = handlers.trace(handlers.seed(target, key))
    with handlers.block():
        seeded()
    return {
        name: (message["fn"], message["value"])
        for name, message in seeded.trace.items()
        if message["type"] == "sample" and not message["is_observed"]
    }


def _to_line(law: Law, value: Array) -> Array:
    return dist.biject_to(law.support).inv(value)


def settle(target: Program, frame: Frame, u: dict[str, Array]) -> Settled:
    """Sites at ``u``; each law is read off the run itself, since it may depend on earlier sites."""
    values: dict[str, PyTree] = {}
    priors, jacobians = [jnp.zeros(())], [jnp.zeros(())]

    def substitute(site: dict[str, Any]) -> Array | None:
        if site["name"] not in u:
            return None
        law, here = site["fn"], u[site["name"]]
        form = None if site["name"] in frame else normal_form(law)
        if form is not None:
            value, prior = form(here), jnp.sum(jax.scipy.stats.norm.logpdf(here))
            # what the law itself says cancels where prior and Jacobian are added
            jacobian = prior - jnp.sum(law.log_prob(value))
        else:
            centre, scale = frame[site["name"]]
            bijection = dist.biject_to(law.support)
            z = centre + scale * here
            value = bijection(z)
            jacobian = jnp.sum(bijection.log_abs_det_jacobian(z, value)) + jnp.sum(jnp.log(scale))
            prior = jnp.sum(law.log_prob(value)) + jacobian
        values[site["name"]] = value
        priors.append(prior)
        jacobians.append(jacobian)
        return value

    with handlers.block():
        handlers.substitute(target, substitute_fn=substitute)()
    return Settled(values, sum(priors, jnp.zeros(())), sum(jacobians, jnp.zeros(())))


def sample_prior(
    target: Program, frame: Frame, zeros: dict[str, Array], key: Key
) -> dict[str, Array]:
    """A draw of ``u`` from the prior."""
    normal_key, own_key = jax.random.split(key)
    drawn = _drawn(target, own_key) if frame else {}
    found = {}
    for number, (name, like) in enumerate(sorted(zeros.items())):
        if name in frame:
            centre, scale = frame[name]
            found[name] = (_to_line(*drawn[name]) - centre) / scale
        else:
            key = jax.random.fold_in(normal_key, number)
            found[name] = jax.random.normal(key, like.shape, like.dtype)
    return found
