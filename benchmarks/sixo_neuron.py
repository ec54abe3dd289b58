"""A neuron measured once a millisecond: a twist at known parameters, and the current learned."""

import dataclasses
import sys
from typing import Any

import numpy as np
import numpyro
import optax
from sections import Section
from sixo_common import (
    HEADER,
    SEEDS,
    How,
    Learned,
    Sweeps,
    cells,
    evaluate,
    learn,
    untrained,
)
from targets import Target

import ssmkit as sk
from ssmkit.learned.pieces import Pieces

CURRENT, EVERY = 13.0, 50
SIZES, MANY = (4, 16, 64, 256), 1024
NUM_SERIES, SHORT, LONG = 16, 501, 2001
STEPS, ROUNDS, BATCH = 1000, 20, 16
LONG_STEPS = 10_000  # of the one twist that is learned at T = 2,001
BEST = "next two, network, cut"  # of D1's the one with the least loss, and the cheapest
SEES = "sees y"
MANY_SERIES = 64  # whose most probable current lies within a twentieth of the true one


def data(seed: int, count: int, length: int) -> np.ndarray:
    """Series ``(count, length)`` with a measurement at every fiftieth step."""
    model = sk.models.HodgkinHuxley(current=CURRENT)
    ys = np.array(sk.simulate(seed, model, length, num_series=count).observations)
    ys[:, np.arange(length) % EVERY != 0] = np.nan
    return ys


def how(num_particles: int) -> How:
    """The library's own scheme."""
    return How(num_particles, "systematic", 0.5)


def twists() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Learned twists that are tried, and options of their learning."""
    recurrent, near = sk.learned.Recurrent(), sk.learned.Windowed(2)
    return {
        "recurrent, sum": (sk.learned.Twist(recurrent, sk.learned.Sum()), {}),
        "recurrent, network": (sk.learned.Twist(recurrent, sk.learned.Network()), {}),
        "next two, network, cut": (
            sk.learned.Twist(near, sk.learned.Network()),
            {"window": 3 * EVERY + 1},
        ),
    }


def sweep_all(model: Any, pieces: Pieces, ys: np.ndarray, sizes: tuple[int, ...]) -> dict:
    """Evaluations by number of particles."""
    return {n: evaluate(model, pieces, ys, how(n), SEEDS, size=len(ys)) for n in sizes}


def inference(*, quick: bool = False) -> Section:
    """Row D1."""
    names = list(twists())
    return section(f"D1. Neuron, known parameters, T = {SHORT}", SHORT, names, STEPS, quick=quick)


def long_inference(*, quick: bool = False) -> Section:
    """Row D2."""
    title = f"D2. Neuron, known parameters, T = {LONG}"
    return section(title, LONG, [BEST], LONG_STEPS, quick=quick)


def section(title: str, length: int, names: list[str], count: int, *, quick: bool) -> Section:
    """Twists beside a bootstrap filter on series of one length."""
    model = sk.models.HodgkinHuxley(current=CURRENT)
    ys = data(41, 2 if quick else NUM_SERIES, length)
    plain = sweep_all(model, Pieces(None, None), ys, (*SIZES, MANY))
    lines = [cells("bootstrap", how(n), s, None) for n, s in plain.items()]
    laplace = untrained(sk.SIXO(twist=sk.learned.Analytic(), proposal=None), model, ys)
    found = sweep_all(model, laplace, ys, SIZES[1:3])
    lines += [cells("Laplace", how(n), s, None) for n, s in found.items()]
    found = sweep_all(model, Pieces(None, sees_observation(model, ys)), ys, SIZES)
    lines += [cells(f"no twist, {SEES}", how(n), s, None) for n, s in found.items()]
    targets: list[Target] = []
    for name in names[:1] if quick else names:
        twist, options = twists()[name]
        steps = 1 if quick else count // ROUNDS
        ratio = sk.objectives.DensityRatio(batch_size=BATCH, steps=steps, **options)
        parts = {"proposal": None, "twist_learning": ratio, "rounds": ROUNDS}
        learned = learn(1, sk.SIXO(twist=twist, **parts), model, ys)
        both = {
            name: learned.pieces,
            f"{name}; {SEES}": Pieces(learned.pieces.twist, sees_observation(model, ys)),
        }
        for told, pieces in both.items():
            ours = sweep_all(model, pieces, ys, SIZES)
            lines += [cells(told, how(n), s, learned) for n, s in ours.items()]
            print(*lines[-len(SIZES) :], sep="\n", file=sys.stderr, flush=True)
            targets += promised(f"{title[:2]} {told}", ours, plain)
    remarks = (
        f"The true parameters, {NUM_SERIES} series, {len(SEEDS)} seeds, one measurement in {EVERY} "
        f"steps; proposals are the transition, or ({SEES!r}) the normal law around the mode of "
        "transition and emission, which differs from it at the first time above all. Twists have "
        f'{count:,} steps of {BATCH} series each, "cut" of {3 * EVERY + 1} steps. Values are '
        "heavy-tailed: a missed spike costs tens of nats, so that means say little where they are "
        "far from medians."
    )
    return Section(title, remarks, HEADER, lines, targets)


def sees_observation(model: Any, ys: np.ndarray) -> Any:
    """The proposal that the observation asks for, without the twist."""
    proposal = sk.learned.Induced(1, sees_twist=False)
    return untrained(sk.SIXO(twist=sk.learned.Twist(), proposal=proposal), model, ys).proposal


def promised(name: str, ours: dict[int, Sweeps], plain: dict[int, Sweeps]) -> list[Target]:
    """Above the bootstrap filter on the same keys, and worth many particles."""
    found = []
    for n, swept in ours.items():
        less = swept.values - plain[n].values
        told = (
            f"mean {less.mean():+.2f}, median {np.median(less):+.2f}, {(less > 0).mean():.0%} above"
        )
        met = bool(less.mean() > 0)
        found.append(Target(f"{name}: less bootstrap, K = {n}", "> 0", told, met))
    mine, theirs = (float(np.median(s.values)) for s in (ours[64], plain[MANY]))
    told = f"{mine:.2f} against {theirs:.2f}"
    figure = f"{name}: median at K = 64 beside bootstrap's at {MANY:,}"
    return [*found, Target(figure, "not below", told, mine >= theirs)]


def falling(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam on the gradient's direction, whose step falls along a cosine."""
    schedule = optax.cosine_decay_schedule(rate, steps, 0.02)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def neuron(start: Any) -> sk.models.HodgkinHuxley:
    """The program: the current is learned, in units of ten."""
    return sk.models.HodgkinHuxley(current=10.0 * numpyro.param("current", start / 10.0))


def learning(*, quick: bool = False) -> Section:
    """Row E."""
    steps, rounds = (2, 2) if quick else (40, 10)
    ys = data(51, 2 if quick else MANY_SERIES, SHORT)
    rule = sk.optimizer(falling, 0.03, steps * rounds)
    size = min(8, len(ys))
    bound = {"num_particles": 16, "steps": steps, "batch_size": size, "optimizer": rule}
    twist, options = twists()[BEST]
    more = 1 if quick else 100
    ratio = sk.objectives.DensityRatio(batch_size=BATCH, steps=more, **options)
    objectives = sk.objectives
    engines = {
        "FIVO": sk.SIXO(4, twist=None, objective=objectives.FIVO(**bound)),
        "FIVO, score": sk.SIXO(4, twist=None, objective=objectives.FIVO(gradient="score", **bound)),
        "SIXO": sk.SIXO(4, twist=twist, objective=objectives.SIXO(**bound), twist_learning=ratio),
    }
    lines, errors = [], {}
    for off in (-0.2, 0.5):
        target = sk.program(neuron, np.asarray(CURRENT * (1 + off)))
        for name, engine in engines.items():
            engine = dataclasses.replace(engine, rounds=rounds, proposal=None)
            found = [learn(s, engine, target, ys) for s in (SEEDS[:1] if quick else SEEDS)]
            ends = [10.0 * float(f.params["current"]) / CURRENT - 1 for f in found]
            errors[off, name] = ends
            lines.append(line_of(off, name, found, ends))
            print(lines[-1], file=sys.stderr, flush=True)
    targets = [t for off in (-0.2, 0.5) for t in judged(off, errors)]
    remarks = (
        f"T = {SHORT}, {len(ys)} series, K = 16, transition as proposal, {steps * rounds} steps of "
        f"{size} series for the current and {more * rounds:,} for the twist ({BEST!r} of D1). "
        f"Errors are relative to {CURRENT:g} µA/cm²; the most probable current of these series is "
        "within 0.05 of it, by a bootstrap filter with 1,024 particles. With four particles and 16 "
        "series both methods end above the truth, FIVO further."
    )
    header = ("start", "method", "errors at the end", "mean |error|", "steps", "wall s", "loss")
    return Section("E. Neuron, the current learned", remarks, header, lines, targets)


def line_of(off: float, name: str, found: list[Learned], ends: list[float]) -> list[str]:
    """A line of the table."""
    shown = ", ".join(f"{e:+.3f}" for e in ends)
    seconds = np.mean([f.seconds for f in found])
    size = f"{np.mean(np.abs(ends)):.3f}"
    return [
        f"{off:+.0%}",
        name,
        shown,
        size,
        f"{found[0].steps:,}",
        f"{seconds:.0f}",
        found[0].loss,
    ]


def judged(off: float, errors: dict[tuple[float, str], list[float]]) -> list[Target]:
    """Towards the true current, and nearer to it than without a twist."""
    ours, theirs = (errors[off, name] for name in ("SIXO", "FIVO"))
    told = ", ".join(f"{e:+.3f}" for e in ours)
    nearer = max(abs(e) for e in ours) < abs(off)
    mine, other = float(np.mean(np.abs(ours))), float(np.mean(np.abs(theirs)))
    both = f"{mine:.3f} against {other:.3f}"
    return [
        Target(f"E from {off:+.0%}: direction", "towards, each seed", told, nearer),
        Target(f"E from {off:+.0%}: error beside FIVO's", "smaller", both, mine < other),
    ]
