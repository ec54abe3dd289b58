r"""What pseudo-marginal chains walk on: a noisy log target, its starts and its noise.

\[\log \hat\pi(z) = \log \hat p(y \mid \theta(z)) + \log p(\theta(z))
+ \log |\partial \theta / \partial z|\]

The noise of the log evidence is to have a standard deviation of about 1.2: with less, particles
are wasted, with more, chains stick.

Source: A. Doucet, M. Pitt, G. Deligiannidis and R. Kohn (2015), Efficient implementation of
Markov chain Monte Carlo when using an unbiased likelihood estimator, Biometrika 102.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro import handlers

from ssmkit.engines.objective import Objective
from ssmkit.errors import NonFiniteError, ParameterError
from ssmkit.models.programs import Program, Site, build_with_prior, free_sites, unconstrain
from ssmkit.typing import Array, Float, Key, PyTree, Scalar

BEST_STD = 1.2
GOOD_STD = (0.9, 1.5)  # near enough: another number of particles would compile anew
NUM_PARTICLES = (10, 10_000)  # the choice stays between these
NUM_CANDIDATES = 10  # draws from the prior, the best of which a chain starts from
NUM_REPLICATES = 64  # of the evidence at one point
MOST_ROUNDS = 4


class Noise(NamedTuple):
    """What the log evidence varies by where the chains are.

    Attributes:
        std: standard deviation in nats, the median over the chains.
        log_targets: a fresh log target for each chain ``(C,)``.
    """

    std: float
    log_targets: Float[Array, " C"]


def constrain_in_order(target: Program, unconstrained: dict[str, PyTree]) -> tuple[dict, Scalar]:
    """Values of the sites, and the log determinant of the map.

    The support of a site may depend on those before it, so that it is read off the run itself.
    """
    values: dict[str, PyTree] = {}
    terms = [jnp.zeros(())]

    def substitute(site: dict[str, Any]) -> Array | None:
        if site["name"] not in unconstrained:
            return None
        z, bijection = unconstrained[site["name"]], dist.biject_to(site["fn"].support)
        values[site["name"]] = value = bijection(z)
        terms.append(jnp.sum(bijection.log_abs_det_jacobian(z, value)))
        return value

    with handlers.block():
        handlers.substitute(target, substitute_fn=substitute)()
    return values, sum(terms, start=jnp.zeros(()))


def refuse_discrete(engine: Any, sites: dict[str, Site]) -> None:
    """Refuse sites that no random walk can move.

    Raises:
        ParameterError: names the sites.
    """
    found = [name for name, site in sites.items() if site.support.is_discrete]
    if found:
        raise ParameterError(
            f"sk.{type(engine).__name__} walks, and {', '.join(found)} is discrete.",
            got=f"discrete numpyro.sample sites: {found}",
            expected="continuous sites",
            fix="one program for each value, compared by their evidence",
        )


def to_sites(target: Program, position: Float[Array, " d"]) -> dict[str, PyTree]:
    """Unconstrained values by name, out of one vector."""
    return ravel_pytree(_draw(target, None))[1](position)


def _draw(target: Program, key: Key | None) -> dict[str, PyTree]:
    sites = free_sites(target, key)
    return unconstrain(sites, {name: site.value for name, site in sites.items()})


def log_target(objective: Objective, key: Key, position: Float[Array, " d"]) -> Scalar:
    """The noisy log target in unconstrained space, in nats; nan counts as impossible."""
    unconstrained = to_sites(objective.target, position)
    values, log_jacobian = constrain_in_order(objective.target, unconstrained)
    model, log_prior = build_with_prior(objective.target, values)
    fresh = eqx.tree_at(lambda o: o.key, objective, key)
    value = fresh.log_evidence(model) + log_prior + log_jacobian
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


def find_starts(objective: Objective, key: Key, num_chains: int) -> tuple[Array, Array]:
    """Start each chain from the best of a few draws from the prior.

    Returns:
        Positions ``(C, d)`` and their log targets ``(C,)``.

    Raises:
        NonFiniteError: none of a chain's candidates is possible.
    """
    positions, values = _starts(objective, key, num_chains)
    bad = ~np.isfinite(np.asarray(values))
    if bad.any():
        raise NonFiniteError(
            "the log evidence is not finite at any start.",
            got=f"{NUM_CANDIDATES} draws from the prior for each of {num_chains} chains, and "
            f"nothing finite for {bad.sum()} of them",
            expected="a prior that puts weight where the data are possible",
            fix="narrower priors, more particles, or a proposal that has seen the observation",
        )
    return positions, values


@eqx.filter_jit
def _starts(objective: Objective, key: Key, num_chains: int) -> tuple[Array, Array]:
    def candidate(key: Key) -> tuple[Array, Array]:
        draw_key, target_key = jax.random.split(key)
        position = ravel_pytree(_draw(objective.target, draw_key))[0]
        return position, log_target(objective, target_key, position)

    keys = jax.random.split(key, (num_chains, NUM_CANDIDATES))
    positions, values = jax.vmap(jax.vmap(candidate))(keys)
    best = jnp.argmax(values, axis=1)
    chains = jnp.arange(num_chains)
    return positions[chains, best], values[chains, best]


@eqx.filter_jit
def _replicates(objective: Objective, key: Key, positions: Float[Array, "C d"]) -> Array:
    """Independent log targets ``(C, replicates)``; one chain after the other, for the memory."""

    def one(at: tuple[Key, Array]) -> Array:
        keys = jax.random.split(at[0], NUM_REPLICATES)
        return jax.vmap(lambda k: log_target(objective, k, at[1]))(keys)

    return jax.lax.map(one, (jax.random.split(key, positions.shape[0]), positions))


def measure(
    objective: Objective, key: Key, positions: Float[Array, "C d"]
) -> tuple[Objective, Noise]:
    """Measure the noise of the log evidence at the chains' positions; the objective stays."""
    return objective, _noise(objective, jax.random.fold_in(key, 0), positions)


def _noise(objective: Objective, key: Key, positions: Float[Array, "C d"]) -> Noise:
    values = np.asarray(_replicates(objective, key, positions))
    possible = np.isfinite(values).all(axis=1)
    stds = np.full(len(values), np.inf)
    stds[possible] = values[possible].std(axis=1, ddof=1)
    return Noise(float(np.median(stds)), jnp.asarray(values[:, 0]))


def choose_num_particles(
    objective: Objective, key: Key, positions: Float[Array, "C d"]
) -> tuple[Objective, Noise]:
    """Find the number of particles that makes the log evidence as noisy as is best.

    The variance falls as one over the number of particles, though only where it is small already:
    so it is measured again, a few times at most.

    Args:
        objective: its engine has ``num_particles`` to begin with.
        key: random key.
        positions: where the chains are ``(C, d)``.
    """
    objective, noise = measure(objective, key, positions)
    for number in range(1, MOST_ROUNDS):
        count = objective.engine.num_particles
        # far from 1.2 the rule is not trusted with more than a factor of ten
        factor = float(np.clip((noise.std / BEST_STD) ** 2, 0.1, 10.0))
        new = int(np.clip(round(count * factor), *NUM_PARTICLES))
        if GOOD_STD[0] <= noise.std <= GOOD_STD[1] or new == count:
            break
        objective = with_num_particles(objective, new)
        noise = _noise(objective, jax.random.fold_in(key, number), positions)
    return objective, noise


def with_num_particles(objective: Objective, num_particles: int) -> Objective:
    """The same objective, scored with another number of particles."""
    engine = dataclasses.replace(objective.engine, num_particles=num_particles)
    return dataclasses.replace(objective, engine=engine)
