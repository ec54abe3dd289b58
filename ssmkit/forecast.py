"""Forecasts: go on from where a posterior ended."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit import keys
from ssmkit.beliefs import Belief, Categorical, Labels, mix
from ssmkit.errors import DataError, EngineError, NotComputed, OptionError, ShapeError
from ssmkit.posterior import Posterior
from ssmkit.typing import Inputs, Key
from ssmkit.validation import refuse_tracers

if TYPE_CHECKING:
    import pandas as pd


class Forecast(eqx.Module):
    """Beliefs about the steps after the last observation.

    Attributes:
        states: belief about ``x_{T}, …``.
        observations: belief about ``y_{T}, …``.
    """

    states: Belief
    observations: Belief

    def to_frame(self, level: float = 0.9) -> pd.DataFrame:
        """Dated table of the observations: mean, standard deviation and a central interval."""
        if isinstance(self.observations, Categorical):
            return self.observations.to_frame()
        return self.observations.to_frame(level)

    def __repr__(self) -> str:
        """Show the first rows of the table."""
        table = self.observations if not isinstance(self.observations, Categorical) else self.states
        return f"Forecast\n{table.to_frame().head(12).to_string()}"


def forecast(key: Key | int, posterior: Posterior, num_steps: int, us: Inputs = None) -> Forecast:
    """Forecast states and observations after the end of the data.

    Parameter draws are averaged over: a forecast of a NUTS posterior carries their uncertainty.

    Args:
        key: a typed random key, or an integer seed.
        posterior: of one series; take ``posterior[b]`` of a batch.
        num_steps: number of steps ahead.
        us: inputs of the future steps, with leading axis ``num_steps``; needed when the
            posterior was made with inputs.

    Returns:
        A `Forecast`; its tables go on with the dates of the data.

    Raises:
        DataError: future inputs are missing.
        EngineError: the model's parameters end with the data, or a batch was given.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> sk.forecast(1, posterior, num_steps=2).to_frame().round(1)["mean"].tolist()
        [798.4, 798.4]
    """
    refuse_tracers("forecast", key, posterior, us)
    us = _check(posterior, num_steps, us)
    key = keys.purpose(keys.as_key(key), "forecasting")
    weights = posterior.parts["state_log_weights"]
    single = weights.shape[0] == 1
    model = jax.tree.map(lambda a: a[None], posterior.model) if single else posterior.model
    start = posterior.data.ys.shape[0]
    parts = _forecast(
        posterior.state_engine, key, (model, posterior.parts["carry"]), start, num_steps, us
    )
    seen = posterior.data.labels.times
    times = future_times(seen, num_steps)
    if times is not None and seen is not None:
        times = times.rename(seen.name)
    labels = posterior.data.labels.names or posterior.model.observation_names
    return Forecast(
        mix(parts["states"], weights).labelled(Labels(times, posterior.model.state_names)),
        mix(parts["observations"], weights).labelled(Labels(times, labels)),
    )


@eqx.filter_jit
def _forecast(
    engine: Any, key: Key, fitted: tuple[Any, Any], start: Any, num_steps: int, us: Inputs
) -> dict[str, Any]:
    model, carry = fitted
    arrays, static = eqx.partition(model, eqx.is_array)
    count = jax.tree.leaves(carry)[0].shape[0]
    draw_keys = jax.random.split(key, count)

    def one(key: Key, arrays: Any, carry: Any) -> dict[str, Any]:
        return engine.forecast(key, eqx.combine(arrays, static), carry, start, num_steps, us)

    return jax.vmap(one)(draw_keys, arrays, carry)


def _check(posterior: Posterior, num_steps: int, us: Inputs) -> Inputs:
    posterior.require_series("forecast")
    if posterior.state_engine is None:
        raise NotComputed(
            f"{posterior.engine!r} has no filter to go on with.",
            fix="sk.FAB(evidence=...), or infer with a state engine at one of the draws",
        )
    if posterior.is_batch:
        raise EngineError("this posterior is of a batch.", fix="sk.forecast(key, posterior[0], …)")
    if num_steps < 1:
        raise OptionError("num_steps is too small.", got=num_steps, expected="at least 1")
    if posterior.model.num_steps is not None:
        raise EngineError(
            "the model's parameters end with the data.",
            got=f"{type(posterior.model).__name__} with {posterior.model.num_steps} steps",
            expected="a model that goes on after the data",
            fix="apply a model with longer parameter arrays, padding ys with nan",
        )
    if (us is None) != (posterior.data.us is None):
        raise DataError(
            "future inputs are missing." if us is None else "the posterior was made without us.",
            got="us=None" if us is None else "us",
            expected=f"us with leading axis {num_steps}" if us is None else "us=None",
        )
    if us is None:
        return None
    us = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), us)
    before = jax.tree.map(lambda a: (num_steps, *a.shape[1:]), posterior.data.us)
    given = jax.tree.map(lambda a: a.shape, us)
    if before != given:
        raise ShapeError("us does not fit the forecast.", got=given, expected=before)
    if any(bool(jnp.any(a != a)) for a in jax.tree.leaves(us)):
        raise DataError("us holds nan; the future needs finite inputs.", fix="fill the inputs")
    return us


def future_times(times: pd.Index | None, num_steps: int) -> pd.Index | None:
    """Dates after the last one, at the frequency of the data; None when there is none."""
    if times is None:
        return None
    import pandas as pd

    if isinstance(times, pd.PeriodIndex):
        return pd.period_range(times[-1] + 1, periods=num_steps, freq=times.freq)
    if isinstance(times, pd.DatetimeIndex):
        frequency = times.freq or _inferred(times)
        if frequency is None and len(times) > 10 and not (times.day_of_week >= 5).any():
            frequency = "B"  # daily data without week-ends; holidays are not known
        if frequency is None:
            step = pd.Series(times).diff().median()
            return pd.DatetimeIndex([times[-1] + step * (i + 1) for i in range(num_steps)])
        return pd.date_range(times[-1], periods=num_steps + 1, freq=frequency)[1:]
    if pd.api.types.is_numeric_dtype(times) and len(times) > 1:
        step = times[-1] - times[-2]
        return pd.Index([times[-1] + step * (i + 1) for i in range(num_steps)], name=times.name)
    return None


def _inferred(times: pd.DatetimeIndex) -> Any:
    """The frequency of dates that do not say theirs; None where there is none."""
    import pandas as pd

    with warnings.catch_warnings():
        # of pandas 4, which answers with an offset in place of its name: both will do
        warnings.filterwarnings("ignore", "A future version of pandas will return a BaseOffset")
        return pd.infer_freq(times) if len(times) > 2 else None
