"""Where a stream begins: nowhere yet, or at the last time of a posterior."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmkit import keys
from ssmkit.beliefs import Gaussian
from ssmkit.errors import EngineError, OptionError
from ssmkit.models.base import input_at
from ssmkit.posterior import Posterior
from ssmkit.stream.intake import Spec, spec_of
from ssmkit.stream.listen import new_alarm
from ssmkit.stream.packed import Packed
from ssmkit.stream.setup import DRAWS, ONE, SERIES, Setup, State, partition
from ssmkit.stream.window import Kept, Window
from ssmkit.typing import Array, Key, PyTree

if TYPE_CHECKING:
    import pandas as pd

STEPS = ("check_steps", "first", "advance", "read", "begin", "takes_carry_of", "forecast")


@dataclasses.dataclass(frozen=True)
class Source:
    """What a stream is of, and stays.

    Attributes:
        engine: the state engine.
        model: the model; with a draw axis ``K`` in front of its arrays for several draws.
        key: the key of the whole stream.
        num_series: number of series of a bank, or None.
        num_draws: number of parameter draws, or None for one model.
        evidence_kind: ``exact``, ``unbiased``, ``lower bound`` or ``approximate``.
        evidence_of: of what the log evidence is.
        observation_names: names of the coordinates of an observation, or None.
        run_length: the least mean number of steps to a false alarm; None for no alarm.
        lag: number of steps before the last whose states can be smoothed.
    """

    engine: Any
    model: Any
    key: Key
    num_series: int | None
    num_draws: int | None
    evidence_kind: str
    evidence_of: str
    observation_names: tuple[str, ...] | None
    run_length: float | None = None
    lag: int = 0

    @property
    def lanes(self) -> str:
        """One lane, or one per parameter draw, or one per series."""
        if self.num_draws is not None:
            return DRAWS
        return ONE if self.num_series is None else SERIES

    @property
    def lead(self) -> tuple[int, ...]:
        """Axes in front of one observation."""
        return () if self.num_series is None else (self.num_series,)

    @property
    def one_model(self) -> Any:
        """The model at one parameter value."""
        return self.model if self.num_draws is None else draw_of(self.model, 0)

    def setup(self, spec: Spec) -> Setup:
        """What the steps are compiled for."""
        _, structure, static = partition(self.model)
        impl = str(jax.random.key_impl(self.key))
        names = self.one_model.state_names
        by_coordinate, run_length = spec.by_coordinate, self.run_length
        lanes = self.lanes
        return Setup(self.engine, structure, static, lanes, impl, names, by_coordinate, run_length)

    def lane_keys(self, purpose: str) -> Array:
        """Data of the keys for one purpose, one per lane; those of `infer` and `forecast`."""
        key = keys.purpose(self.key, purpose)
        count = self.num_draws or self.num_series
        if purpose == "forecasting":
            lanes = jax.random.split(key, count or 1)
            return jax.random.key_data(lanes if count else lanes[0])
        return jax.random.key_data(jax.random.split(key, count) if count else key)


@dataclasses.dataclass
class Seen:
    """What a stream has seen so far.

    Attributes:
        state: what goes from step to step.
        time: number of observations.
        spec: what observations look like; None before the first.
        last: log evidence so far, and diagnostics of the last step; see `report`.
        dates: of the last observations that had some, or None.
        undated: number of observations since.
        window: what is kept of the last steps.
    """

    state: State
    time: int = 0
    spec: Spec | None = None
    last: dict[str, Any] | Packed = dataclasses.field(default_factory=dict)
    dates: pd.Index | None = None
    undated: int = 0
    window: Window = dataclasses.field(default_factory=deque)

    @property
    def lag(self) -> int:
        """Number of steps before the last that are kept."""
        return (self.window.maxlen or 1) - 1

    def report(self) -> dict[str, Any]:
        """`last` by name; waits for the step that made it."""
        return self.last.unpack() if isinstance(self.last, Packed) else self.last


def describe(source: Source, seen: Seen) -> str:
    """Engine, model, how much was seen and what it is worth, in a few lines."""
    program = getattr(source.model, "program", None)
    followed = getattr(source.model, "followed", source.model)
    model = type(followed).__name__ if program is None else f"{program!r}, learning"
    if source.num_draws is not None:
        model += f" at {source.num_draws} parameter draws"
    value = np.asarray(seen.report().get("log_evidence", np.zeros(source.lead)))
    shown = f"{float(value):.4f}" if value.ndim == 0 else f"{value.size} values"
    return (
        f"Stream by {source.engine!r}\n"
        f"  model: {model}" + (f", {value.size} series" if value.ndim else "") + "\n"
        f"  seen: {seen.time} steps, {int(np.sum(seen.state.skipped))} skipped\n"
        f"  log evidence: {shown} nats ({source.evidence_kind}, of {source.evidence_of})"
    )


def check_engine(engine: Any) -> None:
    """Refuse what takes no steps.

    Raises:
        EngineError: the class of an engine, an engine of parameters, or no engine.
    """
    if isinstance(engine, type):
        raise EngineError(
            "the engine must be an instance.",
            got=f"the class {engine.__name__}",
            fix=f"sk.{engine.__name__}()",
        )
    if hasattr(engine, "fit") and not hasattr(engine, "advance"):
        raise EngineError(
            "a stream infers states, by parameters that stay.",
            got=repr(engine),
            expected="a state engine such as sk.Kalman()",
            fix="fit first: sk.stream(key, state_engine, sk.infer(key, engine, program, ys))",
        )
    missing = [name for name in STEPS if not hasattr(engine, name)]
    if missing:
        raise EngineError(
            "this engine cannot take one observation at a time.",
            got=f"{engine!r} without {', '.join(missing)}",
            expected="an engine such as sk.Kalman() or sk.SMC()",
        )


def at_nothing(
    key: Key,
    engine: Any,
    model: Any,
    num_series: int | None,
    run_length: float | None,
    lag: int,
) -> tuple[Source, Seen]:
    """A stream that has seen nothing yet."""
    is_count = isinstance(num_series, int) and not isinstance(num_series, bool) and num_series > 0
    if num_series is not None and not is_count:
        raise OptionError("num_series is no number of series.", got=num_series, expected="≥ 1")
    kind, of = engine.evidence_kind, "data given parameters"
    names = model.observation_names
    source = Source(engine, model, key, num_series, None, kind, of, names, run_length, lag)
    skipped = jnp.zeros(source.lead, jnp.int32)
    state = State(jnp.asarray(0), None, None, None, skipped)
    return source, Seen(state, window=deque(maxlen=lag + 1))


def at_posterior(
    key: Key,
    engine: Any,
    posterior: Posterior,
    num_series: int | None,
    run_length: float | None,
    lag: int,
) -> tuple[Source, Seen]:
    """A stream that goes on at the last time of a posterior, with its parameters.

    Raises:
        EngineError: of a batch, or the engine cannot begin where this posterior ends.
    """
    if posterior.is_batch or num_series is not None:
        raise EngineError(
            "a stream goes on from the posterior of one series.",
            got="the posterior of a batch" if posterior.is_batch else f"num_series={num_series}",
            fix="sk.stream(key, engine, posterior[0])" if posterior.is_batch else "num_series=None",
        )
    data, count = posterior.data, posterior.num_state_draws
    num_draws = None if count == 1 else count
    kind, of = _evidence(engine, posterior)
    names = data.labels.names or posterior.model.observation_names
    model = posterior.model
    if hasattr(engine, "model_of") and num_draws is None and "params" in posterior.parts:
        # parameters go on from where they are
        point = jax.tree.map(lambda a: a[0], posterior.params.flat())
        model = engine.model_of(posterior.target, point)
    elif hasattr(engine, "learned_model"):
        model = engine.learned_model(model, posterior.parts.get("learned"))
    source = Source(engine, model, key, None, num_draws, kind, of, names, run_length, lag)
    row, u = np.asarray(data.ys[:1]), jax.tree.map(lambda a: a[:1], data.us)
    spec = spec_of(engine, source.one_model, row, u, 1, begun=True)
    carry = _carry(key, engine, posterior, model)
    log_weights = evidence = None
    if num_draws is None:
        now = engine.read(model, carry, input_at(data.us, -1))["log_evidence"]
    else:
        log_weights = jax.nn.log_softmax(posterior.parts["state_log_weights"])
        total = posterior.parts.get("log_evidence")
        now = jnp.asarray(0.0 if total is None else total, log_weights.dtype)
        evidence = (now, jnp.zeros_like(now))
    time = data.ys.shape[0]
    alarm = None
    if run_length is not None:
        alarm = new_alarm((math.prod(spec.event),), jnp.asarray(now).dtype, time)
    skipped = jnp.zeros((), jnp.int32)
    state = State(jnp.asarray(time), carry, log_weights, evidence, skipped, alarm)
    state = jax.tree.map(lambda a: jnp.asarray(a).astype(a.dtype), state)  # no weak types
    last = jax.tree.map(lambda a: np.asarray(a[-1]), data.us)
    window = deque([Kept(state.carry, last)] if lag else [], lag + 1)
    dates = data.labels.times
    return source, Seen(state, time, spec, {"log_evidence": now}, dates, window=window)


def draw_of(tree: PyTree, index: int) -> PyTree:
    """One parameter draw of a tree with the draws in front."""
    return jax.tree.map(lambda a: a[index] if eqx.is_array(a) else a, tree)


def _evidence(engine: Any, posterior: Posterior) -> tuple[str, str]:
    """What the log evidence of the whole is, and of what."""
    if posterior.num_state_draws > 1:
        has_one = posterior.parts.get("log_evidence") is not None
        return "approximate", "data" if has_one else "data since the posterior"
    kinds = {engine.evidence_kind, posterior.evidence_kind} - {"exact"}
    kind = "exact" if not kinds else kinds.pop() if len(kinds) == 1 else "approximate"
    return str(kind), "data given parameters"


def _carry(key: Key, engine: Any, posterior: Posterior, model: Any) -> PyTree:
    """What the engine carries at the last time: of its own kind, or begun at the last belief."""
    before = posterior.state_engine
    carry = posterior.parts["carry"]
    is_single = posterior.num_state_draws == 1
    # parameters that were held until now have nothing to learn by: the belief goes on alone
    was_held = hasattr(model, "program") and getattr(carry, "learning", model) is None
    if engine.takes_carry_of(before) and not was_held:
        return draw_of(carry, 0) if is_single else carry
    if not hasattr(before, "read"):
        raise EngineError(
            "a stream cannot begin where this posterior ends.",
            got=f"a posterior by {before!r}",
            expected="one by an engine that reads its last belief, such as sk.SMC()",
        )
    last = input_at(posterior.data.us, -1)

    def one(key: Key, model: Any, carry: PyTree) -> tuple[Any, PyTree]:
        now = before.read(model, carry, last)
        return now["filtered"], engine.begin(key, model, now["filtered"], now["log_evidence"], last)

    key = keys.purpose(key, "states")
    if is_single:
        belief, begun = one(key, model, draw_of(carry, 0))
    else:
        draws = jax.random.split(key, posterior.num_state_draws)
        belief, begun = eqx.filter_vmap(one)(draws, posterior.model, carry)
    if isinstance(belief, Gaussian) and not bool(jnp.all(jnp.isfinite(belief.covariance))):
        raise EngineError(
            f"{engine!r} cannot begin at a belief that is still diffuse.",
            got="infinite variances at the last time of the posterior",
            expected="a state that the data have identified",
            fix=f"go on with {before!r} until it is, or a model with a proper start",
        )
    return begun
