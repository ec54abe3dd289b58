"""The objective of parameter engines: log evidence plus log prior, in unconstrained space."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.errors import EngineError, ParameterError
from ssmkit.models.programs import Program, Site, build_with_prior, constrain, free_sites
from ssmkit.posterior import Data
from ssmkit.typing import Array, Key, PyTree, Scalar


def require_sites(engine: Any, target: Any, sites: dict[str, Site]) -> None:
    """Refuse targets with nothing to learn.

    Raises:
        EngineError: a model, or a program without free sites.
    """
    if isinstance(target, Program) and sites:
        return
    name = type(engine).__name__
    raise EngineError(
        f"sk.{name} has nothing to learn.",
        got="a program without free sites" if isinstance(target, Program) else "a model",
        expected="a program with numpyro.param or numpyro.sample sites",
        fix=f"sk.infer(key, {engine.evidence!r}, model, ys) for the states alone",
    )


def require_evidence(engine: Any, *, gradient: bool = True) -> None:
    """Refuse an ``evidence=`` that is no state engine.

    Args:
        engine: has it as ``evidence``.
        gradient: whether slopes of the evidence in the parameters are needed.

    Raises:
        EngineError: it has no evidence of its own, or one without the slopes.
    """
    if not hasattr(engine.evidence, "evidence_kind") or isinstance(engine.evidence, type):
        raise EngineError(
            f"sk.{type(engine).__name__} needs a state engine as evidence.",
            got=repr(engine.evidence),
            expected="sk.Kalman(), sk.ExtendedKalman(), sk.UnscentedKalman(), …",
            fix=f"sk.{type(engine).__name__}(evidence=sk.Kalman())",
        )
    if gradient and not getattr(engine.evidence, "has_gradient", True):
        raise EngineError(
            f"sk.{type(engine).__name__} would follow a wrong slope: what this evidence carries "
            "from time to time is fitted, and not differentiated.",
            got=repr(engine.evidence),
            expected="an evidence that can be differentiated, such as sk.Kalman()",
            fix=f"sk.infer(key, {engine.evidence!r}, program, ys) learns the parameters itself",
        )


def refuse_params(engine: Any, sites: dict[str, Site]) -> None:
    """Refuse ``param`` sites under an engine that draws; numpyro would silently freeze them.

    Raises:
        ParameterError: names the sites.
    """
    points = [name for name, site in sites.items() if site.kind == "param"]
    if points:
        raise ParameterError(
            f"sk.{type(engine).__name__} draws parameters, and {', '.join(points)} has no prior.",
            got=f"numpyro.param sites: {points}",
            expected="numpyro.sample sites only",
            fix=f'numpyro.sample("{points[0]}", dist.HalfNormal(...)), or sk.GradientFit',
        )


def without_labels(data: Data) -> Data:
    """The arrays alone: dates are static, and other dates would compile anew."""
    return Data(data.ys, data.us, data.mask)


class Objective(eqx.Module):
    """Log evidence and log prior of a program, as functions of its parameters.

    Attributes:
        engine: the state engine that scores.
        target: the program.
        data: the series.
        key: the random key of the evidence.
        batched: whether there are many series (their evidences add up).
    """

    engine: Any = eqx.field(static=True)
    target: Program
    data: Data
    key: Key
    batched: bool = eqx.field(static=True)

    def log_evidence(self, model: Any) -> Scalar:
        """Log evidence of all series, in nats; nan counts as impossible."""
        data = self.data
        if not self.batched:
            return self.engine.log_evidence(self.key, model, data.ys, data.us, data.mask)

        def one(key: Key, ys: Array, us: PyTree, mask: Array | None) -> Scalar:
            return self.engine.log_evidence(key, model, ys, us, mask)

        keys = jax.random.split(self.key, data.ys.shape[0])
        return jnp.sum(jax.vmap(one)(keys, data.ys, data.us, data.mask))

    def terms(self, unconstrained: dict[str, PyTree]) -> tuple[Scalar, Scalar]:
        """Log evidence and log prior density of the constrained values (no Jacobian)."""
        model, log_prior = build_with_prior(self.target, self.values(unconstrained))
        return self.log_evidence(model), log_prior

    def values(self, unconstrained: dict[str, PyTree]) -> dict[str, PyTree]:
        """Constrained values; the supports are read off the program where it is traced."""
        return constrain(free_sites(self.target), unconstrained)

    def loss(self, unconstrained: dict[str, PyTree]) -> Scalar:
        """Minus the objective, in nats; infinite where it is not defined."""
        value = -sum(self.terms(unconstrained))
        return jnp.where(jnp.isnan(value), jnp.inf, value)
