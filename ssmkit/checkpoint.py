"""Checkpoints of long learning: the numbers, and what they are of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ssmkit.errors import SaveError
from ssmkit.serialise import read_tree, write_tree
from ssmkit.typing import Key, PyTree

KIND = "checkpoint"


class Checkpoint:
    """A file that holds how far a run has come, written anew after each round.

    Args:
        path: the file.
        of: what the run is of (engine, target, key, data); a file of another run is refused.
    """

    def __init__(self, path: str | Path, of: Any) -> None:
        """Fingerprint the run."""
        self.path, self.of = Path(path), _fingerprint(of)

    def save(self, arrays: PyTree, history: list[dict[str, float]]) -> None:
        """Write the arrays of a tree, and the history so far; atomic."""
        leaves = jax.tree.leaves(eqx.filter(arrays, eqx.is_array))
        write_tree({"of": self.of, "leaves": leaves, "history": history}, self.path, kind=KIND)

    def load(self, like: PyTree) -> tuple[PyTree, list[dict[str, float]]] | None:
        """Read into a tree of the same structure; None where there is no file yet.

        Raises:
            SaveError: the file is damaged, or of another run.
        """
        if not self.path.exists():
            return None
        found = read_tree(self.path, kind=KIND)
        arrays, rest = eqx.partition(like, eqx.is_array)
        expected, structure = jax.tree.flatten(arrays)
        shapes = [(a.shape, a.dtype) for a in expected]
        if found["of"] != self.of or [(a.shape, a.dtype) for a in found["leaves"]] != shapes:
            raise SaveError(
                f"{self.path.name} is a checkpoint of another run.",
                got="another engine, target, key or data",
                expected="the run that wrote it",
                fix="another checkpoint= for this run, or remove the file",
            )
        tree = eqx.combine(jax.tree.unflatten(structure, found["leaves"]), rest)
        return tree, found["history"]


def _fingerprint(of: Any) -> str:
    """SHA-256 over the structure and the numbers of a tree; functions count by name."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(of):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if eqx.is_array_like(leaf):
            array = np.ascontiguousarray(leaf)
            total.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        else:
            name = getattr(leaf, "__qualname__", None)
            total.update((name or repr(leaf)).encode())
    return total.hexdigest()


def as_checkpoint(
    path: str | Path | None, key: Key, engine: Any, target: Any, data: Any
) -> Checkpoint | None:
    """The checkpoint of a run, or None."""
    if path is None:
        return None
    series = () if data is None else (data.ys, data.us, data.mask)
    frame = type(target).__name__, repr(engine), *series
    return Checkpoint(path, (key, frame, target))
