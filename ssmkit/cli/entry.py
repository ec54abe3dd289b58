"""The program: its arguments, its exit codes, and what becomes of errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ssmkit.cli import demo, filter, fit, forecast, stream
from ssmkit.errors import EngineError, OptionError, SsmkitError, UnknownNameError

OK, FAILED, MISUSED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
# What the user wrote on the command line was wrong, and not what is in the files.
MISUSES = (OptionError, UnknownNameError, EngineError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the name of the program; those of the process when None.

    Returns:
        The exit code: 0 when all went well, 1 for files and data that cannot be used or written,
        2 for wrong arguments (some leave by ``SystemExit``), 130 after Ctrl-C, 143 after SIGTERM
        (`stream`), 141 when nobody reads standard output any more.

    Example:
        >>> main(["demo", "--out", "results"])  # doctest: +SKIP
        0
    """
    arguments = _parser().parse_args(argv)
    try:
        # float64 before anything is computed: the library itself never touches global settings
        import jax

        jax.config.update("jax_enable_x64", True)
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_standard_output()
        return BROKEN_PIPE
    except (SsmkitError, OSError) as error:
        name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        print(f"ssmkit: error: {name}{error}", file=sys.stderr)
        return MISUSED if isinstance(error, MISUSES) else FAILED


def _parser() -> argparse.ArgumentParser:
    from ssmkit import __version__

    parser = argparse.ArgumentParser(
        prog="ssmkit", description="Inference in state-space models, in JAX."
    )
    parser.add_argument("--version", action="version", version=f"ssmkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in (fit, stream, filter, forecast, demo):
        command.add(commands)
    return parser


def _forget_standard_output() -> None:
    """Nobody reads it: Python would complain when it flushes on the way out."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
