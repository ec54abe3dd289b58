"""The evidence again, with other keys: its error from runs that are independent."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ssmkit import keys
from ssmkit.engines.states import runner_of
from ssmkit.errors import EngineError, NotComputed, OptionError
from ssmkit.posterior import Posterior
from ssmkit.typing import Array, Inputs, Key
from ssmkit.validation import refuse_tracers

FAR_APART = 1.5  # nats between single runs, beyond which their mean rests on a few of them


@dataclasses.dataclass(frozen=True, eq=False)
class Replicates:
    r"""Evidences of independent runs; made by `replicate_evidence`.

    Attributes:
        log_evidence: \(\log\) of the mean of \(\hat Z\) over the runs, in nats.
        log_evidence_se: its standard error, in nats.
        values: \(\log \hat Z\) of each run ``(R,)``, in nats.
        per_run_std: standard deviation of ``values``: the error of a single run, in nats.
    """

    log_evidence: float
    log_evidence_se: float
    values: np.ndarray
    per_run_std: float

    def __repr__(self) -> str:
        """Say the evidence with its error."""
        text = (
            f"Replicates: log evidence {self.log_evidence:.4f} ± {self.log_evidence_se:.2g} nats "
            f"from {self.values.size} runs, {self.per_run_std:.2g} nats apart"
        )
        if self.per_run_std > FAR_APART:
            text += (
                "\n  too far apart: a few runs make the mean, whose error is larger than it looks"
            )
        return text


def replicate_evidence(
    key: Key | int, posterior: Posterior, num_replicates: int = 20
) -> Replicates:
    r"""Run the evidence of a particle posterior again with new keys, on the same model and data.

    \[\log \hat Z = \log \frac1R \sum_r \hat Z_r, \qquad
    \mathrm{se} = \frac{\mathrm{sd}(\hat Z_r)}{\sqrt R\, \hat Z}\]

    The mean of unbiased evidences is unbiased, and the standard error (by the delta method) does
    not need first ancestors that survive. It is too small when single runs are nats apart: then
    the mean rests on a few of them.

    Args:
        key: a typed random key, or an integer seed.
        posterior: of one series at one parameter value, by an engine with an unbiased evidence.
        num_replicates: number of runs ``R``; they run one after the other, in the memory of one.

    Returns:
        `Replicates`.

    Raises:
        EngineError: the engine's evidence is not random.
        NotComputed: a batch, or several parameter draws.
        OptionError: fewer than two runs.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
        >>> ys = sk.simulate(0, model, 50).observations
        >>> posterior = sk.infer(1, sk.SMC(num_particles=200), model, ys)
        >>> again = sk.replicate_evidence(2, posterior, num_replicates=10)
        >>> again.values.shape, bool(again.log_evidence_se < 1)
        ((10,), True)

    Source: A. Doucet, M. Pitt, G. Deligiannidis and R. Kohn (2015), Efficient implementation of
    Markov chain Monte Carlo when using an unbiased likelihood estimator.
    """
    refuse_tracers("replicate_evidence", key, posterior)
    key = keys.purpose(keys.as_key(key), "replicates")
    _check(posterior, num_replicates)
    data = posterior.data
    series = (data.ys, data.us, data.mask)
    run_keys = jax.random.split(key, num_replicates)
    found = _evidences(runner_of(posterior), run_keys, posterior.model, series)
    values = np.asarray(found, float)
    top = values.max() if np.isfinite(values.max()) else 0.0
    scaled = np.exp(values - top)
    mean = scaled.mean()
    with np.errstate(divide="ignore", invalid="ignore"):  # all runs may have died
        error = scaled.std(ddof=1) / np.sqrt(num_replicates) / mean
        return Replicates(
            float(top + np.log(mean)), float(error), values, float(values.std(ddof=1))
        )


def _check(posterior: Posterior, num_replicates: int) -> None:
    kind = getattr(posterior.state_engine, "evidence_kind", None)
    if kind != "unbiased":
        raise EngineError(
            f"{posterior.state_engine!r} has no random evidence of which a mean is worth taking.",
            got=f"an evidence that is {kind}",
            expected="a posterior whose states are by a particle engine such as sk.SMC()",
            fix="posterior.log_evidence",
        )
    if posterior.is_batch:
        raise NotComputed(
            "sk.replicate_evidence is for one series, and this posterior is of a batch.",
            fix="sk.replicate_evidence(key, posterior[b]) for series b",
        )
    if posterior.num_state_draws > 1:
        raise NotComputed(
            "sk.replicate_evidence is for one parameter value, and this posterior has "
            f"{posterior.num_state_draws} draws of the parameters.",
            fix="sk.infer(key, state_engine, model, ys) with a model at one of them",
        )
    if num_replicates < 2:
        raise OptionError("num_replicates is too small.", got=num_replicates, expected="≥ 2")


@eqx.filter_jit
def _evidences(
    engine: Any, run_keys: Key, model: Any, series: tuple[Array, Inputs, Array | None]
) -> Array:
    return jax.lax.map(lambda key: engine.log_evidence(key, model, *series), run_keys)
