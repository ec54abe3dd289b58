"""Exact inference for finite states."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, Categorical, Particles
from ssmkit.engines.options import short_repr
from ssmkit.errors import EngineError
from ssmkit.hidden_markov import (
    FiniteState,
    FiniteStep,
    categorical_paths,
    filter_finite,
    finite_kernel,
    log_initial_vector,
    predict,
    step,
    window_paths,
)
from ssmkit.models.base import StateSpaceModel, abstract_law, input_at
from ssmkit.models.observation import Mask
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class ForwardBackward:
    r"""Exact filter, smoother, path draws, Viterbi path and evidence for finite states.

    \[\alpha_t(j) \propto p(y_t \mid j) \sum_i \alpha_{t-1}(i)\, P_{ij}\]

    The model's initial and transition laws are Categorical; the emission is any law. Beliefs
    answer ``probabilities()``; ``states.most_likely()`` is the Viterbi path.

    Args:
        num_forecast_draws: draws per step that stand for forecast observations.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.DiscreteHMM.normal(
        ...     jnp.array([0.5, 0.5]), jnp.array([[0.9, 0.1], [0.1, 0.9]]),
        ...     jnp.array([-1.0, 1.0]), jnp.array([0.5, 0.5]))
        >>> posterior = sk.infer(0, sk.ForwardBackward(), model, jnp.array([-1.2, -0.8, 1.1]))
        >>> posterior.states.most_likely().tolist()
        [0, 0, 1]

    Source: Rabiner (1989).
    """

    num_forecast_draws: int = 2000

    evidence_kind = "exact"

    __repr__ = short_repr

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Refuse models whose state is not finite.

        Raises:
            EngineError: the initial law is not Categorical.
        """
        start = abstract_law(lambda: model.at(0).initial(input_at(us, 0)))
        if not getattr(start, "is_discrete", False) or not start.has_enumerate_support:
            raise EngineError(
                f"{self!r} needs a finite state.",
                got=f"initial law {type(start).__name__}",
                expected="a numpyro Categorical",
                fix="sk.Kalman() for linear Gaussian models, sk.UnscentedKalman() for others",
            )
        jax.eval_shape(lambda: log_initial_vector(model, input_at(us, 0)))

    def log_evidence(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Mask
    ) -> Scalar:
        """Log evidence in nats; memory does not grow with the length of the series."""
        return filter_finite(finite_kernel(model, us), ys, us, mask, keep=False)[0].log_evidence

    def infer(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None, keep: str
    ) -> dict[str, Any]:
        """Everything about the states of one series at one parameter value."""
        kernel = finite_kernel(model, us)
        state, steps = filter_finite(kernel, ys, us, mask, keep=keep != "final")
        parts: dict[str, Any] = {
            "log_evidence": state.log_evidence,
            "final": Categorical(state.belief),
            "carry": state,
        }
        if steps is None:
            return parts
        paths = categorical_paths(kernel, steps)
        return parts | {
            "log_likelihood": steps.log_likelihood,
            "predicted": Categorical(steps.predicted),
            "filtered": Categorical(steps.filtered),
            "states": (Categorical(paths.marginals()), paths),
            "carries": {"belief": steps.filtered},
        }

    def check_steps(self, model: StateSpaceModel, us: Inputs, *, begun: bool) -> None:
        """Refuse, before compilation, what a stream would get wrong."""
        self.check(model, us)

    def first(
        self, key: Key, model: StateSpaceModel, y: Array, u: PyTree, mask: Array | None
    ) -> tuple[FiniteState, dict[str, Any]]:
        """The first step of a stream: what it carries, and what the step told."""
        ys, us, masks = jax.tree.map(lambda a: a[None], (y, u, mask))
        state, steps = filter_finite(finite_kernel(model, us), ys, us, masks, keep=True)
        steps: Any = steps
        # no step has led here: of transitions that change there are none
        only = jax.tree.map(lambda a: a[0], steps._replace(log_transition=None))
        return state, _told(only)

    def advance(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: FiniteState,
        t: Array,
        y: Array,
        u: PyTree,
        mask: Array | None,
    ) -> tuple[FiniteState, dict[str, Any]]:
        """One step of a stream: predict with ``u_t``, condition on ``y_t``."""
        kernel = finite_kernel(model, jax.tree.map(lambda a: a[None], u))
        state, report = step(kernel, carry, t, u, y, mask)
        return state, _told(report)

    def read(self, model: StateSpaceModel, carry: FiniteState, u: PyTree) -> dict[str, Any]:
        """The belief about the present state, and the log evidence so far, in nats."""
        return {"filtered": Categorical(carry.belief), "log_evidence": carry.log_evidence}

    def smooth(
        self, key: Key, model: StateSpaceModel, carries: FiniteState, times: Array, us: Inputs
    ) -> Categorical:
        """Beliefs about the last states of a stream, from what it carried at each."""
        paths = window_paths(finite_kernel(model, us), carries, times, us)
        return Categorical(paths.marginals())

    def takes_carry_of(self, other: Any) -> bool:
        """Whether a stream by this engine goes on from what another engine carries."""
        return isinstance(other, ForwardBackward)

    def begin(
        self, key: Key, model: StateSpaceModel, belief: Belief, log_evidence: Scalar, u: PyTree
    ) -> FiniteState:
        """What a stream carries that begins at a belief about the present state.

        Raises:
            EngineError: the belief is not about a finite state.
        """
        if not isinstance(belief, Categorical):
            raise EngineError(
                f"{self!r} cannot go on from a belief that is not categorical.",
                got=type(belief).__name__,
                expected="a posterior by sk.ForwardBackward()",
                fix="go on with the engine of the posterior",
            )
        seen = log_evidence.astype(belief.log_probabilities.dtype)
        return FiniteState(belief.log_probabilities, seen, jnp.zeros_like(seen))

    def forecast(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: Any,
        start: int | Array,
        num_steps: int,
        us: Inputs,
    ) -> dict[str, Any]:
        """Exact beliefs about the next states, and draws of the next observations."""
        kernel = finite_kernel(model, us)

        def ahead(state: Any, at: tuple[Array, PyTree]) -> tuple[Any, tuple]:
            t, u = at
            state = predict(kernel, state, t, u)

            def draw(draw_key: Key) -> Array:
                pick, emit = jax.random.split(draw_key)
                x = jax.random.categorical(pick, state.belief)
                y = model.at(t).emission(x, u).sample(emit)
                # numpyro draws in the default precision
                is_float = jnp.issubdtype(y.dtype, jnp.floating)
                return y.astype(state.belief.dtype) if is_float else y

            step_keys = jax.random.split(jax.random.fold_in(key, t), self.num_forecast_draws)
            return state, (state.belief, jax.vmap(draw)(step_keys))

        times = start + jnp.arange(num_steps)
        beliefs, draws = jax.lax.scan(ahead, carry, (times, us))[1]
        weights = jnp.zeros(draws.shape[:2], beliefs.dtype)
        return {
            "states": Categorical(beliefs),
            "observations": Particles(draws, weights, draws.shape[2:]),
        }


def _told(report: FiniteStep) -> dict[str, Any]:
    return {
        "predicted": Categorical(report.predicted),
        "log_likelihood": report.log_likelihood,
        "diagnostics": {},
    }
