"""Reading and running the Python in Markdown files."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(python|\{code-cell\} ipython3)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def code_blocks(path):
    """Each Python block of a file, with blank lines before it so that errors name true lines."""
    text = path.read_text(encoding="utf-8")
    return [
        "\n" * (text.count("\n", 0, found.start()) + 1) + found.group(2)
        for found in FENCE.finditer(text)
    ]


def run_blocks(path):
    """Run all blocks of a file, in order, in one fresh namespace, which is returned."""
    names = {"__name__": path.stem}
    for block in code_blocks(path):
        exec(compile(block, str(path), "exec"), names)
    return names


def relative_links(path):
    """Files that a page links to, without their anchors; addresses on the web are left out."""
    links = LINK.findall(path.read_text(encoding="utf-8"))
    return [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
