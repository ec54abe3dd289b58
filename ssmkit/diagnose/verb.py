"""The verb: how well each observation was predicted, and whether the weights hold."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit import keys
from ssmkit.beliefs import Categorical, Gaussian, Labels, Particles
from ssmkit.diagnose.record import CLOUD, Diagnosis
from ssmkit.errors import NotComputed
from ssmkit.measures import crps, crps_normal, pareto_k, pit
from ssmkit.posterior import Posterior
from ssmkit.predictive import hide, normal_bounds, observation_bounds, observation_draws
from ssmkit.smc.recipes import Step
from ssmkit.typing import Array, Inputs, Key
from ssmkit.validation import refuse_tracers


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
    if isinstance(belief, Gaussian):
        belief = posterior.predicted_observations
    filtered: Any = posterior.filtered
    is_cloud = isinstance(filtered, Particles)
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
