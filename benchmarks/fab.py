"""Flow posteriors: the figures promised of ``sk.FAB``, in ``results/fab.md``.

``python benchmarks/fab.py [A B …] [--quick]``; the sections of other rows stay as they are.
``--quick`` runs everything at a size that says nothing, and writes nothing.
"""

import sys

from sections import Report

ROWS = {
    "A": "fab_densities:wells",
    "B": "fab_densities:mixtures",
    "C": "fab_posteriors:posteriors",
}
HEADING = """# Flow posteriors

CPU, float64, {system}, Python {python}; {versions}. Each row is of the day and the load that stand
under it. Evidences are in nats, from at most 10,000 weighted draws; "ESS" is the effective share of
these draws; evaluations are those of the target in training. CPU times are with compilation.
"""

if __name__ == "__main__":
    sys.exit(Report("fab", HEADING, ROWS, __doc__ or "").main(sys.argv[1:]))
