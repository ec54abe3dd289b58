"""Residuals and components of a posterior."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.beliefs import Belief, Gaussian, Labels, mix
from ssmkit.errors import EngineError
from ssmkit.linalg import cholesky_psd, solve_lower
from ssmkit.models.base import input_at
from ssmkit.posterior import Posterior
from ssmkit.typing import Array


def residuals(posterior: Posterior) -> np.ndarray:
    r"""Standardised one-step residuals \(L_t^{-1}(y_t - \mathrm{E}[y_t \mid y_{0:t-1}])\).

    Args:
        posterior: of one series, by an engine that predicts observations.

    Returns:
        ``(T, M)``; nan where nothing was observed, or nothing is identified yet.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> sk.residuals(posterior).shape
        (100, 1)
    """
    belief = posterior.predicted_observations
    count = posterior.data.ys.shape[0]
    ys = posterior.data.ys.reshape(count, -1)
    mean = belief.mean().reshape(count, -1)
    mask = posterior.data.mask
    there = jnp.ones(ys.shape, bool) if mask is None else mask.reshape(ys.shape)
    cov = belief.cov()
    there = there & jnp.isfinite(jnp.diagonal(cov, axis1=-2, axis2=-1))
    pair = there[:, :, None] & there[:, None, :]
    cov = jnp.where(pair, cov, jnp.eye(ys.shape[1], dtype=cov.dtype))
    innovation = jnp.where(there, jnp.where(there, ys, 0.0) - mean, 0.0)
    white = solve_lower(cholesky_psd(cov), innovation[..., None])[..., 0]
    return np.asarray(jnp.where(there, white, jnp.nan))


def components(posterior: Posterior) -> dict[str, Belief]:
    """Smoothed components of a structural model: each part's contribution to the observation.

    Args:
        posterior: of one series under a model with a method ``components(u)``.

    Returns:
        Name to belief over time; for several parameter draws a mixture.

    Raises:
        EngineError: the model has no components.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> sorted(sk.components(posterior))
        ['level']
    """
    if not hasattr(posterior.model, "components"):
        raise EngineError(
            f"{type(posterior.model).__name__} has no components.",
            expected="a structural model, such as sk.models.LocalLevel(...) + sk.models.Cycle(...)",
        )
    marginals, us = posterior.states.marginals, posterior.data.us
    weights = posterior.states.log_weights
    single = isinstance(marginals, Gaussian)
    model = jax.tree.map(lambda a: a[None], posterior.model) if single else posterior.model
    each = jax.tree.map(lambda a: a[None], marginals) if single else marginals.components
    length = posterior.data.ys.shape[0]

    order: list[str] = []

    def rows(one: Any) -> dict[str, Array]:
        order[:] = one.components(input_at(us, 0))
        if us is None:
            fixed = one.components(None)
            return {k: jnp.broadcast_to(v, (length, v.shape[0])) for k, v in fixed.items()}
        return jax.vmap(one.components)(us)

    loadings = eqx.filter_vmap(rows)(model)
    result = {}
    for name in order:  # that of the model; jax sorts dictionaries
        row = loadings[name]
        mean = jnp.einsum("ktd,ktd->kt", row, each.location)[..., None]
        variance = jnp.einsum("ktd,ktde,kte->kt", row, each.covariance, row)[..., None, None]
        belief = mix(Gaussian(mean, jnp.maximum(variance, 0.0), ()), weights)
        result[name] = belief.labelled(Labels(posterior.data.labels.times, (name,)))
    return result
