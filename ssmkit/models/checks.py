"""Checks that the models share: shapes always, values only where they are known.

Models are also built inside ``jit``, from the sites of a program; there the values are unknown and
nothing can be raised on them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ssmkit.errors import DataError, ParameterError, ShapeError
from ssmkit.typing import Array, PyTree

Number: TypeAlias = Array | float


def is_known(*values: Any) -> bool:
    """Whether none of the values is traced, so that they can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def as_float(value: Any) -> Array:
    """An array of a floating type: integers become floats, floats keep their precision."""
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return array.astype(jnp.result_type(float))


def float_type(*values: Any) -> Any:
    """The floating type that follows the arrays among the values; Python numbers are neutral."""
    return jnp.result_type(*values, float)


def root(variance: Number) -> Array:
    """Standard deviation; at exactly zero it and its gradient are zero and not nan."""
    variance = jnp.asarray(variance)
    zero = variance == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, variance)))


def require_scalars(owner: object, **values: Number) -> None:
    """Refuse parameters that are not scalars.

    Raises:
        ShapeError: one of them has axes.
    """
    for name, value in values.items():
        if jnp.ndim(value) != 0:
            raise ShapeError(
                f"{type(owner).__name__}: {name} must be a scalar.",
                got=f"shape {jnp.shape(value)}",
                expected="shape ()",
                fix=f"{name}={name}[0], or one model a series with jax.vmap",
            )


def require_vectors(owner: object, **values: Array) -> None:
    """Refuse parameters that are not vectors of one length.

    Raises:
        ShapeError: their shapes are not ``(D,)`` with one ``D``.
    """
    shapes = {name: jnp.shape(value) for name, value in values.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1:
        raise ShapeError(
            f"{type(owner).__name__}: {', '.join(values)} must be vectors of one length.",
            got=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
            expected="shape (D,) for all of them",
            fix="jnp.full(D, value) for a value that all share",
        )


def require_at_least_zero(owner: object, **values: Number) -> None:
    """Refuse scalars that are known to be negative or nan.

    Raises:
        ShapeError: one of them has axes.
        ParameterError: one of them is negative or nan.
    """
    require_scalars(owner, **values)
    for name, value in values.items():
        require_no_negative(owner, name, value)


def require_no_negative(owner: object, name: str, value: Any) -> None:
    """Refuse an array that is known to hold a negative number or nan.

    Raises:
        ParameterError: it does.
    """
    if is_known(value) and not np.all(np.asarray(value) >= 0):
        raise ParameterError(
            f"{type(owner).__name__}: {name} must not be negative.",
            got=value,
            expected="a number ≥ 0",
            fix=f'numpyro.param("{name}", 1.0, constraint=dist.constraints.positive)',
        )


def require_positive(owner: object, **values: Number) -> None:
    """Refuse scalars that are known not to be positive.

    Raises:
        ShapeError: one of them has axes.
        ParameterError: one of them is zero, negative or nan.
    """
    require_scalars(owner, **values)
    require_all_positive(owner, **values)


def require_all_positive(owner: object, **values: Number) -> None:
    """Refuse arrays that are known to hold a number that is not positive.

    Raises:
        ParameterError: one of them holds zero, a negative number or nan.
    """
    for name, value in values.items():
        require_no_negative(owner, name, value)
        if is_zero(value):
            raise ParameterError(
                f"{type(owner).__name__}: {name} must be positive.",
                got=value,
                expected="a number > 0",
                fix=f"{name}=1.0",
            )


def require_stationary(owner: object, persistence: Number) -> None:
    """Refuse a persistence that is known to be outside (-1, 1).

    Raises:
        ShapeError: it has axes.
        ParameterError: it is outside.
    """
    require_scalars(owner, persistence=persistence)
    require_all_stationary(owner, persistence)


def require_all_stationary(owner: object, persistence: Number) -> None:
    """Refuse an array of persistences of which one is known to be outside (-1, 1).

    Raises:
        ParameterError: one is outside.
    """
    if is_known(persistence) and not np.all(np.abs(np.asarray(persistence)) < 1):
        raise ParameterError(
            f"{type(owner).__name__}: persistence must be inside (-1, 1).",
            got=persistence,
            expected="a number in (-1, 1), for which there is a stationary law",
            fix="persistence=0.95",
        )


def is_zero(value: Number) -> bool:
    """Whether a value is known to be exactly zero somewhere."""
    return is_known(value) and bool(np.any(np.asarray(value) == 0))


def is_singular(owner: object, name: str, covariance: Any) -> bool:
    """Whether a covariance is known to be singular, by the rule of `linalg.cholesky_psd`.

    Raises:
        ParameterError: it is known not to be a covariance (indefinite, or not symmetric).
    """
    if not is_known(covariance):
        return False
    dtype = jax.dtypes.canonicalize_dtype(np.result_type(np.asarray(covariance), np.float32))
    matrix = np.asarray(covariance, dtype)
    # in numpy: inside jit, jax would trace this
    variances = np.abs(np.diagonal(matrix, axis1=-2, axis2=-1))
    rest, size, singular = matrix.copy(), matrix.shape[-1], False
    for j in range(size):
        keep = rest[..., j, j] > 8 * size * np.finfo(dtype).eps * variances[..., j]
        singular = singular or not np.all(keep)
        column = rest[..., :, j] / np.sqrt(np.where(keep, rest[..., j, j], 1))[..., None]
        column = np.where(keep[..., None], column, 0)
        rest = rest - column[..., :, None] * column[..., None, :]
    spread = np.sqrt(variances)
    symmetric = np.abs(matrix - np.swapaxes(matrix, -1, -2))
    gap = np.maximum(np.abs(rest), symmetric)
    if not np.all(gap <= 1e-3 * spread[..., :, None] * spread[..., None, :]):
        raise ParameterError(
            f"{type(owner).__name__}: {name} is not a covariance.",
            got=f"an indefinite, asymmetric or non-finite matrix, {matrix.tolist()}",
            expected="a symmetric positive semi-definite matrix",
            fix=f"{name} = (a + a.T) / 2 for a nearly symmetric a, or {name} = L @ L.T",
        )
    return singular


def require_input(owner: object, u: PyTree) -> PyTree:
    """Refuse a missing input.

    Raises:
        DataError: there is none.
    """
    if u is None:
        raise DataError(
            f"{type(owner).__name__} uses inputs, and none were given.",
            got="us=None",
            expected="us with leading axis T: one input a time step",
            fix="infer(key, engine, model, ys, us)",
        )
    return u
