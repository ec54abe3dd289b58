"""Linear Gaussian models, where all is known: exactness, parameters, and a cost that stays."""

import dataclasses
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from sections import Section
from targets import Target

import ssmkit as sk
from ssmkit.engines.online_variational import OnlineVariational
from ssmkit.models.base import as_arrays

SEEDS = (0, 1, 2)


def diagonal(key: int, size: int, emission_scale: float) -> Any:
    """The source's model: independent coordinates, so that its family holds the answer."""
    first, second = np.random.default_rng(key).uniform(0.5, 1.0, size=(2, size))
    eye = np.eye(size)
    noise = emission_scale**2 * eye
    return sk.models.LinearGaussian(
        np.zeros(size), eye, np.diag(first), 0.01 * eye, np.diag(second), noise
    )


def divergences(engine: OnlineVariational, model: Any, ys: np.ndarray) -> np.ndarray:
    """Divergence of ``q_t(x_{t-1}, x_t)`` from the exact law of both, at each ``t`` from one on."""
    exact = sk.infer(0, sk.Kalman(), model, ys)
    found = sk.infer(1, engine, model, ys)
    filters, kernels = (
        jax.tree.map(lambda a: a[0], part)
        for part in (found.states.paths.filters, found.states.paths.kernels)
    )
    size = filters.mean.shape[1]
    values = []
    for t in range(1, len(ys)):
        kernel = jax.tree.map(lambda a, t=t: a[t - 1], kernels)
        here = jax.tree.map(lambda a, t=t: a[t], filters)
        matrix = np.asarray(jax.jacfwd(kernel.mean)(here.mean))
        mine = joined(
            np.asarray(here.mean),
            np.asarray(here.covariance),
            matrix,
            np.asarray(kernel.mean(here.mean)),
            np.asarray(covariance(kernel.factor)),
        )
        before = exact.filtered
        move = np.asarray(model.transition_matrix)
        predicted = move @ np.asarray(before.cov()[t - 1]) @ move.T + 0.01 * np.eye(size)
        gain = np.asarray(before.cov()[t - 1]) @ move.T @ np.linalg.inv(predicted)
        mean = np.asarray(before.mean()[t - 1])
        offset = mean + gain @ (np.asarray(before.mean()[t]) - move @ mean)
        rest = np.asarray(before.cov()[t - 1]) - gain @ predicted @ gain.T
        theirs = joined(
            np.asarray(before.mean()[t]), np.asarray(before.cov()[t]), gain, offset, rest
        )
        values.append(divergence(mine, theirs))
    return np.array(values)


def covariance(factor: Any) -> Any:
    """Covariance of a factor, or of standard deviations."""
    return jnp.diag(factor**2) if factor.ndim == 1 else factor @ factor.T


def joined(
    mean: np.ndarray, cov: np.ndarray, gain: np.ndarray, before: np.ndarray, rest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Joint moments of the state before and the state."""
    cross = gain @ cov
    joint = np.block([[gain @ cross.T + rest, cross], [cross.T, cov]])
    return np.concatenate([before, mean]), joint


def divergence(one: tuple, other: tuple) -> float:
    """Kullback–Leibler divergence of normal laws."""
    (mean, cov), (centre, scatter) = one, other
    inverse = np.linalg.inv(scatter)
    gap = centre - mean
    log_dets = np.linalg.slogdet(scatter)[1] - np.linalg.slogdet(cov)[1]
    return 0.5 * float(np.trace(inverse @ cov) + gap @ inverse @ gap - len(gap) + log_dets)


def exactness(*, quick: bool = False) -> Section:
    """Row A."""
    size, length = 10, 3 if quick else 10
    best = sk.OnlineVariational(filter="diagonal")
    long = 10 if quick else 5_000
    source = sk.OnlineVariational.as_published(num_samples=32, kernel="linear", final_rate=0.0067)
    engines = {
        ("default", 100): dataclasses.replace(best, num_steps=2 if quick else 100),
        ("source's start", 100): dataclasses.replace(source, num_steps=2 if quick else 100),
        ("source's start", long): dataclasses.replace(source, num_steps=long),
    }
    lines, worst = [], {name: [] for name in engines}
    for seed in SEEDS[:1] if quick else SEEDS:
        model = diagonal(seed, size, 0.1)
        ys = np.array(sk.simulate(seed, model, length).observations)
        for (name, steps), engine in engines.items():
            begun = time.perf_counter()
            found = divergences(engine, model, ys)
            worst[name, steps].append(found[1:].max())
            each = [f"{found[0]:.2g}", f"{found[1:].max():.2g}", f"{found[-1]:.2g}"]
            seconds = f"{time.perf_counter() - begun:.0f}"
            lines.append([name, f"{steps:,}", str(seed), *each, seconds])
            print(*lines[-1], file=sys.stderr, flush=True)
    ours, theirs = max(worst["default", 100]), max(worst["source's start", long])
    targets = [
        Target("default: divergence from t = 2 on", "≤ 5e-3", f"{ours:.2g}", ours <= 5e-3),
        Target(
            "default, 100 steps, beside the source's start, 5,000",
            "not above",
            f"{ours:.2g} against {theirs:.2g}",
            ours <= theirs,
        ),
    ]
    remarks = (
        "10 independent coordinates, T = 10, as in the source. Divergence in nats of the law of "
        "two neighbouring states from the exact one; wall times are with compilation."
    )
    header = ("start", "steps", "seed", "t = 1", "worst from t = 2", "last", "wall s")
    return Section("A. Exactness on linear Gaussian models", remarks, header, lines, targets)


def program() -> Any:
    """Diagonals of both matrices, learned."""
    size = len(START["move"])
    eye = jnp.eye(size)
    move = numpyro.param("move", jnp.asarray(START["move"]))
    seen = numpyro.param("seen", jnp.asarray(START["seen"]))
    noise = 0.0625 * eye
    return sk.models.LinearGaussian(
        jnp.zeros(size), eye, jnp.diag(move), 0.01 * eye, jnp.diag(seen), noise
    )


START: dict[str, np.ndarray] = {}
LENGTHS = {2: 3_000, 10: 2_000}  # steps by number of coordinates


def online_errors(seed: int, size: int, length: int) -> dict[str, np.ndarray]:
    """Errors of both diagonals by method, means over the last 100 steps of one stream."""
    model = as_arrays(diagonal(seed, size, 0.25))
    ys = np.array(sk.simulate(seed, model, length).observations)
    matrices = (model.transition_matrix, model.emission_matrix)
    truth = np.stack([np.diag(np.asarray(m)) for m in matrices])
    start = np.random.default_rng(50 + seed).uniform(0.5, 1.0, size=(2, size))
    START.update(move=start[0], seen=start[1])
    ours = sk.OnlineVariational(filter="diagonal", num_steps=100, num_paths=2)
    engines = {
        "exact recursive maximum likelihood": sk.RecursiveLikelihood(sk.Kalman(), ours.ascent),
        "default": ours,
        "one step": dataclasses.replace(ours, value=None, score=None),
    }
    errors = {}
    for name, engine in engines.items():
        found = sk.infer(1, engine, sk.program(program), ys).diagnostics
        path = np.stack([found["online move"], found["online seen"]], axis=1)
        errors[name] = np.abs(path[-100:] - truth).mean(axis=(0, 2))
    return errors


def parameters(*, quick: bool = False) -> Section:
    """Row E."""
    lines, ratios, kinds = [], {}, []
    for size, length in {2: 50}.items() if quick else LENGTHS.items():
        ratios[size] = []
        for seed in SEEDS[:1] if quick else SEEDS:
            errors = online_errors(seed, size, length)
            for name, each in errors.items():
                lines.append([str(size), name, str(seed), *(f"{e:.3f}" for e in each)])
                print(*lines[-1], file=sys.stderr, flush=True)
            exact, mine, short = (float(each.mean()) for each in errors.values())
            ratios[size].append(mine / exact)
            kinds.append("below both" if mine < min(exact, short) else
                         "between" if mine <= max(exact, short) else "above both")  # fmt: skip
    told = {size: " / ".join(f"{r:.2f}" for r in each) for size, each in ratios.items()}
    counts = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
    targets = [
        Target(
            f"default, d = {size}: error beside exact, on average",
            "≤ 1.25 ×",
            told[size],
            bool(np.mean(each) <= 1.25),
        )
        for size, each in ratios.items()
    ]
    targets += [
        Target("default: between exact and one step", "every stream", counts,
               set(kinds) == {"between"}),
        Target("default: above neither", "every stream", counts, "above both" not in kinds),
    ]  # fmt: skip
    remarks = (
        "Diagonals of transition and emission, T = 3,000 (d = 2) and 2,000 (d = 10); errors are "
        "means over the last 100 steps. All three step by the same rule. Errors are those of "
        "estimates that chance moves: one that ends below the exact recursion's is luck, not skill."
    )
    header = ("d", "method", "seed", "error of transition", "error of emission")
    return Section("E. Parameters as data arrive", remarks, header, lines, targets)


def constant_cost(*, quick: bool = False) -> Section:
    """Row F."""
    length, chunk = (400, 50) if quick else (50_000, 1_000)
    START.update(move=np.array([0.6, 0.9]), seen=np.array([0.7, 0.8]))
    model = diagonal(0, 2, 0.25)
    ys = np.array(sk.simulate(0, model, length).observations)
    engine = sk.OnlineVariational(filter="diagonal", num_steps=20, num_paths=50)
    flow = sk.stream(1, engine, sk.program(program))
    sizes, seconds = [], []
    for begin in range(0, length, chunk):
        begun = time.process_time(), time.perf_counter()
        flow.update_many(ys[begin : begin + chunk]).mean().block_until_ready()
        seconds.append((time.process_time() - begun[0], time.perf_counter() - begun[1]))
        sizes.append(sum(a.nbytes for a in jax.tree.leaves(flow._stepper.seen.state)))
    by_step = np.array(seconds) / chunk
    early, late = np.median(by_step[1:6], axis=0), np.median(by_step[-5:], axis=0)
    values = {name: np.asarray(value).round(3).tolist() for name, value in flow.params.items()}
    finite = all(np.isfinite(value).all() for value in flow.params.values())
    targets = [
        Target("CPU time of a late step over an early one", "≤ 1.1",
               f"{late[0] / early[0]:.2f} (wall {late[1] / early[1]:.2f})",
               bool(late[0] <= 1.1 * early[0])),
        Target("bytes of the state", "the same", f"{sizes[1]:,} and {sizes[-1]:,}",
               sizes[1] == sizes[-1]),
        Target("parameters are finite at the end", "yes", "yes" if finite else "no", finite),
    ]  # fmt: skip
    lines = [[name, *(f"{1e3 * s:.2f}" for s in each)]
             for name, each in (("early", early), ("late", late))]  # fmt: skip
    remarks = (
        f"{length:,} observations, parameters learned (at the end {values}), 20 gradient steps at "
        "each observation. Medians of five thousand steps each; wall times are of a machine that "
        "has other work to do."
    )
    header = ("when", "CPU ms a step", "wall ms a step")
    return Section("F. A cost that stays", remarks, header, lines, targets)
