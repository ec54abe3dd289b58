"""Particle filters and smoothers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, Particles
from ssmkit.engines.options import short_repr
from ssmkit.engines.particle_parts import (
    begin_cloud,
    parts_of,
    read_cloud,
    scheme_of,
    smooth_clouds,
    told_of,
)
from ssmkit.engines.smc_checks import check_model, check_options
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.smc.additive import Additive
from ssmkit.smc.feynman_kac import Cloud
from ssmkit.smc.filter import ParticleFilter, Prepared, Series, floating_type, forecast
from ssmkit.smc.forward_smoothing import collector
from ssmkit.smc.proposals import Linearised, Proposal
from ssmkit.smc.recipes import (
    Step,
    at_the_mean,
    auxiliary,
    bootstrap,
    chooser,
    guided,
    steps_of,
)
from ssmkit.smc.resampling import Criterion, Scheme, selector
from ssmkit.smc.started import started
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class SMC:
    r"""Sequential Monte Carlo: any model, with an unbiased evidence.

    \[\hat p(y_{0:T-1}) = \prod_t \frac{\sum_i w_t^i}{\sum_i w_{t-1}^i}, \qquad
    \mathrm{E}\,\hat p(y_{0:T-1}) = p(y_{0:T-1})\]

    The bootstrap filter by default; ``proposal`` makes it a guided one, ``lookahead`` an auxiliary
    one. ``log_evidence_se`` of the posterior is the standard error of its log evidence.

    Args:
        num_particles: ``N``.
        proposal: None for the transition, ``sk.Linearised()``, or an ``sk.Proposal`` of your own.
        lookahead: None, ``"mean"`` for the emission density at the mean of the transition, or a
            function ``(model, x, y, u)`` to the log of roughly ``p(y_t | x_{t-1} = x)``.
        resampling: ``"systematic"``, ``"stratified"``, ``"multinomial"``, ``"residual"``, or a
            function ``(key, weights) -> ancestors`` with ``N w`` offspring expected.
        threshold: resample when the effective number of particles is at most this share of ``N``:
            0 never, 1 always; or a function ``(weights) -> bool`` of the normalised weights.
        smoother: ``"backward"`` sampling, exact (needs a transition density; N operations a step
            and path), ``"backward_mcmc"`` (one), ``"genealogy"``, ``"fixed_lag"``, or None.
        num_paths: paths that the smoothed marginals are made of, under backward sampling.
        num_moves: Metropolis moves a step, under ``"backward_mcmc"``.
        lag: steps of the fixed lag.
        additive: None, or an ``sk.AdditiveFunctional`` of the path (``sk.Score()`` is one) whose
            smoothed mean is carried along.

    Raises:
        OptionError: an option has an impossible value.
        ImproperStartError: the model starts diffuse.
        SingularTransitionError: backward sampling, or an additive functional, for a transition
            without a density.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 50).observations
        >>> posterior = sk.infer(1, sk.SMC(num_particles=200), model, ys)
        >>> posterior.evidence_kind, posterior.states.sample(2, n=3).shape
        ('unbiased', (3, 50))

    Source: N. Chopin and O. Papaspiliopoulos (2020), An Introduction to Sequential Monte Carlo.
    """

    num_particles: int = 1000
    proposal: Proposal | Linearised | None = None
    lookahead: str | Callable[..., Any] | None = None
    resampling: str | Scheme = "systematic"
    threshold: float | Criterion = 0.5
    smoother: str | None = "backward"
    num_paths: int = 500
    num_moves: int = 5
    lag: int = 20
    additive: Additive | None = None

    evidence_kind = "unbiased"
    always_shown = ("num_particles", "smoother")
    non_finite_hint = (
        "every particle has weight zero there, or a density is not finite: an observation that the "
        "model holds impossible (an emission with heavier tails), too few particles, or a "
        "transition that leaves them behind (proposal=sk.Linearised())"
    )

    __repr__ = short_repr

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Refuse, before compilation, what this engine would get wrong."""
        check_options(self)
        check_model(self, model, us)

    def filter(self, model: StateSpaceModel, s: Step) -> ParticleFilter:
        """The particle filter for a model; of the step ``s`` only shapes matter."""
        dtype = floating_type(model, s.y)
        if self.proposal is None:
            recipe = bootstrap(model, s, dtype)
        else:
            recipe = guided(model, s, dtype, chooser(model, dtype, self.proposal))
        if self.lookahead is not None:
            ahead = at_the_mean if isinstance(self.lookahead, str) else self.lookahead
            recipe = auxiliary(recipe, model, ahead)
        select = selector(scheme_of(self), self.threshold)
        collects = None if self.additive is None else collector(self.additive, model)
        return ParticleFilter(recipe, select, self.num_particles, dtype, collects)

    def prepare(self, model: StateSpaceModel, series: Series) -> Prepared:
        """The filter, the steps of a series, and how states are drawn."""
        ys, us, mask = jax.tree.map(jnp.asarray, series)
        steps = steps_of(ys, us, mask)
        particle_filter = self.filter(model, steps(0))
        choose = None
        if self.proposal is not None:
            choose = chooser(model, particle_filter.dtype, self.proposal)
        return Prepared(particle_filter, steps, ys.shape[0], choose)

    def log_evidence(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None
    ) -> Scalar:
        """Log of the unbiased evidence, in nats; memory does not grow with the length."""
        alone = dataclasses.replace(self, additive=None)
        return alone.prepare(model, (ys, us, mask)).run(key, keep=False)[0].log_evidence

    def infer(
        self,
        key: Key,
        model: StateSpaceModel,
        ys: Array,
        us: Inputs,
        mask: Array | None,
        keep: str,
    ) -> dict[str, Any]:
        """Everything about the states of one series at one parameter value."""
        run = self.prepare(model, (ys, us, mask)).run(key, keep=keep != "final")
        return parts_of(self, key, model, us, run, keep)

    def check_steps(self, model: StateSpaceModel, us: Inputs, *, begun: bool) -> None:
        """Refuse what a stream would get wrong: it does not smooth, or draw a start once begun."""
        check_options(self)
        model = started(model, input_at(us, 0)) if begun else model
        check_model(dataclasses.replace(self, smoother=None), model, us)

    def first(
        self, key: Key, model: StateSpaceModel, y: Array, u: PyTree, mask: Array | None
    ) -> tuple[Cloud, dict[str, Any]]:
        """The first step of a stream: what it carries, and what the step told."""
        s = Step(0, y, u, mask)
        cloud, report = self.filter(model, s).first(key, s)
        return cloud, told_of(report)

    def advance(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: Cloud,
        t: Array,
        y: Array,
        u: PyTree,
        mask: Array | None,
    ) -> tuple[Cloud, dict[str, Any]]:
        """One step of a stream, with the numbers that belong to its time."""
        s, model = Step(t, y, u, mask), started(model, u)
        cloud, report = self.filter(model, s).advance(key, carry, s)
        return cloud, told_of(report)

    def read(self, model: StateSpaceModel, carry: Cloud, u: PyTree) -> dict[str, Any]:
        """The belief about the present state, and the log evidence so far, in nats."""
        return read_cloud(carry)

    def smooth(
        self, key: Key, model: StateSpaceModel, carries: Cloud, times: Array, us: Inputs
    ) -> Particles:
        """Beliefs about the last states of a stream, from what it carried at each."""
        return smooth_clouds(self, key, model, carries, times, us)

    def takes_carry_of(self, other: Any) -> bool:
        """Whether a stream by this engine goes on from what another engine carries."""
        same_size = getattr(other, "num_particles", None) == self.num_particles
        is_same = isinstance(other, SMC) and same_size and self.additive == other.additive
        return is_same and (self.proposal is None) == (other.proposal is None)

    def begin(
        self, key: Key, model: StateSpaceModel, belief: Belief, log_evidence: Scalar, u: PyTree
    ) -> Cloud:
        """What a stream carries that begins at a belief: equally weighted draws from it."""
        start = (key, self.num_particles, model, belief, log_evidence, u)
        proposed = self.proposal is not None
        return begin_cloud(*start, proposed=proposed, additive=self.additive)

    def forecast(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: Cloud,
        start: int | Array,
        num_steps: int,
        us: Inputs,
    ) -> dict[str, Any]:
        """Draws of the next states and observations: the particles move on and emit."""
        return forecast(key, model, carry, start + jnp.arange(num_steps), us)
