"""Configurations shown as the call that makes them."""

from __future__ import annotations

import dataclasses
from typing import Any


def call_repr(self: Any) -> str:
    """Show a configuration as its call, without what is at its default.

    What a class lists in ``always_shown`` is, for a reader should not have to know the default.
    """
    shown, always = [], getattr(self, "always_shown", ())
    for field in dataclasses.fields(self):
        value = getattr(self, field.name)
        is_default = field.default is not dataclasses.MISSING and value == field.default
        if field.name in always or not is_default:
            shown.append(f"{field.name}={value!r}")
    return f"{type(self).__name__}({', '.join(shown)})"
