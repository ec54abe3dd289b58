"""``ssmkit demo``: fit real series, print a table, write posteriors and plots."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_OUT = Path("demo-output")


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    demo = commands.add_parser(
        "demo",
        help="fit real series, print a table, write posteriors and plots",
        description="Fit the Nile and CO2 series, print a table, write posteriors (netCDF) and "
        "plots (PNG). Takes about a minute on two cores, most of it compiling.",
    )
    demo.add_argument(
        "--out",
        type=_folder,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="where to write (%(default)s)",
    )
    demo.add_argument(
        "--quick",
        action="store_true",
        help="two small fits in place of all (smoke test)",
    )
    demo.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; returns the exit code."""
    import matplotlib

    matplotlib.use("Agg")  # files only; no window, also where there is no display
    from ssmkit.demo import run_demo

    run_demo(arguments.out, quick=arguments.quick, say=_say)
    return 0


def _folder(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, not a folder")
    return path


def _say(line: str) -> None:
    print(line, flush=True)
