"""All benchmarks: prints markdown tables and writes them to ``results/``.

``python benchmarks/run.py``; exits with 1 when a peer is not installed or disagrees.
"""

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import jax
import kalman
import memory
import nile
import particle_filters
import particle_peers
import particle_scaling
import standard_error
import startup
import timing
from targets import Target, ratio_target

RESULTS = Path(__file__).resolve().parent / "results"
PEERS = tuple(dict.fromkeys((*kalman.PEERS, *particle_peers.PEERS)))
VERSIONS = ("ssmkit", "jax", "jaxlib", "equinox", "numpyro", "numpy", *PEERS)
STEPS = 10_000
TOLERANCE = 1e-6


def main() -> int:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    begun = datetime.datetime.now()
    with timing.one_core() as is_alone:
        sections = [heading(begun, is_alone)]
        say("do the peers agree?")
        differences = kalman.disagreement(kalman.make_problem(200))
        sections.append(agreement_section(differences))
        rows = time_kalman()
        sections.append("## Kalman, D=4, M=2, T=10,000, float64\n\n" + table_of(rows))
        shown, wrong, promised = particle_sections()
    sections += shown
    say("memory")
    found = {engine: memory.measure_apart(engine) for engine in (memory.KALMAN, memory.SMC)}
    sections.append(memory_section(found))
    say("standard errors by lineage")
    study = timing.markdown(standard_error.HEADER, standard_error.rows())
    sections.append("## Standard error of the log evidence, from one run\n\n" + study)
    say("imports and first inference")
    imports, first = startup.import_seconds(), startup.first_infer_seconds()
    sections.append(startup_section(imports, first))
    say("Nile")
    fits = [nile.ours(), nile.statsmodels()]
    lines = [fit.cells() for fit in fits]
    sections.append(
        "## Nile, local level, maximum likelihood\n\n" + timing.markdown(nile.HEADER, lines)
    )
    promised = [*kalman_targets(rows), *promised, *memory_targets(found)]
    promised += other_targets(imports, first, fits)
    header = ["figure", "target", "measured", "verdict"]
    lines = [target.cells() for target in promised]
    sections.append("## Targets\n\n" + timing.markdown(header, lines))
    wrong += [name for name, gap in differences.items() if not gap < TOLERANCE]
    there = kalman.installed() | particle_peers.installed()
    return finish(
        begun, sections, [name for name, is_there in there.items() if not is_there], wrong
    )


def finish(
    begun: datetime.datetime, sections: list[str], missing: list[str], wrong: list[str]
) -> int:
    """Write the report; what is missing or wrong stands at its end, and fails the run."""
    if missing:
        sections.append(f"**Not installed: {', '.join(missing)}.** The comparison is not complete.")
    if wrong:
        sections.append(f"**Wrong values: {', '.join(wrong)}.**")
    report = "\n\n".join(sections) + "\n"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{begun:%Y-%m-%d}.md"
    path.write_text(report, encoding="utf-8")
    print(report)
    say(f"written to {path}")
    return 1 if missing or wrong else 0


def say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def heading(begun: datetime.datetime, is_alone: bool) -> str:
    versions = []
    for name in VERSIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} –")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"# Benchmarks, {begun:%Y-%m-%d %H:%M}\n\n"
        f"CPU, float64. {processor()}, {os.cpu_count()} cores, load {load:.1f} at the start; "
        f"{platform.system()}, Python {platform.python_version()}.\n{', '.join(versions)}.\n\n"
        f"Medians of {particle_filters.FEWEST} to {timing.REPETITIONS} interleaved repetitions"
        f"{', kept to one core' if is_alone else ''}; compilation is in the first call only. "
        "Ratios are of CPU time, which other processes disturb less; below 1.5 call it a tie."
    )


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def agreement_section(differences: dict[str, float]) -> str:
    lines = []
    for name, present in kalman.installed().items():
        gap = differences.get(name, float("nan"))
        verdict = "missing" if not present else "yes" if gap < TOLERANCE else "NO"
        lines.append([name, f"{gap:.1e}" if present else "missing", verdict])
    header = ["library", "largest relative difference", "agrees"]
    return "## Values: log likelihood, smoothed means and covariances, T=200\n\n" + timing.markdown(
        header, lines
    )


def time_kalman() -> list[timing.Row]:
    rows = []
    for work, contenders in kalman.contenders(kalman.make_problem(STEPS)).items():
        say(f"Kalman: {work}")
        rows += timing.compare(work, contenders)
    return rows


def table_of(rows: list[timing.Row]) -> str:
    return timing.markdown(timing.HEADER, [row.cells() for row in rows])


def particle_sections() -> tuple[list[str], list[str], list[Target]]:
    """What is shown, who is wrong, and the targets."""
    say("particles: who agrees?")
    agreed = particle_filters.agreement()
    rows = particle_filters.time_filters(say)
    say("particles: one update")
    updates = particle_filters.time_steps()
    say("particles: growth")
    grown = [growth.cells() for growth in particle_scaling.measure()]
    header = ["of", "library", "gap", "standard error", "agrees"]
    micro = [name.replace("ms", "µs") for name in timing.HEADER]
    shown = [
        "## Particle methods: mean over seeds against the truth\n\n"
        + timing.markdown(header, [a.cells() for a in agreed]),
        "## Particle methods, T=1,000 (T=100 for N=100,000), 100 paths\n\n" + table_of(rows),
        "## One observation at a time, N=1,000\n\n"
        + timing.markdown(micro, [row.cells() for row in updates]),
        "## Growth of the cost of a particle filter\n\n"
        + timing.markdown(particle_scaling.HEADER, grown),
    ]
    wrong = [f"{a.name} ({a.what})" for a in agreed if not (a.agrees or a.is_missing)]
    return shown, wrong, particle_filters.targets(rows, updates)


def memory_section(found: dict[str, list[memory.Memory]]) -> str:
    lines = [
        [engine, f"{m.T:,}", f"{m.temporary:,}", f"{m.data:,}", f"{m.grown / 2**20:.1f}"]
        for engine, lengths in found.items()
        for m in lengths
    ]
    header = ["engine", "T", "temporaries, bytes", "data, bytes", "peak resident growth, MiB"]
    return "## Memory of the log evidence, no history kept\n\n" + timing.markdown(header, lines)


def memory_targets(found: dict[str, list[memory.Memory]]) -> list[Target]:
    targets = []
    for engine, lengths in found.items():
        flat = lengths[-1].temporary <= 1.01 * lengths[0].temporary
        temporaries = ", ".join(f"{m.temporary:,}" for m in lengths)
        figure = f"memory of {engine}, T = 10³, 10⁴, 10⁵"
        targets.append(Target(figure, "constant", f"{temporaries} bytes", flat))
    return targets


def startup_section(imports: dict[str, tuple[float, float]], first: tuple[float, float]) -> str:
    lines = [
        [f"import {name}", f"{wall:.2f}", f"{cpu:.2f}"] for name, (wall, cpu) in imports.items()
    ]
    lines.append(["first infer (Kalman, Nile)", f"{first[0]:.2f}", f"{first[1]:.2f}"])
    return "## Beginning, fresh processes\n\n" + timing.markdown(["", "wall s", "CPU s"], lines)


def kalman_targets(rows: list[timing.Row]) -> list[Target]:
    limits = ((kalman.VALUE, 0.7), (kalman.GRADIENT, 0.5), (kalman.SMOOTHER, 1.0))
    found = []
    for work, limit in limits:
        theirs = timing.find(rows, work, "dynamax")
        found.append(ratio_target(f"{work} / dynamax", timing.find(rows, work), theirs, limit))
        gaps = timing.find(rows, work, kalman.GAPS)
        found.append(ratio_target(f"{work}, gaps allowed / dynamax", gaps, theirs, limit))
    value, gradient = (timing.find(rows, work) for work in (kalman.VALUE, kalman.GRADIENT))
    found.append(ratio_target("gradient / our log likelihood", gradient, value, 4.0))
    lean = timing.find(rows, kalman.VALUE, "statsmodels")
    found.append(ratio_target("log likelihood / statsmodels", value, lean, None))
    return found


def other_targets(
    imports: dict[str, tuple[float, float]],
    first: tuple[float, float],
    fits: list[nile.Fit],
) -> list[Target]:
    ratio = imports["ssmkit"][1] / imports["jax + numpyro"][1]
    mine = fits[0]
    variances = f"{mine.level:.4g} and {mine.noise:.5g}"
    near = [
        f"{a:.3g}" == f"{nile.PUBLISHED[n]:.3g}"
        for n, a in (("level", mine.level), ("noise", mine.noise))
    ]
    gap = abs(mine.log_likelihood - nile.statsmodels_log_likelihood(mine))
    errors = f"{mine.level_error:.0f} and {mine.noise_error:.0f}"
    return [
        Target("import / jax and numpyro", "≤ 1.5 ×", f"{ratio:.2f} × (CPU)", ratio <= 1.5),
        Target("first infer, CPU s", "< 3", f"{first[1]:.2f} (wall {first[0]:.2f})", first[1] < 3),
        Target(
            "Nile variances", "1469 and 15099, 3 digits", f"{variances}, se {errors}", all(near)
        ),
        Target(
            "Nile log likelihood / statsmodels",
            "equal to 1e-8",
            f"differs by {gap:.1e}",
            gap < 1e-8,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
