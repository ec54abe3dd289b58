"""``ssmkit stream``: one observation a line in, one belief a line out."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssmkit.cli import options
from ssmkit.cli.checkpoint import Checkpoint, Position
from ssmkit.cli.clock import Clock, moment
from ssmkit.cli.engine_text import read_engine
from ssmkit.cli.fitted import Fit, columns_of, source_of
from ssmkit.cli.interrupts import Interrupts, Stopped
from ssmkit.cli.layout import layout_of
from ssmkit.cli.lines import Columns, Parser, parser_of
from ssmkit.cli.options import say
from ssmkit.cli.output import Output
from ssmkit.cli.reading import Lines, read_header, with_numbers
from ssmkit.cli.rows import Writer
from ssmkit.cli.session import Reader, Session
from ssmkit.cli.targets import start_model
from ssmkit.errors import OptionError

EVERY = options.Every(seconds=1.0)


def add(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "stream",
        help="beliefs as observations come",
        description="Read observations (CSV or JSON lines) from standard input, one by one, and "
        "write one line of JSON for each.",
    )
    options.add_source(command)
    options.add_columns(command)
    command.add_argument(
        "--run-length",
        type=float,
        metavar="N",
        help="raise an alarm when observations stop looking like predictions, with N steps or more "
        "to a false one, in the mean",
    )
    options.add_rows(command)
    command.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="where to keep the state; goes on from it"
    )
    command.add_argument(
        "--every",
        type=options.every,
        metavar="N|Ns",
        help="write it every so many observations, or seconds (1s)",
    )
    command.add_argument(
        "--live",
        action="store_true",
        help="after a restart the input goes on, and does not begin anew: skip nothing of it",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Follow standard input to its end; returns the exit code."""
    if arguments.checkpoint is None and (arguments.every or arguments.live):
        raise OptionError("--every and --live go with --checkpoint.", fix="--checkpoint FILE")
    checkpoint = Checkpoint(arguments.checkpoint, arguments.every or EVERY)
    position = checkpoint.position
    output = Output(arguments.output, None if position is None else position.offset)
    with Interrupts() as interrupts:
        lines = Lines(interrupts.reading(sys.stdin.buffer.readline))
        try:
            session, rows = _begin(arguments, checkpoint, output, lines)
            return session.follow(rows)
        except Stopped as stopped:  # before there was anything to keep
            say(f"stopped by {stopped}")
            return stopped.code
        finally:
            output.close()


class _Given(NamedTuple):
    """What the stream is of, and what its files refer to."""

    target: Any
    model: Any
    engine: Any
    using: tuple[Any, ...]
    note: Mapping[str, Any]


def _given(arguments: argparse.Namespace) -> _Given:
    engine = read_engine(arguments.engine) if arguments.engine else None
    source = source_of(arguments)
    if isinstance(source, Fit):
        posterior = source.posterior
        engine = engine or posterior.state_engine
        return _Given(posterior, source.model, engine, source.using, source.note)
    return _Given(source.target, start_model(source.target), engine, source.using, {})


def _begin(
    arguments: argparse.Namespace, checkpoint: Checkpoint, output: Output, lines: Lines
) -> tuple[Session, Iterator[tuple[int, bytes]]]:
    """Check all there is to check, and only then write."""
    import ssmkit as sk

    given, position = _given(arguments), checkpoint.position
    flow = sk.stream(arguments.seed, given.engine, given.target, run_length=arguments.run_length)
    goes_on = position if arguments.live else None
    reader, first = _reader(arguments, given, lines, position, goes_on)
    of = _options(arguments, reader)
    session = Session(
        flow,
        reader,
        Writer(arguments.quantiles),
        output,
        checkpoint,
        of,
        stops=arguments.on_error == "stop",
    )
    if position is None:
        session.save()  # before there is an output, which nothing would go on with
    else:
        checkpoint.resume(flow, of, given.using)
        if goes_on is None and position.lines:
            lines.skip_to(position.lines, position.digest)
            first = None
        session.resumed(position.lines, position.digest)
        say(f"resumed from {arguments.checkpoint} after {flow.time} observations")
    output.open()
    say(f"{given.engine!r} on {', '.join(reader.parser.columns.observations or ())}: reading")
    return session, with_numbers(lines, first)


def _reader(
    arguments: argparse.Namespace,
    given: _Given,
    lines: Lines,
    position: Position | None,
    goes_on: Position | None,
) -> tuple[Reader, bytes | None]:
    """What turns lines into rows, and the first line if it is a row."""
    columns = columns_of(arguments, given.note)
    parser, first = _parser(lines, columns, goes_on)
    layout = layout_of(given.model, parser.columns)
    parser = dataclasses.replace(parser, whole=layout.is_whole)
    last = given.note.get("last") if position is None else position.last
    known = last is not None and parser.columns.time is not None
    clock = Clock(arguments.step or given.note.get("step"), moment(last) if known else None)
    return Reader(lines, parser, clock, layout), first


def _parser(
    lines: Lines, columns: Columns, goes_on: Position | None
) -> tuple[Parser, bytes | None]:
    if goes_on is None:
        return read_header(lines, columns)
    parser = parser_of(goes_on.form, tuple(goes_on.header), columns)
    line = next(iter(lines), None)
    return parser, None if line is None or parser.is_header(line) else line


def _options(arguments: argparse.Namespace, reader: Reader) -> dict[str, Any]:
    """What two runs of one stream have in common, as values of JSON."""
    columns = reader.parser.columns
    return {
        "columns": list(columns.observations or ()),
        "inputs": list(columns.inputs or ()),
        "time": columns.time,
        "step": reader.clock.written_step,
        "quantiles": list(arguments.quantiles),
        "seed": arguments.seed,
        "output": None if arguments.output is None else str(arguments.output),
    }
