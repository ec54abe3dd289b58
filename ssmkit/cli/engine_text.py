"""Engines from text, such as ``GradientFit(evidence=Kalman())``: data, and never code.

The text is parsed and not run. It may hold literals, names of ssmkit, calls of its classes and of
``optimizer``, and names of optax for the latter.
"""

from __future__ import annotations

import ast
import difflib
from typing import Any

import ssmkit
from ssmkit.errors import OptionError, UnknownNameError

SECTIONS = ("learned", "models", "objectives", "smc")  # what may stand before a dot
EXAMPLE = '"SMC(num_particles=1000)" or "GradientFit(evidence=Kalman())"'


def read_engine(text: str) -> Any:
    """Make the engine that a text names.

    Args:
        text: as in Python, with or without ``sk.``; a name alone is called without arguments.

    Returns:
        The engine.

    Raises:
        OptionError: anything but calls of ssmkit's classes on literals, or a class that does not
            take these arguments.
        UnknownNameError: ssmkit has nothing of that name.

    Example:
        >>> read_engine("GradientFit(evidence=Kalman())")
        sk.GradientFit(evidence=sk.Kalman())
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _refuse(text) from error
    if isinstance(node, ast.Name | ast.Attribute):
        node = ast.Call(node, [], [])
    if not isinstance(node, ast.Call):
        raise _refuse(text)
    return _call(node)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.Tuple(entries) | ast.List(entries):
            return tuple(_value(entry) for entry in entries)
        case ast.Call():
            return _call(node)
        case ast.Name() | ast.Attribute():
            return _named(node)
    raise _refuse(ast.unparse(node))


def _call(node: ast.Call) -> Any:
    thing, written = _named(node.func), ast.unparse(node.func)
    is_own = isinstance(thing, type) and thing.__module__.startswith("ssmkit.")
    if not is_own and thing is not ssmkit.optimizer:
        raise _refuse(ast.unparse(node))
    arguments = [_value(argument) for argument in node.args]
    if any(keyword.arg is None for keyword in node.keywords):
        raise _refuse(ast.unparse(node))
    options = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    try:
        return thing(*arguments, **options)
    except TypeError as error:
        raise OptionError(
            f"{written} does not take these arguments.",
            got=ast.unparse(node),
            expected=str(error),
        ) from error


def _named(node: ast.expr) -> Any:
    """What a dotted name stands for: public, and of ssmkit or optax."""
    parts = _parts(node)
    if parts[0] == "optax" and len(parts) == 2:
        import optax

        place: Any = optax
        parts = parts[1:]
    else:
        place = ssmkit
        parts = parts[1:] if parts[0] in ("sk", "ssmkit") and len(parts) > 1 else parts
        if len(parts) == 2 and parts[0] in SECTIONS:
            place, parts = getattr(ssmkit, parts[0]), parts[1:]
    found = getattr(place, parts[0], None)
    if len(parts) == 1 and not parts[0].startswith("_") and callable(found):
        return found
    known = [name for name in dir(place) if name[:1].isalpha() and callable(getattr(place, name))]
    close = difflib.get_close_matches(parts[-1], known, n=1)
    raise UnknownNameError(
        f"{place.__name__} has no {ast.unparse(node)}.",
        got=ast.unparse(node),
        expected=f"an engine, such as {EXAMPLE}",
        fix=f"did you mean {close[0]}?" if close else None,
    )


def _parts(node: ast.expr) -> list[str]:
    match node:
        case ast.Name(name):
            return [name]
        case ast.Attribute(value, name):
            return [*_parts(value), name]
    raise _refuse(ast.unparse(node))


def _refuse(text: str) -> OptionError:
    return OptionError(
        "this is no engine.",
        got=text,
        expected="a class of ssmkit with literal arguments",
        fix=f"--engine {EXAMPLE}",
    )
