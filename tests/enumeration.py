"""Reference for hidden Markov models: the sum over every path, in plain numpy."""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp


class Enumeration(NamedTuple):
    """Every path of a finite model and its joint log probability with the data."""

    paths: np.ndarray  # (K^T, T)
    log_joint: np.ndarray  # (K^T,)
    num_states: int

    @property
    def log_evidence(self) -> float:
        return logsumexp(self.log_joint)

    @property
    def probabilities(self) -> np.ndarray:
        return np.exp(self.log_joint - self.log_evidence)

    @property
    def marginals(self) -> np.ndarray:
        """Probabilities ``(T, K)`` of each state at each time given all data."""
        hits = self.paths[:, :, None] == np.arange(self.num_states)
        return np.einsum("p,ptk->tk", self.probabilities, hits)

    @property
    def most_likely(self) -> np.ndarray:
        return self.paths[np.argmax(self.log_joint)]


def enumerate_paths(initial, transition, log_emission) -> Enumeration:
    """List all paths.

    ``initial`` ``(K,)`` and ``transition`` ``(T, K, K)`` are probabilities, the latter with the
    entry for the step into time t at t; ``log_emission`` is ``(T, K)``.
    """
    length, size = log_emission.shape
    paths = np.array(list(itertools.product(range(size), repeat=length)))
    with np.errstate(divide="ignore"):
        total = np.log(initial)[paths[:, 0]] + log_emission[0, paths[:, 0]]
        for t in range(1, length):
            total = total + np.log(transition)[t, paths[:, t - 1], paths[:, t]]
            total = total + log_emission[t, paths[:, t]]
    return Enumeration(paths, total, size)


def filtered_and_predicted(initial, transition, log_emission):
    """Filtered and predicted probabilities ``(T, K)`` and log likelihoods ``(T,)``."""
    length = log_emission.shape[0]
    filtered, predicted, evidence = [], [], [0.0]
    for t in range(length):
        unseen = log_emission[: t + 1].copy()
        unseen[t] = 0.0
        before = enumerate_paths(initial, transition[: t + 1], unseen)
        after = enumerate_paths(initial, transition[: t + 1], log_emission[: t + 1])
        predicted.append(before.marginals[-1])
        filtered.append(after.marginals[-1])
        evidence.append(after.log_evidence)
    return np.array(filtered), np.array(predicted), np.diff(evidence)
