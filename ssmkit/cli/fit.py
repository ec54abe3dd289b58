"""``ssmkit fit``: infer states and parameters of a finished file, and keep them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ssmkit.cli import options
from ssmkit.cli.engine_text import read_engine
from ssmkit.cli.fitted import columns_of, note_of, save_fit
from ssmkit.cli.options import say
from ssmkit.cli.table import read_table
from ssmkit.cli.targets import load_target, start_model
from ssmkit.encoding import encode


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "fit",
        help="fit a model to a file",
        description="Fit a model to a file of observations (CSV or JSON lines), print a summary, "
        "and write the posterior. Without parameters to fit it infers states.",
    )
    command.add_argument(
        "file", type=Path, metavar="FILE", help="observations; - is standard input"
    )
    options.add_model(command, required=True)
    options.add_columns(command)
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where to write the fit"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fit, and write the file at the end; returns the exit code."""
    import ssmkit as sk

    engine = read_engine(arguments.engine)
    target = load_target(arguments.model).target
    encode(target)  # what cannot be written is refused before the work, not after
    table = read_table(arguments.file, start_model(target), columns_of(arguments, {}), arguments)
    say(f"fitting {arguments.model} by {engine!r}")
    posterior = sk.infer(arguments.seed, engine, target, table.ys, table.us, table.observed)
    last = table.times[-1] if table.times else None
    note = note_of(arguments.model, table.columns, arguments.step, last)
    save_fit(arguments.out, posterior, note)
    say(f"wrote {arguments.out}")
    print(posterior.summary())
    return 0
