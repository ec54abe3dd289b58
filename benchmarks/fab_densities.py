"""Densities with many modes: wells, and mixtures in two dimensions."""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fab_reverse import Weighted, draws_of, reverse_flow, uniform_draws, weighted
from sections import Section
from targets import Target

import ssmkit as sk

WELL_LOG_Z = 10.2934797  # of two coordinates, by quadrature
SEEDS, COUNT = (0, 1, 2), 10_000
MEANS = Path(__file__).resolve().parent / "mixture_means.csv"


def many_wells(x: Any) -> Any:
    """Two wells in every other coordinate, a normal law in the rest."""
    first, second = x[::2], x[1::2]
    return jnp.sum(-(first**4) + 6 * first**2 + 0.5 * first - 0.5 * second**2)


def share_of_modes(found: Weighted, labels: Any, count: int) -> np.ndarray:
    """Weight of each mode; ``labels`` say which one a draw is in."""
    shares = np.asarray(jax.nn.softmax(found.log_weights))
    return np.bincount(np.asarray(labels), weights=shares, minlength=count)


def well_labels(x: Any) -> Any:
    """The well of each draw, as a binary number."""
    sides = np.asarray(x)[:, ::2] > 0
    return sides @ (2 ** np.arange(sides.shape[1]))


def wells(*, quick: bool = False) -> Section:
    """Row A."""
    plans = {2: (600, 0.95, 0.005), 6: (1_400, 0.75, 0.02)}
    lines, targets = [], []
    for dim, (iterations, least, most) in plans.items():
        found, counts, evaluations = [], [], 0
        for seed in SEEDS[:1] if quick else SEEDS:
            engine = sk.FAB(num_iterations=2 if quick else iterations)
            begun = time.process_time()
            posterior = sk.infer(seed, engine, sk.Density(many_wells, dim))
            seconds = time.process_time() - begun
            ours = weighted(posterior.params["x"][0], posterior.params.log_weights[0])
            evaluations = posterior.diagnostics["target_evaluations"]
            key = jax.random.key(seed)
            flow = reverse_flow(key, engine.flow, many_wells, dim, 2 if quick else 3_000, 256)
            theirs = draws_of(jax.random.fold_in(key, 1), flow, many_wells, COUNT)
            for name, one in (("FAB", ours), ("reverse", theirs)):
                shares = share_of_modes(one, well_labels(one.x), 2 ** (dim // 2))
                modes = int(np.sum(shares > 0.2 * 0.155693 ** (dim // 2)))
                error = one.log_evidence - dim / 2 * WELL_LOG_Z
                cells = [f"{one.ess:.3f}", f"{error:+.4f}", f"{modes} of {2 ** (dim // 2)}"]
                took = f"{seconds:.0f}" if name == "FAB" else ""
                lines.append([str(dim), name, str(seed), *cells, took])
                print(*lines[-1], file=sys.stderr, flush=True)
                if name == "FAB":
                    found.append((one.ess, abs(error)))
                    counts.append(modes)
        ess, errors = np.array(found).T
        told = " / ".join(f"{e:.3f}" for e in ess)
        targets += [
            Target(f"{dim}-d: effective share", f"≥ {least}", told, bool(ess.min() >= least)),
            Target(f"{dim}-d: mean error of log Z", f"≤ {most}", f"{errors.mean():.4f}",
                   bool(errors.mean() <= most)),
            Target(f"{dim}-d: modes", f"{2 ** (dim // 2)}", str(counts),
                   min(counts) == 2 ** (dim // 2)),
            Target(f"{dim}-d: evaluations", "≤ 5 M", f"{evaluations / 1e6:.1f} M",
                   evaluations <= 5_000_000),
        ]  # fmt: skip
    remarks = (
        "Half of the coordinates have two wells, the lighter with 15.6 % of the mass. The reverse "
        "flow is of the same size, 3,000 steps of 256 draws. A mode counts as found with a fifth "
        "of the lightest mode's mass."
    )
    header = ("d", "flow by", "seed", "ESS", "error of log Z", "modes", "CPU s")
    return Section("A. Many wells", remarks, header, lines, targets)


def mixture(count: int) -> tuple[np.ndarray, float]:
    """Means and standard deviation: nine on a lattice, or forty that were drawn once."""
    if count == 9:
        side = np.array([-5.0, 0.0, 5.0])
        return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), 0.5477222
    return np.loadtxt(MEANS, delimiter=","), 1.0


def mixture_density(x: Any, means: Any, std: Any) -> Any:
    """Equal normal components."""
    square = jnp.sum((x - means) ** 2, axis=1) / std**2
    log_norm = jnp.log(means.shape[0]) + 2 * jnp.log(std) + jnp.log(2 * jnp.pi)
    return jax.nn.logsumexp(-0.5 * square) - log_norm


def mixtures(*, quick: bool = False) -> Section:
    """Row B."""
    plans = {9: (5.0, 900, 10.0), 40: (20.0, 1_500, 45.0)}
    lines, targets = [], []
    for count, (scale, iterations, edge) in plans.items():
        means, std = mixture(count)
        density = sk.Density(mixture_density, 2, jnp.asarray(means), jnp.asarray(std))
        flow = sk.learned.CouplingFlow(num_layers=12, scale=scale)
        found = []
        for seed in SEEDS[:1] if quick else SEEDS:
            key = jax.random.key(seed)
            engine = sk.FAB(flow=flow, num_iterations=2 if quick else iterations)
            posterior = sk.infer(seed, engine, density)
            ours = weighted(posterior.params["x"][0], posterior.params.log_weights[0])
            learned = reverse_flow(key, flow, density, 2, 2 if quick else 3_000, 256)
            draw_key, uniform_key, truth_key = jax.random.split(jax.random.fold_in(key, 1), 3)
            others = {
                "reverse": draws_of(draw_key, learned, density, COUNT),
                "uniform draws": uniform_draws(uniform_key, density, 2, edge, COUNT),
            }
            truth = exact_draws(truth_key, means, std)
            flows = {"FAB": posterior.learned, "reverse": learned}
            scores = {n: float(jnp.mean(jax.vmap(f.log_prob)(truth))) for n, f in flows.items()}
            own = float(jnp.mean(jax.vmap(density)(truth)))
            for name, one in {"FAB": ours, **others}.items():
                nearest = np.argmin(
                    np.sum((np.asarray(one.x)[:, None] - means) ** 2, axis=2), axis=1
                )
                shares = share_of_modes(one, nearest, count)
                modes = int(np.sum(shares > 0.2 / count))
                score = scores.get(name, np.nan)
                lines.append([str(count), name, str(seed), f"{one.ess:.3f}",
                              f"{one.log_evidence:+.4f}", f"{modes} of {count}",
                              f"{score:.3f}", f"{own:.3f}", f"{own - score:.3f}"])  # fmt: skip
                print(*lines[-1], file=sys.stderr, flush=True)
                if name == "FAB":
                    found.append(modes)
        targets.append(
            Target(f"{count} components: modes", str(count), str(found), min(found) == count)
        )
    remarks = (
        "Both add up to one, so that log Z is zero. The last three columns: mean log density of "
        "exact draws under the flow, under the truth, and the forward divergence between them. In "
        "two dimensions uniform draws on a cube do as well: nobody should be impressed."
    )
    header = ("components", "by", "seed", "ESS", "log Z", "modes", "log q", "log p", "divergence")
    return Section("B. Mixtures in two dimensions", remarks, header, lines, targets)


def exact_draws(key: Any, means: np.ndarray, std: float) -> Any:
    """Of a mixture."""
    which_key, noise_key = jax.random.split(key)
    which = jax.random.randint(which_key, (COUNT,), 0, len(means))
    return jnp.asarray(means)[which] + std * jax.random.normal(noise_key, (COUNT, 2))
