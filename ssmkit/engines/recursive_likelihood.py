"""Recursive maximum likelihood: parameters by the exact score of each observation."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ssmkit import keys
from ssmkit.beliefs import Belief
from ssmkit.engines.objective import require_evidence, require_sites
from ssmkit.engines.online_checks import check_ascent
from ssmkit.engines.online_learning import (
    Adaptive,
    Learning,
    StochasticAscent,
    adaptive,
    ascend,
    begin,
    model_now,
    model_told,
)
from ssmkit.engines.online_points import by_time, last_point, refuse_batch
from ssmkit.engines.options import RunOptions, short_repr
from ssmkit.engines.states import check_finite, run_states
from ssmkit.errors import EngineError
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.programs import Program, free_sites
from ssmkit.posterior import Data, Posterior
from ssmkit.smc.recipes import Step, steps_of
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar


class Carried(NamedTuple):
    """What goes from step to step.

    Attributes:
        carry: what the evidence engine carries.
        learning: parameters, what learns them and, as their score, slopes of the carry with the
            parameters in front; None where they are held.
    """

    carry: PyTree
    learning: Learning | None


@dataclasses.dataclass(frozen=True, repr=False)
class RecursiveLikelihood:
    r"""Recursive maximum likelihood: a program's parameters, learned as data arrive.

    \[\theta_t = \theta_{t-1} + \gamma_t \nabla \log p(y_t \mid y_{0:t-1}), \qquad
    \frac{d s_t}{d\theta} = \frac{\partial s_t}{\partial\theta}
    + \frac{\partial s_t}{\partial s_{t-1}} \frac{d s_{t-1}}{d\theta}\]

    What a filter carries, \(s_t\), is differentiated forward along with it, so that the increment
    of the score costs the same at any time and is exact while the parameters stay; as they move,
    the past is not computed anew. One step costs as many as there are parameters. The evidence is
    the sum of one-step predictions, each at the parameters of its time; smoothed states are at
    the last ones.

    Args:
        evidence: the state engine that scores, with a differentiable step: ``sk.Kalman()``,
            ``sk.ExtendedKalman()``, ``sk.UnscentedKalman()``, ``sk.ForwardBackward()``.
        ascent: how long the steps are.

    Raises:
        EngineError: nothing to learn, a batch, or an evidence whose steps have no derivatives.
        OptionError: an ascent that cannot be.

    Example:
        >>> import numpyro, numpyro.distributions as dist, ssmkit as sk
        >>> def level():
        ...     positive = dist.constraints.positive
        ...     return sk.models.LocalLevel(
        ...         numpyro.param("level", 1e3, constraint=positive),
        ...         numpyro.param("noise", 1e4, constraint=positive))
        >>> engine = sk.RecursiveLikelihood(evidence=sk.Kalman())
        >>> posterior = sk.infer(0, engine, level, sk.data.load("nile"))
        >>> posterior.diagnostics["online noise"].shape
        (100,)

    Source: F. LeGland and L. Mevel (1997), Recursive estimation in hidden Markov models.
    """

    evidence: Any
    ascent: StochasticAscent = StochasticAscent()

    evidence_kind = "approximate"
    has_gradient = False

    __repr__ = short_repr

    @property
    def rule(self) -> Any:
        """How the evidence engine linearises; None where it does not."""
        return getattr(self.evidence, "rule", None)

    def _check(self) -> None:
        require_evidence(self)
        steps = ("first", "advance", "read", "begin", "forecast", "check_steps", "takes_carry_of")
        takes_steps = all(hasattr(self.evidence, name) for name in steps)
        if not takes_steps or self.evidence.evidence_kind == "unbiased":
            raise EngineError(
                "sk.RecursiveLikelihood differentiates the steps of its evidence, and these "
                "have no derivatives.",
                got=repr(self.evidence),
                expected="sk.Kalman(), sk.ExtendedKalman(), sk.UnscentedKalman(), …",
                fix="sk.OnlineVariational() learns parameters of any model with densities",
            )
        check_ascent(self, "sk.StochasticAscent()")

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Refuse, before compilation, what this engine would get wrong."""
        self._check()
        self.evidence.check(_plain(model), us)

    def model_of(self, target: Any, values: Any = None) -> Adaptive:
        """The program at values from which its parameters move."""
        self._check()
        require_sites(self, target, free_sites(target) if isinstance(target, Program) else {})
        return adaptive(target, values)

    def fit(self, key: Key, target: Any, data: Data, options: RunOptions) -> Posterior:
        """Filter and learn, then smooth at the last parameters; called by `infer`."""
        start = self.model_of(target)
        refuse_batch(options)
        time_key = keys.purpose(key, "time")
        parts = run_states(self, time_key, start, data, options)
        model = last_point(target, start, parts)
        if options.keep == "all":
            found = run_states(self.evidence, time_key, model, data, options)
            parts["states"] = found.get("states")
        check_finite(parts, self, throw=options.throw)
        of = "data given parameters"
        return Posterior(self, target, data, model, parts, self, self.evidence_kind, of)

    def step(self, key: Key, model: Any, last: Any, s: Step) -> tuple[Carried, dict[str, Any]]:
        """One step: the filter's, its derivative, and the parameters' along the increment."""
        here: Any = model_now(model, last)
        flat, unravel = ravel_pytree(here.params)
        before = None if last is None else last.carry
        learning: Any = begin(self.ascent, here) if last is None else last.learning
        moving, still = eqx.partition(before, eqx.is_inexact_array)

        def run(flat: Array, moving: PyTree) -> tuple[tuple[PyTree, Scalar], tuple[PyTree, Any]]:
            built = dataclasses.replace(here, params=unravel(flat)).built()
            after, told = self._move(key, built, eqx.combine(moving, still), s)
            own, rest = eqx.partition(after, eqx.is_inexact_array)
            return (own, told["log_likelihood"]), (rest, told)

        def along(direction: Array, slopes: PyTree) -> Any:
            return jax.jvp(run, (flat, moving), (direction, slopes), has_aux=True)

        directions = jnp.eye(flat.shape[0], dtype=flat.dtype)
        (own, _), (slopes, increment), (rest, told) = jax.vmap(along, out_axes=(None, 0, None))(
            directions, learning.score
        )
        learned = ascend(self.ascent, here, learning, increment, slopes)
        return Carried(eqx.combine(own, rest), learned), told

    def _move(
        self, key: Key, model: StateSpaceModel, carry: PyTree, s: Step
    ) -> tuple[PyTree, dict[str, Any]]:
        if carry is None:
            return self.evidence.first(key, model, s.y, s.u, s.mask)
        after, told = self.evidence.advance(key, model, carry, s.t, s.y, s.u, s.mask)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), after, carry), told

    def log_evidence(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None
    ) -> Scalar:
        """Log evidence in nats of a model, whose parameters stay."""
        return self.evidence.log_evidence(key, model, ys, us, mask)

    def infer(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None, keep: str
    ) -> dict[str, Any]:
        """Beliefs about the states of one series, and parameters by time; of a model, all."""
        if not isinstance(model, Adaptive):
            parts = self.evidence.infer(key, model, ys, us, mask, keep)
            return parts | {"carry": Carried(parts["carry"], None)}
        at = steps_of(*jax.tree.map(jnp.asarray, (ys, us, mask)))

        def kept(done: Any, told: dict[str, Any], s: Step) -> dict[str, Any] | None:
            if keep == "final":
                return None
            told = {name: told[name] for name in ("log_likelihood", "predicted")}
            told["filtered"] = self.read(model, done, s.u)["filtered"]
            return told | {"params": (done.learning.params, done.learning.average)}

        def on(last: Carried, t: Array) -> tuple[Carried, Any]:
            done, told = self.step(key, model, last, at(t))
            return done, kept(done, told, at(t))

        first, told = self.step(key, model, None, at(0))
        last, later = jax.lax.scan(on, first, jnp.arange(1, ys.shape[0]))
        now = self.read(model, last, at(-1).u)
        parts = {"log_evidence": now["log_evidence"], "final": now["filtered"], "carry": last}
        if keep == "final":
            return parts
        join = lambda a, b: jnp.concatenate([a[None], b])  # noqa: E731 - one line
        steps: Any = jax.tree.map(join, kept(first, told, at(0)), later)
        return parts | {"steps": by_time(model, steps.pop("params"))} | steps

    def check_steps(self, model: StateSpaceModel, us: Inputs, *, begun: bool) -> None:
        """Refuse, before compilation, what a stream would get wrong."""
        self._check()
        if not isinstance(model, Adaptive):
            raise EngineError(
                "sk.RecursiveLikelihood learns the parameters of a program as one point.",
                got=f"{type(model).__name__}, whose parameters stay",
                expected="a program with free sites, or the fit of one as a point",
                fix=f"sk.stream(key, {self.evidence!r}, …) holds them",
            )
        self.evidence.check_steps(model.built(), us, begun=begun)

    def first(
        self, key: Key, model: Any, y: Array, u: PyTree, mask: Array | None
    ) -> tuple[Carried, dict[str, Any]]:
        """The first step of a stream: what it carries, and what the step told."""
        return self.step(key, model, None, Step(0, y, u, mask))

    def advance(
        self,
        key: Key,
        model: Any,
        carry: Carried,
        t: Array,
        y: Array,
        u: PyTree,
        mask: Array | None,
    ) -> tuple[Carried, dict[str, Any]]:
        """One step of a stream."""
        return self.step(key, model, carry, Step(t, y, u, mask))

    def model_now(self, model: StateSpaceModel, carry: Any) -> StateSpaceModel:
        """The model at the parameters that a stream has learned so far."""
        return model_now(model, carry)

    def params_now(self, model: Adaptive, carry: Any) -> dict[str, PyTree]:
        """The parameters that a stream has learned so far, or their mean over time."""
        return model_told(model, carry).values()

    def read(self, model: StateSpaceModel, carry: Any, u: PyTree) -> dict[str, Any]:
        """The belief about the present state, and the sum of predictions so far, in nats."""
        return self.evidence.read(_plain(model_now(model, carry)), carry.carry, u)

    def smooth(
        self, key: Key, model: StateSpaceModel, carries: Carried, times: Array, us: Inputs
    ) -> Belief:
        """Beliefs about the last states of a stream, by the parameters as they stand."""
        last: Any = jax.tree.map(lambda a: a[-1], carries)
        here = _plain(model_now(model, last))
        return self.evidence.smooth(key, here, carries.carry, times, us)

    def takes_carry_of(self, other: Any) -> bool:
        """Whether a stream by this engine goes on from what another engine carries."""
        return (
            isinstance(other, RecursiveLikelihood)
            and other.ascent == self.ascent
            and self.evidence.takes_carry_of(other.evidence)
        )

    def begin(
        self, key: Key, model: Any, belief: Belief, log_evidence: Scalar, u: PyTree
    ) -> Carried:
        """What a stream carries that begins at a belief, which is taken for given."""
        carry = self.evidence.begin(key, model.built(), belief, log_evidence, u)
        learning: Any = begin(self.ascent, model)
        count = learning.increment.shape[0]
        moving = eqx.filter(carry, eqx.is_inexact_array)
        slopes = jax.tree.map(lambda a: jnp.zeros((count, *a.shape), a.dtype), moving)
        return Carried(carry, learning._replace(score=slopes))

    def forecast(
        self, key: Key, model: StateSpaceModel, carry: Any, start: Any, num_steps: int, us: Any
    ) -> dict[str, Any]:
        """Beliefs about the next states and observations, at the parameters learned so far."""
        model = _plain(model_now(model, carry))
        return self.evidence.forecast(key, model, carry.carry, start, num_steps, us)


def _plain(model: StateSpaceModel) -> StateSpaceModel:
    """The model at its present parameters."""
    return model.built() if isinstance(model, Adaptive) else model
