"""What all Gaussian engines do, given their rule: infer, score, forecast."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, Gaussian
from ssmkit.errors import EngineError, OptionError
from ssmkit.kalman import filter as gaussian_filter
from ssmkit.kalman.affine import Linearisation
from ssmkit.kalman.checks import check_gaussian
from ssmkit.kalman.diffuse import flat_posterior, resolve
from ssmkit.kalman.forms import FORMS, choose_form
from ssmkit.kalman.run import (
    beliefs,
    filter_series,
    log_evidence_of,
    log_likelihood,
    predicted_observations,
)
from ssmkit.kalman.smoother import backward_kernels, window_paths
from ssmkit.linalg import cholesky_psd
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.models.observation import Mask
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar


@dataclasses.dataclass(frozen=True)
class GaussianEngine(abc.ABC):
    """Abstract: a Gaussian filter and smoother; subclasses say how a model is linearised."""

    evidence_kind = "approximate"

    @property
    @abc.abstractmethod
    def rule(self) -> Linearisation:
        """How conditionals are brought into affine Gaussian form."""

    @property
    def _form_name(self) -> str:
        return getattr(self, "form", "auto")

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Refuse, before compilation, what this engine would get wrong."""
        if self._form_name not in ("auto", *FORMS):
            raise OptionError("unknown form.", got=repr(self._form_name), expected=["auto", *FORMS])
        check_gaussian(repr(self), self.rule, model, us)

    def _kernel(self, model: StateSpaceModel, ys: Array, us: Inputs) -> Any:
        start = jax.eval_shape(lambda: model.at(0).initial(input_at(us, 0)).mean)
        dtype = jnp.result_type(start.dtype, ys.dtype, jnp.float32)
        form = choose_form(self._form_name, dtype)
        return gaussian_filter.gaussian_kernel(self.rule, form, model, us)

    def log_evidence(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Mask
    ) -> Scalar:
        """Log evidence in nats; memory does not grow with the length of the series."""
        kernel = self._kernel(model, ys, us)
        ys, mask = _flatten(ys), _flatten(mask)
        return log_evidence_of(filter_series(kernel, ys, us, mask, keep=False).state)

    def infer(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None, keep: str
    ) -> dict[str, Any]:
        """Everything about the states of one series at one parameter value."""
        kernel = self._kernel(model, ys, us)
        event, state_event = ys.shape[1:], kernel.event_shape
        ys, mask = _flatten(ys), _flatten(mask)
        state, steps = filter_series(kernel, ys, us, mask, keep=keep != "final")
        parts: dict[str, Any] = {
            "log_evidence": log_evidence_of(state),
            "final": _belief(kernel, state),
            "carry": state,
        }
        if steps is None:
            return parts
        predicted, filtered = beliefs(kernel, steps)
        paths = backward_kernels(kernel, steps)
        return parts | {
            "log_likelihood": log_likelihood(steps),
            "predicted": Gaussian(*predicted, state_event),
            "filtered": Gaussian(*filtered, state_event),
            "predicted_observations": Gaussian(*predicted_observations(kernel, steps), event),
            "states": (Gaussian(*paths.marginals(), state_event), paths),
            "carries": {"means": steps.filtered[0], "spread": steps.filtered[1]},
        }

    def check_steps(self, model: StateSpaceModel, us: Inputs, *, begun: bool) -> None:
        """Refuse, before compilation, what a stream would get wrong."""
        self.check(model, us)

    def first(
        self, key: Key, model: StateSpaceModel, y: Array, u: PyTree, mask: Array | None
    ) -> tuple[Any, dict[str, Any]]:
        """The first step of a stream: what it carries, and what the step told."""
        ys, us, masks = jax.tree.map(lambda a: a[None], (y, u, mask))
        kernel = self._kernel(model, ys, us)
        state, steps = filter_series(kernel, _flatten(ys), us, _flatten(masks), keep=True)
        steps: Any = steps
        report = jax.tree.map(lambda a: a[0], steps)
        before = jnp.zeros_like(report.gram)
        return state, _told(kernel, before, report, log_likelihood(steps)[0])

    def advance(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: Any,
        t: Array,
        y: Array,
        u: PyTree,
        mask: Array | None,
    ) -> tuple[Any, dict[str, Any]]:
        """One step of a stream: predict with ``u_t``, condition on ``y_t``."""
        kernel = self._kernel(model, *jax.tree.map(lambda a: a[None], (y, u)))
        flat = None if mask is None else mask.ravel()
        y = y.ravel().astype(carry.means.dtype)
        state, report = gaussian_filter.step(kernel, carry, t, u, y, flat)
        if report.gram.shape[-1] == 1:
            gain = log_likelihood(jax.tree.map(lambda a: a[None], report))[0]
        else:  # flat directions: what was seen before is seen in another light
            gain = log_evidence_of(state) - log_evidence_of(carry)
        return state, _told(kernel, carry.evidence[0].gram, report, gain)

    def read(self, model: StateSpaceModel, carry: Any, u: PyTree) -> dict[str, Any]:
        """The belief about the present state, and the log evidence so far, in nats."""
        kernel = self._kernel(model, carry.means, jax.tree.map(lambda a: a[None], u))
        return {"filtered": _belief(kernel, carry), "log_evidence": log_evidence_of(carry)}

    def smooth(
        self, key: Key, model: StateSpaceModel, carries: Any, times: Array, us: Inputs
    ) -> Gaussian:
        """Beliefs about the last states of a stream, from what it carried at each."""
        kernel = self._kernel(model, carries.means, us)
        paths = window_paths(kernel, carries, times, us)
        return Gaussian(*paths.marginals(), kernel.event_shape)

    def takes_carry_of(self, other: Any) -> bool:
        """Whether a stream by this engine goes on from what another engine carries."""
        return isinstance(other, GaussianEngine) and other._form_name == self._form_name

    def begin(
        self, key: Key, model: StateSpaceModel, belief: Belief, log_evidence: Scalar, u: PyTree
    ) -> Any:
        """What a stream carries that begins at a belief about the present state.

        Raises:
            EngineError: the belief is not normal.
        """
        if not isinstance(belief, Gaussian):
            raise EngineError(
                f"{self!r} cannot go on from a belief that is not normal.",
                got=type(belief).__name__,
                expected="the posterior of a Gaussian engine",
                fix="go on with the engine of the posterior, or with sk.SMC()",
            )
        form = self._kernel(model, belief.location, jax.tree.map(lambda a: a[None], u)).form
        spread = form.noise(cholesky_psd(belief.covariance))
        zero = jnp.zeros((), spread.dtype)
        nothing = gaussian_filter.Evidence(jnp.zeros((1, 1), spread.dtype), zero)
        seen = nothing._replace(log_norm=log_evidence.astype(spread.dtype))
        return gaussian_filter.GaussianState(belief.location[:, None], spread, (seen, nothing))

    def forecast(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: Any,
        start: int,
        num_steps: int,
        us: Inputs,
    ) -> dict[str, Any]:
        """Beliefs about the next states and observations: steps with nothing observed."""
        kernel = self._kernel(model, carry.means, us)
        flat = flat_posterior(carry.evidence[0].gram)
        event = jax.eval_shape(lambda: self._emission(kernel, carry, start, us)[0]).shape

        def ahead(state: Any, at: tuple[Array, PyTree]) -> tuple[Any, tuple]:
            t, u = at
            state, _ = gaussian_filter.predict(kernel, state, t, u)
            state = jax.tree.map(lambda new, old: new.astype(old.dtype), state, carry)
            covariance = kernel.form.covariance(state.spread)
            matrix, offset, noise = self._observation(kernel, state, t, u)
            means = (matrix @ state.means).at[:, 0].add(offset)
            observation = resolve(means, matrix @ covariance @ matrix.T + noise, flat)
            return state, (resolve(state.means, covariance, flat), observation)

        times = start + jnp.arange(num_steps)
        states, observations = jax.lax.scan(ahead, carry, (times, us))[1]
        (mean, covariance), (seen, scatter) = states, observations
        return {
            "states": Gaussian(mean, covariance, kernel.event_shape),
            "observations": Gaussian(seen, scatter, event),
        }

    def _emission(self, kernel: Any, state: Any, t: int, us: Inputs) -> tuple[Array]:
        u = input_at(us, 0)
        return (kernel.conditional("emission", t, u)(state.means[:, 0]).mean,)

    def _observation(
        self, kernel: Any, state: Any, t: Array, u: PyTree
    ) -> tuple[Array, Array, Array]:
        factor = kernel.form.factor(state.spread)
        law = kernel.conditional("emission", t, u)
        used = kernel.rule(law, state.means[:, 0], factor)
        return used.matrix, used.offset, used.covariance


def _belief(kernel: Any, state: Any) -> Gaussian:
    flat = flat_posterior(state.evidence[0].gram)
    mean, covariance = resolve(state.means, kernel.form.covariance(state.spread), flat)
    return Gaussian(mean, covariance, kernel.event_shape)


def _told(kernel: Any, gram: Array, report: Any, log_likelihood: Scalar) -> dict[str, Any]:
    """What one step tells; ``gram`` is of the evidence before it."""
    means, spread = report.predicted
    predicted = resolve(means, kernel.form.covariance(spread), flat_posterior(gram))
    return {
        "predicted": Gaussian(*predicted, kernel.event_shape),
        "log_likelihood": log_likelihood,
        "diagnostics": {},
    }


def _flatten(a: Any) -> Any:
    """One observation as a vector; of a mask likewise."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:])), a)
