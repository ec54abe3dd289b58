"""From a tree to JSON and arrays.

None, booleans, integers, texts and finite floats stand for themselves; everything else is a list
that starts with a tag: ``float list tuple dict jax numpy scalar key dtype index labels object law
pytree code unset``. Arrays are written once, however often they occur.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from ssmkit.beliefs import Labels
from ssmkit.encoding.indexes import index_to_tree
from ssmkit.encoding.names import name_of
from ssmkit.errors import SaveError

Node = Any  # a JSON value


class Encoded(NamedTuple):
    """A tree as data: the JSON value, the field names of its classes, and its arrays."""

    tree: Node
    classes: dict[str, list[str]]
    arrays: list[np.ndarray]


def encode(tree: Any) -> Encoded:
    """Turn a tree into JSON and arrays.

    Args:
        tree: nested dict, list, tuple, NamedTuple, dataclass, `equinox.Module`, numpyro
            distribution, array, random key, pandas index, number, text or None; classes and
            functions are written by name.

    Raises:
        SaveError: something else is in it; the text says where.

    Example:
        >>> import numpy as np
        >>> encode({"a": (1, np.zeros(2))}).tree
        ['dict', [['a', ['tuple', [1, ['numpy', 0, 'float64']]]]]]
    """
    encoder = _Encoder()
    return Encoded(encoder.node(tree, "tree"), encoder.classes, encoder.arrays)


def field_names(cls: type) -> list[str]:
    """Names of the fields that a file holds of an instance."""
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    if issubclass(cls, Distribution):
        # their order is that of a set of texts, which changes from process to process
        return sorted({*cls.gather_pytree_data_fields(), *cls.gather_pytree_aux_fields()})
    return list(getattr(cls, "_fields", ()))


def is_record(cls: type) -> bool:
    """Whether a class is a dataclass (models, engines and records are) or a NamedTuple."""
    named = issubclass(cls, tuple) and hasattr(cls, "_fields")
    return dataclasses.is_dataclass(cls) or named


def _is_index(value: Any) -> bool:
    pandas = sys.modules.get("pandas")  # without it there is no index
    return pandas is not None and isinstance(value, pandas.Index)


def _is_bound(value: Any) -> bool:
    """Whether this is a method of some object, which a name would lose."""
    return not isinstance(getattr(value, "__self__", None), ModuleType | None)


class _Encoder:
    """Walks a tree; keeps the arrays, and each class and function by its name."""

    def __init__(self) -> None:
        self.classes: dict[str, list[str]] = {}
        self.arrays: list[np.ndarray] = []
        self.num_indexes = 0
        self.seen: dict[int, tuple[Any, Node]] = {}  # holding the object keeps its id its own
        self.code: dict[str, Any] = {}

    def node(self, value: Any, path: str) -> Node:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else ["float", repr(value)]
        if type(value) in (list, tuple):
            entries = [self.node(v, f"{path}[{i}]") for i, v in enumerate(value)]
            return [type(value).__name__, entries]
        if type(value) is dict:
            pairs = [[self.node(k, path), self.node(v, f"{path}[{k!r}]")] for k, v in value.items()]
            return ["dict", pairs]
        for kind, write in WRITERS:
            if isinstance(value, kind):
                return write(self, value, path)
        return self.by_class(value, path)

    def by_class(self, value: Any, path: str) -> Node:
        cls = type(value)
        if hasattr(value, "__qualname__") and not _is_bound(value):
            return ["code", self.name(value, path)]
        if is_record(cls) and not _is_bound(value):
            return self.by_fields("object", value, path)
        if _is_index(value):
            return self.once(value, lambda: self.index(value, path))
        if hasattr(value, "tree_flatten") and hasattr(cls, "tree_unflatten"):
            children, aux = (self.node(part, path) for part in value.tree_flatten())
            return ["pytree", self.name(cls, path), children, aux]
        raise SaveError(
            "this cannot be written as data.",
            got=f"{cls.__module__}.{cls.__qualname__} at {path}",
            expected="arrays, numbers, texts, containers, models and functions with a name",
            fix="hold it as arrays, or in an eqx.Module of your own",
        )

    def by_fields(self, tag: str, value: Any, path: str) -> Node:
        name = self.name(type(value), path)
        fields = self.classes.setdefault(name, field_names(type(value)))
        if tag == "law":  # what it has not computed yet stays so
            values = {f: vars(value).get(f) for f in fields}
        else:
            values = {f: getattr(value, f, UNSET) for f in fields}
        return [tag, name, [self.node(v, f"{path}.{f}") for f, v in values.items()]]

    def name(self, thing: Any, path: str) -> str:
        name = name_of(thing)
        if self.code.setdefault(name, thing) is not thing:
            raise SaveError(
                "two different functions or classes have the same name.",
                got=f"{name}, the second at {path}",
                expected="a name for each, by which they are found again",
                fix="define them by `def` in a module, under different names",
            )
        return name

    def once(self, value: Any, make: Callable[[], Node]) -> Node:
        if id(value) not in self.seen:
            self.seen[id(value)] = (value, make())
        return self.seen[id(value)][1]

    def array(self, value: np.ndarray, path: str) -> tuple[int, str]:
        name = value.dtype.name
        if value.dtype.hasobject:
            raise SaveError(
                "an array of Python objects cannot be written as data.", got=f"at {path}"
            )
        if value.dtype.kind == "V" and value.dtype.fields is None:  # bfloat16 and its like
            value = value.view(f"u{value.dtype.itemsize}")
        self.arrays.append(value)
        return len(self.arrays) - 1, name

    def index(self, value: Any, path: str) -> Node:
        self.num_indexes += 1
        return ["index", self.num_indexes, self.node(index_to_tree(value), path)]


class _Unset:
    """A field without a value."""


UNSET = _Unset()


def _jax(encoder: _Encoder, value: jax.Array, path: str) -> Node:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(value))
        return ["key", *encoder.array(data, path), str(jax.random.key_impl(value))]
    return ["jax", *encoder.array(np.asarray(value), path), bool(value.weak_type)]


def _numpy(encoder: _Encoder, value: np.ndarray, path: str) -> Node:
    if type(value) is not np.ndarray:
        raise SaveError(
            "a kind of numpy array that cannot be written.", got=f"{type(value)} at {path}"
        )
    return ["numpy", *encoder.array(value, path)]


WRITERS: tuple[tuple[Any, Callable[[_Encoder, Any, str], Node]], ...] = (
    (_Unset, lambda encoder, value, path: ["unset"]),
    (np.generic, lambda encoder, value, path: ["scalar", *encoder.array(np.asarray(value), path)]),
    (np.dtype, lambda encoder, value, path: ["dtype", value.name]),
    (jax.Array, lambda e, value, path: e.once(value, lambda: _jax(e, value, path))),
    (np.ndarray, lambda e, value, path: e.once(value, lambda: _numpy(e, value, path))),
    (Labels, lambda e, v, path: ["labels", e.node(v.times, path), e.node(v.names, path)]),
    (Distribution, lambda encoder, value, path: encoder.by_fields("law", value, path)),
)
