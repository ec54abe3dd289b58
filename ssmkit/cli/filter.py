"""``ssmkit filter``: beliefs about the states of a finished file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssmkit.cli import options
from ssmkit.cli.apply import Applied, apply
from ssmkit.cli.output import write_all
from ssmkit.cli.rows import Told, Writer
from ssmkit.posterior import Posterior


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "filter",
        help="beliefs about the states of a finished file",
        description="Filter, or smooth, a file of observations (CSV or JSON lines), and write one "
        "line of JSON per observation.",
    )
    command.add_argument(
        "file", type=Path, metavar="FILE", help="observations; - is standard input"
    )
    options.add_source(command)
    options.add_columns(command)
    command.add_argument(
        "--smooth",
        action="store_true",
        help="beliefs given all observations, in place of those up to each time",
    )
    options.add_rows(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Filter, and write the rows; returns the exit code."""
    applied = apply(arguments)
    posterior = applied.posterior
    belief = posterior.states.marginals if arguments.smooth else posterior.filtered
    rows = _rows(Writer(arguments.quantiles), belief, applied)
    write_all(arguments.output, rows)
    return 0


def _rows(writer: Writer, belief: Any, applied: Applied) -> Iterator[bytes]:
    columns, names = writer.columns(belief), writer.names(belief)
    scores, table = _scores(applied.posterior), applied.table
    if table is None:
        return
    for t, score in enumerate(scores):
        observed = bool(table.observed[t].any())
        time = None if table.times is None else table.times[t]
        told = Told(t, time, observed, score if observed else None)
        yield writer.row(told, names, {name: values[t] for name, values in columns.items()})


def _scores(posterior: Posterior) -> np.ndarray:
    """Log predictive density of each observation; parameter draws count by what they foretold."""
    scores = np.asarray(posterior.log_likelihood)
    if scores.ndim == 1:
        return scores
    log_weights = jax.nn.log_softmax(posterior.parts["state_log_weights"])
    totals = jax.nn.logsumexp(np.cumsum(scores, 1) + np.asarray(log_weights)[:, None], axis=0)
    return np.diff(np.asarray(totals), prepend=0.0)
