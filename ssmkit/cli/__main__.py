"""``python -m ssmkit.cli``."""

from ssmkit.cli.entry import main

raise SystemExit(main())
