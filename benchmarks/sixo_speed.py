"""What twists cost: a training step, a sweep, compilation and memory."""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import timing
from sections import Section
from sixo_common import start
from sixo_volatility import simulated, volatilities
from targets import Target

import ssmkit as sk
from ssmkit.engines.alternating import REST, TWIST, Learner, Task, take_steps
from ssmkit.learned.pieces import Pieces
from ssmkit.learned.twists import read_series
from ssmkit.objectives.sweep import sweep

T, D, K, MANY = 120, 22, 4, 64
STEPS = 20  # in one call, so that the call itself does not count
LENGTHS = (250, 500, 1000, 2000, 4000)
STEP, SWEEP = "training step, K = 4", "sweep, K = 64"
HEADER = ("work", "method", "wall ms", "CPU ms", "first call s", "CPU / first row", "remark")


def twist() -> Any:
    """The twist of the measurements."""
    return sk.learned.Twist()


def begun(engine: sk.SIXO, ys: np.ndarray) -> tuple[Task, Learner]:
    """Volatilities to be learned, and a learner at its start."""
    return start(engine, sk.program(volatilities, ys.std(axis=0)), ys[None])


def training_steps(ys: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Steps of the blocks, all with the same proposal."""
    free = sk.learned.PerStepGaussian()
    plain, ours = (
        o(num_particles=K, batch_size=1) for o in (sk.objectives.FIVO, sk.objectives.SIXO)
    )
    engines = {
        "FIVO": (sk.SIXO(twist=None, proposal=free, objective=plain), REST),
        "SIXO": (sk.SIXO(twist=twist(), proposal=free, objective=ours), REST),
        "SIXO, quadrature": (
            sk.SIXO(twist=sk.learned.Quadrature(), proposal=free, objective=ours),
            REST,
        ),
    }
    for size in (16, 64):
        ratio = sk.objectives.DensityRatio(size)
        engine = sk.SIXO(twist=twist(), proposal=free, objective=ours, twist_learning=ratio)
        engines[f"twist, {size} series"] = (engine, TWIST)
    quadratic = sk.learned.Twist(head=sk.learned.Quadratic())
    engines["SIXO, induced, diagonal"] = (sk.SIXO(twist=quadratic, objective=ours), REST)

    def steps(engine: sk.SIXO, block: int) -> Callable[[], Any]:
        task, learner = begun(engine, ys)
        return lambda: take_steps(task, learner, block, jnp.asarray(STEPS))[0].steps

    return {name: steps(*chosen) for name, chosen in engines.items()}


def sweeps(ys: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Sweeps with the transition as proposal, and one pass of the network over as many states."""
    task, learner = begun(sk.SIXO(twist=twist(), proposal=None), ys)
    model, _ = task.model(learner.params)
    series = jax.tree.map(lambda a: a[0], task.series)
    states = jnp.zeros((T, MANY, D))

    @eqx.filter_jit
    def run(pieces: Pieces, model: Any, series: Any) -> Any:
        how = {"num_particles": MANY, "scheme": "systematic", "threshold": 0.5}
        return sweep(jax.random.key(0), model, pieces, series, **how).log_evidence

    @eqx.filter_jit
    def network(twist: Any, model: Any, series: Any) -> Any:
        reading = read_series(twist, model, series)

        def at(t: Any, x: Any) -> Any:
            return jax.vmap(lambda x: reading.log_twist(x, reading.at(t)))(x)

        return jnp.sum(jax.vmap(at)(jnp.arange(T), states))

    return {
        "bootstrap": lambda: run(Pieces(None, None), model, series),
        "twisted": lambda: run(Pieces(learner.twist, None), model, series),
        "network pass": lambda: network(learner.twist, model, series),
    }


def compile_seconds(ys: np.ndarray) -> dict[str, float]:
    """Wall seconds to trace and compile each block, in this process."""
    engine = sk.SIXO(twist=twist(), proposal=sk.learned.PerStepGaussian())
    task, learner = begun(engine, ys)
    found = {}
    for name, block in (("twist block", TWIST), ("bound block", REST)):
        before = time.perf_counter()
        take_steps.lower(task, learner, block, jnp.asarray(1)).compile()
        found[name] = time.perf_counter() - before
    return found


def temporaries(length: int) -> int:
    """Bytes that a gradient of the bound needs beside its arguments and results."""
    ys = simulated(length)
    task, learner = begun(sk.SIXO(twist=twist(), proposal=sk.learned.PerStepGaussian()), ys)
    series = jax.tree.map(lambda a: a[0], task.series)
    arrays, rest = eqx.partition((learner.params, learner.pieces), eqx.is_inexact_array)

    def bound(arrays: Any) -> Any:
        params, pieces = eqx.combine(arrays, rest)
        how = {"num_particles": K, "scheme": "multinomial", "threshold": 0.5}
        return sweep(jax.random.key(0), task.model(params)[0], pieces, series, **how).log_evidence

    compiled = jax.jit(jax.value_and_grad(bound)).lower(arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def timed(work: str, contenders: dict[str, Callable[[], Any]], scale: float) -> list[timing.Row]:
    """Interleaved repetitions; the first is what others are compared with."""
    rows = [timing.Contender(name, run, scale) for name, run in contenders.items()]
    return timing.compare(work, rows, 5)


def section(*, quick: bool = False) -> Section:
    """Row G."""
    ys = simulated(T)
    seconds = compile_seconds(ys)
    rows = timed(STEP, training_steps(ys), 1 / STEPS) + timed(SWEEP, sweeps(ys), 1.0)
    memory = {n: temporaries(n) for n in (LENGTHS[1:3] if quick else LENGTHS)}
    lines = [row.cells() for row in rows]
    lines += [["compile", n, f"{1e3 * s:.0f}", "", "", "", ""] for n, s in seconds.items()]
    for n, size in memory.items():
        remark = f"{size:,} bytes, {size / n:,.0f} a step"
        lines.append(["memory of a gradient", f"T = {n}", "", "", "", "", remark])
    remarks = (
        f"Volatilities, D = {D}, T = {T}; the twist is recurrent with a quadratic and a network as "
        f"head. A training step is one of {STEPS} in a call, with the gradient, of one series."
    )
    targets = [*ratios(rows), *promised(seconds, memory)]
    return Section("G. Speed and memory", remarks, HEADER, lines, targets)


def ratios(rows: list[timing.Row]) -> list[Target]:
    """A twisted step and sweep beside those without a twist."""
    once = timing.find(rows, SWEEP, "network pass").cpu or 0.0
    found = []
    for work, name, plain in ((STEP, "SIXO", "FIVO"), (SWEEP, "twisted", "bootstrap")):
        mine, theirs = (timing.find(rows, work, n).cpu or 0.0 for n in (name, plain))
        share = 1.0 if work == SWEEP else K / MANY
        limit = 2 * theirs + once * share
        told = f"{mine:.2f} ms against {theirs:.2f} ms; one pass {once * share:.2f} ms"
        found.append(Target(f"G {work}, {name}", "≤ 2 × + one pass", told, mine <= limit))
    return found


def promised(seconds: dict[str, float], memory: dict[int, int]) -> list[Target]:
    """Compilation and memory."""
    found = [
        Target(f"G compile, {name}", "< 25 s, quiet machine", f"{s:.1f} s", s < 25)
        for name, s in seconds.items()
    ]
    each = {n: size / n for n, size in memory.items()}
    long = [value for n, value in each.items() if n >= 1000]
    told = ", ".join(f"{value:,.0f}" for value in each.values())
    linear = max(long) < 1.2 * min(long)
    less = max(long) < 0.7 * max(value for n, value in each.items() if n < 1000)
    lengths = ", ".join(str(n) for n in each)
    found.append(Target(f"G bytes a step, T = {lengths}: from 1,000", "constant", told, linear))
    found.append(Target("G bytes a step from T = 1,000", "less: computed anew", told, less))
    return found
