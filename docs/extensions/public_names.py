"""Fail the build when a public name lacks a docstring, or a place in the API pages.

Public is what a module of ``public_modules`` lists in ``__all__``, or else every name in it without
an underscore that is defined in the package. A name that several modules offer needs one place.
"""

import dataclasses
import importlib
import inspect
from types import ModuleType


def public_names(module):
    """Names and objects that a module offers; modules among them are left to themselves."""
    listed = getattr(module, "__all__", None)
    names = [name for name in dir(module) if not name.startswith("_")] if listed is None else listed
    found = {name: getattr(module, name) for name in names}
    if listed is None:
        found = {name: thing for name, thing in found.items() if _is_ours(thing)}
    return {name: thing for name, thing in found.items() if not isinstance(thing, ModuleType)}


def _is_ours(thing):
    return str(getattr(thing, "__module__", "")).split(".")[0] == "ssmkit"


def lacks_docstring(thing):
    """Whether an object has no docstring of its own; a dataclass's made-up one does not count."""
    text = inspect.cleandoc(thing.__doc__ or "")
    made_up = dataclasses.is_dataclass(thing) and text.startswith(f"{thing.__name__}(")
    return not text or made_up


def undocumented(modules):
    """Dotted public names without a docstring, with the public methods of classes."""
    missing = []
    for module in map(importlib.import_module, modules):
        for name, thing in public_names(module).items():
            dotted = f"{module.__name__}.{name}"
            if lacks_docstring(thing):
                missing.append(dotted)
            if inspect.isclass(thing):
                own = (base for base in thing.__mro__ if _is_ours(base))
                methods = {key: value for base in own for key, value in vars(base).items()}
                missing += [
                    f"{dotted}.{key}"
                    for key, value in methods.items()
                    if not key.startswith("_") and _is_code(value) and not value.__doc__
                ]
    return missing


def _is_code(thing):
    return inspect.isfunction(thing) or isinstance(thing, property | classmethod | staticmethod)


def unlisted(modules, listed):
    """Dotted public names of objects that none of the dotted names in ``listed`` points at."""
    places = {id(thing) for thing in map(_resolve, listed) if thing is not None}
    return [
        f"{module.__name__}.{name}"
        for module in map(importlib.import_module, modules)
        for name, thing in public_names(module).items()
        if id(thing) not in places
    ]


def _resolve(dotted):
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:  # a method: its class is what counts
        return None


def check(app, environment):
    """Warn of each missing name; warnings are errors in ``make docs``."""
    from sphinx.util import logging

    logger = logging.getLogger(__name__)
    modules = app.config.public_modules
    listed = environment.domaindata["py"]["objects"]
    for name in undocumented(modules):
        logger.warning("public name without a docstring: %s", name)
    for name in unlisted(modules, listed):
        logger.warning("public name missing from the API pages: %s", name)


def setup(app):
    """Add the list of modules, and the check at the end of reading."""
    app.add_config_value("public_modules", [], "env")
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
