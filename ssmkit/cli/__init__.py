"""The command line: ``ssmkit fit``, ``stream``, ``filter``, ``forecast``, ``demo``."""

from ssmkit.cli.entry import main as main
