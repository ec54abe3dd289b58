"""Online variational inference with a backward factorisation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit import keys
from ssmkit.beliefs import Belief, Gaussian
from ssmkit.engines.online_amortised import (
    Guided,
    check_network,
    network_for,
    require_network,
)
from ssmkit.engines.online_checks import check_learning, check_model, check_options
from ssmkit.engines.online_learning import (
    Adaptive,
    StochasticAscent,
    adaptive,
    learn,
    model_now,
    model_told,
)
from ssmkit.engines.online_paths import BackwardPaths
from ssmkit.engines.online_points import last_point
from ssmkit.engines.online_published import PUBLISHED
from ssmkit.engines.online_series import infer_series, run_series
from ssmkit.engines.online_start import begin_at, draws_ahead, draws_now, first_parts
from ssmkit.engines.online_step import Carried, Outcome, take
from ssmkit.engines.online_window import entry, final_kernels, take_refitting, with_window
from ssmkit.engines.online_window_score import learn_refitting
from ssmkit.engines.options import RunOptions, short_repr
from ssmkit.engines.states import check_finite, run_states
from ssmkit.learned.regression import KernelRidge, Nothing, Polynomial
from ssmkit.learned.starts import LinearisedStart
from ssmkit.models.base import StateSpaceModel, as_arrays, input_at
from ssmkit.models.programs import Program
from ssmkit.posterior import Data, Posterior
from ssmkit.smc.filter import forecast
from ssmkit.smc.proposals import own_law
from ssmkit.smc.recipes import Step
from ssmkit.smc.started import started
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class OnlineVariational:
    r"""Variational filtering and smoothing, one observation at a time, at a cost that stays.

    \[q(x_{0:t}) = q_t(x_t) \prod_{k \le t} q_k(x_{k-1} \mid x_k)\]

    At each time a Gaussian filter and a backward kernel start where the model, made linear, puts
    them, and climb the evidence lower bound of the whole series, whose past enters by a fitted
    function of the state. Kernels of earlier times stay. For linear Gaussian models all is exact.
    Of a program the parameters are learned as data arrive, by the increments of the score.

    Args:
        filter: ``"full"`` covariances, or ``"diagonal"``.
        kernel: ``"linear"`` in the state after it, or with a ``"network"``; ``"independent"`` of it
            (AELBO-1, with ``value=None``: what is lost by leaving the kernel out).
        value: what carries the bound's past: `learned.KernelRidge`, `learned.Polynomial`,
            `learned.NetworkRegression`, `learned.RecursiveMonteCarlo`; None: each step alone.
        score: the same for the score of the parameters, at the draws of the value.
        start: `learned.LinearisedStart` or `learned.PredictedStart`.
        amortised: `learned.Amortised`, one network for all times and series, learned before the
            first observation, that moves the start; or None.
        num_steps: gradient steps at each observation.
        num_samples: draws of each gradient step.
        learning_rate: of Adam, in standard deviations of the start.
        final_rate: share of the rate that is left at the last step.
        damping: Adam's epsilon, in nats a standard deviation: slopes well below it make steps in
            proportion, so that a start that is exact is left alone.
        path_gradient: leave out the part of the gradient whose mean is zero.
        antithetic: draws in pairs of opposite sign.
        ascent: how parameters of a program are learned; None holds them.
        width: units of the network.
        num_paths: paths that the reported bound is an average of, and draws of a prediction.
        window: how many of the last kernels are fitted together with the filter. Value and score of
            the past enter as many steps back, and the increment of the score is taken along the
            same paths: less bias, more variance, and as many times the cost.

    Raises:
        OptionError: an impossible option.
        ModelError: a state that is not real, or has no mean and variance.
        SingularTransitionError: a transition without a density.
        ImproperStartError: a diffuse start.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 50).observations
        >>> posterior = sk.infer(1, sk.OnlineVariational(num_steps=20), model, ys)
        >>> posterior.evidence_kind, posterior.states.mean().shape
        ('lower bound', (50,))

    Source: A. Campbell, Y. Shi, T. Rainforth and A. Doucet (2021), Online variational filtering and
    parameter learning.
    """

    filter: str = "full"
    kernel: str = "linear"
    value: Any = KernelRidge()
    score: Any = Polynomial()
    start: Any = LinearisedStart()
    amortised: Any = None
    num_steps: int = 100
    num_samples: int = 32
    learning_rate: float = 0.03
    final_rate: float = 0.02
    damping: float = 0.1
    path_gradient: bool = True
    antithetic: bool = True
    ascent: StochasticAscent | None = StochasticAscent()
    width: int = 32
    num_paths: int = 500
    window: int = 1

    evidence_kind = "lower bound"
    has_gradient = False
    takes_learned = True
    always_shown = ("num_steps",)
    non_finite_hint = (
        "a density is not finite where the filter draws states: an observation that the model "
        "holds impossible, or parameters that ran away (a smaller ascent.rate, a longer burn_in)"
    )

    __repr__ = short_repr

    @classmethod
    def as_published(cls, **changes: Any) -> OnlineVariational:
        """The settings of the source's chaotic network; ``changes`` replace some of them.

        Example:
            >>> import ssmkit as sk
            >>> sk.OnlineVariational.as_published(num_steps=100).num_samples
            10
        """
        return cls(**PUBLISHED | changes)

    @property
    def carried_value(self) -> Any:
        """What the past of the bound is fitted by."""
        return Nothing() if self.value is None else self.value

    @property
    def carried_score(self) -> Any:
        """What the past of the score is fitted by."""
        return Nothing() if self.score is None else self.score

    def rule(self) -> Any:
        """Adam, whose rate falls."""
        import optax

        decay = optax.exponential_decay(self.learning_rate, self.num_steps, self.final_rate)
        return optax.adam(decay, eps=self.damping)

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Refuse, before compilation, what this engine would get wrong."""
        check_options(self)
        check_model(self, model, us)

    def model_of(self, target: Any, values: Any = None) -> StateSpaceModel:
        """What is followed: a model, or a program at values from which its parameters move."""
        if not isinstance(target, Program):
            return as_arrays(target)
        found = adaptive(target, values)
        learns = found.params and self.ascent is not None
        return found if learns else as_arrays(found.built())

    def fit(self, key: Key, target: Any, data: Data, options: RunOptions) -> Posterior:
        """Filter, smooth, and learn what is free; called by `infer`."""
        model = self.model_of(target)
        check_learning(self, model, options)
        if self.amortised is None:
            parts = run_states(self, keys.purpose(key, "time"), model, data, options)
        else:
            network, report = network_for(self, keys.purpose(key, "learning"), model, data, options)
            guided = self.learned_model(model, network)
            parts = run_states(self, keys.purpose(key, "time"), guided, data, options)
            parts |= {"learned": network, "diagnostics": report}
        parts.pop("carries", None)
        if isinstance(model, Adaptive):
            model = last_point(target, model, parts)
        check_finite(parts, self, throw=options.throw)
        of = "data given parameters"
        return Posterior(self, target, data, model, parts, self, self.evidence_kind, of)

    def learned_model(self, model: StateSpaceModel, network: Any) -> StateSpaceModel:
        """What a stream of a posterior follows: its model, with the network that was learned."""
        if self.amortised is None or network is None:
            return model
        return Guided(model, check_network(self, network))

    def step(
        self, key: Key, model: StateSpaceModel, last: Carried | None, s: Step
    ) -> tuple[Outcome, Belief]:
        """One step, and the belief about the state before the observation."""
        here = jax.random.split(jax.random.fold_in(key, s.t), 4)
        step_key, begin_key, ahead_key, score_key = here
        model = model_now(model, last)
        settings, hidden, plain = self, None, model
        if isinstance(model, Adaptive):
            plain = model.built()
        elif self.amortised is not None:
            settings, hidden, plain = require_network(self, model).settings(self, last, s)
        learns = isinstance(model, Adaptive)
        if last is not None and self.window > 1:
            done, span = take_refitting(self, step_key, plain, last, s)
            if learns:
                done = learn_refitting(self, score_key, model, last, done, span)
            return done, draws_ahead(self, ahead_key, plain, last, s)
        begun = first_parts(self, begin_key, model, s) if last is None else None
        done = take(settings, step_key, plain, last, s, begun, hidden)
        if learns:
            past = None if last is None else (last.filter, last.learning)
            done = learn(self, score_key, model, past, s, done)
        if self.window > 1:
            done = with_window(self.window, done, s)
        return done, draws_ahead(self, ahead_key, plain, last, s)

    def log_evidence(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None
    ) -> Scalar:
        """The bound as it is estimated online, in nats."""
        return run_series(self, key, model, (ys, us, mask), "final")[0].elbo[0]

    def infer(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None, keep: str
    ) -> dict[str, Any]:
        """Everything about the states of one series, and parameters by time."""
        return infer_series(self, key, model, (ys, us, mask), keep)

    def check_steps(self, model: StateSpaceModel, us: Inputs, *, begun: bool) -> None:
        """Refuse, before compilation, what a stream would get wrong."""
        check_options(self)
        if self.amortised is not None:
            require_network(self, model)
        check_model(self, started(model, input_at(us, 0)) if begun else model, us)

    def first(
        self, key: Key, model: StateSpaceModel, y: Array, u: PyTree, mask: Array | None
    ) -> tuple[Carried, dict[str, Any]]:
        """The first step of a stream: what it carries, and what the step told."""
        return _told(*self.step(key, model, None, Step(0, y, u, mask)))

    def advance(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: Carried,
        t: Array,
        y: Array,
        u: PyTree,
        mask: Array | None,
    ) -> tuple[Carried, dict[str, Any]]:
        """One step of a stream."""
        return _told(*self.step(key, model, carry, Step(t, y, u, mask)))

    def model_now(self, model: StateSpaceModel, carry: Carried | None) -> StateSpaceModel:
        """The model at the parameters that a stream has learned so far."""
        return model_now(model, carry)

    def params_now(self, model: Adaptive, carry: Carried) -> dict[str, Any]:
        """The parameters that a stream reports."""
        return model_told(model, carry).values()

    def read(self, model: StateSpaceModel, carry: Carried, u: PyTree) -> dict[str, Any]:
        """The belief about the present state, and the bound so far, in nats."""
        shape = own_law(model, None, Step(0, None, u, None)).event_shape
        belief = Gaussian(carry.filter.mean, carry.filter.covariance, shape)
        return {"filtered": belief, "log_evidence": carry.elbo[0]}

    def takes_carry_of(self, other: Any) -> bool:
        """Whether a stream by this engine goes on from what another engine carries."""
        if not isinstance(other, OnlineVariational):
            return False
        same = ("filter", "kernel", "width", "value", "score", "ascent", "amortised", "window")
        return all(getattr(self, name) == getattr(other, name) for name in same)

    def begin(
        self, key: Key, model: StateSpaceModel, belief: Belief, log_evidence: Scalar, u: PyTree
    ) -> Carried:
        """What a stream carries that begins at a belief: its mean and covariance.

        Nothing is known of what the past would say of other states, so that the bound begins
        anew there.
        """
        return begin_at(self, key, model, belief, log_evidence, u)

    def smooth(
        self, key: Key, model: StateSpaceModel, carries: Carried, times: Array, us: Inputs
    ) -> Belief:
        """Beliefs about the last states of a stream, by the kernels between them."""
        shape = own_law(model, None, Step(0, None, input_at(us, 0), None)).event_shape
        if self.window > 1:
            kernels = final_kernels(carries.kernel, entry(carries.window, -1))
        else:
            kernels = jax.tree.map(lambda a: a[1:], carries.kernel)
        return BackwardPaths(carries.filter, kernels, shape).marginals(key, self.num_paths)

    def forecast(
        self, key: Key, model: StateSpaceModel, carry: Carried, start: Any, num_steps: int, us: Any
    ) -> dict[str, Any]:
        """Draws of the next states and observations: draws of the filter move on and emit."""
        model = model_now(model, carry)
        draw_key, key = jax.random.split(key)
        cloud = draws_now(draw_key, model, carry, self.num_paths, us)
        return forecast(key, model, cloud, start + jnp.arange(num_steps), us)


def _told(done: Outcome, ahead: Belief) -> tuple[Carried, dict[str, Any]]:
    told = {"predicted": ahead, "log_likelihood": done.gain, "diagnostics": {}}
    return done.carried, told
