"""Running a state engine: at one parameter value or many, for one series or a batch."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.beliefs import Labels
from ssmkit.engines.batch import shorten
from ssmkit.engines.options import RunOptions
from ssmkit.errors import NonFiniteError
from ssmkit.posterior import Data, Posterior, merge_draws
from ssmkit.typing import Array, Float, Inputs, Key

FINAL = ("log_evidence", "log_evidence_se", "final", "carry", "run")  # of ``keep="final"``
HINT = (
    "look for an indefinite covariance, parameters outside their range, or data that the model "
    "holds impossible"
)
ESTIMATES = {"log_evidence", "log_evidence_se"}


@eqx.filter_jit
def _infer(
    engine: Any,
    key: Key,
    models: Any,
    series: tuple[Array, Inputs, Array | None],
    keep: str,
    num_draws: int | None,
    batched: bool,
) -> dict[str, Any]:
    arrays, static = eqx.partition(models, eqx.is_array)

    def one_series(key: Key, arrays: Any, ys: Array, us: Inputs, mask: Array | None) -> Any:
        return engine.infer(key, eqx.combine(arrays, static), ys, us, mask, keep)

    run = one_series
    if batched:
        run = jax.vmap(run, in_axes=(0, None, 0, 0, 0))
        key = jax.random.split(key, series[0].shape[0])
    if num_draws is None:
        return jax.tree.map(lambda a: a[None], run(key, arrays, *series))
    keys = jax.vmap(lambda i: jax.tree.map(lambda k: _fold(k, i), key))(jnp.arange(num_draws))
    return jax.vmap(run, in_axes=(0, 0, None, None, None))(keys, arrays, *series)


def _fold(key: Key, i: Array) -> Key:
    fold = jax.random.fold_in
    return fold(key, i) if key.ndim == 0 else jax.vmap(fold, in_axes=(0, None))(key, i)


def run_states(
    engine: Any,
    key: Key,
    models: Any,
    data: Data,
    options: RunOptions,
    log_weights: Float[Array, " K"] | None = None,
) -> dict[str, Any]:
    """Run a state engine and merge over parameter draws.

    Args:
        engine: the state engine.
        key: random key.
        models: one model, or models with a draw axis ``K`` in front when ``log_weights`` is given.
        data: the series.
        options: ``keep``, and whether there are many series.
        log_weights: log weights of the parameter draws ``(K,)``; None for one model.

    Returns:
        The parts of a posterior.
    """
    count = None if log_weights is None else log_weights.shape[0]
    series = (data.ys, data.us, data.mask)
    lengths = data.lengths
    # what a short series ends with stands inside its padded history: "each" is "all", and what is
    # carried at each time
    kept = "each" if lengths is not None else options.keep
    parts = dict(_infer(engine, key, models, series, kept, count, options.batched))
    if lengths is not None:
        parts = shorten(parts, lengths)
        parts = parts if options.keep == "all" else {n: parts[n] for n in FINAL if n in parts}
    dtype = parts["log_evidence"].dtype
    weights = jnp.zeros(1, dtype) if log_weights is None else log_weights
    if count is None:
        for name in ESTIMATES & parts.keys():
            parts[name] = parts[name][0]
    merged = merge_draws(parts, weights)
    if options.batched:
        merged["batch"] = jnp.arange(data.ys.shape[0])
    return label(merged, engine, models, data)


def runner_of(posterior: Posterior) -> Any:
    """What runs the states of a posterior: its state engine, with what it has learned."""
    engine, learned = posterior.state_engine, posterior.parts.get("learned")
    is_learner = hasattr(engine, "with_learned") and learned is not None
    return engine.with_learned(learned) if is_learner else engine


def label(parts: dict[str, Any], engine: Any, model: Any, data: Data) -> dict[str, Any]:
    """Give dates and coordinate names to the beliefs."""
    times = data.labels.times
    on_states = Labels(times, model.state_names)
    on_last = Labels(None if times is None else times[-1:], model.state_names)
    on_observations = Labels(times, data.labels.names or model.observation_names)
    for name in ("filtered", "predicted"):
        if parts.get(name) is not None:
            parts[name] = parts[name].labelled(on_states)
    if parts.get("states") is not None:
        states = parts["states"]
        parts["states"] = eqx.tree_at(
            lambda s: s.marginals, states, states.marginals.labelled(on_states)
        )
    if parts.get("final") is not None:
        parts["final"] = parts["final"].labelled(on_last)
    if parts.get("predicted_observations") is not None:
        observations = parts["predicted_observations"]
        parts["predicted_observations"] = observations.labelled(on_observations)
    return parts


def state_posterior(
    engine: Any, key: Key, target: Any, model: Any, data: Data, options: RunOptions
) -> Posterior:
    """The posterior of a state engine at one parameter value."""
    parts = run_states(engine, key, model, data, options)
    check_finite(parts, engine, throw=options.throw)
    return Posterior(
        engine, target, data, model, parts, engine, engine.evidence_kind, "data given parameters"
    )


def check_finite(parts: dict[str, Any], engine: Any, *, throw: bool) -> None:
    """Raise, or flag in the diagnostics, when the evidence is not a finite number.

    Raises:
        NonFiniteError: says at which step it happened first.
    """
    value = np.asarray(parts["log_evidence"])
    diagnostics = dict(parts.get("diagnostics", {}))
    diagnostics["finite"] = bool(np.all(np.isfinite(value)))
    parts["diagnostics"] = diagnostics
    if diagnostics["finite"]:
        _check_additive(parts, throw=throw)
        return
    diagnostics["first_bad_step"] = step = _first_bad_step(parts)
    if throw:
        where = "" if step is None else f" from step t={step} on"
        raise NonFiniteError(
            f"the log evidence is not finite{where}.",
            got=f"log evidence {value}",
            expected="finite numbers",
            fix=f"{getattr(engine, 'non_finite_hint', HINT)}; throw=False returns the posterior "
            "with diagnostics['first_bad_step']",
        )


def _check_additive(parts: dict[str, Any], *, throw: bool) -> None:
    leaves = jax.tree.leaves(parts.get("run", {}).get("additive"))
    if throw and not all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves):
        raise NonFiniteError(
            "the additive functional is not finite.",
            got="nan or inf in diagnostics['additive']",
            expected="finite terms, where y is missing (and nan) as well",
            fix="jnp.where(jnp.isnan(y), 0.0, …) in its function; throw=False returns the "
            "posterior with diagnostics['running_additive'], which says from when on",
        )


def _first_bad_step(parts: dict[str, Any]) -> int | None:
    terms = parts.get("log_likelihood")
    if terms is None:
        return None
    bad = ~np.isfinite(np.asarray(terms))
    steps = np.nonzero(bad.reshape(-1, bad.shape[-1]).any(axis=0))[0]
    return int(steps[0]) if steps.size else None
