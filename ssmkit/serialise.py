"""Files of posteriors: data, never code.

A file is a zip of ``manifest.json`` and ``arrays/0.npy …``, none of them pickled. The manifest
holds the tree, the field names of every class in it, a schema version and a fingerprint over all
of this and the arrays. It is written to a temporary file in the same folder and then moved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssmkit.encoding import Encoded, decode, encode
from ssmkit.errors import SaveError, SsmkitError
from ssmkit.posterior import Posterior

FORMAT = "ssmkit"
SCHEMA = 1  # raised whenever older readers would misread a file
MANIFEST = "manifest.json"


def save_posterior(posterior: Posterior, path: str | Path) -> Path:
    """Write a posterior to one file; `load_posterior` reads it.

    Args:
        posterior: what `infer` returned.
        path: the file; one of that name is replaced, at the end and at once.

    Returns:
        The path.

    Raises:
        SaveError: something in the posterior is no data, such as a function without a name.

    Example:
        >>> import tempfile, pathlib, ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> folder = tempfile.TemporaryDirectory()
        >>> save_posterior(posterior, pathlib.Path(folder.name) / "nile.ssm").name
        'nile.ssm'
        >>> folder.cleanup()
    """
    return write_tree(posterior, path, kind="posterior")


def load_posterior(path: str | Path, using: Iterable[Any] = ()) -> Posterior:
    """Read a posterior: the same numbers, ready for forecasts, new data and export.

    Nothing in a file is run. Classes are found in ssmkit and the libraries it stands on; model
    classes, programs and functions of your own are written by name and must be handed over.

    Args:
        path: the file.
        using: your model classes, programs and functions that the posterior refers to.

    Raises:
        SaveError: no such file format, a damaged file, a newer schema, a class with other fields,
            or a class or function that was not handed over.

    Example:
        >>> import tempfile, pathlib, ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = posterior.save(pathlib.Path(folder.name) / "nile.ssm")
        >>> round(float(load_posterior(path).log_evidence), 2)
        -633.46
        >>> folder.cleanup()
    """
    loaded = read_tree(path, kind="posterior", using=using)
    if not isinstance(loaded, Posterior):
        raise SaveError("the file holds no posterior.", got=type(loaded).__name__)
    return loaded


def write_tree(
    tree: Any, path: str | Path, *, kind: str, note: Mapping[str, Any] | None = None
) -> Path:
    """Write any tree that `encode` takes, atomically.

    Args:
        tree: what to write.
        path: the file.
        kind: what it is; `read_tree` asks for it.
        note: JSON values for `read_note`, which needs none of the classes in the tree.

    Raises:
        SaveError: something in the tree is no data.
    """
    import ssmkit

    path, encoded = Path(path), encode(tree)
    manifest = {
        "format": FORMAT,
        "schema": SCHEMA,
        "ssmkit": ssmkit.__version__,
        "kind": kind,
        "tree": encoded.tree,
        "classes": encoded.classes,
        "num_arrays": len(encoded.arrays),
        "fingerprint": _fingerprint(kind, encoded, note),
    }
    if note is not None:
        manifest["note"] = note
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            _write(file, json.dumps(manifest, allow_nan=False), encoded.arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return path


def read_tree(path: str | Path, *, kind: str, using: Iterable[Any] = ()) -> Any:
    """Read a tree that `write_tree` wrote.

    Raises:
        SaveError: as `load_posterior`.
    """
    return decode(_read_checked(Path(path), kind)[0], using)


def read_note(path: str | Path, *, kind: str) -> dict[str, Any] | None:
    """Read what `write_tree` was given as ``note``, or None; the file is checked as a whole.

    Raises:
        SaveError: a damaged file, or one of another version or kind.
    """
    return _read_checked(Path(path), kind)[1]


def _read_checked(path: Path, kind: str) -> tuple[Encoded, dict[str, Any] | None]:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
        try:
            manifest, arrays = _read(file) if is_zip else ({}, [])
        except (SsmkitError, MemoryError):
            raise
        except Exception as error:  # parsers fail in many ways on damaged bytes
            raise _damaged(path, f"{type(error).__name__}: {error}") from error
    _check_header(path, manifest, kind)
    encoded = Encoded(manifest["tree"], manifest["classes"], arrays)
    note = manifest.get("note")
    if manifest["fingerprint"] != _fingerprint(kind, encoded, note):
        raise _damaged(path, "contents that do not match the fingerprint")
    return encoded, note


def _write(file: Any, manifest: str, arrays: list[np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(MANIFEST, manifest)
        for number, array in enumerate(arrays):
            with archive.open(_member(number), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _read(file: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        if MANIFEST not in archive.namelist():
            return {}, []
        manifest = json.loads(archive.read(MANIFEST))
        arrays = []
        for number in range(manifest["num_arrays"] if manifest.get("schema") == SCHEMA else 0):
            with archive.open(_member(number)) as entry:
                arrays.append(np.lib.format.read_array(entry, allow_pickle=False))
                if entry.read(1):  # reading to the end is what checks the sum
                    raise ValueError("bytes after an array")
    return manifest, arrays


def _member(number: int) -> str:
    return f"arrays/{number}.npy"


def _check_header(path: Path, manifest: Any, kind: str) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SaveError(
            f"{path.name} was not written by ssmkit.",
            expected="a file written by posterior.save(path)",
        )
    if manifest["schema"] != SCHEMA:
        raise SaveError(
            f"{path.name} was written by another version.",
            got=f"schema {manifest['schema']}, by ssmkit {manifest.get('ssmkit')}",
            expected=f"schema {SCHEMA}",
            fix=f'pip install "ssmkit>={manifest.get("ssmkit")}", or run it again',
        )
    if manifest["kind"] != kind:
        raise SaveError(f"{path.name} holds something else.", got=manifest["kind"], expected=kind)


def _damaged(path: Path, what: str) -> SaveError:
    return SaveError(
        f"{path.name} is damaged.",
        got=what,
        expected="the bytes that were written",
        fix="copy the file again, or run it again",
    )


def _fingerprint(kind: str, encoded: Encoded, note: Mapping[str, Any] | None) -> str:
    """SHA-256 over the tree, the classes, the note, and the arrays with types and shapes."""
    told = [SCHEMA, kind, encoded.tree, encoded.classes, *([] if note is None else [note])]
    head = json.dumps(told, sort_keys=True)
    total = hashlib.sha256(head.encode())
    for array in encoded.arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
