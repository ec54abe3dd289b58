"""A particle filter whose proposals a variational filter makes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, Particles
from ssmkit.engines.online_series import run_series
from ssmkit.engines.options import short_repr
from ssmkit.engines.particle_parts import (
    begin_cloud,
    parts_of,
    read_cloud,
    scheme_of,
    smooth_clouds,
    told_of,
)
from ssmkit.engines.smc_checks import check_additive, check_cloud_options
from ssmkit.errors import OptionError
from ssmkit.learned.forward import Forward, draw_forward, forward
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.smc.additive import Additive
from ssmkit.smc.feynman_kac import Cloud
from ssmkit.smc.filter import ParticleFilter, Prepared, Series, floating_type, forecast
from ssmkit.smc.forward_smoothing import collector
from ssmkit.smc.proposals import Draw
from ssmkit.smc.recipes import Step, guided, steps_of
from ssmkit.smc.resampling import Criterion, Scheme, selector
from ssmkit.smc.started import started
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar

GUIDE_KEY = 0  # one for all runs, so that the proposal is a function of the data alone


class Carry(NamedTuple):
    """What a stream carries: the particles, and what the guide goes on from."""

    cloud: Cloud
    guide: Any


@dataclasses.dataclass(frozen=True, repr=False)
class GuidedSMC:
    r"""Sequential Monte Carlo with the proposals of a variational filter: unbiased evidence.

    \[q_t(x_t \mid x_{t-1}) \propto q_t(x_t)\, q_t(x_{t-1} \mid x_t), \qquad
    w_t = \frac{p(x_t \mid x_{t-1})\, p(y_t \mid x_t)}{q_t(x_t \mid x_{t-1})}\]

    The guide follows the series by itself, and its filter and backward kernel are turned round into
    the law of a state given the one before. Its lower bound becomes an unbiased evidence, and its
    belief weighted particles, which say how good it was. For linear Gaussian models the proposal is
    the best there is.

    Args:
        guide: ``sk.OnlineVariational()``; parameters that it would learn are held.
        num_particles: ``N``.
        widening: factor of the proposal's standard deviations. Weights are bounded only where its
            tails are no lighter than the target's; above 1 it is safer.
        resampling: as in `SMC`.
        threshold: as in `SMC`.
        smoother: as in `SMC`.
        num_paths: as in `SMC`.
        num_moves: as in `SMC`.
        lag: as in `SMC`.
        additive: as in `SMC`.

    Raises:
        OptionError: an option has an impossible value.
        ModelError: a model that the guide cannot follow.
        ImproperStartError: the model starts diffuse.
        SingularTransitionError: a transition without a density.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 50).observations
        >>> engine = sk.GuidedSMC(sk.OnlineVariational(num_steps=0), num_particles=100)
        >>> sk.infer(1, engine, model, ys).evidence_kind
        'unbiased'

    Source: A. Doucet, S. Godsill and C. Andrieu (2000) on guided filters; A. Campbell et al. (2021)
    on the guide.
    """

    guide: Any
    num_particles: int = 1000
    widening: float = 1.0
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
        "every particle has weight zero there, or the guide has lost its way: an observation that "
        "the model holds impossible, or a wider proposal (widening=1.5)"
    )

    __repr__ = short_repr

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Refuse, before compilation, what this engine would get wrong."""
        check_cloud_options(self)
        if isinstance(self.guide, type) or not hasattr(self.guide, "carried_value"):
            raise OptionError(
                "sk.GuidedSMC: the guide must be a variational filter.",
                got=repr(self.guide),
                expected="sk.OnlineVariational()",
                fix="sk.SMC(proposal=sk.Linearised()) needs no guide",
            )
        if not (isinstance(self.widening, int | float) and 0 < self.widening < math.inf):
            raise OptionError(
                "sk.GuidedSMC: widening is a factor of standard deviations.",
                got=repr(self.widening),
                expected="a finite number above 0",
                fix="widening=1.0",
            )
        self.guide.check(model, us)
        check_additive(self, model, us)

    @property
    def _follower(self) -> Any:
        # its predictions are not looked at
        return dataclasses.replace(self.guide, num_paths=2)

    def _filter(self, model: StateSpaceModel, s: Step) -> tuple[ParticleFilter, Callable]:
        dtype = floating_type(model, s.y)

        def choose(before: Array | None, s: Step) -> Draw:
            return draw_forward(s.read, model, before, s, self.widening)

        select = selector(scheme_of(self), self.threshold)
        recipe = guided(model, s, dtype, choose)
        collects = None if self.additive is None else collector(self.additive, model)
        particle_filter = ParticleFilter(recipe, select, self.num_particles, dtype, collects)
        return particle_filter, choose

    def prepare(self, model: StateSpaceModel, series: Series) -> Prepared:
        """The filter, the steps of a series with their proposals, and how states are drawn."""
        series = jax.tree.map(jnp.asarray, series)
        arrays, rest = eqx.partition((model, series), eqx.is_array)
        # a proposal is a choice
        fixed, given = eqx.combine(jax.lax.stop_gradient(arrays), rest)
        kept: Any = run_series(self._follower, jax.random.key(GUIDE_KEY), fixed, given, "all")[1]
        told, kernels = kept
        first = forward(jax.tree.map(lambda a: a[0], told.filter), None)
        later = jax.vmap(forward)(jax.tree.map(lambda a: a[1:], told.filter), kernels)
        laws = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)
        steps = steps_of(*series, lambda t: jax.tree.map(lambda a: a[t], laws))
        particle_filter, choose = self._filter(model, steps(0))
        return Prepared(particle_filter, steps, series[0].shape[0], choose)

    def log_evidence(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None
    ) -> Scalar:
        """Log of the unbiased evidence, in nats."""
        alone = dataclasses.replace(self, additive=None)
        return alone.prepare(model, (ys, us, mask)).run(key, keep=False)[0].log_evidence

    def infer(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None, keep: str
    ) -> dict[str, Any]:
        """Everything about the states of one series at one parameter value."""
        run = self.prepare(model, (ys, us, mask)).run(key, keep=keep != "final")
        return parts_of(self, key, model, us, run, keep)

    def check_steps(self, model: StateSpaceModel, us: Inputs, *, begun: bool) -> None:
        """Refuse, before compilation, what a stream would get wrong."""
        self.check(started(model, input_at(us, 0)) if begun else model, us)

    def first(
        self, key: Key, model: StateSpaceModel, y: Array, u: PyTree, mask: Array | None
    ) -> tuple[Carry, dict[str, Any]]:
        """The first step of a stream: what it carries, and what the step told."""
        s, guide = self._guided(model, None, Step(0, y, u, mask))
        cloud, report = self._filter(model, s)[0].first(key, s)
        return Carry(cloud, guide), told_of(report)

    def advance(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: Carry,
        t: Array,
        y: Array,
        u: PyTree,
        mask: Array | None,
    ) -> tuple[Carry, dict[str, Any]]:
        """One step of a stream, with the numbers that belong to its time."""
        model = started(model, u)
        s, guide = self._guided(model, carry.guide, Step(t, y, u, mask))
        cloud, report = self._filter(model, s)[0].advance(key, carry.cloud, s)
        return Carry(cloud, guide), told_of(report)

    def _guided(self, model: StateSpaceModel, guide: Any, s: Step) -> tuple[Step, Any]:
        done, _ = self._follower.step(jax.random.key(GUIDE_KEY), model, guide, s)
        law: Forward = forward(done.carried.filter, done.kernel)
        return s._replace(read=law), done.carried

    def read(self, model: StateSpaceModel, carry: Carry, u: PyTree) -> dict[str, Any]:
        """The belief about the present state, and the log evidence so far, in nats."""
        return read_cloud(_cloud(carry))

    def smooth(
        self, key: Key, model: StateSpaceModel, carries: Carry, times: Array, us: Inputs
    ) -> Particles:
        """Beliefs about the last states of a stream, from what it carried at each."""
        return smooth_clouds(self, key, model, carries.cloud, times, us)

    def takes_carry_of(self, other: Any) -> bool:
        """Whether a stream by this engine goes on from what another engine carries."""
        return False

    def begin(
        self, key: Key, model: StateSpaceModel, belief: Belief, log_evidence: Scalar, u: PyTree
    ) -> Carry:
        """What a stream carries that begins at a belief: draws from it, and its moments."""
        cloud_key, guide_key = jax.random.split(key)
        start = (cloud_key, self.num_particles, model, belief, log_evidence, u)
        cloud = begin_cloud(*start, proposed=True, additive=self.additive)
        return Carry(cloud, self._follower.begin(guide_key, model, belief, log_evidence, u))

    def forecast(
        self, key: Key, model: StateSpaceModel, carry: Any, start: Any, num_steps: int, us: Inputs
    ) -> dict[str, Any]:
        """Draws of the next states and observations: the particles move on and emit."""
        return forecast(key, model, _cloud(carry), start + jnp.arange(num_steps), us)


def _cloud(carry: Any) -> Cloud:
    """The particles, of a stream or of a whole series."""
    return carry.cloud if isinstance(carry, Carry) else carry
