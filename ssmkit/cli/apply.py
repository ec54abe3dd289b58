"""What `filter` and `forecast` begin with: the posterior of a finished file."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from ssmkit.cli.engine_text import read_engine
from ssmkit.cli.fitted import Fit, columns_of, source_of
from ssmkit.cli.lines import Columns
from ssmkit.cli.table import Table, read_table
from ssmkit.cli.targets import start_model
from ssmkit.errors import OptionError
from ssmkit.posterior import Posterior


class Applied(NamedTuple):
    """A posterior, and the data it is of; those of the fit itself where there is no file."""

    posterior: Posterior
    columns: Columns
    table: Table | None


def apply(arguments: argparse.Namespace) -> Applied:
    """Filter a file by the parameters of a fit, or by a model and an engine.

    Raises:
        SsmkitError: as the verbs; `OptionError` for arguments that do not go together.
    """
    source = source_of(arguments)
    if isinstance(source, Fit):
        return _by_fit(arguments, source)
    import ssmkit as sk

    if arguments.file is None:
        raise OptionError("there is no file.", expected="FILE, or --fit to go on from its data")
    engine, columns = read_engine(arguments.engine), columns_of(arguments, {})
    table = read_table(arguments.file, start_model(source.target), columns, arguments)
    data = (table.ys, table.us, table.observed)
    posterior = sk.infer(arguments.seed, engine, source.target, *data)
    return Applied(posterior, table.columns, table)


def _by_fit(arguments: argparse.Namespace, fit: Fit) -> Applied:
    if arguments.engine is not None:
        raise OptionError(
            "a fit brings its engine.", got="--fit and --engine", fix="drop one of the two"
        )
    columns = columns_of(arguments, fit.note)
    if arguments.file is None:
        return Applied(fit.posterior, columns, None)
    arguments.step = arguments.step or fit.note.get("step")
    table = read_table(arguments.file, fit.model, columns, arguments)
    data = (table.ys, table.us, table.observed)
    posterior = fit.posterior.apply(*data, key=arguments.seed)
    return Applied(posterior, table.columns, table)
