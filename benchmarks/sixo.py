"""Twisted filters: the figures that were promised of ``sk.SIXO``, in ``results/sixo.md``.

``python benchmarks/sixo.py [A B C1 …] [--quick]``; the sections of other rows stay as they are.
``--quick`` runs everything at a size that says nothing, and writes nothing.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import os
import platform
import re
import sys
import time
from pathlib import Path

import jax
from sixo_common import Section

PATH = Path(__file__).resolve().parent / "results" / "sixo.md"
ROWS = {
    "A": "sixo_drift:section",
    "B": "sixo_linear:paths",
    "C1": "sixo_volatility:on_simulated",
    "C2": "sixo_volatility:on_currencies",
    "D1": "sixo_neuron:inference",
    "D2": "sixo_neuron:long_inference",
    "E": "sixo_neuron:learning",
    "F": "sixo_linear:amortisation",
    "G": "sixo_speed:section",
}
VERSIONS = ("jax", "jaxlib", "equinox", "numpyro", "optax", "numpy")
HEADING = """# Twisted filters

CPU, float64, {system}, Python {python}; {versions}. Each row is of the day and the load that stand
under it. Evidences are in nats; methods of a row share keys, and the number of particles where it
is the same; "events" are resampling events per sweep; "steps" are those of all blocks; "loss" is
the classifier's, in nats. Wall times are with compilation, on a machine that has other work to do.
"""


def run(row: str, *, quick: bool) -> Section:
    """One row."""
    module, function = ROWS[row].split(":")
    return getattr(importlib.import_module(module), function)(quick=quick)


def write(row: str, section: Section, begun: float) -> None:
    """Put a section into the report, at its place."""
    known = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    parts = re.split(r"^(?=## )", known, flags=re.MULTILINE)[1:]
    sections = {part[3:].split(".")[0]: part.rstrip() for part in parts}
    minutes = (time.perf_counter() - begun) / 60
    when = (
        f"{datetime.datetime.now():%Y-%m-%d}, {minutes:.0f} minutes, load {os.getloadavg()[0]:.1f}."
    )
    sections[row] = f"{section.text()}\n\n{when}"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    heading = HEADING.format(
        system=platform.system(), python=platform.python_version(), versions=versions
    )
    shown = [heading.rstrip(), *(sections[name] for name in sorted(sections))]
    PATH.write_text("\n\n".join(shown) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run rows; the exit code is 1 where a figure was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="A to G; all where none is given")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    missed = False
    for row in chosen.rows or ROWS:
        begun = time.perf_counter()
        section = run(row, quick=chosen.quick)
        print(section.text(), flush=True)
        missed |= any(target.met is False for target in section.targets)
        if not chosen.quick:
            write(row, section, begun)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
