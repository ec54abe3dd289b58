"""All benchmarks: prints markdown tables and writes them to ``results/``.

``python benchmarks/run.py``; exits with 1 when a peer is not installed or disagrees.
"""

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import kalman
import memory
import nile
import startup
import timing

RESULTS = Path(__file__).resolve().parent / "results"
VERSIONS = ("ssmkit", "jax", "jaxlib", "equinox", "numpyro", "numpy", *kalman.PEERS)
STEPS = 10_000
TOLERANCE = 1e-6


class Target(NamedTuple):
    """A figure that was promised."""

    figure: str
    target: str
    measured: str
    met: bool | None

    def cells(self) -> list[str]:
        verdict = "–" if self.met is None else "met" if self.met else "MISSED"
        return [self.figure, self.target, self.measured, verdict]


def main() -> int:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    begun = datetime.datetime.now()
    sections = [heading(begun)]
    say("do the peers agree?")
    differences = kalman.disagreement(kalman.make_problem(200))
    sections.append(agreement_section(differences))
    rows = time_kalman()
    sections.append("## Kalman, D=4, M=2, T=10,000, float64\n\n" + table_of(rows))
    say("memory")
    found = memory.measure_apart()
    sections.append(memory_section(found))
    say("imports and first inference")
    imports, first = startup.import_seconds(), startup.first_infer_seconds()
    sections.append(startup_section(imports, first))
    say("Nile")
    fits = [nile.ours(), nile.statsmodels()]
    lines = [fit.cells() for fit in fits]
    sections.append(
        "## Nile, local level, maximum likelihood\n\n" + timing.markdown(nile.HEADER, lines)
    )
    targets = [*kalman_targets(rows), *other_targets(found, imports, first, fits)]
    lines = [target.cells() for target in targets]
    header = ["figure", "target", "measured", "verdict"]
    sections.append("## Targets\n\n" + timing.markdown(header, lines))
    return finish(begun, sections, differences)


def finish(begun: datetime.datetime, sections: list[str], differences: dict[str, float]) -> int:
    missing = [name for name, present in kalman.installed().items() if not present]
    if missing:
        sections.append(f"**Not installed: {', '.join(missing)}.** The comparison is not complete.")
    report = "\n\n".join(sections) + "\n"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{begun:%Y-%m-%d}.md"
    path.write_text(report, encoding="utf-8")
    print(report)
    say(f"written to {path}")
    wrong = [name for name, gap in differences.items() if not gap < TOLERANCE]
    return 1 if missing or wrong else 0


def say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def heading(begun: datetime.datetime) -> str:
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
        f"Medians of {timing.REPETITIONS} interleaved repetitions; compilation is in the first "
        "call only. Ratios are of CPU time, which other processes disturb less; below 1.5 call "
        "it a tie."
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


def memory_section(found: list[memory.Memory]) -> str:
    lines = [
        [f"{m.T:,}", f"{m.temporary:,}", f"{m.data:,}", f"{m.grown / 2**20:.1f}"] for m in found
    ]
    header = ["T", "temporaries, bytes", "data, bytes", "peak resident growth, MiB"]
    return "## Memory of the log evidence, no history kept\n\n" + timing.markdown(header, lines)


def startup_section(imports: dict[str, tuple[float, float]], first: tuple[float, float]) -> str:
    lines = [
        [f"import {name}", f"{wall:.2f}", f"{cpu:.2f}"] for name, (wall, cpu) in imports.items()
    ]
    lines.append(["first infer (Kalman, Nile)", f"{first[0]:.2f}", f"{first[1]:.2f}"])
    return "## Beginning, fresh processes\n\n" + timing.markdown(["", "wall s", "CPU s"], lines)


def ratio_target(figure: str, ours: timing.Row, theirs: timing.Row, limit: float | None) -> Target:
    target = "reported" if limit is None else f"≤ {limit:g} ×"
    if theirs.cpu is None or ours.cpu is None:
        return Target(figure, target, "missing", False)
    ratio = ours.cpu / theirs.cpu
    measured = f"{ratio:.2f} × ({ours.cpu:.1f} against {theirs.cpu:.1f} ms)"
    return Target(figure, target, measured, None if limit is None else ratio <= limit)


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
    found: list[memory.Memory],
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
    flat = found[-1].temporary <= 1.01 * found[0].temporary
    temporaries = ", ".join(f"{m.temporary:,}" for m in found)
    return [
        Target("memory, T = 10³, 10⁴, 10⁵", "constant", f"{temporaries} bytes", flat),
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
