"""The command line: ``ssmkit demo`` and ``ssmkit --version``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

DEFAULT_OUT = Path("demo-output")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the name of the program; those of the process when None.

    Returns:
        The exit code: 0 when all went well, 1 when files cannot be written, 130 after Ctrl-C.
        Wrong arguments leave by ``SystemExit`` with code 2.

    Example:
        >>> main(["demo", "--out", "results"])  # doctest: +SKIP
        0
    """
    arguments = _parser().parse_args(argv)
    try:
        return _demo(arguments)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"ssmkit: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from ssmkit import __version__

    parser = argparse.ArgumentParser(
        prog="ssmkit", description="Inference in state-space models, in JAX."
    )
    parser.add_argument("--version", action="version", version=f"ssmkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
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
    return parser


def _folder(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, not a folder")
    return path


def _demo(arguments: argparse.Namespace) -> int:
    # float64 before anything is computed: the library itself never touches global settings
    import jax

    jax.config.update("jax_enable_x64", True)
    import matplotlib

    matplotlib.use("Agg")  # files only; no window, also where there is no display
    from ssmkit.demo import run_demo

    run_demo(arguments.out, quick=arguments.quick, say=_say)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
