"""Arrays with an optional leading axis of time: their shapes, and their entry at one time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssmkit.errors import ModelError, ShapeError
from ssmkit.typing import Array


def check_sizes(
    model: Any, sizes: Mapping[str, str], constant: Sequence[str]
) -> tuple[tuple[str, ...], int | None]:
    """Check fields against size letters such as ``"MD"``; each letter must keep its size.

    Args:
        model: the model, with its fields set; None is left out.
        sizes: size letters for each field, one letter an axis.
        constant: fields that must not have the leading axis ``T``.

    Returns:
        The fields that vary with time, and ``T`` (None when none does).

    Raises:
        ShapeError: a field with the wrong number of axes, or a size that does not fit the others.
    """
    known: dict[str, tuple[int, str]] = {}
    varying = []
    for name, letters in sizes.items():
        array = getattr(model, name)
        if array is None:
            continue
        axes = letters
        if array.ndim == len(letters) + 1 and name not in constant:
            varying.append(name)
            axes = "T" + letters
        if array.ndim != len(axes):
            raise _shape_error(model, name, array, letters, name in constant)
        for letter, size in zip(axes, array.shape, strict=True):
            first, source = known.setdefault(letter, (size, name))
            if first != size:
                raise ShapeError(
                    f"{type(model).__name__}: {name} does not fit {source}.",
                    got=f"{name} of shape {array.shape}, where {source} has {letter}={first}",
                    expected=f"shape {_shape(axes)} with {letter}={first}",
                    fix=f"check {source} and {name}",
                )
    return tuple(varying), known["T"][0] if "T" in known else None


def _shape(letters: str) -> str:
    return f"({', '.join(letters)}{',' if len(letters) == 1 else ''})"


def _shape_error(
    model: Any, name: str, array: Array, letters: str, is_constant: bool
) -> ShapeError:
    expected = f"shape {_shape(letters)}"
    if not is_constant:
        expected += f", or {_shape('T' + letters)} when it changes with time"
    return ShapeError(
        f"{type(model).__name__}: {name} has the wrong number of axes.",
        got=f"shape {array.shape}",
        expected=expected,
        fix="a scalar is written as jnp.array([[1.0]]) where a matrix is expected, "
        "jnp.array([1.0]) where a vector is",
    )


def slice_at(
    model: Any, sizes: Mapping[str, str], varying: Sequence[str], length: int | None, t: Any
) -> dict[str, Array | None]:
    """Fields of a time-varying model at one time; constant ones as they are.

    Raises:
        ModelError: a known ``t`` outside ``0 … T-1``.
    """
    if isinstance(t, int) and length is not None and not 0 <= t < length:
        raise ModelError(
            f"{type(model).__name__} has no parameters for time {t}.",
            got=f"t={t}",
            expected=f"t in 0 … {length - 1}: its arrays have {length} steps",
            fix="a model with more steps, or a constant one",
        )
    return {n: getattr(model, n)[t] if n in varying else getattr(model, n) for n in sizes}
