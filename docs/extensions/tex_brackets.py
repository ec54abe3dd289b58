r"""Let docstrings write formulas as TeX does: ``\(x_t\)`` in the line, ``\[x_t\]`` on its own.

ReStructuredText would eat the backslashes; here the brackets become the math role and directive
before it sees them.
"""

import re
import textwrap

INLINE = re.compile(r"\\\((.+?)\\\)", re.DOTALL)
DISPLAY = re.compile(r"^([ \t]*)([^\n]*?)\\\[(.+?)\\\][ \t]*$", re.DOTALL | re.MULTILINE)


def convert(text):
    r"""Rewrite all brackets of a docstring.

    >>> convert(r"Here \(a_t\) is.")
    'Here :math:`a_t` is.'
    """
    return INLINE.sub(_inline, DISPLAY.sub(_display, text))


def _inline(match):
    return f":math:`{' '.join(match.group(1).split())}`"


def _display(match):
    indent, before, formula = match.groups()
    body = textwrap.indent("\n".join(line.strip() for line in formula.split("\n")), indent + "   ")
    head = f"{indent}{before.rstrip()}\n\n" if before.strip() else ""
    return f"{head}{indent}.. math::\n\n{body}\n"


def process(app, what, name, obj, options, lines):
    """Convert the lines of one docstring in place."""
    lines[:] = convert("\n".join(lines)).split("\n")
    if what == "property":
        _properties[name] = list(lines)


def restore(app, what, name, obj, options, lines):
    """Undo what napoleon does to properties: it takes words before a colon for a type."""
    if what == "property":
        lines[:] = _properties.pop(name)


_properties = {}


def setup(app):
    """Convert before napoleon, which would cut formulas at their colons, and restore after it."""
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-process-docstring", restore, priority=900)
    return {"parallel_read_safe": True}
