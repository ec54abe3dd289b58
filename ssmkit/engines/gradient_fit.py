"""Fitting parameters as points by gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ssmkit import keys
from ssmkit.engines.objective import Objective, require_evidence, require_sites, without_labels
from ssmkit.engines.observed_information import Estimates, estimate
from ssmkit.engines.optimise import Optimum, maximise
from ssmkit.engines.options import Optimizer, RunOptions, short_repr
from ssmkit.engines.states import check_finite, run_states
from ssmkit.errors import OptionError
from ssmkit.models.programs import Program, Site, build, build_many, free_sites, unconstrain
from ssmkit.posterior import Data, Draws, Posterior
from ssmkit.typing import Array, Key, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class GradientFit:
    r"""Fit a program's parameters by maximising log evidence plus log prior.

    \[\hat\theta = \arg\max_\theta\; \log p(y \mid \theta) + \log p(\theta)\]

    with the prior density of the *constrained* parameters (no Jacobian) and nothing for ``param``
    sites. Standard errors come from the observed information. A flat direction (a variance at
    zero, a parameter that the data do not inform) is said in words.

    Args:
        evidence: the state engine that scores, with a differentiable evidence.
        optimizer: ``sk.optimizer(optax.adam, 1e-2)``; None for L-BFGS with line search.
        num_starts: runs from different starts, the best of which counts: the program's own
            values first, then draws around them.
        max_steps: steps of one run at most.
        tolerance: stop when the largest gradient entry is below ``tolerance × (1 + |objective|)``;
            None for 1e-8 in float64 and 1e-4 in float32.
        laplace_draws: number of draws from the Laplace approximation that the posterior holds
            instead of the point; 0 for the point.

    Raises:
        EngineError: the program has nothing to learn.
        NonFiniteError: no start has a finite objective.

    Example:
        >>> import numpyro, numpyro.distributions as dist, ssmkit as sk
        >>> def level():
        ...     positive = dist.constraints.positive
        ...     return sk.models.LocalLevel(
        ...         numpyro.param("level", 1e3, constraint=positive),
        ...         numpyro.param("noise", 1e4, constraint=positive))
        >>> fit = sk.infer(0, sk.GradientFit(evidence=sk.Kalman()), level, sk.data.load("nile"))
        >>> {name: float(f"{fit.params[name].item():.3g}") for name in ("level", "noise")}
        {'level': 1470.0, 'noise': 15100.0}

    Source: Liu and Nocedal (1989) for L-BFGS, as in optax.
    """

    evidence: Any
    optimizer: Optimizer | None = None
    num_starts: int = 3
    max_steps: int = 500
    tolerance: float | None = None
    laplace_draws: int = 0

    takes_learned = True

    __repr__ = short_repr

    def fit(self, key: Key, target: Any, data: Data, options: RunOptions) -> Posterior:
        """Fit; called by `infer`, which has checked model and data."""
        self._check()
        sites = free_sites(target) if isinstance(target, Program) else {}
        require_sites(self, target, sites)
        time_key = keys.purpose(key, "time")
        objective = Objective(
            self.evidence, target, without_labels(data), time_key, options.batched
        )
        optimum = maximise(self, objective, self._starts(key, sites, options.learned), options)
        estimates = estimate(objective, sites, optimum)
        draws = self._draws(key, objective, optimum, estimates)
        return self._posterior(key, target, data, options, (optimum, estimates, draws))

    def _check(self) -> None:
        require_evidence(self)
        for name, low in (("num_starts", 1), ("max_steps", 1), ("laplace_draws", 0)):
            if getattr(self, name) < low:
                raise OptionError(f"{name} is too small.", got=getattr(self, name), expected=low)
        if self.optimizer is not None and not isinstance(self.optimizer, Optimizer):
            raise OptionError(
                "a bare optax object compares by identity and would compile anew each time.",
                got=type(self.optimizer).__name__,
                fix="sk.optimizer(optax.adam, 1e-2)",
            )

    def _starts(self, key: Key, sites: dict[str, Site], learned: Any) -> list[dict[str, PyTree]]:
        """What was learned before, or the program's own values; then values one unit around."""
        own = unconstrain(sites, {name: site.value for name, site in sites.items()})
        if learned is not None:
            if jax.tree.structure(learned) != jax.tree.structure(own):
                raise OptionError(
                    "learned does not fit the program.",
                    got=f"values for {sorted(learned)}",
                    expected=f"values for {sorted(own)}",
                    fix="posterior.learned of a fit of the same program",
                )
            own = learned
        starts = [own]
        for i in range(1, self.num_starts):
            start_key = jax.random.fold_in(keys.purpose(key, "restarts"), i)
            leaves, structure = jax.tree.flatten(own)
            parts = jax.random.split(start_key, len(leaves))
            moved = [
                a + jax.random.normal(k, a.shape, a.dtype)
                for a, k in zip(leaves, parts, strict=True)
            ]
            starts.append(jax.tree.unflatten(structure, moved))
        return starts

    def _draws(
        self, key: Key, objective: Objective, optimum: Optimum, estimates: Estimates
    ) -> Draws:
        point, unravel = ravel_pytree(optimum.unconstrained)

        def to_values(z: Array) -> dict[str, PyTree]:
            return objective.values(unravel(z))

        if self.laplace_draws == 0:
            one = jax.tree.map(lambda a: jnp.asarray(a)[None, None], to_values(point))
            return Draws(one, jnp.zeros((1, 1)))
        if estimates.factor is None:
            raise OptionError(
                "the Laplace approximation does not exist here.",
                got="; ".join(estimates.warnings) or "too many parameters",
                expected="an optimum with an invertible information matrix",
                fix="laplace_draws=0, a prior on the flat direction, or sk.NUTS",
            )
        shape = (self.laplace_draws, point.size)
        noise = jax.random.normal(keys.purpose(key, "draws"), shape, point.dtype)
        values = jax.vmap(to_values)(point + noise @ jnp.asarray(estimates.factor).T)
        values = jax.tree.map(lambda a: a[None], values)
        return Draws(values, jnp.zeros((1, self.laplace_draws)))

    def _posterior(
        self, key: Key, target: Any, data: Data, options: RunOptions, fitted: tuple
    ) -> Posterior:
        optimum, estimates, draws = fitted
        time_key = keys.purpose(key, "time")
        if draws.num_draws == 1:
            model = build(target, jax.tree.map(lambda a: a[0, 0], draws.values))
            log_weights = None
        else:
            model = build_many(target, draws.flat())
            log_weights = draws.log_weights.ravel()
        parts = run_states(self.evidence, time_key, model, data, options, log_weights)
        if not options.batched:  # a batch has one number a series
            parts["log_evidence"] = optimum.log_evidence
        parts |= {"params": draws, "estimates": estimates, "learned": optimum.unconstrained}
        parts["diagnostics"] = optimum.report
        kind, of = self.evidence.evidence_kind, "data given parameters"
        laplace = draws.num_draws > 1 and estimates.laplace_log_evidence is not None
        if laplace:
            parts["log_evidence"] = jnp.asarray(estimates.laplace_log_evidence)
            kind, of = "approximate", "data"
        check_finite(parts, self, throw=options.throw)
        return Posterior(self, target, data, model, parts, self.evidence, kind, of)
