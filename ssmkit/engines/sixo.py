"""Sequential Monte Carlo with learned twists and proposals."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit import keys
from ssmkit.engines.alternating import Task, begin
from ssmkit.engines.observed_information import point_estimates
from ssmkit.engines.options import RunOptions, optimizer, short_repr
from ssmkit.engines.particle_parts import parts_of, read_cloud, scheme_of
from ssmkit.engines.sixo_checks import check_learned, check_model_and_options, check_series
from ssmkit.engines.states import check_finite, run_states
from ssmkit.engines.training import Plan, train
from ssmkit.learned.encoders import Recurrent
from ssmkit.learned.heads import Network
from ssmkit.learned.pieces import Learned, Pieces, Sweepable, sweepable
from ssmkit.learned.proposals import Induced, PerStepGaussian
from ssmkit.learned.reading import setting_of
from ssmkit.learned.twists import Twist
from ssmkit.models.base import StateSpaceModel, as_arrays
from ssmkit.models.programs import (
    Program,
    build,
    build_with_prior,
    constrain,
    free_sites,
    unconstrain,
)
from ssmkit.objectives import sixo as bound
from ssmkit.objectives.density_ratio import DensityRatio
from ssmkit.objectives.sweep import Sweep, log_twists
from ssmkit.posterior import Data, Draws, Posterior
from ssmkit.smc.feynman_kac import Cloud
from ssmkit.smc.filter import ParticleFilter, Prepared, Series, floating_type, forecast
from ssmkit.smc.resampling import Scheme, selector
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar

JUDGES = 8  # series on which the bound is judged at most


@dataclasses.dataclass(frozen=True, repr=False)
class SIXO:
    r"""Sequential Monte Carlo with a learned twist, whose particles follow the smoothing laws.

    \[\gamma_t(x_{0:t}) \propto p(x_{0:t}, y_{0:t})\, \psi_{t+1}(x_t), \qquad
    \psi_{t+1}(x_t) \approx p(y_{t+1:T-1} \mid x_t)\]

    In alternating blocks the twist is learned on series simulated from the model, and the
    program's parameters and the proposal by ascending a lower bound of the log evidence. Whatever
    was learned, the evidence is unbiased and filtered beliefs are those of the model; a good twist
    makes the evidence tight and keeps many ancestors.

    ``diagnostics["twisted_ess"]`` is the effective number of particles at each time for
    \(\gamma_t\), by which ``summary()`` judges the run; ``diagnostics["ess"]`` is that of the
    filtered beliefs, which may be small in a good run.

    Args:
        num_particles: ``N`` of the posterior.
        twist: `learned.Twist`, `learned.Analytic`, `learned.Quadrature`, a builder of your own, or
            None for none.
        proposal: `learned.Induced`, `learned.Gaussian`, …, or None for the transition.
        objective: `objectives.SIXO`, `FIVO`, `IWAE`, `NASX`, … for parameters and proposal.
        twist_learning: `objectives.DensityRatio`, …
        rounds: rounds of both blocks.
        patience: end after so many rounds without a better bound, on random numbers (and, for ten
            or more series, on series) that are held out; the best round counts. None for all.
        resampling: scheme of the posterior's run.
        threshold: of the posterior's run, as in ``sk.SMC``.
        smoother: as in ``sk.SMC``.
        num_paths: as in ``sk.SMC``.

    Raises:
        OptionError: an impossible option, or learned pieces that belong to another series.
        DataError: a series too short for a twist.
        SingularTransitionError: a density is needed where there is none.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 40).observations
        >>> posterior = sk.infer(1, sk.SIXO(num_particles=32, rounds=3), model, ys)
        >>> learned = posterior.learned
        >>> again = sk.infer(2, sk.SIXO(num_particles=32), model, ys[:30], learned=learned)
        >>> posterior.evidence_kind, again.states.mean().shape
        ('unbiased', (30,))

    Source: D. Lawson, A. Raventós, A. Warrington and S. Linderman (2022), SIXO: smoothing inference
    with twisted objectives.
    """

    num_particles: int = 256
    twist: Any = Twist()
    proposal: Any = Induced()
    objective: Any = bound.SIXO()
    twist_learning: Any = DensityRatio()
    rounds: int = 20
    patience: int | None = None
    resampling: str | Scheme = "systematic"
    threshold: float = 0.5
    smoother: str | None = "backward"
    num_paths: int = 500

    takes_learned = True
    takes_checkpoint = True
    evidence_kind = "unbiased"
    always_shown = ("num_particles",)
    num_moves, lag = 5, 20
    non_finite_hint = (
        "every particle has weight zero there, or a density is not finite: an observation that the "
        "model holds impossible, or a proposal that does not cover the transition"
    )

    __repr__ = short_repr

    @classmethod
    def as_published(cls, **changes: Any) -> SIXO:
        """The settings of the source's volatility experiment; ``changes`` replace some of them.

        Its 50,000 rounds take days: ``rounds=`` is the one to change.

        Example:
            >>> import ssmkit as sk
            >>> sk.SIXO.as_published(rounds=200).objective.num_particles
            4
        """
        import optax

        adam = lambda rate: optimizer(optax.adam, rate)  # noqa: E731 - one line
        settings: dict[str, Any] = {
            "twist": Twist(Recurrent(32), Network(128, depth=1)),
            "proposal": PerStepGaussian(),
            "objective": bound.SIXO(batch_size=1, optimizer=adam(3e-4)),
            "twist_learning": DensityRatio(64, 1, steps=100, optimizer=adam(1e-3)),
            "rounds": 50_000,
        }
        return cls(**settings | changes)

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Refuse, before compilation, what this engine would get wrong."""
        check_model_and_options(self, model, us)

    def fit(self, key: Key, target: Any, data: Data, options: RunOptions) -> Posterior:
        """Learn, then infer; called by `infer`, which has checked model and data."""
        sites = free_sites(target) if isinstance(target, Program) else {}
        if options.learned is None:
            check_series(self, data, options)
            learned, report = self._learn(key, target, sites, data, options)
        else:
            learned, report = check_learned(self, options.learned, sites), {}
        return self._posterior(key, target, (sites, learned, report), data, options)

    def _learn(
        self, key: Key, target: Any, sites: dict[str, Any], data: Data, options: RunOptions
    ) -> tuple[Learned, dict[str, Any]]:
        key = keys.purpose(key, "learning")
        scale_key, build_key, run_key = jax.random.split(key, 3)
        series = (data.ys, data.us, data.mask)
        if not options.batched:
            series = jax.tree.map(lambda a: a[None], series)
        params = unconstrain(sites, {name: site.value for name, site in sites.items()})
        model = as_arrays(_model(target, sites, params))
        pieces = build_pieces(self, (scale_key, build_key), model, series)
        twist_steps = getattr(self.twist_learning, "steps", 0)
        total = (self.rounds * twist_steps, self.rounds * self.objective.steps)
        training, judged = split_series(series)
        task = Task(
            target if isinstance(target, Program) else model,
            training,
            run_key,
            self.objective,
            self.twist_learning,
            total,
        )
        plan = Plan(self.rounds, self.patience, min(self.num_particles, 64), judged)
        trained = train(task, begin(task, params, pieces), plan, options, options.checkpoint)
        learner = trained.learner
        return Learned(learner.params, learner.pieces, self.twist, self.proposal), trained.report

    def _posterior(
        self, key: Key, target: Any, made: tuple, data: Data, options: RunOptions
    ) -> Posterior:
        sites, learned, report = made
        model = as_arrays(_model(target, sites, learned.params))
        runner = self.with_learned(learned)
        parts = run_states(runner, keys.purpose(key, "time"), model, data, options)
        if sites:
            values = constrain(sites, learned.params)
            one = jax.tree.map(lambda a: jnp.asarray(a)[None, None], values)
            parts["params"] = Draws(one, jnp.zeros((1, 1)))
            log_prior = float(build_with_prior(target, values)[1])
            said = tuple(report.get("warnings", ()))
            parts["estimates"] = point_estimates(sites, values, log_prior, said)
        parts["learned"] = learned
        parts["diagnostics"] = report
        check_finite(parts, self, throw=options.throw)
        of = "data given parameters"
        return Posterior(self, target, data, model, parts, self, self.evidence_kind, of)

    def with_learned(self, learned: Learned) -> TwistedFilter:
        """What runs the states with what was learned."""
        return TwistedFilter(learned.pieces, self)

    def read(self, model: StateSpaceModel, carry: Cloud, u: PyTree) -> dict[str, Any]:
        """The belief about the last state, and the log evidence, in nats."""
        return read_cloud(carry)

    def forecast(
        self, key: Key, model: StateSpaceModel, carry: Any, start: Any, num_steps: int, us: Inputs
    ) -> dict[str, Any]:
        """Draws of the next states and observations; behind the data there is no twist."""
        return forecast(key, model, carry, start + jnp.arange(num_steps), us)


def _model(target: Any, sites: dict[str, Any], params: dict[str, PyTree]) -> Any:
    if not isinstance(target, Program):
        return target
    return build(target, constrain(sites, params))


def build_pieces(
    engine: SIXO, keys: tuple[Key, Key], model: StateSpaceModel, series: tuple
) -> Pieces:
    """Twist and proposal at their start, for series with leading axis ``B``."""
    first = jax.tree.map(lambda a: a[0], series)
    scale_key, build_key = keys
    setting = setting_of(scale_key, model, first, floating_type(model, first[0]))
    twist = engine.twist if engine.objective.uses_twist else None  # which nothing would train
    parts = zip(jax.random.split(build_key), (twist, engine.proposal), strict=True)
    return Pieces(*(None if part is None else part.build(k, setting) for k, part in parts))


def split_series(series: tuple) -> tuple[tuple, tuple]:
    """Series to learn from, and to judge by: of ten or more a tenth, of fewer the same ones."""
    count = series[0].shape[0]
    held = min(count // 10, JUDGES)
    judges = held or min(count, JUDGES)
    judged = jax.tree.map(lambda a: a[count - judges :], series)
    return jax.tree.map(lambda a: a[: count - held], series), judged


class TwistedFilter(eqx.Module):
    """What runs the states: the pieces are traced, the options are not."""

    pieces: Pieces
    options: SIXO = eqx.field(static=True)

    def prepare(self, model: StateSpaceModel, series: Series) -> Prepared:
        """The filter, the steps of a series, and how states are drawn."""
        return self.prepare_twisted(model, series)[0]

    def prepare_twisted(self, model: StateSpaceModel, series: Series) -> tuple[Prepared, Sweepable]:
        """The same, and what knows the twist."""
        options = self.options
        dtype = floating_type(model, series[0])
        of = sweepable(self.pieces, model, series, dtype)
        select = selector(scheme_of(options), options.threshold)
        particle_filter = ParticleFilter(of.recipe, select, options.num_particles, dtype)
        return Prepared(particle_filter, of.steps, of.length, of.choose), of

    def log_evidence(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any
    ) -> Scalar:
        """Log of the unbiased evidence, in nats."""
        return self.prepare(model, (ys, us, mask)).run(key, keep=False)[0].log_evidence

    def infer(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any, keep: str
    ) -> dict[str, Any]:
        """Everything about the states of one series."""
        prepared, of = self.prepare_twisted(model, (ys, us, mask))
        cloud, steps = prepared.run(key, keep=keep != "final")
        parts = parts_of(self.options, key, model, us, (cloud, steps))
        if steps is not None:
            swept = Sweep(cloud.log_evidence, steps, log_twists(of, steps), of)
            parts["steps"] |= {"twisted_ess": swept.effective_sizes}
        return parts
