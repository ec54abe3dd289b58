"""Standard errors and intervals from the observed information, and what can be wrong with it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ssmkit.engines.objective import Objective
from ssmkit.engines.optimise import Optimum
from ssmkit.models.programs import Site, log_jacobian
from ssmkit.typing import Array, PyTree

MAX_PARAMETERS = 200
NORMAL_95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Point estimates with standard errors and 95 % intervals, one row per scalar.

    Attributes:
        names: names of the scalars, ``site`` or ``site[i]``.
        values: estimates.
        standard_errors: from the observed information (delta method); nan where it says nothing.
        lower: lower ends of the intervals, made in unconstrained space.
        upper: upper ends.
        warnings: what is singular or at a boundary, in words.
        factor: factor of the covariance in unconstrained space; None when it does not exist.
        laplace_log_evidence: Laplace approximation of log p(y) in nats; None with ``param`` sites.
        log_prior: log prior density at the estimate.
    """

    names: tuple[str, ...]
    values: np.ndarray
    standard_errors: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    warnings: tuple[str, ...]
    factor: np.ndarray | None
    laplace_log_evidence: float | None
    log_prior: float


@eqx.filter_jit
def _curvature(objective: Objective, point: PyTree) -> tuple[Array, Array]:
    """Hessian of the loss and Jacobian of the constraining map, both in flat coordinates."""
    flat, unravel = ravel_pytree(point)
    hessian = jax.hessian(lambda z: objective.loss(unravel(z)))(flat)
    jacobian = jax.jacfwd(lambda z: ravel_pytree(objective.values(unravel(z)))[0])(flat)
    return hessian, jacobian


@eqx.filter_jit
def _interval(objective: Objective, point: PyTree, std: Array) -> tuple[Array, Array, Array]:
    flat, unravel = ravel_pytree(point)

    def values(z: Array) -> Array:
        return ravel_pytree(objective.values(unravel(z)))[0]

    return values(flat), values(flat - NORMAL_95 * std), values(flat + NORMAL_95 * std)


def estimate(objective: Objective, sites: dict[str, Site], optimum: Optimum) -> Estimates:
    """Turn an optimum into a table.

    With more than 200 parameters (networks) no information matrix is formed.
    """
    point = optimum.unconstrained
    size = ravel_pytree(point)[0].size
    hessian = jacobian = np.empty((0, 0))
    why = _no_information(objective, size)
    if why is None:
        hessian, jacobian = (np.asarray(a) for a in _curvature(objective, point))
    covariance, warnings = (None, (why,)) if why else _invert(hessian, sites, point)
    if not optimum.report["converged"]:
        warnings = (_not_converged(optimum.report), *warnings)
    std = np.full(size, np.nan) if covariance is None else np.sqrt(np.diag(covariance))
    values, low, high = (np.asarray(a) for a in _interval(objective, point, jnp.asarray(std)))
    errors = np.full(values.size, np.nan)
    factor, laplace = None, None
    if covariance is not None:
        unknown = np.isnan(std)
        known = np.where(np.isnan(covariance), 0.0, covariance)
        errors = np.sqrt(np.diag(jacobian @ known @ jacobian.T))
        errors[(np.abs(jacobian) * unknown > 0).any(axis=1)] = np.nan
        if np.isfinite(covariance).all():
            factor = np.linalg.cholesky(covariance)
            laplace = _laplace(sites, optimum, factor)
    names = tuple(scalar_names({n: s.value for n, s in sites.items()}))
    bounds = np.sort(np.stack([low, high]), axis=0)
    log_prior = float(optimum.log_prior)
    return Estimates(
        names, values, errors, bounds[0], bounds[1], warnings, factor, laplace, log_prior
    )


def point_estimates(
    sites: dict[str, Site], values: dict[str, PyTree], log_prior: float, warnings: tuple[str, ...]
) -> Estimates:
    """A table without standard errors, for what ascended by estimates of a gradient."""
    flat = np.asarray(ravel_pytree(values)[0])
    unknown = np.full(flat.size, np.nan)
    names = tuple(scalar_names({n: s.value for n, s in sites.items()}))
    said = ("no standard errors: the parameters ascended by a noisy gradient", *warnings)
    return Estimates(names, flat, unknown, unknown, unknown, said, None, None, log_prior)


def _no_information(objective: Objective, size: int) -> str | None:
    """Why no information matrix is formed, in words; None where it is."""
    if size > MAX_PARAMETERS:
        return f"no standard errors: more than {MAX_PARAMETERS} parameters"
    if objective.engine.evidence_kind == "unbiased":
        return (
            "no standard errors: the evidence is an estimate, and its curvature that of its noise; "
            "sk.ParticleMetropolisHastings draws the parameters"
        )
    return None


def _not_converged(report: dict[str, Any]) -> str:
    how = "was interrupted" if report["interrupted"] else "stopped before converging"
    return f"the fit {how} after {report['steps']} steps"


def _invert(
    hessian: np.ndarray, sites: dict[str, Site], point: PyTree
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Invert the information; flat directions get nan and a sentence."""
    if not np.isfinite(hessian).all():
        return None, ("no standard errors: the observed information is not finite",)
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    precise = np.finfo(hessian.dtype).eps ** 0.5
    flat = values <= precise * max(1.0, float(np.max(np.abs(values))))
    names = scalar_names(point)
    order = scalar_names({name: sites[name].value for name in point})
    safe = np.where(flat, 1.0, values)
    covariance = (vectors[:, ~flat] / safe[~flat]) @ vectors[:, ~flat].T
    warnings = []
    for i in np.nonzero(flat)[0]:
        involved = [k for k in range(len(names)) if abs(vectors[k, i]) > 0.3]
        listed = ", ".join(order[k] for k in involved)
        kind = "a saddle" if values[i] < -precise * np.max(np.abs(values)) else "flat"
        why = "at a boundary of its range, or not informed by the data"
        warnings.append(f"the objective is {kind} in {listed}: {why}; no standard error there")
        covariance[involved, :] = covariance[:, involved] = np.nan
    return covariance, tuple(warnings)


def scalar_names(values: dict[str, PyTree]) -> list[str]:
    """Names of all scalars in the order of raveling: ``site``, ``site[1]``, ``site[0,2]``."""
    names = []
    for name in sorted(values):
        for path, leaf in jax.tree_util.tree_leaves_with_path(values[name]):
            stem = name + jax.tree_util.keystr(path)
            for index in np.ndindex(np.shape(leaf)):
                names.append(stem + (f"[{','.join(map(str, index))}]" if index else ""))
    return names


def _laplace(sites: dict[str, Site], optimum: Optimum, factor: np.ndarray) -> float | None:
    """Laplace approximation of the log evidence of the data, in unconstrained space."""
    if any(site.kind == "param" for site in sites.values()):
        return None
    jacobian = float(log_jacobian(sites, optimum.unconstrained))
    peak = float(optimum.log_evidence) + float(optimum.log_prior) + jacobian
    half_log_det = float(np.sum(np.log(np.diag(factor))))
    return peak + half_log_det + 0.5 * factor.shape[0] * math.log(2 * math.pi)
