"""Batches of series: cutting ragged ones to length, and taking one out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs import GaussianMixture, Labels
from ssmkit.errors import EngineError
from ssmkit.posterior import Data, Posterior, States
from ssmkit.typing import Array

if TYPE_CHECKING:
    import pandas as pd

BELIEFS = ("filtered", "predicted", "predicted_observations")


def shorten(parts: dict[str, Any], lengths: tuple[int, ...]) -> dict[str, Any]:
    """Put the final belief of each padded series at its own last time.

    ``parts`` have axes ``(K, B, T, ...)``; a padded step is a step with nothing observed, which
    changes neither the evidence nor the smoothed beliefs before it.
    """
    last = jnp.asarray(lengths) - 1
    series = jnp.arange(len(lengths))
    at_end = lambda a: a[:, series, last]  # noqa: E731 - used twice, two words
    parts = parts | {"final": jax.tree.map(at_end, parts["filtered"])}
    if "carries" in parts:
        parts["carry"] = parts["carry"]._replace(**jax.tree.map(at_end, parts["carries"]))
    if "running_additive" in parts.get("steps", {}):
        at_ends = jax.tree.map(at_end, parts["steps"]["running_additive"])
        parts["run"] = parts["run"] | {"additive": at_ends}
    return parts


def select_series(posterior: Posterior, index: int) -> Posterior:
    """The posterior of one series of a batch, without padding.

    Raises:
        EngineError: the posterior is of one series.
    """
    if not posterior.is_batch:
        raise EngineError("this posterior is of one series, not a batch.", fix="drop the index")
    data = posterior.data
    count = data.ys.shape[0]
    if not -count <= index < count:
        raise IndexError(f"series {index} of {count}")
    length = data.ys.shape[1] if data.lengths is None else data.lengths[index]
    labels = data.labels if data.members is None else data.members[index]
    parts = {
        name: _select(name, part, index, length, labels.times)
        for name, part in posterior.parts.items()
        if name != "batch"
    }
    series = jax.tree.map(lambda a: a[index][:length], (data.ys, data.us, data.mask))
    ys, us, mask = series
    data = Data(ys, us, mask, None, labels)
    return eqx.tree_at(lambda p: (p.data, p.parts), posterior, (data, parts))


def _select(name: str, part: Any, index: int, length: int, times: pd.Index | None) -> Any:
    if name in ("log_evidence", "log_evidence_se"):
        return part[..., index] if jnp.ndim(part) else part
    if name == "states":
        marginals = _cut(part.marginals, index, length, times)
        paths = jax.tree.map(lambda a: a[:, index], part.paths)
        paths = jax.vmap(lambda path: path.until(length))(paths)
        return States(marginals, paths, part.log_weights)
    if name in ("log_likelihood", "carries", "steps"):
        return jax.tree.map(lambda a: a[:, index, :length], part)
    if name in ("carry", "log_evidence_per_draw", "run"):
        return jax.tree.map(lambda a: a[:, index], part)
    if name == "final":
        last = _member(part, index, lambda a: a)
        return last.labelled(Labels(None if times is None else times[-1:], part.labels.names))
    if name in BELIEFS:
        return _cut(part, index, length, times)
    return part  # shared by all series: parameters, estimates, diagnostics


def _cut(belief: Any, index: int, length: int, times: pd.Index | None) -> Any:
    cut = _member(belief, index, lambda a: a[:length])
    return cut.labelled(Labels(times, belief.labels.names))


def _member(belief: Any, index: int, shorten: Callable[[Array], Array]) -> Any:
    """Take one series; a mixture has the axis of its components in front."""
    if isinstance(belief, GaussianMixture):
        components = jax.tree.map(
            lambda a: jax.vmap(lambda one: shorten(one[index]))(a), belief.components
        )
        return dataclasses.replace(belief, components=components)
    return jax.tree.map(lambda a: shorten(a[index]), belief)
