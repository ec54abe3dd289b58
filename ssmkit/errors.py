"""Named errors: each says what was got, what was expected and how to mend it."""

from __future__ import annotations

from typing import Any


class SsmkitError(Exception):
    """Base of every error that ssmkit raises on purpose.

    Args:
        message: what is wrong, in one sentence.
        got: what was given.
        expected: what was needed.
        fix: what to write instead.
    """

    def __init__(
        self, message: str, *, got: Any = None, expected: Any = None, fix: str | None = None
    ) -> None:
        """Compose the text from its parts; parts not given are left out."""
        parts = [message]
        for label, part in (("got", got), ("expected", expected), ("fix", fix)):
            if part is not None:
                parts.append(f"  {label}: {part}")
        super().__init__("\n".join(parts))


class ShapeError(SsmkitError, ValueError):
    """An array does not have the shape that the model or the conventions ask for."""


class DataError(SsmkitError, ValueError):
    """Observations, inputs or masks cannot be used as they are."""


class MissingDataError(DataError):
    """Single coordinates are missing where only whole rows can be."""


class ModelError(SsmkitError, ValueError):
    """A model's method failed or returned something that is no usable distribution."""


class ParameterError(SsmkitError, ValueError):
    """A parameter value, or the sites of a program, do not fit together."""


class EngineError(SsmkitError, TypeError):
    """The engine cannot serve this target; the text names one that can."""


class OptionError(SsmkitError, ValueError):
    """An option of an engine or a verb has an impossible value."""


class SingularTransitionError(ModelError):
    """A transition density is needed, and the transition has none (singular covariance)."""


class ImproperStartError(ModelError):
    """A proper initial distribution is needed, and the model starts diffuse."""


class RandomKeyError(SsmkitError, TypeError):
    """The first argument is not a typed random key."""


class TracerError(SsmkitError, TypeError):
    """A host verb was called inside jit, grad or vmap."""


class NonFiniteError(SsmkitError, ArithmeticError):
    """A computation became non-finite; the text says at which step and why."""


class NotComputed(SsmkitError, AttributeError):
    """The engine did not compute this part; the text says what does."""


class UnknownNameError(SsmkitError, LookupError):
    """A name that is not in the list; the text gives the list."""


class ComparisonError(SsmkitError, ValueError):
    """Log evidences that do not belong into one comparison."""


class SaveError(SsmkitError, ValueError):
    """A file is damaged, of another version, or refers to code that was not handed in."""


class LearningWarning(UserWarning):
    """Learning takes long, or did not work as it should; the text says what to try."""
