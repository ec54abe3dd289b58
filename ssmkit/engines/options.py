"""What a verb passes to an engine besides data, and the optimiser holder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ssmkit.errors import OptionError
from ssmkit.reprs import call_repr


def short_repr(self: Any) -> str:
    """Show an engine as the call that makes it."""
    return f"sk.{call_repr(self)}"


def check_counts(engine: Any, least: dict[str, int]) -> None:
    """Refuse counts that are no integers, or too small.

    Args:
        engine: has the counts as attributes.
        least: the smallest possible value by name.

    Raises:
        OptionError: names the count, what it was and what it can be.
    """
    for name, low in least.items():
        value = getattr(engine, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise OptionError(
                f"sk.{type(engine).__name__}: {name} is no number that can be used.",
                got=repr(value),
                expected=f"an integer ≥ {low}",
                fix=f"{name}={getattr(type(engine), name, low)}",
            )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of `infer` that are not the engine's own."""

    keep: str = "all"
    throw: bool = True
    progress: bool | None = None
    callback: Callable[[dict[str, Any]], Any] | None = None
    batched: bool = False
    learned: Any = None
    checkpoint: Any = None


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A named recipe for an optax optimiser; equal when built alike."""

    factory: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    def build(self) -> Any:
        """Make the optax object."""
        return self.factory(*self.arguments, **dict(self.options))

    def __repr__(self) -> str:
        """Show the call."""
        parts = [*map(repr, self.arguments), *(f"{k}={v!r}" for k, v in self.options)]
        return f"optimizer({', '.join([self.factory.__name__, *parts])})"


def optimizer(factory: Callable[..., Any], *arguments: Any, **options: Any) -> Optimizer:
    """Describe an optax optimiser, so that engines stay hashable and compile once.

    Args:
        factory: a function of optax, such as ``optax.adam``.
        arguments: its arguments.
        options: its keyword arguments.

    Raises:
        OptionError: a lambda or an optax object: they compare by identity and would retrace.

    Example:
        >>> import optax, ssmkit as sk
        >>> sk.optimizer(optax.adam, 1e-3)
        optimizer(adam, 0.001)
    """
    if not callable(factory) or getattr(factory, "__name__", "") in ("", "<lambda>"):
        raise OptionError(
            "an optimiser is given by its factory and its arguments.",
            got=repr(factory),
            expected="a named function that builds the optimiser",
            fix="sk.optimizer(optax.adam, 1e-3)",
        )
    return Optimizer(factory, arguments, tuple(sorted(options.items())))
