"""Volatilities of many currencies: training bounds of all methods, and one evidence held out."""

import sys
from typing import Any, NamedTuple

import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from sections import Section
from sixo_common import SEEDS, How, Learned, Sweeps, evaluate, learn
from targets import Target

import ssmkit as sk
from ssmkit.learned.pieces import Pieces

D, NUM_TRAINING, NUM_HELD_OUT, MANY = 22, 119, 54, 2048
K = How(4, "multinomial", 0.5)
EVALUATIONS = 50  # sweeps of one series, for each seed
ROUNDS, STEPS, TWIST_STEPS, SLOW_STEPS = 20, 200, 25, 25
RATE = 2e-2
HEADER = (
    "method", "K", "bound, training", "sd", "less FIVO's", "held out", "sd", "events",
    "steps", "wall s", "loss",
)  # fmt: skip


def falling(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with clipping, whose step falls along a cosine."""
    schedule = optax.cosine_decay_schedule(rate, steps, 0.01)
    return optax.chain(optax.clip_by_global_norm(100.0), optax.adam(schedule))


def volatilities(scale: Any) -> sk.models.MultivariateStochasticVolatility:
    """The program: persistence, scale and size of each; means are zero, since beta is free."""
    ones = np.ones(len(scale))
    positive, inside = dist.constraints.positive, dist.constraints.interval(-0.999, 0.999)
    return sk.models.MultivariateStochasticVolatility(
        mean=0.0 * ones,
        persistence=numpyro.param("persistence", 0.5 * ones, constraint=inside),
        scale=numpyro.param("scale", 0.3 * ones, constraint=positive),
        beta=numpyro.param("beta", scale, constraint=positive),
    )


def simulated(length: int = NUM_TRAINING + NUM_HELD_OUT, size: int = D) -> np.ndarray:
    """Returns ``(T, D)`` in per cent, at the size of monthly exchange rates."""
    rng = np.random.default_rng(0)
    model = sk.models.MultivariateStochasticVolatility(
        np.zeros(size),
        rng.uniform(0.8, 0.97, size),
        rng.uniform(0.2, 0.5, size),
        np.exp(rng.normal(1.0, 0.4, size)),
    )
    return np.asarray(sk.simulate(5, model, length).observations)


def methods(rounds: int) -> dict[str, sk.SIXO]:
    """Engines with the same proposal and the same steps for the parameters."""
    learning = sk.optimizer(falling, RATE, rounds * STEPS)
    bound = {**K._asdict(), "steps": STEPS, "batch_size": 1, "optimizer": learning}
    ratio = sk.objectives.DensityRatio(steps=TWIST_STEPS, batch_size=16)
    free, twist = sk.learned.PerStepGaussian(), sk.learned.Twist()
    slow = sk.optimizer(falling, RATE, rounds * SLOW_STEPS)
    few = sk.objectives.SIXO(**{**bound, "steps": SLOW_STEPS, "optimizer": slow})

    def engine(twist: Any, objective: Any, proposal: Any = free) -> sk.SIXO:
        parts = {"twist": twist, "objective": objective, "proposal": proposal}
        return sk.SIXO(4, twist_learning=ratio, rounds=rounds, smoother=None, **parts)

    sixo = sk.objectives.SIXO(**bound)
    return {
        "FIVO": engine(None, sk.objectives.FIVO(**bound)),
        "IWAE": engine(None, sk.objectives.IWAE(**{**bound, "threshold": 0.0})),
        "SIXO, quadrature": engine(sk.learned.Quadrature(), sixo),
        "SIXO, learned": engine(twist, sixo),
        "NAS-X": engine(twist, sk.objectives.NASX(**bound)),
        "SIXO, analytic, induced": engine(sk.learned.Analytic(), few, sk.learned.Induced()),
    }


class Result(NamedTuple):
    """One method with one seed."""

    learned: Learned
    training: Sweeps
    held_out: Sweeps


def one(seed: int, name: str, engine: sk.SIXO, ys: np.ndarray, target: Any) -> Result:
    """Learn on the training series; evaluate there, and by a bootstrap filter on the rest."""
    training, rest = ys[:-NUM_HELD_OUT], ys[-NUM_HELD_OUT:]
    learned = learn(seed, engine, target, training[None])
    return Result(learned, *judge(seed, name, learned, (training, rest)))


def judge(seed: int, name: str, learned: Learned, both: tuple[np.ndarray, np.ndarray]) -> tuple:
    """Both evaluations, on keys that all methods share."""
    training, rest = both
    model = sk.models.MultivariateStochasticVolatility(
        mean=np.zeros(training.shape[1]), **learned.params
    )
    how = K._replace(threshold=0.0) if name == "IWAE" else K
    copies = np.broadcast_to(training, (EVALUATIONS, *training.shape))
    bound = evaluate(model, learned.pieces, copies, how, (seed,))
    many = How(MANY, "systematic", 0.5)
    return bound, evaluate(model, Pieces(None, None), rest[None], many, (7, 8, 9))


def compare(name: str, ys: np.ndarray, *, quick: bool) -> tuple[list[list[str]], list[Target]]:
    """All methods on one data set."""
    target = sk.program(volatilities, ys[:-NUM_HELD_OUT].std(axis=0))
    seeds, found = SEEDS[:1] if quick else SEEDS, {}
    for method, engine in methods(1 if quick else ROUNDS).items():
        found[method] = [one(seed, method, engine, ys, target) for seed in seeds]
        print(*cells_of(method, found[method], found["FIVO"]), file=sys.stderr, flush=True)
    plain = []
    for seed, result in zip(seeds, found["IWAE"], strict=True):
        learned = result.learned._replace(pieces=Pieces(None, None), seconds=0.0, steps=0)
        both = ys[:-NUM_HELD_OUT], ys[-NUM_HELD_OUT:]
        plain.append(Result(learned, *judge(seed, "bootstrap", learned, both)))
    found = {"bootstrap": plain, **found}
    lines = [cells_of(method, results, found["FIVO"]) for method, results in found.items()]
    targets = [
        promised(name, method, results, found["FIVO"])
        for method, results in found.items()
        if method.startswith("SIXO")
    ]
    return lines, targets


def cells_of(name: str, results: list[Result], fivo: list[Result]) -> list[str]:
    """A line of the table."""
    training = np.concatenate([r.training.values.ravel() for r in results])
    held_out = np.array([r.held_out.values.mean() for r in results])
    less = training.mean() - np.mean([r.training.values.mean() for r in fivo])
    shown = [f"{training.mean():.1f}", f"{training.std():.1f}", f"{less:+.1f}"]
    shown += [f"{held_out.mean():.1f}", f"{held_out.std():.1f}"]
    shown.append(f"{np.mean([r.training.events for r in results]):.1f}")
    steps, seconds = results[0].learned.steps, np.mean([r.learned.seconds for r in results])
    line = [name, str(K.num_particles), *shown]
    return [*line, f"{steps:,}", f"{seconds:.0f}", results[0].learned.loss]


def promised(data: str, name: str, results: list[Result], fivo: list[Result]) -> Target:
    """SIXO above FIVO in the training bound, with every seed, and resampling at work."""
    pairs = zip(results, fivo, strict=True)
    less = [float((r.training.values - f.training.values).mean()) for r, f in pairs]
    events = min(r.training.events for r in (*results, *fivo))
    told = ", ".join(f"{d:+.1f}" for d in less) + f"; {events:.0f} events or more"
    figure = f"{data} {name}: training bound less FIVO's"
    return Target(figure, "> 0, each seed; ≥ 5 events", told, min(less) > 0 and events >= 5)


def on_simulated(*, quick: bool = False) -> Section:
    """Row C1."""
    told = f"{D} series of {NUM_TRAINING} + {NUM_HELD_OUT} months at the size of exchange rates. "
    return section("C1. Volatilities, simulated", told, simulated(), quick=quick)


def on_currencies(*, quick: bool = False) -> Section:
    """Row C2."""
    ys = sk.data.load("currencies").to_numpy()
    told = f"15 currencies, monthly, {len(ys) - NUM_HELD_OUT} + {NUM_HELD_OUT} months. "
    return section("C2. Volatilities, currencies", told, ys, quick=quick)


def section(title: str, told: str, ys: np.ndarray, *, quick: bool) -> Section:
    """One data set."""
    lines, targets = compare(title.split(".")[0], ys, quick=quick)
    remarks = told + (
        "Persistence, scale and beta of each are "
        f"learned, by {ROUNDS * STEPS:,} steps of Adam at {RATE} falling along a cosine, with the "
        "proposal of free numbers per step times the transition; the analytic twist with the "
        f"proposal that it induces has {ROUNDS * SLOW_STEPS:,} steps, as they are slow. A learned "
        f"twist has {ROUNDS * TWIST_STEPS:,} steps on 16 simulated series. The bound is that of "
        f"each method, K = 4, by {EVALUATIONS} sweeps a seed. Held out is one evidence for all: a "
        f"bootstrap filter with {MANY} particles on the last {NUM_HELD_OUT} months, three sweeps; "
        "its sd is over seeds of learning. The bootstrap row has the parameters of IWAE."
    )
    return Section(title, remarks, HEADER, lines, targets)
