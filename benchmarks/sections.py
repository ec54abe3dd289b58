"""Reports in sections: run some rows, and put each at its place in a file of results."""

import argparse
import datetime
import importlib
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from targets import Target
from timing import markdown

RESULTS = Path(__file__).resolve().parent / "results"
VERSIONS = ("jax", "jaxlib", "equinox", "numpyro", "optax", "numpy")


class Section(NamedTuple):
    """One row of the report."""

    title: str
    remarks: str
    header: Sequence[str]
    lines: list[list[str]]
    targets: list[Target]

    def text(self) -> str:
        """The section as markdown."""
        verdicts = [target.cells() for target in self.targets]
        shown = [f"## {self.title}", self.remarks, markdown(list(self.header), self.lines)]
        return "\n\n".join(
            [*shown, markdown(["figure", "target", "measured", "verdict"], verdicts)]
        )


class Report(NamedTuple):
    """A file of results.

    Attributes:
        name: of the file, without its ending.
        heading: what stands above; ``{system}``, ``{python}`` and ``{versions}`` are filled in.
        rows: what each row is made by, as ``module:function``.
        note: what the command line says of itself.
    """

    name: str
    heading: str
    rows: dict[str, str]
    note: str

    @property
    def path(self) -> Path:
        """The file."""
        return RESULTS / f"{self.name}.md"

    def run(self, row: str, *, quick: bool) -> Section:
        """Make one row."""
        module, function = self.rows[row].split(":")
        return getattr(importlib.import_module(module), function)(quick=quick)

    def write(self, row: str, section: Section, begun: float) -> None:
        """Put a section at its place."""
        known = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        parts = re.split(r"^(?=## )", known, flags=re.MULTILINE)[1:]
        sections = {part[3:].split(".")[0]: part.rstrip() for part in parts}
        minutes = (time.perf_counter() - begun) / 60
        now, load = datetime.datetime.now(), os.getloadavg()[0]
        sections[row] = (
            f"{section.text()}\n\n{now:%Y-%m-%d}, {minutes:.0f} minutes, load {load:.1f}."
        )
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
        system, python = platform.system(), platform.python_version()
        heading = self.heading.format(system=system, python=python, versions=versions)
        shown = [heading.rstrip(), *(sections[name] for name in sorted(sections))]
        self.path.write_text("\n\n".join(shown) + "\n", encoding="utf-8")

    def main(self, arguments: list[str]) -> int:
        """Run rows; the exit code is 1 where a figure was missed."""
        parser = argparse.ArgumentParser(description=self.note)
        parser.add_argument("rows", nargs="*", help=f"{', '.join(self.rows)}; all by default")
        parser.add_argument("--quick", action="store_true")
        chosen = parser.parse_args(arguments)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        missed = False
        for row in chosen.rows or self.rows:
            begun = time.perf_counter()
            section = self.run(row, quick=chosen.quick)
            print(section.text(), flush=True)
            missed |= any(target.met is False for target in section.targets)
            if not chosen.quick:
                self.write(row, section, begun)
        return int(missed)
