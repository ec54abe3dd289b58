"""What all Gaussian engines do, given their rule: infer, score, forecast."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.beliefs import Gaussian
from ssmkit.errors import OptionError
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
from ssmkit.kalman.smoother import backward_kernels
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
        state, steps = filter_series(kernel, ys, us, mask, keep=keep == "all")
        flat = flat_posterior(state.evidence[0].gram)
        last = resolve(state.means, kernel.form.covariance(state.spread), flat)
        parts: dict[str, Any] = {
            "log_evidence": log_evidence_of(state),
            "final": Gaussian(*last, state_event),
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


def _flatten(a: Any) -> Any:
    """One observation as a vector; of a mask likewise."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:])), a)
