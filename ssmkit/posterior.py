"""The posterior: one record that every engine fills.

What an engine did not compute raises `NotComputed` with what to do. Tables, files and exports are
made elsewhere and imported when asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, mix
from ssmkit.errors import NotComputed
from ssmkit.records import Data as Data
from ssmkit.records import Draws as Draws
from ssmkit.records import States as States
from ssmkit.typing import Array, Float, Inputs, Key, PyTree, Scalar

HINTS = {
    "filtered": 'run with keep="all"',
    "predicted": 'run with keep="all"',
    "states": 'run with keep="all"',
    "predicted_observations": 'run with keep="all"; Gaussian engines predict observations',
    "log_likelihood": 'run with keep="all"',
    "log_evidence": "this engine estimates none; use sk.log_evidence at a parameter value, or "
    "another engine",
    "log_evidence_se": "this evidence is no Monte Carlo estimate; its error is that of the "
    "approximation",
    "params": "the model has no free sites; write a program and use sk.GradientFit or sk.NUTS",
    "estimates": "use sk.GradientFit, which computes standard errors",
}


class Posterior(eqx.Module):
    """The answer of every engine.

    Attributes:
        engine: the engine that made it.
        target: the model or program it was given.
        data: the series it has seen; None for a plain density.
        model: the model at the parameters, with a draw axis ``K`` in front of its arrays when
            there are several draws.
        parts: what the engine computed, by name; read it through the properties.
        evidence_kind: ``exact``, ``unbiased``, ``lower bound`` or ``approximate``.
        evidence_of: ``data given parameters`` or ``data``.
    """

    engine: Any = eqx.field(static=True)
    target: Any
    data: Any  # Data, or None; every reader of a series would have to ask
    model: Any
    parts: dict[str, Any]
    state_engine: Any = eqx.field(static=True)
    evidence_kind: str | None = eqx.field(static=True, default=None)
    evidence_of: str | None = eqx.field(static=True, default=None)

    def require_series(self, what: str) -> None:
        """Refuse what needs a series where the target was a plain density.

        Raises:
            NotComputed: there is no series.
        """
        if self.data is None:
            raise NotComputed(
                f"{what} needs a series, and this posterior is of a density.",
                fix="infer with a model or a program, and ys",
            )

    def _part(self, name: str) -> Any:
        value = self.parts.get(name)
        if value is None:
            raise NotComputed(
                f"{name} was not computed by {self.engine!r}.", fix=HINTS.get(name, "see the docs")
            )
        return value

    @property
    def log_evidence(self) -> Scalar:
        """Log evidence in nats; ``evidence_kind`` and ``evidence_of`` say what it is."""
        return self._part("log_evidence")

    @property
    def log_evidence_se(self) -> Scalar:
        """Standard error in nats of the log evidence from this single run; zero where exact.

        nan where too few first ancestors survive to tell: see `sk.replicate_evidence`.
        """
        value = self.log_evidence
        if self.parts.get("log_evidence_se") is None and self.evidence_kind == "exact":
            return jnp.zeros_like(value)
        return self._part("log_evidence_se")

    @property
    def log_likelihood(self) -> Array:
        """One-step-ahead log likelihood per time in nats, ``(T,)``, or ``(K, T)`` for draws.

        A batch has ``B`` before ``T``.
        """
        value = self._part("log_likelihood")
        return value[0] if self.num_state_draws == 1 else value

    @property
    def filtered(self) -> Belief:
        """Beliefs about ``x_t`` given ``y_0 … y_t``."""
        return self._part("filtered")

    @property
    def predicted(self) -> Belief:
        """Beliefs about ``x_t`` given ``y_0 … y_{t-1}``."""
        return self._part("predicted")

    @property
    def predicted_observations(self) -> Belief:
        """Beliefs about ``y_t`` given ``y_0 … y_{t-1}``: the in-sample predictions."""
        return self._part("predicted_observations")

    @property
    def states(self) -> States:
        """Smoothed states: ``mean() std() …`` per time, ``sample(key, n)`` whole paths."""
        return self._part("states")

    @property
    def final(self) -> Belief:
        """The belief at the last time, where forecasts and streams start."""
        return self._part("final")

    @property
    def params(self) -> Draws:
        """Parameter draws; a fitted point is one draw."""
        return self._part("params")

    @property
    def estimates(self) -> Any:
        """Estimates with standard errors and intervals, of a point fit."""
        return self._part("estimates")

    @property
    def diagnostics(self) -> dict[str, Any]:
        """What the engine noticed; of particle engines also the cloud at each time."""
        report = dict(self.parts.get("diagnostics", {}))
        for name in ("run", "steps"):
            for key, value in self.parts.get(name, {}).items():
                is_single = self.num_state_draws == 1
                report[key] = jax.tree.map(lambda a: a[0], value) if is_single else value
        return report

    @property
    def learned(self) -> PyTree:
        """What the engine learned; hand it back to ``infer(..., learned=)`` to skip learning."""
        return self._part("learned")

    @property
    def is_batch(self) -> bool:
        """Whether there are many series; ``posterior[b]`` is the posterior of one."""
        return "batch" in self.parts

    @property
    def num_state_draws(self) -> int:
        """Number of parameter draws for which states were computed."""
        return self.parts["state_log_weights"].shape[-1]

    def __getitem__(self, index: int) -> Posterior:
        """The posterior of one series of a batch, cut to its length."""
        from ssmkit.engines.batch import select_series

        return select_series(self, index)

    def apply(
        self, ys: Any, us: Inputs = None, observed: Any = None, *, key: Key | int = 0
    ) -> Posterior:
        """Filter and smooth new data with the parameters of this posterior; nothing is fitted."""
        from ssmkit.infer import apply

        self.require_series("apply")
        return apply(self, ys, us, observed, key=key)

    def components(self) -> dict[str, Belief]:
        """Smoothed components of a structural model: name to belief over time."""
        from ssmkit.diagnostics import components

        self.require_series("components")
        return components(self)

    def summary(self) -> Any:
        """Observations, likelihood and its convention, estimates, residual tests, warnings."""
        from ssmkit.summary import summarise

        return summarise(self)

    def to_arviz(self, *, num_draws: int = 1000, key: Key | int = 0) -> Any:
        """Export to ArviZ: equally weighted joint draws in the group ``posterior``."""
        from ssmkit.interop.arviz import to_arviz

        return to_arviz(self, num_draws=num_draws, key=key)

    def save(self, path: str | Path) -> Path:
        """Write the posterior to one file: data, never code. See `load_posterior`."""
        from ssmkit.serialise import save_posterior

        return save_posterior(self, path)

    def __repr__(self) -> str:
        """Say engine, data, evidence and parameters in a few lines."""
        from ssmkit.summary import describe

        return describe(self)


def merge_draws(parts: dict[str, Any], log_weights: Float[Array, " K"]) -> dict[str, Any]:
    """Merge state beliefs that have a draw axis in front into beliefs over all draws."""
    merged = dict(parts)
    for name in ("filtered", "predicted", "predicted_observations", "final"):
        if parts.get(name) is not None:
            merged[name] = mix(parts[name], log_weights)
    if parts.get("states") is not None:
        marginals, paths = parts["states"]
        merged["states"] = States(mix(marginals, log_weights), paths, log_weights)
    merged["state_log_weights"] = log_weights
    return merged
