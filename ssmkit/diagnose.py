"""Diagnosis of a posterior: how well each observation was predicted, and whether weights hold."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit import keys
from ssmkit.beliefs import Categorical, Gaussian, Labels, Particles
from ssmkit.errors import NotComputed
from ssmkit.measures import TestResult, crps, crps_normal, pareto_k, pit, pit_tests
from ssmkit.posterior import Posterior
from ssmkit.predictive import hide, normal_bounds, observation_bounds, observation_draws
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Inputs, Key
from ssmkit.validation import refuse_tracers

if TYPE_CHECKING:
    import pandas as pd

TOO_HEAVY = 0.7  # k-hat beyond which no practical number of particles helps
TOO_FEW = 10  # effective particles
SMALL = 0.01  # p-values that are spoken of
CLOUD = ("ess", "unique_ancestors", "resampled", "k_hat")


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """How each observation was predicted, and how the particles fared; made by `diagnose`.

    Attributes:
        log_score: log predictive density of each observation in nats ``(T,)``; zero where nothing
            was observed.
        pit: probability integral transforms ``(T, M)``, uniform when the model is right; nan where
            nothing was observed.
        crps: ranked probability scores in units of the observations ``(T, M)``.
        ess: effective number of particles after each observation ``(T,)``, or None.
        unique_ancestors: number of different parents ``(T,)``, or None.
        resampled: whether ancestors were drawn before the step ``(T,)``, or None.
        k_hat: Pareto shape of the filtered weights ``(T,)``, or None. Above 0.7 a few particles
            carry what the others miss: means and evidence of that step cannot be trusted, and more
            particles help but slowly.
        labels: dates of the series, and names of the observation's coordinates.
    """

    log_score: np.ndarray
    pit: np.ndarray
    crps: np.ndarray
    ess: np.ndarray | None
    unique_ancestors: np.ndarray | None
    resampled: np.ndarray | None
    k_hat: np.ndarray | None
    labels: Labels

    @cached_property
    def tests(self) -> tuple[TestResult, ...]:
        """Tests that the transforms are independent and uniform; empty below 20 observations."""
        found: list[TestResult] = []
        for m, name in enumerate(self.names):
            suffix = "" if len(self.names) == 1 else f" {name}"
            results = pit_tests(self.pit[:, m])
            found.extend(t._replace(name=t.name + suffix) for t in results)
        return tuple(found)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the observation's coordinates."""
        size = self.pit.shape[1]
        given = self.labels.names
        if given is not None and len(given) == size:
            return tuple(given)
        return ("y",) if size == 1 else tuple(f"y{m}" for m in range(size))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong, in words."""
        said = [
            f"the predictions are not calibrated: {t.name}, p = {t.p_value:.2g}"
            for t in self.tests
            if t.p_value < SMALL
        ]
        return (*self.cloud_warnings, *said)

    @property
    def cloud_warnings(self) -> tuple[str, ...]:
        """What is wrong with the particles, in words."""
        said = []
        if self.k_hat is not None and (heavy := self.k_hat > TOO_HEAVY).any():
            said.append(
                f"k-hat of the weights is above {TOO_HEAVY} at {self._where(heavy)}: the proposal "
                "covers too little; more particles, or another proposal"
            )
        if self.ess is not None and (few := self.ess < TOO_FEW).any():
            said.append(
                f"fewer than {TOO_FEW} effective particles (ESS) at {self._where(few)}: the belief "
                "there rests on a handful of draws; more particles, or another proposal"
            )
        return tuple(said)

    def _where(self, bad: np.ndarray) -> str:
        first = int(np.argmax(bad))
        times = self.labels.times
        date = "" if times is None else f" ({_date(times[first])})"
        return f"{int(bad.sum())} of {bad.size} steps, first at t={first}{date}"

    def to_frame(self) -> pd.DataFrame:
        """Table with one row per time, dated where the data are."""
        import pandas as pd

        columns: dict[str, Any] = {"log score": self.log_score}
        for measure in ("pit", "crps"):
            for m, name in enumerate(self.names):
                label = measure if len(self.names) == 1 else f"{name} {measure}"
                columns[label] = getattr(self, measure)[:, m]
        for name in CLOUD:
            if getattr(self, name) is not None:
                columns[name.replace("_", " ")] = getattr(self, name)
        times = self.labels.times
        index = pd.RangeIndex(len(self.log_score), name="time") if times is None else times
        return pd.DataFrame(columns, index=index)

    def __repr__(self) -> str:
        """Say how well the observations were predicted, and what is wrong."""
        there = np.isfinite(self.pit).any(axis=1)
        score = self.log_score[there].mean() if there.any() else np.nan
        lines = [
            f"Diagnosis of {there.sum()} observations in {there.size} steps",
            f"  mean log score: {score:.4f} nats, mean CRPS: {_mean(self.crps):.4g}",
        ]
        if self.ess is not None:
            lines.append(f"  effective particles: {self.ess.min():.1f} or more")
        if self.k_hat is not None and np.isfinite(self.k_hat).any():
            lines.append(f"  k-hat of the weights: up to {np.nanmax(self.k_hat):.2f}")
        if self.tests:
            lines.append("  tests of the PIT (small p: the model misses something)")
            lines += [f"    {t.name}: {t.statistic:.3f}, p = {t.p_value:.3f}" for t in self.tests]
        lines += ["  warnings", *(f"    {w}" for w in self.warnings)] if self.warnings else []
        return "\n".join(lines)


def _mean(values: np.ndarray) -> float:
    there = np.isfinite(values)
    return float(values[there].mean()) if there.any() else np.nan


def _date(stamp: Any) -> str:
    return str(stamp.date()) if hasattr(stamp, "date") else str(stamp)


def diagnose(posterior: Posterior, key: Key | int = 0) -> Diagnosis:
    r"""Ask how well each observation was predicted from those before it, and by which weights.

    \[u_t = F_t(y_t^-) + U\,(F_t(y_t) - F_t(y_t^-)), \qquad
    F_t(y) = P(Y_t \le y \mid y_{0:t-1}), \quad U \sim \mathrm{Uniform}(0, 1)\]

    is uniform and independent over time when the model is right. For particles and finite states
    \(F_t\) is the mixture of the emission's distribution functions over the predicted belief;
    where numpyro has none, each particle emits one draw. Particles do not know their tails, so none
    of their transforms is nearer to 0 or 1 than half of one over their effective number. Gaussian
    engines use their normal predictions. Coordinates are taken one by one, given the past and not
    each other.

    Args:
        posterior: of one series at one parameter value, with ``keep="all"``.
        key: a typed random key, or an integer seed, for what is random in it (counts, draws).

    Returns:
        A `Diagnosis`.

    Raises:
        NotComputed: a batch, several parameter draws, or beliefs that were not kept.
        RandomKeyError: ``key`` is no key.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.PoissonCounts(mean=1.0, persistence=0.8, scale=0.6)
        >>> ys = sk.simulate(0, model, 60).observations
        >>> diagnosis = sk.diagnose(sk.infer(1, sk.SMC(num_particles=200), model, ys))
        >>> diagnosis.to_frame().shape, len(diagnosis.tests)
        ((60, 7), 5)

    Source: A. P. Dawid (1984), Statistical theory: the prequential approach; C. Czado, T. Gneiting
    and L. Held (2009), Predictive model assessment for count data, for the randomisation;
    A. Vehtari et al. (2024), Pareto smoothed importance sampling, for k-hat.
    """
    refuse_tracers("diagnose", posterior, key)
    key = keys.purpose(keys.as_key(key), "diagnosis")
    _require_one(posterior)
    belief: Any = posterior.predicted
    is_cloud = isinstance(belief, Particles)
    if isinstance(belief, Gaussian):
        belief = posterior.predicted_observations
    filtered: Any = posterior.filtered
    data = posterior.data
    series = (data.ys, data.us, data.mask)
    found = _measure(
        key,
        posterior.model,
        belief.labelled(Labels()),  # dates would compile anew for each series
        series,
        filtered.log_weights if is_cloud else None,
    )
    steps = posterior.diagnostics if is_cloud else {}
    cloud = {name: steps.get(name) for name in CLOUD[:3]} | {"k_hat": found.pop("k_hat")}
    cloud = {name: None if a is None else np.asarray(a) for name, a in cloud.items()}
    labels = Labels(data.labels.times, data.labels.names or posterior.model.observation_names)
    return Diagnosis(
        log_score=np.asarray(posterior.log_likelihood),
        pit=np.asarray(found["pit"]),
        crps=np.asarray(found["crps"]),
        labels=labels,
        **cloud,
    )


def _require_one(posterior: Posterior) -> None:
    if posterior.is_batch:
        raise NotComputed(
            "sk.diagnose is for one series, and this posterior is of a batch.",
            fix="sk.diagnose(posterior[b]) for series b",
        )
    if posterior.num_state_draws > 1:
        raise NotComputed(
            "sk.diagnose is for one parameter value, and this posterior has "
            f"{posterior.num_state_draws} draws of the parameters.",
            fix="sk.diagnose(sk.infer(key, state_engine, model, ys)) with a model at one of them, "
            "or a point fit by sk.GradientFit",
        )


@eqx.filter_jit
def _measure(
    key: Key,
    model: Any,
    belief: Gaussian | Categorical | Particles,
    series: tuple[Array, Inputs, Array | None],
    log_weights: Array | None,
) -> dict[str, Array | None]:
    """All measures of one series: one compilation for a shape."""
    ys, us, mask = series
    steps = Step(jnp.arange(ys.shape[0]), ys, us, mask)

    def one(at: tuple[Any, Step]) -> tuple[Array, Array]:
        if isinstance(belief, Gaussian):
            return _normal(*at)
        return _weighted(jax.random.fold_in(key, at[1].t), model, *at)

    transform, score = jax.lax.map(one, (belief, steps))
    k_hat = None if log_weights is None else jax.lax.map(pareto_k, log_weights)
    return {"pit": transform, "crps": score, "k_hat": k_hat}


def _normal(belief: Gaussian, s: Step) -> tuple[Array, Array]:
    """Of a normal prediction of the observation."""
    y = jnp.ravel(s.y)
    std = jnp.sqrt(jnp.diagonal(belief.covariance))
    below, _ = normal_bounds(belief.location, std, y)
    scored = jnp.isfinite(std) & (std > 0)
    score = crps_normal(belief.location, jnp.where(scored, std, 1.0), y)
    score = jnp.where(std > 0, score, jnp.abs(y - belief.location))
    return hide((below, jnp.where(jnp.isfinite(std), score, jnp.nan)), s)


def _weighted(key: Key, model: Any, belief: Any, s: Step) -> tuple[Array, Array]:
    """Of a prediction by weighted states."""
    uniform_key, bounds_key, draw_key = jax.random.split(key, 3)
    bounds = observation_bounds(bounds_key, model, belief, s)
    uniforms = jax.random.uniform(uniform_key, bounds.below.shape, bounds.below.dtype)
    draws, log_weights = observation_draws(draw_key, model, belief, s)
    log_weights = jnp.broadcast_to(log_weights, draws.shape)
    score = crps(draws, log_weights, jnp.ravel(s.y).astype(draws.dtype))
    return pit(uniforms, bounds), hide(score, s)
