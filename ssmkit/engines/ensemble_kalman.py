"""The ensemble Kalman filter and smoother."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssmkit.beliefs import Belief, Gaussian, Particles
from ssmkit.engines.ensemble_checks import check_model, check_options
from ssmkit.engines.options import short_repr
from ssmkit.kalman import ensemble
from ssmkit.kalman.ensemble import Ensemble, EnsembleFilter, EnsembleStep
from ssmkit.kalman.ensemble_smoother import smooth
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.smc.feynman_kac import Cloud
from ssmkit.smc.filter import floating_type, forecast
from ssmkit.smc.lineage import first_lineage
from ssmkit.smc.recipes import Step, bootstrap, steps_of
from ssmkit.smc.started import started
from ssmkit.typing import Array, Inputs, Key, PyTree, Scalar


@dataclasses.dataclass(frozen=True, repr=False)
class EnsembleKalman:
    r"""Ensemble Kalman filter and smoother: for states of many coordinates, which move by draws.

    \[x^i \leftarrow x^i + P_{xy} S^{-1} (y - h(x^i) - e^i), \qquad S = P_{yy} + R\]

    with \(P_{xy}\) and \(P_{yy}\) the sample covariances of members \(x^i\) and what they expect to
    see, \(h(x^i)\), the mean of the emission; \(R\) is its covariance, in the mean over members,
    and \(e^i\) a draw of that noise (or the square root that needs none). There are no weights, and
    so no degeneracy. Exact for linear Gaussian models as \(N \to \infty\), with errors of order
    \(N^{-1/2}\); elsewhere beliefs and evidence, \(\sum_t \log N(y_t; \bar h_t, S_t)\), are
    approximations for any \(N\). The transition may be any law that can be sampled; of the emission
    only mean and covariance are seen. With fewer members than the state has coordinates the
    covariances lack rank, and nothing is localised here.

    Args:
        num_particles: number of members ``N``.
        update: ``"square_root"``, the members' anomalies are multiplied by a square root, and
            nothing is drawn; or ``"stochastic"``, observations are perturbed, with more noise for
            few members and less trouble with laws that are far from normal.
        inflation: what anomalies are multiplied by after an observation, against the loss of
            spread that few members bring; 1 for none.
        smoother: ``"ensemble"``, all observations move the members of earlier times;
            ``"fixed_lag"``, those of the next ``lag`` steps; or None.
        lag: steps of the fixed lag.

    Raises:
        EngineError: the mean of the emission does not move with the state.
        ImproperStartError: the model starts diffuse.
        ModelError: a state that cannot be any real number, or an emission without mean and
            variance.
        OptionError: an option has an impossible value.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.Lorenz63()
        >>> ys = sk.simulate(0, model, 50).observations
        >>> posterior = sk.infer(1, sk.EnsembleKalman(num_particles=50), model, ys)
        >>> posterior.evidence_kind, posterior.states.sample(2, n=3).shape
        ('approximate', (3, 50, 3))

    Source: G. Evensen (1994, 2003); G. Burgers, P. J. van Leeuwen and G. Evensen (1998) for the
    perturbations; C. Bishop, B. Etherton and S. Majumdar (2001), J. Whitaker and T. Hamill (2002),
    and B. Hunt, E. Kostelich and I. Szunyogh (2007) for square roots; G. Evensen and
    P. J. van Leeuwen (2000) for the smoother.
    """

    num_particles: int = 100
    update: str = "square_root"
    inflation: float = 1.0
    smoother: str | None = "ensemble"
    lag: int = 20

    evidence_kind = "approximate"
    always_shown = ("num_particles", "update")
    non_finite_hint = (
        "members that run away (a shorter time step, inflation nearer to 1), or an observation "
        "without noise that members cannot reach"
    )

    __repr__ = short_repr

    def check(self, model: StateSpaceModel, us: Inputs) -> None:
        """Refuse, before compilation, what this engine would get wrong."""
        check_options(self)
        check_model(self, model, us)

    def filter(self, model: StateSpaceModel, s: Step) -> EnsembleFilter:
        """The filter for a model; of the step ``s`` only shapes matter."""
        dtype = floating_type(model, s.y)
        is_square_root = self.update == "square_root"
        recipe = bootstrap(model, s, dtype)
        return EnsembleFilter(
            model, recipe, self.num_particles, is_square_root, self.inflation, dtype
        )

    def _run(
        self,
        key: Key,
        model: StateSpaceModel,
        series: tuple[Array, Inputs, Any],
        *,
        keep: bool,
    ) -> tuple[Ensemble, EnsembleStep | None]:
        ys, us, mask = jax.tree.map(jnp.asarray, series)
        steps = steps_of(ys, us, mask)
        return ensemble.run(self.filter(model, steps(0)), key, steps, ys.shape[0], keep=keep)

    def log_evidence(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None
    ) -> Scalar:
        """Log evidence in nats; memory does not grow with the length."""
        return self._run(key, model, (ys, us, mask), keep=False)[0].evidence[0]

    def infer(
        self, key: Key, model: StateSpaceModel, ys: Array, us: Inputs, mask: Array | None, keep: str
    ) -> dict[str, Any]:
        """Everything about the states of one series at one parameter value."""
        last, steps = self._run(key, model, (ys, us, mask), keep=keep != "final")
        parts = {"log_evidence": last.evidence[0], "final": _equal(last.members), "carry": last}
        if steps is None:
            return parts
        parts |= {
            "log_likelihood": steps.log_likelihood,
            "predicted": _equal(steps.predicted, 1),
            "filtered": _equal(steps.filtered, 1),
            "predicted_observations": Gaussian(*steps.observation, ys.shape[1:]),
            "carries": {"members": steps.filtered},
        }
        if self.smoother is not None:
            paths = smooth(steps, self.lag if self.smoother == "fixed_lag" else None)
            parts["states"] = (paths.marginals(), paths)
        return parts

    def check_steps(self, model: StateSpaceModel, us: Inputs, *, begun: bool) -> None:
        """Refuse what a stream would get wrong: once begun, it does not draw a start."""
        check_options(self)
        check_model(self, started(model, input_at(us, 0)) if begun else model, us)

    def first(
        self, key: Key, model: StateSpaceModel, y: Array, u: PyTree, mask: Array | None
    ) -> tuple[Ensemble, dict[str, Any]]:
        """The first step of a stream: what it carries, and what the step told."""
        s = Step(0, y, u, mask)
        carry, report = ensemble.first(self.filter(model, s), key, s)
        return carry, _told(report)

    def advance(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: Ensemble,
        t: Array,
        y: Array,
        u: PyTree,
        mask: Array | None,
    ) -> tuple[Ensemble, dict[str, Any]]:
        """One step of a stream, with the numbers that belong to its time."""
        s, model = Step(t, y, u, mask), started(model, u)
        carry, report = ensemble.advance(self.filter(model, s), key, carry, s)
        return carry, _told(report)

    def read(self, model: StateSpaceModel, carry: Ensemble, u: PyTree) -> dict[str, Any]:
        """The belief about the present state, and the log evidence so far, in nats."""
        return {"filtered": _equal(carry.members), "log_evidence": carry.evidence[0]}

    def takes_carry_of(self, other: Any) -> bool:
        """Whether a stream by this engine goes on from what another engine carries."""
        return isinstance(other, EnsembleKalman) and other.num_particles == self.num_particles

    def begin(
        self, key: Key, model: StateSpaceModel, belief: Belief, log_evidence: Scalar, u: PyTree
    ) -> Ensemble:
        """What a stream carries that begins at a belief: draws from it."""
        members = belief.sample(key, self.num_particles)
        evidence = log_evidence.astype(members.dtype)
        return Ensemble(members, (evidence, jnp.zeros_like(evidence)))

    def forecast(
        self,
        key: Key,
        model: StateSpaceModel,
        carry: Ensemble,
        start: int | Array,
        num_steps: int,
        us: Inputs,
    ) -> dict[str, Any]:
        """Draws of the next states and observations: the members move on and emit."""
        weights = jnp.zeros(self.num_particles, carry.members.dtype)
        lineage = first_lineage(self.num_particles)
        cloud = Cloud(carry.members, weights, carry.evidence, lineage)
        return forecast(key, model, cloud, start + jnp.arange(num_steps), us)


def _equal(members: Array, lead: int = 0) -> Particles:
    """Equally weighted particles, with ``lead`` axes in front of them."""
    weights = jnp.zeros(members.shape[: lead + 1], members.dtype)
    return Particles(members, weights, members.shape[lead + 1 :])


def _told(report: EnsembleStep) -> dict[str, Any]:
    return {
        "predicted": _equal(report.predicted),
        "log_likelihood": report.log_likelihood,
        "diagnostics": {},
    }
