"""Drawing parameters by the no-U-turn sampler, with the states integrated out."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmkit import keys
from ssmkit.engines import chains
from ssmkit.engines.convergence import convergence
from ssmkit.engines.objective import (
    Objective,
    refuse_params,
    require_evidence,
    require_sites,
    without_labels,
)
from ssmkit.engines.options import RunOptions, short_repr
from ssmkit.engines.states import run_states
from ssmkit.errors import EngineError, OptionError
from ssmkit.models.programs import Program, build_many, free_sites
from ssmkit.posterior import Data, Draws, Posterior
from ssmkit.typing import Array, Key, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class NUTS:
    r"""Draw a program's parameters from their posterior; states are integrated out.

    \[\theta \sim p(\theta \mid y) \propto p(\theta)\, p(y \mid \theta)\]

    by numpyro's NUTS on the engine's evidence; then states given parameters by the same engine.
    All sites must be ``numpyro.sample`` sites. The evidence of the data is not estimated. An
    interrupt after warm-up returns the draws so far, with ``diagnostics["interrupted"]``.

    Args:
        evidence: the state engine that scores, with a differentiable evidence.
        num_warmup: steps of adaptation per chain.
        num_samples: draws kept per chain.
        num_chains: chains, run side by side.
        target_accept: acceptance probability that the step size is adapted to.
        max_tree_depth: doublings of a trajectory at most.
        num_state_draws: parameter draws, evenly spread over the chains, for which states are
            computed.

    Raises:
        ParameterError: the program has ``param`` sites.
        EngineError: the program has nothing to learn.

    Example:
        >>> import numpyro, numpyro.distributions as dist, ssmkit as sk
        >>> def level():
        ...     scale = numpyro.sample("scale", dist.HalfNormal(100.0))
        ...     return sk.models.LocalLevel(scale**2, 15000.0)
        >>> engine = sk.NUTS(sk.Kalman(), num_warmup=50, num_samples=50, num_chains=2)
        >>> posterior = sk.infer(0, engine, level, sk.data.load("nile"))
        >>> posterior.params["scale"].shape
        (2, 50)

    Source: Hoffman and Gelman (2014), as in numpyro.
    """

    evidence: Any
    num_warmup: int = 500
    num_samples: int = 500
    num_chains: int = 4
    target_accept: float = 0.8
    max_tree_depth: int = 10
    num_state_draws: int = 200

    __repr__ = short_repr

    def fit(self, key: Key, target: Any, data: Data, options: RunOptions) -> Posterior:
        """Draw; called by `infer`, which has checked model and data."""
        self._check()
        sites = free_sites(target) if isinstance(target, Program) else {}
        require_sites(self, target, sites)
        refuse_params(self, sites)
        time_key = keys.purpose(key, "time")
        objective = Objective(
            self.evidence, target, without_labels(data), time_key, options.batched
        )
        values, report = self._sample(keys.purpose(key, "draws"), objective, sites, options)
        draws = Draws(values, jnp.zeros(report["sample_stats"]["diverging"].shape))
        model, weights, index = self._models(target, draws)
        parts = run_states(self.evidence, time_key, model, data, options, weights)
        # the states' engine scores each draw; the evidence of the data is another number
        parts["log_evidence_per_draw"] = parts.pop("log_evidence")
        parts |= {"params": draws, "diagnostics": report, "state_index": index}
        return Posterior(self, target, data, model, parts, self.evidence)

    def _check(self) -> None:
        require_evidence(self)
        if self.evidence.evidence_kind == "unbiased":
            raise EngineError(
                "sk.NUTS would take an estimated evidence for the true one.",
                got=repr(self.evidence),
                expected="an evidence without Monte Carlo noise, such as sk.Kalman()",
                fix=f"sk.ParticleMetropolisHastings(evidence={self.evidence!r})",
            )
        least = {"num_warmup": 1, "num_samples": chains.LEAST_DRAWS}
        for name, low in (least | {"num_chains": 1, "num_state_draws": 2}).items():
            if getattr(self, name) < low:
                got = getattr(self, name)
                raise OptionError(f"{name} is too small.", got=got, expected=f"≥ {low}")

    def _sample(
        self, key: Key, objective: Objective, sites: dict[str, Any], options: RunOptions
    ) -> tuple[dict[str, PyTree], dict[str, Any]]:
        import numpyro
        from numpyro import infer

        def program(objective: Objective) -> None:
            numpyro.factor("log_evidence", objective.log_evidence(objective.target()))

        kernel = infer.NUTS(
            program, target_accept_prob=self.target_accept, max_tree_depth=self.max_tree_depth
        )
        drawn = chains.draw(self, kernel, key, objective, options)
        values = {name: drawn.values[name] for name in sites}
        report = {"sample_stats": {name: np.asarray(a) for name, a in drawn.stats.items()}}
        report |= {"divergences": int(np.sum(drawn.stats["diverging"]))} | convergence(values)
        return values, report | {"interrupted": drawn.interrupted}

    def _models(self, target: Any, draws: Draws) -> tuple[Any, Array, Array]:
        total = draws.num_draws
        count = min(self.num_state_draws, total)
        index = jnp.asarray(np.linspace(0, total - 1, count).round().astype(int))
        chosen = jax.tree.map(lambda a: a[index], draws.flat())
        return build_many(target, chosen), jnp.zeros(count), index
