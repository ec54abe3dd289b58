"""One law out of a batch of laws, by index."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.errors import ModelError
from ssmkit.typing import Array


def row(law: dist.Distribution, index: int | Array) -> dist.Distribution:
    """Return law ``index`` of a distribution with batch shape ``(K, ...)``.

    numpyro distributions cannot be indexed; this rebuilds the family from its parameters.

    Args:
        law: a family of numpyro with array parameters, ``Independent``, an expanded family, a
            mixture of one family, or a (low-rank) multivariate normal or Student-t.
        index: an integer, which may be traced.

    Returns:
        The law with the first batch axis gone.

    Raises:
        ModelError: a family whose parameters cannot be read off.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> float(row(dist.Gamma(jnp.array([1.0, 2.0]), 1.0), 1).mean)
        2.0
    """
    batch = len(law.batch_shape)
    if isinstance(law, dist.Independent):
        return row(law.base_dist, index).to_event(law.reinterpreted_batch_ndims)
    if isinstance(law, dist.ExpandedDistribution):
        return _expanded(law, index)
    if isinstance(law, dist.MixtureSameFamily):
        mixing, component = law.mixing_distribution, law.component_distribution
        mixing = mixing.expand(law.batch_shape) if not mixing.batch_shape else mixing
        return dist.MixtureSameFamily(row(mixing, index), row(component, index))
    if isinstance(law, dist.MultivariateNormal):
        loc, tril = _take(law.loc, batch, 1, index), _take(law.scale_tril, batch, 2, index)
        return dist.MultivariateNormal(loc, scale_tril=tril)
    names = list(law.arg_constraints)
    try:
        axes = {name: law.arg_constraints[name].event_dim for name in names}
        given = {n: _take(getattr(law, n), batch, axes[n], index) for n in names}
        return type(law)(**given)
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            "the law of one state cannot be taken out of this family.",
            got=type(law).__name__,
            expected="a numpyro family given by arrays, such as Normal, StudentT, Poisson",
            fix="a subclass of sk.StateSpaceModel whose emission builds the law from x",
        ) from error


def _take(parameter: Any, batch: int, event: int, index: int | Array) -> Array:
    """Entry ``index`` of the first batch axis, where the parameter has that axis at all."""
    parameter = jnp.asarray(parameter)
    if parameter.ndim < batch + event:
        return parameter
    return parameter[0] if parameter.shape[0] == 1 else parameter[index]


def _expanded(law: dist.ExpandedDistribution, index: int | Array) -> dist.Distribution:
    base, shape = law.base_dist, law.batch_shape
    if len(base.batch_shape) == len(shape):
        base = row(base, 0 if base.batch_shape[0] == 1 else index)
    return base.expand(shape[1:]) if base.batch_shape != shape[1:] else base
