"""Twisted filters: the figures that were promised of ``sk.SIXO``, in ``results/sixo.md``.

``python benchmarks/sixo.py [A B C1 …] [--quick]``; the sections of other rows stay as they are.
``--quick`` runs everything at a size that says nothing, and writes nothing.
"""

import sys

from sections import Report

ROWS = {
    "A": "sixo_drift:section",
    "B": "sixo_linear:paths",
    "C1": "sixo_volatility:on_simulated",
    "C2": "sixo_volatility:on_currencies",
    "D1": "sixo_neuron:inference",
    "D2": "sixo_neuron:long_inference",
    "E": "sixo_neuron:learning",
    "F": "sixo_linear:amortisation",
    "G": "sixo_speed:section",
}
HEADING = """# Twisted filters

CPU, float64, {system}, Python {python}; {versions}. Each row is of the day and the load that stand
under it. Evidences are in nats; methods of a row share keys, and the number of particles where it
is the same; "events" are resampling events per sweep; "steps" are those of all blocks; "loss" is
the classifier's, in nats. Wall times are with compilation, on a machine that has other work to do.
"""


if __name__ == "__main__":
    sys.exit(Report("sixo", HEADING, ROWS, __doc__ or "").main(sys.argv[1:]))
