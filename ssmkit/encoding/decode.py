"""From JSON and arrays back to the tree; no constructor and no user's code is called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from ssmkit.beliefs import Labels
from ssmkit.encoding.encode import Encoded, Node, field_names, is_record
from ssmkit.encoding.indexes import tree_to_index
from ssmkit.encoding.names import Resolver
from ssmkit.errors import SaveError, SsmkitError


def decode(encoded: Encoded, using: Iterable[Any] = ()) -> Any:
    """Build the tree that was encoded.

    Args:
        encoded: what `encode` returned.
        using: classes and functions that are not of ssmkit or its libraries.

    Raises:
        SaveError: a class or function is not allowed, not handed over or has other fields now;
            the data are damaged; or 64-bit arrays would lose their precision.

    Example:
        >>> import ssmkit as sk
        >>> from ssmkit.encoding.encode import encode
        >>> decode(encode({"engine": sk.Kalman(), "times": (1, 2.5)}))
        {'engine': sk.Kalman(), 'times': (1, 2.5)}
    """
    decoder = _Decoder(encoded, Resolver(using))
    try:
        return decoder.node(encoded.tree)
    except SsmkitError:
        raise
    except Exception as error:  # whatever a made-up tree leads to
        raise SaveError(
            "the file is damaged: its tree cannot be read.",
            got=f"{type(error).__name__}: {error}",
        ) from error


class _Decoder:
    def __init__(self, encoded: Encoded, resolve: Resolver) -> None:
        self.classes, self.arrays = encoded.classes, encoded.arrays
        self.resolve = resolve
        self.made: dict[tuple[str, int], Any] = {}

    def node(self, node: Node) -> Any:
        if node is None or isinstance(node, bool | int | float | str):
            return node
        tag, *rest = node
        read = getattr(self, f"read_{tag}", None)
        if read is None:
            raise SaveError("the file is damaged: an unknown kind of entry.", got=repr(tag)[:80])
        return read(*rest)

    def read_float(self, text: str) -> float:
        return float(text)

    def read_list(self, nodes: list[Node]) -> list:
        return [self.node(n) for n in nodes]

    def read_tuple(self, nodes: list[Node]) -> tuple:
        return tuple(self.node(n) for n in nodes)

    def read_dict(self, pairs: list[list[Node]]) -> dict:
        return {self.node(key): self.node(value) for key, value in pairs}

    def read_unset(self) -> None:
        return None

    def read_dtype(self, name: str) -> np.dtype:
        return jnp.dtype(name)

    def read_index(self, number: int, tree: Node) -> Any:
        return self.once("index", number, lambda: tree_to_index(self.node(tree)))

    def read_labels(self, times: Node, names: Node) -> Labels:
        return Labels(self.node(times), self.node(names))

    def read_code(self, name: str) -> Any:
        return self.resolve(name)

    def read_numpy(self, number: int, dtype: str) -> np.ndarray:
        return self.once("numpy", number, lambda: self.array(number, dtype))

    def read_scalar(self, number: int, dtype: str) -> Any:
        return self.array(number, dtype)[()]

    def read_jax(self, number: int, dtype: str, weak: bool) -> jax.Array:
        return self.once("jax", number, lambda: _to_jax(self.array(number, dtype), weak))

    def read_key(self, number: int, dtype: str, name: str) -> jax.Array:
        return jax.random.wrap_key_data(jnp.asarray(self.array(number, dtype)), impl=name)

    def read_object(self, name: str, nodes: list[Node]) -> Any:
        cls, values = self.record(name, nodes)
        if not is_record(cls):
            raise SaveError("the file is damaged: this is no class of records.", got=name)
        if issubclass(cls, tuple):
            return tuple.__new__(cls, [values[f] for f in field_names(cls)])
        made = object.__new__(cls)
        for (field, value), node in zip(values.items(), nodes, strict=True):
            if node != ["unset"]:
                object.__setattr__(made, field, value)
        return made

    def read_law(self, name: str, nodes: list[Node]) -> Any:
        cls, values = self.record(name, nodes)
        if not issubclass(cls, Distribution):
            raise SaveError("the file is damaged: this is no distribution.", got=name)
        children = tuple(values[f] for f in cls.gather_pytree_data_fields())
        aux = tuple(values[f] for f in cls.gather_pytree_aux_fields())
        return cls.tree_unflatten(aux, children)

    def read_pytree(self, name: str, children: Node, aux: Node) -> Any:
        return self._class(name).tree_unflatten(self.node(aux), self.node(children))

    def record(self, name: str, nodes: list[Node]) -> tuple[type, dict[str, Any]]:
        """A class and the values of its fields, which must be those of today."""
        cls = self._class(name)
        then, now = self.classes[name], field_names(cls)
        if sorted(then) != sorted(now):
            raise SaveError(
                f"{name} has other fields now than when the file was written.",
                got=f"fields {then} in the file",
                expected=f"fields {now}",
                fix="load it with the version that wrote it, or run it again",
            )
        return cls, {f: self.node(n) for f, n in zip(then, nodes, strict=True)}

    def _class(self, name: str) -> type:
        found = self.resolve(name)
        if not isinstance(found, type):
            raise SaveError("a class is needed, not a function.", got=name, expected="a class")
        return found

    def array(self, number: int, name: str) -> np.ndarray:
        array = self.arrays[number]
        return array if array.dtype.name == name else array.view(jnp.dtype(name))

    def once(self, kind: str, number: int, make: Any) -> Any:
        if (kind, number) not in self.made:
            self.made[kind, number] = make()
        return self.made[kind, number]


def _to_jax(array: np.ndarray, weak: bool) -> jax.Array:
    made = jnp.asarray(array)
    if made.dtype != array.dtype:
        raise SaveError(
            f"the file holds {array.dtype} arrays, and jax runs in 32 bits.",
            got=f"{made.dtype} after conversion",
            expected="the numbers that were written",
            fix='jax.config.update("jax_enable_x64", True) before anything else',
        )
    zero = jnp.asarray(array.dtype.type(0).item())  # weak, as Python numbers are
    if not weak or zero.dtype != made.dtype:
        return made
    return jnp.broadcast_to(zero, made.shape).at[...].set(made)  # which keeps it so
