"""Drawing parameters by Metropolis–Hastings on an estimated evidence."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit import keys
from ssmkit.engines import walks
from ssmkit.engines.adaptive_walk import wanted_acceptance
from ssmkit.engines.chains import LEAST_DRAWS
from ssmkit.engines.convergence import convergence
from ssmkit.engines.objective import (
    Objective,
    refuse_params,
    require_evidence,
    require_sites,
    without_labels,
)
from ssmkit.engines.options import RunOptions, short_repr
from ssmkit.engines.progress import Progress
from ssmkit.engines.pseudo_marginal import (
    BEST_STD,
    choose_num_particles,
    constrain_in_order,
    find_starts,
    measure,
    refuse_discrete,
    to_sites,
    with_num_particles,
)
from ssmkit.engines.states import run_states
from ssmkit.engines.walks import Run, Walks
from ssmkit.errors import OptionError
from ssmkit.models.programs import Program, build_many, free_sites
from ssmkit.posterior import Data, Draws, Posterior
from ssmkit.typing import Array, Key, PyTree

PILOT_SHARE = 4  # one part in so many of the warm-up finds where to measure the noise
LOW_ACCEPTANCE, HIGH_STD, HIGH_RHAT = 0.05, 2.0, 1.05  # beyond these a warning says so


@dataclasses.dataclass(frozen=True, repr=False)
class ParticleMetropolisHastings:
    r"""Draw a program's parameters from their posterior, with an evidence that is only estimated.

    \[\alpha = \min\Big(1, \frac{\hat p(y \mid \theta')\, p(\theta')\, q(\theta \mid \theta')}
    {\hat p(y \mid \theta)\, p(\theta)\, q(\theta' \mid \theta)}\Big)\]

    leaves \(p(\theta \mid y)\) itself invariant, with as few particles as you like, as long as
    \(\hat p\) is unbiased and the current state's estimate is kept. By an adaptive random walk in
    unconstrained space; nothing is adapted after warm-up. With an exact evidence this is plain
    Metropolis–Hastings. States given parameters come from runs of ``evidence`` of their own. An
    interrupt after warm-up returns the draws so far, with ``diagnostics["interrupted"]``.

    ``diagnostics`` holds ``acceptance_rate`` of each chain, ``max_rhat``, ``min_ess``,
    ``num_particles`` and ``log_evidence_std``, the standard deviation in nats of the log evidence
    where the chains were after a quarter of the warm-up.

    Args:
        evidence: the state engine that scores; no derivatives are needed.
        num_warmup: steps of adaptation per chain.
        num_samples: draws kept per chain.
        num_chains: chains, run side by side.
        thinning: steps for each draw that is kept.
        num_particles: of the evidence; None for as many as make the standard deviation of the log
            evidence about 1.2 nats (10 to 10000).
        num_state_draws: parameter draws, evenly spread over the chains, for which states are
            computed.

    Raises:
        ParameterError: the program has ``param`` sites, or discrete ones.
        EngineError: the program has nothing to learn.
        NonFiniteError: the data are impossible wherever a chain could start.

    Example:
        >>> import numpyro, numpyro.distributions as dist, ssmkit as sk
        >>> def volatility():
        ...     scale = numpyro.sample("scale", dist.HalfNormal(0.5))
        ...     return sk.models.StochasticVolatility(-1.0, 0.95, scale)
        >>> ys = sk.simulate(0, sk.models.StochasticVolatility(-1.0, 0.95, 0.3), 30).observations
        >>> engine = sk.ParticleMetropolisHastings(
        ...     sk.SMC(100, smoother="genealogy"), num_warmup=100, num_samples=50,
        ...     num_particles=50, num_state_draws=4)
        >>> posterior = sk.infer(0, engine, volatility, ys)
        >>> posterior.params["scale"].shape
        (4, 50)

    Source: C. Andrieu, A. Doucet and R. Holenstein (2010), Particle Markov chain Monte Carlo
    methods, section 2.4.2; Doucet, Pitt, Deligiannidis and Kohn (2015) for 1.2.
    """

    evidence: Any
    num_warmup: int = 1000
    num_samples: int = 2000
    num_chains: int = 4
    thinning: int = 1
    num_particles: int | None = None
    num_state_draws: int = 50

    __repr__ = short_repr

    def fit(self, key: Key, target: Any, data: Data, options: RunOptions) -> Posterior:
        """Draw; called by `infer`, which has checked model and data."""
        self._check()
        sites = free_sites(target) if isinstance(target, Program) else {}
        require_sites(self, target, sites)
        refuse_params(self, sites)
        refuse_discrete(self, sites)
        time_key = keys.purpose(key, "time")
        objective = Objective(
            self.evidence, target, without_labels(data), time_key, options.batched
        )
        if self.num_particles is not None:
            objective = with_num_particles(objective, self.num_particles)
        draws, report = self._draw(key, objective, options)
        total = draws.num_draws
        count = min(self.num_state_draws, total)
        index = jnp.asarray(np.linspace(0, total - 1, count).round().astype(int))
        model = build_many(target, jax.tree.map(lambda a: a[index], draws.flat()))
        parts = run_states(self.evidence, time_key, model, data, options, jnp.zeros(count))
        # the states' engine scores each draw; the evidence of the data is another number
        parts["log_evidence_per_draw"] = parts.pop("log_evidence")
        parts.pop("log_evidence_se", None)
        parts |= {"params": draws, "diagnostics": report, "state_index": index}
        return Posterior(self, target, data, model, parts, self.evidence)

    def _check(self) -> None:
        require_evidence(self, gradient=False)
        least = {"num_warmup": PILOT_SHARE, "num_samples": LEAST_DRAWS, "num_state_draws": 2}
        least |= {"num_chains": 1, "thinning": 1}
        if self.num_particles is not None:
            least["num_particles"] = 2
            if not hasattr(self.evidence, "num_particles"):
                raise OptionError(
                    "num_particles is for an evidence by particles.",
                    got=f"num_particles={self.num_particles} with {self.evidence!r}",
                    fix="evidence=sk.SMC(), or num_particles=None",
                )
        for name, low in least.items():
            if getattr(self, name) < low:
                got = getattr(self, name)
                raise OptionError(f"{name} is too small.", got=got, expected=f"≥ {low}")

    def _draw(
        self, key: Key, objective: Objective, options: RunOptions
    ) -> tuple[Draws, dict[str, Any]]:
        start_key, tune_key = keys.purpose(key, "restarts"), keys.purpose(key, "learning")
        positions, values = find_starts(objective, start_key, self.num_chains)
        chains, noise_std = walks.begin(self, positions, values), 0.0
        size, total = positions.shape[1], self.num_warmup + self.thinning * self.num_samples
        with Progress("draw", total, options.progress) as bar:
            run = Run(self, keys.purpose(key, "draws"), bar, options)
            if self.evidence.evidence_kind == "unbiased":
                wanted = wanted_acceptance(size, BEST_STD)
                chains, _ = run(objective, chains, self.num_warmup // PILOT_SHARE, wanted)
                objective, noise_std, chains = self._tune(tune_key, objective, chains)
            wanted = wanted_acceptance(size, noise_std)
            chains, interrupted = run(objective, chains, total, wanted)
        return self._drawn(objective, chains, noise_std, interrupted)

    def _tune(
        self, key: Key, objective: Objective, chains: Walks
    ) -> tuple[Objective, float, Walks]:
        """Choose the number of particles; the chains go on with estimates made by these."""
        choose = self.num_particles is None and hasattr(self.evidence, "num_particles")
        find = choose_num_particles if choose else measure
        objective, noise = find(objective, key, chains.walk.position)
        fresh = noise.log_targets.astype(chains.walk.log_target.dtype)
        return objective, noise.std, chains._replace(walk=chains.walk._replace(log_target=fresh))

    def _drawn(
        self, objective: Objective, chains: Walks, noise_std: float, interrupted: bool
    ) -> tuple[Draws, dict[str, Any]]:
        count = walks.num_drawn(self, chains)
        kept = {name: jnp.swapaxes(a[:count], 0, 1) for name, a in chains.kept.items()}
        values = _values(objective, kept["position"])
        report: dict[str, Any] = {
            "acceptance_rate": np.asarray(walks.acceptance_rate(self, chains)),
            "num_particles": getattr(objective.engine, "num_particles", None),
            "log_evidence_std": noise_std,
            "interrupted": interrupted,
            "sample_stats": {
                "accept_prob": np.asarray(kept["accept_prob"]),
                "potential_energy": -np.asarray(kept["log_target"]),
            },
        }
        report |= convergence(values)
        report["warnings"] = _warnings(objective, report)
        return Draws(values, jnp.zeros(kept["log_target"].shape)), report


@eqx.filter_jit
def _values(objective: Objective, positions: Array) -> dict[str, PyTree]:
    def one(position: Array) -> dict[str, PyTree]:
        unconstrained = to_sites(objective.target, position)
        return constrain_in_order(objective.target, unconstrained)[0]

    return jax.vmap(jax.vmap(one))(positions)


def _warnings(objective: Objective, report: dict[str, Any]) -> tuple[str, ...]:
    """What a reader should know before using the draws."""
    found, engine = [], objective.engine
    if engine.evidence_kind not in ("exact", "unbiased"):
        found.append(
            f"{engine!r} has an {engine.evidence_kind} evidence: these are draws from the "
            "posterior of another, simplified model"
        )
    lowest, std = float(np.min(report["acceptance_rate"])), report["log_evidence_std"]
    if lowest < LOW_ACCEPTANCE:
        found.append(
            f"a chain accepted {lowest:.1%} of its steps: lengthen the warm-up, or lower the noise "
            "of the evidence"
        )
    if std > HIGH_STD:
        found.append(
            f"the log evidence has a standard deviation of {std:.2g} nats with "
            f"{report['num_particles']} particles: chains stick; take more, or a proposal that has "
            "seen the observation"
        )
    if report["max_rhat"] > HIGH_RHAT:
        found.append(f"R-hat is up to {report['max_rhat']:.3f}: the chains have not mixed")
    return tuple(found)
