"""The posterior: one record that every engine fills.

What an engine did not compute raises `NotComputed` with what to do. Tables, files and exports are
made elsewhere and imported when asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, Categorical, Labels, mix
from ssmkit.errors import NotComputed
from ssmkit.keys import as_key
from ssmkit.typing import Array, Float, Inputs, Key, PyTree, Scalar

if TYPE_CHECKING:
    import pandas as pd


class Data(eqx.Module):
    """The series an engine has seen, as arrays.

    Attributes:
        ys: ``(T, *event)``, or ``(B, T, *event)``; what is missing holds nan (floats).
        us: inputs with the same leading axes, or None.
        mask: booleans of the shape of ``ys``, or None when everything is there.
        lengths: ``(B,)`` numbers of steps of a ragged batch, or None.
        labels: dates of the series and names of its coordinates.
        members: labels of the series of a ragged batch, or None.
    """

    ys: Array
    us: Inputs = None
    mask: Array | None = None
    lengths: tuple[int, ...] | None = eqx.field(static=True, default=None)
    labels: Labels = eqx.field(static=True, default=Labels())
    members: tuple[Labels, ...] | None = eqx.field(static=True, default=None)


class Draws(eqx.Module):
    """Weighted parameter draws with chain and draw axes; a point is one draw.

    Attributes:
        values: name to array ``(chains, draws, *shape)``; networks are pytrees of such arrays.
        log_weights: unnormalised log weights ``(chains, draws)``.
    """

    values: dict[str, PyTree]
    log_weights: Float[Array, "C S"]

    def __getitem__(self, name: str) -> PyTree:
        """Draws of one site, ``(chains, draws, *shape)``."""
        return self.values[name]

    @property
    def num_draws(self) -> int:
        """Number of draws over all chains."""
        return self.log_weights.size

    def flat(self) -> dict[str, PyTree]:
        """Draws with chains and draws merged, ``(K, *shape)``."""
        return jax.tree.map(lambda a: a.reshape((-1, *a.shape[2:])), self.values)

    def mean(self) -> dict[str, PyTree]:
        """Weighted means by name."""
        weights = jax.nn.softmax(self.log_weights.ravel())
        return jax.tree.map(lambda a: jnp.tensordot(weights, a, axes=1), self.flat())

    def std(self) -> dict[str, PyTree]:
        """Weighted standard deviations by name; zero for a point."""
        weights = jax.nn.softmax(self.log_weights.ravel())

        def spread(a: Array) -> Array:
            centre = jnp.tensordot(weights, a, axes=1)
            return jnp.sqrt(jnp.tensordot(weights, (a - centre) ** 2, axes=1))

        return jax.tree.map(spread, self.flat())


class States(eqx.Module):
    """Smoothed states: marginals per time, and whole paths.

    Attributes:
        marginals: the belief at each time given all data.
        paths: what draws paths, with the draw axis in front.
        log_weights: log weights of the parameter draws ``(K,)``.
    """

    marginals: Any
    paths: Any
    log_weights: Float[Array, " K"]

    def mean(self) -> Array:
        """Smoothed means ``(T, *state)``."""
        return self.marginals.mean()

    def cov(self) -> Array:
        """Smoothed covariances ``(T, D, D)``."""
        return self.marginals.cov()

    def std(self) -> Array:
        """Smoothed standard deviations ``(T, *state)``."""
        return self.marginals.std()

    def quantile(self, q: float | Array) -> Array:
        """Quantiles of each coordinate, with the shape of ``q`` in front."""
        return self.marginals.quantile(q)

    def probabilities(self) -> Array:
        """Smoothed probabilities ``(T, K)`` of a finite state."""
        return self._finite("probabilities").probabilities()

    def most_likely(self) -> Array:
        """The Viterbi path ``(T,)`` of a finite state: the most probable *whole* path."""
        self._finite("most_likely")
        if self.log_weights.shape[0] > 1:
            raise NotComputed(
                "the most likely path is defined at one parameter value.",
                fix="use states.sample(key, n), or a point fit (sk.GradientFit)",
            )
        return jax.tree.map(lambda a: a[0], self.paths).most_likely()

    def sample(self, key: Key | int, n: int) -> Array:
        """Draw ``n`` whole paths ``(n, T, *state)`` from the joint posterior."""
        return _draw_paths(as_key(key), self.paths, self.log_weights, n)

    def to_frame(self, **options: Any) -> pd.DataFrame:
        """Table of the marginals, one row per time."""
        return self.marginals.to_frame(**options)

    def _finite(self, name: str) -> Categorical:
        if isinstance(self.marginals, Categorical):
            return self.marginals
        raise NotComputed(f"states.{name} is for finite states.", fix="use states.mean()")


@eqx.filter_jit
def _draw_paths(key: Key, paths: Any, log_weights: Array, n: int) -> Array:
    if log_weights.shape[0] == 1:
        return jax.tree.map(lambda a: a[0], paths).sample(key, n)
    pick, draw = jax.random.split(key)
    index = jax.random.categorical(pick, log_weights, shape=(n,))

    def one(i: Array, k: Key) -> Array:
        return jax.tree.map(lambda a: a[i], paths).sample(k, 1)[0]

    return jax.vmap(one)(index, jax.random.split(draw, n))


HINTS = {
    "filtered": 'run with keep="all"',
    "predicted": 'run with keep="all"',
    "states": 'run with keep="all"',
    "predicted_observations": 'run with keep="all"; Gaussian engines predict observations',
    "log_likelihood": 'run with keep="all"',
    "log_evidence": "this engine estimates none; use sk.log_evidence at a parameter value, or "
    "another engine",
    "params": "the model has no free sites; write a program and use sk.GradientFit or sk.NUTS",
    "estimates": "use sk.GradientFit, which computes standard errors",
}


class Posterior(eqx.Module):
    """The answer of every engine.

    Attributes:
        engine: the engine that made it.
        target: the model or program it was given.
        data: the series it has seen.
        model: the model at the parameters, with a draw axis ``K`` in front of its arrays when
            there are several draws.
        parts: what the engine computed, by name; read it through the properties.
        evidence_kind: ``exact``, ``unbiased``, ``lower bound`` or ``approximate``.
        evidence_of: ``data given parameters`` or ``data``.
    """

    engine: Any = eqx.field(static=True)
    target: Any
    data: Data
    model: Any
    parts: dict[str, Any]
    state_engine: Any = eqx.field(static=True)
    evidence_kind: str | None = eqx.field(static=True, default=None)
    evidence_of: str | None = eqx.field(static=True, default=None)

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
        """What the engine noticed."""
        return self.parts.get("diagnostics", {})

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

        return apply(self, ys, us, observed, key=key)

    def components(self) -> dict[str, Belief]:
        """Smoothed components of a structural model: name to belief over time."""
        from ssmkit.diagnostics import components

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
