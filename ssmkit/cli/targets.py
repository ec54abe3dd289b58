"""Models that the command line names: ``module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ssmkit.errors import ModelError, OptionError, UnknownNameError
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.programs import Program, build, free_sites
from ssmkit.validation import as_target


class Target(NamedTuple):
    """A model or program, and the classes and functions that files about it may refer to."""

    target: Any
    using: tuple[Any, ...]


def load_target(name: str) -> Target:
    """Import what a name stands for.

    Args:
        name: ``module:name``, with the current folder importable, or ``path/to/file.py:name``.

    Returns:
        The model or program.

    Raises:
        OptionError: no such form, or no such module or file.
        UnknownNameError: the module has nothing of that name.
        ModelError: the module fails.
        EngineError: neither a model nor a program.
    """
    place, colon, short = name.rpartition(":")
    if not (colon and place and short.isidentifier()):
        raise OptionError(
            "--model does not name a model.",
            got=name,
            expected="module:name or path/to/file.py:name",
            fix="--model mymodel.py:model",
        )
    module = _from_file(Path(place)) if place.endswith(".py") else _by_name(place)
    if not hasattr(module, short):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise UnknownNameError(
            f"{place} has no {short}.", got=name, expected=f"one of {', '.join(public)}"
        )
    thing = getattr(module, short)
    own = [
        member
        for member in vars(module).values()
        if callable(member)
        and hasattr(member, "__qualname__")
        and getattr(member, "__module__", None) == module.__name__
    ]
    return Target(as_target(thing), (*own, thing))


def start_model(target: Any) -> StateSpaceModel:
    """The model; of a program the one at the start values of its free sites."""
    if not isinstance(target, Program):
        return target
    return build(target, {name: site.value for name, site in free_sites(target).items()})


def _by_name(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return _imported(name, lambda: importlib.import_module(name))


def _from_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise OptionError("there is no such file.", got=str(path), expected="a Python file")
    sys.path.insert(0, str(path.parent))  # it may import its neighbours
    module = _imported(path.stem, lambda: importlib.import_module(path.stem))
    if Path(getattr(module, "__file__", None) or ".").resolve() != path:
        raise OptionError(
            f"there is another module called {path.stem}.",
            got=str(path),
            expected="a name of its own",
            fix=f"rename it: my_{path.name}",
        )
    return module


def _imported(name: str, load: Any) -> ModuleType:
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        raise OptionError(
            f"there is no module {name}.",
            got=name,
            expected="a module in the current folder or among the installed ones",
            fix="--model path/to/file.py:name",
        ) from error
    except Exception as error:  # whatever a user's file may raise
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> ModelError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return ModelError(
        f"{name} cannot be imported.",
        got=f"{type(error).__name__}: {error}",
        fix=f"see {frame.filename}:{frame.lineno}",
    )
