"""Reference for linear-Gaussian models: one big joint normal of states and observations.

Everything is plain numpy on the stacked vector ``z = (x_0 … x_{T-1}, y_0 … y_{T-1})``. A diffuse
start adds columns of slopes: ``z = mean + slopes @ delta + noise`` with ``delta`` flat, which is
generalised least squares. The log evidence is then
``log N(y; mean, S) - (log pdet(X' S^-1 X) - quadratic explained by delta) / 2``: the limit of
``log p_kappa(y) + (r / 2) log kappa`` with ``r`` the number of directions that are identified.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.models.distributions import Diffuse

RANK_TOLERANCE = 1e-8


class Joint(NamedTuple):
    """The law of all states and observations; ``split`` is the index of the first observation."""

    mean: np.ndarray
    cov: np.ndarray
    slopes: np.ndarray
    split: int


class Conditional(NamedTuple):
    """The law of ``z`` given some observations; nan means and inf variances where it is flat."""

    log_evidence: float
    mean: np.ndarray
    cov: np.ndarray


class Reference(NamedTuple):
    """All that a filter and a smoother answer, per time; beliefs are (mean, covariance)."""

    log_evidence: float
    log_likelihood: np.ndarray
    predicted: tuple
    filtered: tuple
    smoothed: tuple
    predicted_observations: tuple
    path: tuple  # mean (T D,) and covariance of the whole path


@jax.jit
def matrices(model, times, us=None):
    """Read ``A, b, Q, H, d, R`` of every time off a linear model; the first three unused at 0."""
    zero = jnp.zeros_like(model.at(0).initial(_at(us, 0)).mean)

    def read(law_of):
        def mean(x):
            return jnp.ravel(law_of(x.reshape(zero.shape)).mean)

        point = jnp.ravel(zero)
        return jax.jacfwd(mean)(point), mean(point), _covariance(law_of(zero))

    def one(t, u):
        at = model.at(t)
        return (*read(lambda x: at.transition(x, u)), *read(lambda x: at.emission(x, u)))

    return jax.vmap(one)(times, us)


def _at(us, t):
    return jax.tree.map(lambda a: jnp.asarray(a)[t], us)


def _covariance(law):
    size = jnp.size(law.mean)
    if hasattr(law, "covariance_matrix"):
        return law.covariance_matrix
    return jnp.diag(jnp.broadcast_to(jnp.ravel(law.variance), size))


def start(model, us=None):
    """Mean, covariance and flat directions of the first state."""
    law = model.at(0).initial(_at(us, 0))
    mean = np.ravel(np.asarray(law.mean, np.float64))
    if isinstance(law, Diffuse):
        factor = np.asarray(law.factor, np.float64)
        return mean, factor @ factor.T, np.asarray(law.directions, np.float64)
    return mean, np.asarray(_covariance(law), np.float64), np.zeros((mean.size, 0))


def joint(model, num_steps, us=None, kappa=None) -> Joint:
    """Stack a model into one normal law; with ``kappa``, flat directions get that variance."""
    A, b, Q, H, d, R = map(np.asarray, matrices(model, np.arange(num_steps), us))
    m0, P0, flat = start(model, us)
    if kappa is not None:
        P0, flat = P0 + kappa * flat @ flat.T, flat[:, :0]
    size, length = m0.size, num_steps
    mean = np.zeros((length, size))
    slopes = np.zeros((length, size, flat.shape[1]))
    cov = np.zeros((length, length, size, size))
    mean[0], slopes[0], cov[0, 0] = m0, flat, P0
    for t in range(1, length):
        mean[t] = A[t] @ mean[t - 1] + b[t]
        slopes[t] = A[t] @ slopes[t - 1]
        for s in range(t):
            cov[t, s] = A[t] @ cov[t - 1, s]
            cov[s, t] = cov[t, s].T
        cov[t, t] = A[t] @ cov[t - 1, t - 1] @ A[t].T + Q[t]
    total = length * size
    x_cov = cov.transpose(0, 2, 1, 3).reshape(total, total)
    emission, noise = _block_diagonal(H), _block_diagonal(R)
    lift = np.concatenate([np.eye(total), emission])
    both = lift @ x_cov @ lift.T
    both[total:, total:] += noise
    offset = np.concatenate([np.zeros(total), d.ravel()])
    return Joint(lift @ mean.ravel() + offset, both, lift @ slopes.reshape(total, -1), total)


def _block_diagonal(blocks):
    length, rows, columns = blocks.shape
    out = np.zeros((length, rows, length, columns))
    out[np.arange(length), :, np.arange(length)] = blocks
    return out.reshape(length * rows, length * columns)


def condition(law: Joint, ys, observed) -> Conditional:
    """Condition on the observed entries of ``ys`` ``(T, M)``."""
    seen = law.split + np.flatnonzero(np.ravel(observed))
    residual = np.ravel(np.asarray(ys, np.float64))[seen - law.split] - law.mean[seen]
    S, X = law.cov[np.ix_(seen, seen)], law.slopes[seen]
    gain = np.linalg.solve(S, law.cov[seen]).T
    mean = law.mean + gain @ residual
    cov = law.cov - gain @ law.cov[seen]
    log_det = np.linalg.slogdet(S)[1]
    quadratic = residual @ np.linalg.solve(S, residual)
    log_evidence = -0.5 * (quadratic + log_det + len(seen) * np.log(2 * np.pi))
    if law.slopes.shape[1] == 0:
        return Conditional(log_evidence, mean, cov)
    information = X.T @ np.linalg.solve(S, X)
    score = X.T @ np.linalg.solve(S, residual)
    values, vectors = np.linalg.eigh(information)
    identified = values > RANK_TOLERANCE * max(values.max(), 1e-300)
    basis, null = vectors[:, identified], vectors[:, ~identified]
    inverse = basis @ np.diag(1 / values[identified]) @ basis.T
    delta = inverse @ score
    log_evidence += 0.5 * (score @ delta - np.sum(np.log(values[identified])))
    remaining = law.slopes - gain @ X
    mean = mean + remaining @ delta
    cov = cov + remaining @ inverse @ remaining.T
    flat = np.abs(remaining @ null).sum(axis=1) > 1e-7
    mean[flat] = np.nan
    cov[flat], cov[:, flat] = 0.0, 0.0
    cov[flat, flat] = np.inf
    return Conditional(log_evidence, mean, cov)


def reference(law: Joint, ys, observed) -> Reference:
    """Every answer, each by conditioning the joint law anew."""
    length, width = ys.shape
    size = law.split // length

    def beliefs(given: Conditional, t, first, n):
        part = slice(first + t * n, first + (t + 1) * n)
        return given.mean[part], given.cov[part, part]

    predicted, filtered, observations, evidence = [], [], [], [0.0]
    for t in range(length):
        past = np.arange(length)[:, None]
        before = condition(law, ys, observed & (past < t))
        after = condition(law, ys, observed & (past <= t))
        predicted.append(beliefs(before, t, 0, size))
        filtered.append(beliefs(after, t, 0, size))
        observations.append(beliefs(before, t, law.split, width))
        evidence.append(after.log_evidence)
    smoothed = [beliefs(after, t, 0, size) for t in range(length)]
    stack = [tuple(map(np.stack, zip(*b, strict=True))) for b in (predicted, filtered, smoothed)]
    path = after.mean[: law.split], after.cov[: law.split, : law.split]
    seen = tuple(map(np.stack, zip(*observations, strict=True)))
    return Reference(after.log_evidence, np.diff(evidence), *stack, seen, path)
