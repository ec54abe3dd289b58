"""Fewer results of a compiled step: on the host each array that comes out costs microseconds.

Scalars leave together in one vector; arrays that are in the state already are not handed out again.
Both are put together again on the host, from what the structure says.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.typing import Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Named small arrays (or trees of them), in one vector of the widest floating type.

    Attributes:
        values: all of their entries.
        structure: their names.
        kinds: their shapes and types.
    """

    values: Array
    structure: Any = dataclasses.field(metadata={"static": True})
    kinds: tuple[Any, ...] = dataclasses.field(metadata={"static": True})

    def unpack(self) -> dict[str, Any]:
        """The arrays by name; waits for the step that made them."""
        ends = np.cumsum([math.prod(shape) for shape, _ in self.kinds])
        parts = np.split(np.asarray(self.values), ends[:-1])
        each = zip(parts, self.kinds, strict=True)
        leaves = [part.reshape(shape).astype(dtype) for part, (shape, dtype) in each]
        return jax.tree.unflatten(self.structure, leaves)


def pack(named: dict[str, PyTree]) -> Packed:
    """Put named small arrays into one vector."""
    arrays, structure = jax.tree.flatten(named)
    kinds = tuple((a.shape, a.dtype) for a in arrays)
    wide = jnp.result_type(float, *(k for _, k in kinds if jnp.issubdtype(k, jnp.floating)))
    values = jnp.concatenate([jnp.ravel(a).astype(wide) for a in arrays])
    return Packed(values, structure, kinds)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared:
    """A tree of which some leaves are those of another one.

    Attributes:
        own: the leaves that are not.
        places: for each leaf its number in the other tree, or None.
        structure: of the tree.
    """

    own: tuple[Array, ...]
    places: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})
    structure: Any = dataclasses.field(metadata={"static": True})

    def restore(self, other: PyTree) -> PyTree:
        """The tree, with the leaves of the other one in their places."""
        there, own = jax.tree.leaves(other), iter(self.own)
        leaves = [next(own) if place is None else there[place] for place in self.places]
        return jax.tree.unflatten(self.structure, leaves)


def share(tree: PyTree, other: PyTree) -> Shared:
    """Leave out the leaves that are in another tree; to be called where both are traced."""
    numbers = {id(leaf): number for number, leaf in enumerate(jax.tree.leaves(other))}
    leaves, structure = jax.tree.flatten(tree)
    places = tuple(numbers.get(id(leaf)) for leaf in leaves)
    own = tuple(leaf for leaf, place in zip(leaves, places, strict=True) if place is None)
    return Shared(own, places, structure)
