"""Names of classes and functions, and finding them again inside an allow-list.

A file can only ever name classes of the libraries below, their public activations and optimisers,
and what the reader hands over by ``using=``. The object found must itself say that it comes from
the module named (or, where a package exports its own classes, from ssmkit), so that nothing is
reached through another module's imports.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx

from ssmkit.errors import SaveError
from ssmkit.models.density import Density
from ssmkit.models.programs import Program

LIBRARIES = ("ssmkit.", "equinox.nn.", "numpyro.distributions.", "optax.")
PUBLIC = ("jax.nn", "jax.numpy", "optax")  # what they export is written by its public name
EXPORTS = ("ssmkit.beliefs", "ssmkit.posterior")  # likewise, so that files outlive their modules
JAX_NUMPY = frozenset(
    "abs arctan cos cosh exp expm1 log log1p maximum minimum sign sin sinc sinh sqrt square tan "
    "tanh".split()
)
NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_<][\w.<>]*")


def name_of(thing: Any) -> str:
    """Name a class or function as ``module:qualified name``."""
    short = getattr(thing, "__name__", "")
    for module in (*PUBLIC, *EXPORTS):
        if short and getattr(sys.modules.get(module), short, None) is thing:
            return f"{module}:{short}"
    home, path = thing.__module__, thing.__qualname__
    if "<" in path:  # a lambda with a name of its own in its module
        members = vars(sys.modules.get(home, object)).items()
        path = next((name for name, member in members if member is thing), path)
    return f"{home}:{path}"


class Resolver:
    """Finds classes and functions by name: the reader's own first, then those of the libraries.

    Args:
        using: classes, functions, programs, or models whose class is meant.

    Raises:
        SaveError: an entry is none of these.
    """

    def __init__(self, using: Iterable[Any] = ()) -> None:
        self.given = {name_of(thing): thing for thing in map(_as_code, using)}
        self.matched: dict[int, str] = {}

    def __call__(self, name: str) -> Any:
        """Find what a file calls ``name``.

        Raises:
            SaveError: it is not allowed, not there, or not handed over.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise SaveError("the file is damaged: no name of a class.", got=repr(name)[:80])
        found = self._given(name)
        if found is None:
            found = _in_libraries(name)
        if found is None:
            raise self._unknown(name)
        return found

    def _given(self, name: str) -> Any:
        """An entry of that name; or of that last name, when it is the only one and still free."""
        found = self.given.get(name)
        if found is None:
            short = _short(name)
            alike = [thing for full, thing in self.given.items() if _short(full) == short]
            found = alike[0] if len(alike) == 1 else None
        if found is None:
            return None
        if self.matched.setdefault(id(found), name) != name:
            raise SaveError(
                f"the file needs both {self.matched[id(found)]} and {name}.",
                got=f"one entry for both in using=: {name_of(found)}",
                fix="hand over both",
            )
        return found

    def _unknown(self, name: str) -> SaveError:
        short = _short(name)
        return SaveError(
            f"the file refers to {name}: code is never in a file and is not run from one.",
            got=f"using={sorted(self.given)}",
            expected="the class or function itself, handed over by whoever loads",
            fix=f"the same call with using=[{short}], if you know and trust {short}",
        )


def _short(name: str) -> str:
    return re.split(r"[.:]", name)[-1]


def _as_code(thing: Any) -> Any:
    if isinstance(thing, Program):
        return thing.fn
    if isinstance(thing, Density):
        return thing.log_prob
    if callable(thing) and hasattr(thing, "__qualname__"):
        return thing
    if isinstance(thing, eqx.Module):
        return type(thing)
    raise SaveError(
        "using= takes classes and functions.",
        got=repr(thing)[:80],
        expected="classes of your own models, programs, or functions",
        fix="using=[MyModel, my_program]",
    )


def _in_libraries(name: str) -> Any:
    module, _, path = name.partition(":")
    if module in PUBLIC:
        return _public(module, path)
    if not f"{module}.".startswith(LIBRARIES) or "__" in path:
        return None
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    home = str(getattr(found, "__module__", None))
    own = home == module or (module in EXPORTS and home.startswith("ssmkit."))
    return found if callable(found) and own else None


def _public(module: str, short: str) -> Callable | None:
    allowed = short in JAX_NUMPY if module == "jax.numpy" else not short.startswith("_")
    found = getattr(importlib.import_module(module), short, None) if allowed else None
    return found if callable(found) else None
