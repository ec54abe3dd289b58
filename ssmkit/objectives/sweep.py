r"""One run of the twisted filter, as objectives see it: the bound, its history, its gradient.

Three gradients of \(\log\hat p\) are in use, and they differ. The *biased* one takes ancestors for
constants. The *score* one adds the derivative of the choice,

\[\sum_t \sum_i \nabla\log W_t^{a_t^i}\, (\log\hat p - \log\hat p_t),\]

with the estimate \(\hat p_t\) that was there when ancestors were chosen taken off (Rao-Blackwell):
it is that of the bound \(\mathrm{E}\log\hat p\). The one of ``sk.SMC`` is that of the evidence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssmkit.errors import OptionError
from ssmkit.learned.pieces import Pieces, Sweepable, sweepable
from ssmkit.measures import effective_sample_size
from ssmkit.models.base import StateSpaceModel
from ssmkit.smc.feynman_kac import StepReport
from ssmkit.smc.filter import ParticleFilter, Series, floating_type
from ssmkit.smc.resampling import SCHEMES, selector
from ssmkit.smc.weights import log_mean_exp
from ssmkit.typing import Array, Float, Key, Scalar

GRADIENTS = ("biased", "score")
LONG = 1000  # steps from which the gradient computes anew what it would have to store


class Sweep(NamedTuple):
    """A finished run.

    Attributes:
        log_evidence: the bound, in nats; its gradient is the biased one.
        report: the history, with leading axis ``T``.
        log_twists: of the particles at each time, by what comes later ``(T, N)``; zero at the end.
        of: what was run.
    """

    log_evidence: Scalar
    report: StepReport
    log_twists: Float[Array, "T N"]
    of: Sweepable

    @property
    def target_log_weights(self) -> Float[Array, "T N"]:
        """Log weights for the target with the twist in it, at each time."""
        return self.report.log_weights + self.log_twists

    @property
    def effective_sizes(self) -> Float[Array, " T"]:
        """Effective number of particles at each time, for that target."""
        return jax.vmap(effective_sample_size)(self.target_log_weights)


def sweep(
    key: Key,
    model: StateSpaceModel,
    pieces: Pieces,
    series: Series,
    *,
    num_particles: int,
    scheme: str,
    threshold: float,
) -> Sweep:
    """Run the filter over one series.

    Args:
        key: random key.
        model: the model.
        pieces: twist and proposal.
        series: observations ``(T, *event)``, inputs and mask.
        num_particles: ``K``.
        scheme: name of a resampling scheme.
        threshold: resample when the effective number is at most this share of ``K``.
    """
    dtype = floating_type(model, series[0])
    of = sweepable(pieces, model, series, dtype)
    select = selector(SCHEMES[scheme], threshold, with_score=False)
    particle_filter = ParticleFilter(of.recipe, select, num_particles, dtype)
    remat = of.length >= LONG
    cloud, report = particle_filter.run_steps(key, of.steps, of.length, keep=True, remat=remat)
    told: Any = report  # the history was kept
    twists = log_twists(of, told)
    return Sweep(cloud.log_evidence, told, twists, of)


def log_twists(of: Sweepable, report: Any) -> Float[Array, "T N"]:
    """Log twists of a history of states."""
    log_twist = of.log_twist
    if log_twist is None:
        return jnp.zeros_like(report.log_weights)

    def at(t: Array, states: Array) -> Array:
        return jax.vmap(log_twist, (0, None))(states, of.steps(t))

    later = jax.vmap(at)(jnp.arange(1, of.length), report.states[:-1])
    return jnp.concatenate([later, jnp.zeros_like(report.log_weights[:1])])


def score_of_choices(run: Sweep) -> Scalar:
    """Zero, with the derivative of the choice of ancestors under multinomial resampling."""
    values = run.target_log_weights[:-1]
    reached = jnp.cumsum(run.report.log_likelihood)[:-1] + jax.vmap(log_mean_exp)(values)
    chosen = jnp.take_along_axis(
        jax.nn.log_softmax(values, axis=1), run.report.ancestors[1:], axis=1
    )
    drawn = run.report.resampled[1:]
    gained = jax.lax.stop_gradient(run.log_evidence - reached)
    total = jnp.sum(jnp.where(drawn, gained * jnp.sum(chosen, axis=1), 0.0))
    return total - jax.lax.stop_gradient(total)


def check_gradient(objective: Any) -> None:
    """Refuse a gradient that does not exist.

    Raises:
        OptionError: an unknown one, or the score of a choice whose law is not known.
    """
    name = f"sk.objectives.{type(objective).__name__}"
    if objective.gradient not in GRADIENTS:
        raise OptionError(
            f"{name}: unknown gradient.", got=repr(objective.gradient), expected=GRADIENTS
        )
    known = objective.scheme == "multinomial" and objective.threshold in (0.0, 1.0)
    if objective.gradient == "score" and not known:
        raise OptionError(
            f"{name}: the score needs ancestors that are drawn independently, on a fixed schedule.",
            got=f"scheme={objective.scheme!r}, threshold={objective.threshold}",
            expected='scheme="multinomial", threshold=1.0',
            fix='gradient="biased", or scheme="multinomial", threshold=1.0',
        )


def told_of(run: Sweep) -> dict[str, Array]:
    """What is shown of a run while learning."""
    return {"bound": run.log_evidence, "smallest_ess": jnp.min(run.effective_sizes)}
