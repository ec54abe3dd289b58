"""What a posterior says of parameters that were learned as data arrived."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.engines.observed_information import point_estimates
from ssmkit.engines.online_learning import Adaptive, model_told
from ssmkit.engines.options import RunOptions
from ssmkit.errors import EngineError
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.programs import Program, build_with_prior, free_sites
from ssmkit.posterior import Draws
from ssmkit.typing import Array, PyTree


def refuse_batch(options: RunOptions) -> None:
    """Refuse many series where parameters are learned.

    Raises:
        EngineError: a batch.
    """
    if options.batched:
        raise EngineError(
            "parameters are learned from one series as it comes.",
            got="a batch of series",
            expected="one series",
            fix="sk.SIXO or sk.GradientFit for parameters that many series share",
        )


def last_point(target: Program, model: Adaptive, parts: dict[str, Any]) -> StateSpaceModel:
    """Add the last parameters, or their mean, to the parts of a posterior; the model at them."""
    learned = model_told(model, jax.tree.map(lambda a: a[0], parts["carry"]))
    values = learned.values()
    one = jax.tree.map(lambda a: jnp.asarray(a)[None, None], values)
    parts["params"] = Draws(one, jnp.zeros((1, 1)))
    log_prior = float(build_with_prior(target, values)[1])
    parts["estimates"] = point_estimates(free_sites(target), values, log_prior, ())
    return learned.built()


def by_time(model: Any, params: tuple[PyTree, PyTree]) -> dict[str, Array]:
    """Parameters and their means on their own scale, by time, under the names of diagnostics."""
    found = {}
    for kind, path in zip(("online", "averaged"), params, strict=True):
        if path is not None:
            values = jax.vmap(lambda one: dataclasses.replace(model, params=one).values())(path)
            found |= {f"{kind} {name}": value for name, value in values.items()}
    return found
