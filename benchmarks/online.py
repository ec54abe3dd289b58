"""Online variational filtering: the figures promised of it, in ``results/online.md``.

``python benchmarks/online.py [A B …] [--quick]``; the sections of other rows stay as they are.
``--quick`` runs everything at a size that says nothing, and writes nothing.
"""

import sys

from sections import Report

ROWS = {
    "A": "online_linear:exactness",
    "B": "online_network:five",
    "C": "online_network:twenty",
    "D": "online_network:hundred",
    "E": "online_linear:parameters",
    "F": "online_linear:constant_cost",
    "G": "online_latency:latency",
    "H": "online_video:video",
}
HEADING = """# Online variational filtering

CPU, float64, {system}, Python {python}; {versions}. Each row is of the day and the load that stand
under it. Evidences and bounds are in nats; a bound is the mean over fresh paths of the whole
series, never the running estimate. "steps" are gradient steps at each observation. Wall times are
of a second run, without compilation, on a machine that has other work to do.
"""

if __name__ == "__main__":
    sys.exit(Report("online", HEADING, ROWS, __doc__ or "").main(sys.argv[1:]))
