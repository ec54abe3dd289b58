"""The value function of a Gaussian family on a linear Gaussian model, in closed form.

A quadratic is ``(P, h, c)``, for ``-z'Pz/2 + h'z + c``. Plain numpy, apart from the library.
"""

import numpy as np


def log_normal(matrix, centre, cov):
    """Log density of ``matrix @ z`` under a normal law, as a quadratic in ``z``."""
    inverse = np.linalg.inv(cov)
    size = centre @ inverse @ centre + np.linalg.slogdet(2 * np.pi * cov)[1]
    return matrix.T @ inverse @ matrix, matrix.T @ inverse @ centre, -0.5 * size


def total(plus, minus):
    return tuple(sum(p[i] for p in plus) - sum(m[i] for m in minus) for i in range(3))


def value_at(quadratic, x):
    matrix, slope, level = quadratic
    return -0.5 * np.einsum("...i,ij,...j->...", x, matrix, x) + x @ slope + level


def mean_of(quadratic, mean, cov):
    return value_at(quadratic, mean) - 0.5 * np.trace(quadratic[0] @ cov)


def first_value(model, y, filter):
    eye = np.eye(len(filter[0]))
    start, start_cov = np.array(model.initial_mean), np.array(model.initial_cov)
    emission, error = np.array(model.emission_matrix), np.array(model.emission_cov)
    own = log_normal(eye, *filter)
    return total([log_normal(eye, start, start_cov), log_normal(emission, y, error)], [own])


def next_value(model, y, filters, kernel, value):
    """The recursion; laws are means and covariances, a kernel has a matrix in front of them."""
    last, filter = filters
    slope, centre, cov = kernel
    size = len(centre)
    before, here = np.eye(2 * size)[:size], np.eye(2 * size)[size:]
    moves, noise = np.array(model.transition_matrix), np.array(model.transition_cov)
    emission, error = np.array(model.emission_matrix), np.array(model.emission_cov)
    carried = (before.T @ value[0] @ before, before.T @ value[1], value[2])
    zero = np.zeros(size)
    plus = [
        carried,
        log_normal(here - moves @ before, zero, noise),
        log_normal(emission @ here, y, error),
        log_normal(before, *last),
    ]
    minus = [log_normal(here, *filter), log_normal(before - slope @ here, centre, cov)]
    matrix, tilt, level = total(plus, minus)
    # the state before is slope @ x + centre + noise of the kernel
    path, shift = np.vstack([slope, np.eye(size)]), np.concatenate([centre, zero])
    level = value_at((matrix, tilt, level), shift)
    level = level - 0.5 * np.trace(matrix[:size, :size] @ cov)
    return path.T @ matrix @ path, path.T @ (tilt - matrix @ shift), level


def values(model, ys, filters, kernels):
    """The value function at each time, of lists of filters and of kernels."""
    found = [first_value(model, ys[0], filters[0])]
    for t in range(1, len(ys)):
        pair = (filters[t - 1], filters[t])
        found.append(next_value(model, ys[t], pair, kernels[t - 1], found[-1]))
    return found
