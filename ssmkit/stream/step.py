"""The compiled step of a stream.

A stream has one lane, one for each parameter draw, or one for each series of a bank. Every lane
takes the engine's own step, the one that the offline filters scan. What a step cannot use leaves
no trace: a lane that comes out of it broken takes the step again with nothing observed, inside
the same compiled function and only then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from ssmkit.beliefs import Labels, mix
from ssmkit.linalg import compensated_add
from ssmkit.measures import effective_sample_size
from ssmkit.stream.listen import listen
from ssmkit.stream.mixture import over_time
from ssmkit.stream.packed import Packed, Shared, pack, share
from ssmkit.stream.setup import DRAWS, SERIES, Fixed, Setup, State
from ssmkit.stream.window import smooth
from ssmkit.typing import Array, Bool, Inputs, PyTree, Scalar


class Compiled(NamedTuple):
    """The jitted functions of a stream."""

    step: Callable[..., Any]
    renew: Callable[..., Any]
    many: Callable[..., Any]
    ahead: Callable[..., Any]
    smooth: Callable[..., Any]


@lru_cache(maxsize=256)
def compiled(setup: Setup) -> Compiled:
    """The jitted functions; streams of equal setup share them."""
    return Compiled(
        jax.jit(partial(single, setup)),
        jax.jit(partial(renew, setup)),
        jax.jit(partial(many, setup), static_argnames="keep"),
        jax.jit(partial(ahead, setup), static_argnames="num_steps"),
        jax.jit(partial(smooth, setup)),
    )


def take_step(
    setup: Setup, fixed: Fixed, state: State, y: Array, u: PyTree, mask: Array | None
) -> tuple[State, dict[str, Any]]:
    """One step: the new state, and what it told.

    A running statistic can be updated from what is told, the model and ``y``, in the same jit.

    Returns:
        The state, and ``filtered`` and ``predicted`` beliefs about the state (by parameter draw
        the second), ``log_likelihood`` in nats (−inf where the step was of no use), the
        ``log_evidence`` of all so far, ``diagnostics``.
    """
    carry, told, good = _moved(setup, fixed, state, y, u, mask)
    told = told | {"log_likelihood": jnp.where(good, told["log_likelihood"], -jnp.inf)}

    def read(arrays: tuple[Array, ...], carry: PyTree, u: PyTree) -> dict[str, Any]:
        return setup.engine.read(setup.model(arrays), carry, u)

    seen = setup.over_lanes(read, "mld")(fixed.arrays, carry, u)
    after = State(state.t + 1, carry, None, None, state.skipped)
    if setup.lanes == DRAWS:
        after, told = _reweigh(state, after, told)
        filtered = mix(seen["filtered"], after.log_weights)
    else:
        after = after._replace(skipped=state.skipped + (~good).astype(jnp.int32))
        filtered, told = seen["filtered"], told | {"log_evidence": seen["log_evidence"]}
    after = after._replace(alarm=listen(setup, fixed, state, told, (y, u, mask)))
    return _settled(after), told | {"filtered": filtered.labelled(Labels(None, setup.names))}


def _moved(
    setup: Setup, fixed: Fixed, state: State, y: Array, u: PyTree, mask: Array | None
) -> tuple[PyTree, dict[str, Any], Bool[Array, ...]]:
    """The engine's step in every lane, again with nothing observed where it came out broken."""

    def one(key: Array, arrays: Any, carry: PyTree, y: Array, u: PyTree, mask: Any) -> Any:
        model = setup.model(arrays)
        if carry is None:
            after, told = setup.engine.first(setup.key(key), model, y, u, mask)
        else:
            step = setup.engine.advance
            after, told = step(setup.key(key), model, carry, state.t, y, u, mask)
            after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, carry)
        return _settled(after), _settled(told), _is_good(after, told["log_likelihood"])

    def attempt(mask: Array | None) -> Any:
        run = setup.over_lanes(one, "lmlddd")
        return run(fixed.key, fixed.arrays, state.carry, y, u, mask)

    carry, told, good = attempt(mask)
    predicted = told.pop("predicted")  # the same, whatever was observed

    def repaired() -> tuple[PyTree, dict[str, Any]]:
        lead = good.shape if setup.lanes == SERIES else ()
        shape = y.shape if setup.by_coordinate else lead
        moved, quiet, is_fine = attempt(jnp.zeros(shape, bool))
        del quiet["predicted"]
        if state.carry is not None:
            moved = _select(is_fine, moved, state.carry)
        return _select(good, carry, moved), _select(good, told, quiet)

    carry, told = jax.lax.cond(jnp.all(good), lambda: (carry, told), repaired)
    return carry, told | {"predicted": predicted}, good


def _is_good(carry: PyTree, log_likelihood: Scalar) -> Bool[Array, ""]:
    good = jnp.isfinite(log_likelihood)
    for leaf in jax.tree.leaves(carry):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size:
            good = good & ~jnp.isnan(jnp.max(leaf))  # which is nan where any entry is
    return good


def _select(which: Array, yes: PyTree, no: PyTree) -> PyTree:
    def choose(a: Array, b: Array) -> Array:
        return jnp.where(which.reshape(which.shape + (1,) * (a.ndim - which.ndim)), a, b)

    return jax.tree.map(choose, yes, no)


def _reweigh(before: State, after: State, told: dict[str, Any]) -> tuple[State, dict[str, Any]]:
    """Parameter draws count by how well they predicted; when none could, nothing changes."""
    raw = before.log_weights + told["log_likelihood"]
    total = logsumexp(raw)
    alive = jnp.isfinite(total)
    log_weights = jnp.where(alive, raw - total, before.log_weights)
    evidence = compensated_add(before.evidence, jnp.where(alive, total, 0.0))
    skipped = before.skipped + (~alive).astype(jnp.int32)
    after = after._replace(log_weights=log_weights, evidence=evidence, skipped=skipped)
    effective = {"effective_draws": effective_sample_size(log_weights)}
    diagnostics = told["diagnostics"] | effective
    told = told | {"log_likelihood": total, "log_evidence": evidence[0]}
    return after, told | {"diagnostics": diagnostics}


def _settled(tree: PyTree) -> PyTree:
    """Strong types only: a weak one would compile the next step anew."""
    return jax.tree.map(lambda a: jnp.asarray(a).astype(jnp.result_type(a)), tree)


def step(
    setup: Setup, fixed: Fixed, state: State, y: Array, u: PyTree, mask: Array | None
) -> tuple[State, dict[str, Any], Any]:
    """One step: the new state, its diagnostics, and the belief about the present state."""
    state, told = take_step(setup, fixed, state, y, u, mask)
    last = {name: told[name] for name in ("log_likelihood", "log_evidence")}
    return state, told["diagnostics"] | last, told["filtered"]


def single(
    setup: Setup, fixed: Fixed, state: State, y: Array, u: PyTree, mask: Array | None
) -> tuple[State, Packed, Shared]:
    """`step` with as few results as hold it."""
    state, last, belief = step(setup, fixed, state, y, u, mask)
    return state, pack(last), share(belief, state)


def renew(
    setup: Setup,
    fixed: Fixed,
    renewal: Array,
    state: State,
    new: Bool[Array, " B"],
    y: Array,
    u: PyTree,
    mask: Array | None,
) -> tuple[State, Packed, Shared]:
    """`single` of a bank in which some series are new: they take the first step, others the next.

    The clock goes on for all, so that a slot never draws the same numbers twice; ``renewal`` is
    data of the keys, by lane, of first steps that come later.
    """

    def now(data: Array) -> Array:
        return jax.random.key_data(jax.random.fold_in(setup.key(data), state.t))

    row = (y, u, mask)
    blank = State(state.t, None, None, None, jnp.zeros_like(state.skipped))
    begun = step(setup, fixed._replace(key=jax.vmap(now)(renewal)), blank, *row)
    after = step(setup, fixed, state, *row)
    begun = jax.tree.map(lambda a, b: a.astype(b.dtype), begun, after)
    clock = after[0].t  # which has no axis of series
    found = [part._replace(t=None) if isinstance(part, State) else part for part in begun]
    others = [part._replace(t=None) if isinstance(part, State) else part for part in after]
    rest, last, belief = _select(new, found, others)
    state = rest._replace(t=clock)
    return state, pack(last), share(belief, state)


def many(
    setup: Setup,
    fixed: Fixed,
    state: State,
    ys: Array,
    us: Inputs,
    mask: Array | None,
    *,
    keep: int = 0,
) -> tuple[State, dict[str, Any], Any, tuple[PyTree, ...]]:
    """A scan of `step`; beliefs have the axis of time, behind that of a bank's series.

    Returns:
        The state, diagnostics of the last step, the beliefs, and what the engine carried after
        each of the last ``keep`` steps.
    """
    rows = (ys, us, mask)
    if setup.lanes == SERIES:
        rows = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), rows)
    told, carries = [], []

    def body(state: State, row: tuple, *, keeps: bool) -> tuple[State, tuple]:
        state, *found = step(setup, fixed, state, *row)
        return state, (found, state.carry if keeps else None)

    if state.carry is None:
        state, found = body(state, jax.tree.map(lambda a: a[0], rows), keeps=True)
        head, carry = jax.tree.map(lambda a: a[None], found)
        told, carries = [head], [carry]
        rows = jax.tree.map(lambda a: a[1:], rows)
    # what is kept comes out of a loop of its own, so that no other carry is held
    cut = max(rows[0].shape[0] - keep, 0)
    for part, keeps in ((slice(cut), False), (slice(cut, None), True)):
        piece = jax.tree.map(lambda a, part=part: a[part], rows)
        if piece[0].shape[0] or not told:
            state, (found, carry) = jax.lax.scan(partial(body, keeps=keeps), state, piece)
            told, carries = [*told, found], [*carries, carry]
    told = jax.tree.map(lambda *a: jnp.concatenate(a), *told)
    last, beliefs = jax.tree.map(lambda a: a[-1], told[0]), told[1]
    if setup.lanes == SERIES:
        beliefs = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), beliefs)
    return state, last, over_time(beliefs), _last_carries(carries, keep)


def _last_carries(carries: list[PyTree], keep: int) -> tuple[PyTree, ...]:
    """The last ``keep`` entries of stacks that follow each other; None where nothing was kept."""
    each: list[PyTree] = []
    for stack in carries:
        length = next((a.shape[0] for a in jax.tree.leaves(stack)), 0)
        each += [jax.tree.map(lambda a, i=i: a[i], stack) for i in range(length)]
    return tuple(each[len(each) - keep :])


def ahead(
    setup: Setup, fixed: Fixed, state: State, us: Inputs, *, num_steps: int
) -> dict[str, Any]:
    """Beliefs about the next states and observations."""

    def one(key: Array, arrays: Any, carry: PyTree, us: Inputs) -> dict[str, Any]:
        model, key = setup.model(arrays), setup.key(key)
        return setup.engine.forecast(key, model, carry, state.t, num_steps, us)

    parts = setup.over_lanes(one, "lmld")(fixed.key, fixed.arrays, state.carry, us)
    if setup.lanes == DRAWS:
        parts = {name: mix(belief, state.log_weights) for name, belief in parts.items()}
    return parts
