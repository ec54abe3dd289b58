"""Draws of a trained flow, how far they are to be trusted, and the posterior they make."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit import keys
from ssmkit.engines.fab_joint import joint_parts
from ssmkit.engines.fab_target import Defended
from ssmkit.engines.fab_training import Learner, Task, anneal_from, step_sizes
from ssmkit.engines.options import RunOptions
from ssmkit.engines.states import label, run_states
from ssmkit.errors import LearningWarning
from ssmkit.measures import effective_sample_size, pareto_k
from ssmkit.models.programs import build_many
from ssmkit.posterior import Draws, Posterior
from ssmkit.smc.kernels import hamiltonian, random_walk
from ssmkit.smc.resampling import pick
from ssmkit.smc.tempering import temper
from ssmkit.smc.weights import log_mean_exp
from ssmkit.typing import Array, Float, Key, PyTree, Scalar

NUM_ANNEALED = 2000
TOO_HEAVY = 0.7  # k-hat
TOO_FEW = 100.0
EVEN = 0.5  # share of effective draws above which no tail of the weights is feared
FAR = 3.0  # nats above the log evidence, where the flow has less than a twentieth of the target
MISSED = 0.05  # share of the tempered draws that may lie there


class Weighted(NamedTuple):
    """Draws of the flow (mixed with the prior), and densities there, in nats.

    Attributes:
        u: draws ``(N, d)``.
        log_p: of the target, without its constant ``(N,)``; −inf where it is no number.
        log_q: of what they were drawn from ``(N,)``.
        log_flow: of the flow alone ``(N,)``.
        num_invalid: draws where the target is nan.
    """

    u: Float[Array, "N d"]
    log_p: Float[Array, " N"]
    log_q: Float[Array, " N"]
    log_flow: Float[Array, " N"]
    num_invalid: Array

    @property
    def log_weights(self) -> Float[Array, " N"]:
        """Unnormalised log weights."""
        return self.log_p - self.log_q


class Judged(NamedTuple):
    """Draws, values of the sites, and the numbers by which they are judged."""

    weighted: Weighted
    values: dict[str, PyTree]
    report: dict[str, Any]


def evaluate(task: Task, learner: Learner, fresh: Any, key: Key) -> Judged:
    """Draw from the trained flow, anneal from it, and temper independently of it."""
    draw_key, anneal_key, check_key = jax.random.split(key, 3)
    weighted, values = _draw(task, learner.flow, draw_key)
    log_evidence, _ = evidence_of(weighted.log_weights)
    shares = jax.nn.softmax(weighted.log_flow - weighted.log_q)  # of the flow without the prior
    bound = jnp.sum(jnp.where(shares > 0, shares * (weighted.log_p - weighted.log_flow), 0.0))
    report: dict[str, Any] = {
        "num_draws": task.engine.num_draws,
        "flow_ess": float(effective_sample_size(weighted.log_weights)),
        "k_hat": float(pareto_k(weighted.log_weights)),
        "reverse_gap": float(log_evidence - bound),
        "invalid_draws": int(weighted.num_invalid),
    }
    log_ratio, log_weights = _anneal(task, learner.flow, step_sizes(learner), anneal_key)
    report |= _forward("annealed", log_ratio, log_weights, log_evidence)
    report["annealed_log_evidence"], report["annealed_log_evidence_se"] = map(
        float, evidence_of(log_weights)
    )
    if task.engine.num_check:
        log_ratio, log_weights, value = _temper(task, learner.flow, fresh, check_key)
        report |= _forward("tempered", log_ratio, log_weights, log_evidence)
        report["tempered_log_evidence"] = float(value)
    return Judged(weighted, values, report)


def evidence_of(log_weights: Float[Array, " N"]) -> tuple[Scalar, Scalar]:
    """Log of the mean weight, and its standard error by the delta method, in nats."""
    value = log_mean_exp(log_weights)
    relative = jnp.exp(log_weights - value)
    return value, jnp.std(relative, ddof=1) / jnp.sqrt(log_weights.shape[0])


def _forward(
    name: str, log_ratio: Array, log_weights: Array, log_evidence: Scalar
) -> dict[str, float]:
    """The flow as it looks from draws of the target, which see where it has nothing."""
    shares = jax.nn.softmax(log_weights)
    there = shares > 0
    mean = jnp.sum(jnp.where(there, shares * log_ratio, 0.0))
    far = jnp.where(there & (log_ratio - log_evidence > FAR), shares, 0.0)
    top = jax.nn.logsumexp(jnp.where(there, jnp.log(shares) + log_ratio, -jnp.inf))
    return {
        f"{name}_ess": float(effective_sample_size(log_weights)),
        f"{name}_gap": float(mean - log_evidence),
        f"{name}_forward_ess": float(jnp.exp(log_evidence - top)),
        f"{name}_missed": float(jnp.sum(far)),
    }


@eqx.filter_jit
def _draw(task: Task, flow: Any, key: Key) -> tuple[Weighted, dict[str, PyTree]]:
    target, engine = task.target, task.engine
    start = Defended(flow, target, engine.share_of(target))

    def one(key: Key) -> tuple[Weighted, dict[str, PyTree]]:
        draw_key, noise_key = jax.random.split(key)
        u = start.sample(draw_key)
        log_p = target.renewed(noise_key).log_prob(u)
        bad = jnp.isnan(log_p)
        found = Weighted(
            u, jnp.where(bad, -jnp.inf, log_p), start.log_prob(u), flow.log_prob(u), bad
        )
        return found, target.values(u)

    each = jax.random.split(key, engine.num_draws)
    weighted, values = jax.lax.map(one, each, batch_size=engine.batch_size)
    return weighted._replace(num_invalid=jnp.sum(weighted.num_invalid)), values


@eqx.filter_jit
def _anneal(task: Task, flow: Any, steps: Array, key: Key) -> tuple[Array, Array]:
    drawn = anneal_from(task, flow, steps, key, 1.0, NUM_ANNEALED)
    return drawn.log_densities[:, 1] - drawn.log_densities[:, 0], drawn.log_weights


@eqx.filter_jit
def _temper(task: Task, flow: Any, fresh: Any, key: Key) -> tuple[Array, Array, Scalar]:
    """A tempered run that knows nothing of what was learned; the flow as seen from its draws."""
    target, engine = task.target, task.engine
    if target.has_prior:
        sample, log_start = target.sample_prior, target.log_prior
    else:
        sample, log_start = (lambda key: fresh.sample_and_log_prob(key)[0]), fresh.log_prob

    def log_end(u: Array) -> Scalar:
        value = target.log_prob(u)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    kernel = random_walk() if engine.walks else hamiltonian(2 * engine.num_leapfrog)
    run = temper(
        key,
        sample,
        log_start,
        log_end,
        num_particles=engine.num_check,
        kernel=kernel,
        step_size=0.3,
    )
    defended = Defended(flow, target, engine.share_of(target))
    log_q = jax.vmap(defended.log_prob)(run.particles)
    log_p = jax.vmap(log_end)(run.particles)
    return log_p - log_q, run.log_weights, run.log_evidence


def severe(report: dict[str, Any]) -> tuple[str, ...]:
    """Why nobody should use the draws."""
    said = []
    ess, k_hat = report["flow_ess"], report["k_hat"]
    # weights that are nearly equal have a tail as well, which weighs nothing
    uneven = not ess > EVEN * report["num_draws"]
    if not ess >= TOO_FEW or (k_hat > TOO_HEAVY and uneven):
        said.append(
            f"the weights degenerate: {ess:.1f} effective draws, k-hat {k_hat:.2f}. Means, "
            "intervals and the evidence are not to be trusted; more iterations, a larger flow, or "
            "more temperatures"
        )
    if report.get("tempered_missed", 0.0) > MISSED:
        said.append(
            f"{report['tempered_missed']:.0%} of an independent tempered run lie where the flow "
            "has next to nothing: a mode is missing, whatever the effective number says"
        )
    return tuple(said)


def findings(report: dict[str, Any]) -> tuple[str, ...]:
    """What else a reader should know."""
    said = []
    if report["skipped_updates"] > report["iterations"]:
        said.append(
            f"{report['skipped_updates']} updates were left out because a gradient was not finite "
            "or far too long: a smaller learning rate, or a defence against an improper target"
        )
    if report["flushed_buffers"]:
        said.append(
            f"the buffer was emptied {report['flushed_buffers']} times, since no update could be "
            "taken any more: the target of annealing has no finite integral there; defence=0.1"
        )
    if report["invalid_draws"]:
        said.append(
            f"the target is nan at {report['invalid_draws']} of the last draws, which count with "
            "weight zero"
        )
    return tuple(said)


def posterior_of(
    engine: Any,
    key: Key,
    of: tuple[Any, Any, Any],
    found: tuple[Learner, dict[str, Any], Judged],
    options: RunOptions,
) -> Posterior:
    """Weighted draws, evidence, states, and warnings.

    Args:
        engine: the options.
        key: random key.
        of: what the user gave, the target that was made of it, and the series.
        found: what was learned, how that went, and the draws.
        options: of the run.
    """
    (given, target, data), (learner, report, judged) = of, found
    report = report | judged.report
    report["severe"] = severe(report)
    report["warnings"] = (*report["severe"], *findings(report))
    for text in report["warnings"]:
        warnings.warn(text, LearningWarning, stacklevel=2)
    log_weights = judged.weighted.log_weights
    draws = Draws(jax.tree.map(lambda a: a[None], judged.values), log_weights[None])
    if data is None:
        parts: dict[str, Any] = {"state_log_weights": jnp.zeros(1)}
        model = None
    elif engine.evidence is None:
        parts = joint_parts(target, judged.weighted.u, log_weights)
        model = build_many(given, draws.flat()) if draws.values else target.target
        parts = label(parts, engine, model, data)
    else:
        model, parts = _states(engine, key, (given, data), draws, options)
    value, error = evidence_of(log_weights)
    parts |= {"log_evidence": value, "log_evidence_se": error, "learned": learner.flow}
    parts |= {"params": draws} if draws.values else {}
    parts["diagnostics"] = report
    is_approximate = getattr(engine.evidence, "evidence_kind", "exact") == "approximate"
    kind = "approximate" if is_approximate else "unbiased"
    what = "data" if draws.values else "data given parameters"
    return Posterior(engine, given, data, model, parts, engine.evidence, kind, what)


def _states(
    engine: Any, key: Key, of: tuple[Any, Any], draws: Draws, options: RunOptions
) -> tuple[Any, dict[str, Any]]:
    """States by the evidence's own smoother, at draws that are picked by weight."""
    given, data = of
    shares = jax.nn.softmax(draws.log_weights[0])
    index = pick(keys.purpose(key, "states"), shares, engine.num_state_draws)
    model = build_many(given, jax.tree.map(lambda a: a[index], draws.flat()))
    alike, time_key = jnp.zeros(index.shape[0]), keys.purpose(key, "time")
    parts = run_states(engine.evidence, time_key, model, data, options, alike)
    parts["log_evidence_per_draw"] = parts.pop("log_evidence")
    return model, parts | {"state_index": index}
