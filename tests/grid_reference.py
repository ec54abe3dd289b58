"""Stochastic volatility on a grid of states: exact to the spacing, which is far below Monte Carlo.

The trapezium rule on a fine grid over all that matters of the state.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, ndtr
from scipy.stats import norm


class Grid(NamedTuple):
    """Log evidence per step, moments of predicted, filtered and smoothed states, and PIT."""

    log_likelihood: np.ndarray
    predicted: np.ndarray
    filtered: np.ndarray
    filtered_variance: np.ndarray
    smoothed: np.ndarray
    pit: np.ndarray

    @property
    def log_evidence(self):
        return float(np.sum(self.log_likelihood))


def stochastic_volatility(mean, persistence, scale, ys, size=600, width=8.0):
    """Filter and smoother of ``sk.models.StochasticVolatility`` on a grid."""
    spread = scale / np.sqrt(1 - persistence**2)
    x, step = np.linspace(mean - width * spread, mean + width * spread, size, retstep=True)
    centre = mean + persistence * (x - mean)
    log_move = norm.logpdf(x[None, :], centre[:, None], scale) + np.log(step)
    log_belief = norm.logpdf(x, mean, spread) + np.log(step)
    log_seen = norm.logpdf(np.asarray(ys)[:, None], 0.0, np.exp(x / 2))
    terms, before, after, pit = [], [], [], []
    for t in range(len(ys)):
        if t:
            log_belief = logsumexp(log_belief[:, None] + log_move, axis=0)
        before.append(log_belief)
        pit.append(np.exp(log_belief) @ ndtr(ys[t] / np.exp(x / 2)))
        joint = log_belief + log_seen[t]
        terms.append(logsumexp(joint))
        log_belief = joint - terms[-1]
        after.append(log_belief)
    smooth = [after[-1]]
    for t in range(len(ys) - 2, -1, -1):
        ratio = smooth[0] - before[t + 1]
        smooth.insert(0, after[t] + logsumexp(log_move + ratio[None, :], axis=1))
    moment = lambda logs, f: np.array([np.exp(v) @ f for v in logs])  # noqa: E731
    filtered = moment(after, x)
    return Grid(
        np.array(terms),
        moment(before, x),
        filtered,
        moment(after, x**2) - filtered**2,
        moment(smooth, x),
        np.array(pit),
    )
