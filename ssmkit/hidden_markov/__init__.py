r"""Exact inference for models with a finite state: forward filter, smoother, paths, Viterbi.

The state is an integer in ``0 … K-1``; ``initial`` and ``transition`` return numpyro Categorical
laws, ``emission`` any law. All is done in log space, where a probability of zero is ``-inf``; it
counts as structural, and its derivative is taken to be zero. A row that no state can emit makes
the log evidence ``-inf``; the beliefs after it are those without that row.

Source: L. R. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77.
"""

from ssmkit.hidden_markov.filter import FiniteState as FiniteState
from ssmkit.hidden_markov.filter import FiniteStep as FiniteStep
from ssmkit.hidden_markov.filter import filter_finite as filter_finite
from ssmkit.hidden_markov.filter import predict as predict
from ssmkit.hidden_markov.filter import start as start
from ssmkit.hidden_markov.filter import step as step
from ssmkit.hidden_markov.filter import update as update
from ssmkit.hidden_markov.paths import CategoricalPaths as CategoricalPaths
from ssmkit.hidden_markov.paths import categorical_paths as categorical_paths
from ssmkit.hidden_markov.paths import window_paths as window_paths
from ssmkit.hidden_markov.terms import FiniteKernel as FiniteKernel
from ssmkit.hidden_markov.terms import finite_kernel as finite_kernel
from ssmkit.hidden_markov.terms import finite_terms as finite_terms
from ssmkit.hidden_markov.terms import log_initial_vector as log_initial_vector
