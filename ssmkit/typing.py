"""Shape-annotated aliases used across the package.

The letters are those of the conventions page: ``N`` particles, ``T`` steps, ``D`` state
coordinates, ``M`` observation coordinates, ``K`` parameter draws, ``B`` series.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

Key: TypeAlias = PRNGKeyArray
PyTree: TypeAlias = Any
Inputs: TypeAlias = Any  # a pytree with leading axis T, or None
# A numpyro distribution. Its methods are annotated as returning ArrayLike, which no function of
# jax.numpy takes; what they return are arrays.
Law: TypeAlias = Any
Scalar: TypeAlias = Float[Array, ""]

__all__ = ["Array", "Bool", "Float", "Inputs", "Int", "Key", "Law", "PyTree", "Scalar"]
