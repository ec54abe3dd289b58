"""``ssmkit demo``: fit real series, print a table, write posteriors and plots."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ssmkit as sk
from ssmkit.demo_cases import CASES, QUICK_CASES, Case
from ssmkit.errors import NotComputed
from ssmkit.report import Stopwatch, heartbeat, table

DPI, LABEL_SIZE = 120, 9.5
DRAWS = 200  # joint draws in a netCDF file
Printer = Callable[[str], Any]


class Outcome(NamedTuple):
    """What one case gave: its posterior, seconds (all, and of these compiling), and its files."""

    case: Case
    posterior: Any
    summary: Any
    notes: list[str]
    seconds: float
    compiling: float
    files: tuple[Path, ...]


def run_demo(out: Path, *, quick: bool = False, say: Printer = print) -> list[Outcome]:
    """Run every case, print the table, and say where the files are.

    Args:
        out: folder to write to; made when it does not exist.
        quick: two small fits in place of all.
        say: prints one line.

    Returns:
        One outcome a case.
    """
    begun = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    chosen = QUICK_CASES if quick else CASES
    say(f"ssmkit {sk.__version__}: {len(chosen)} fits; each is compiled first, which takes longest")
    outcomes = []
    for number, case in enumerate(chosen, start=1):
        say(f"\n[{number}/{len(chosen)}] {case.series}: {case.model}")
        outcomes.append(run_case(case, out, say=say))
    report = outcome_table(outcomes)
    say("\n" + report)
    summary = write_summary(out / "summary.txt", report, outcomes)
    count = sum(len(outcome.files) for outcome in outcomes) + 1
    say(f"\n{count} files in {out.resolve()}:")
    for outcome in outcomes:
        say(f"  {outcome.case.name:10} " + ", ".join(path.name for path in outcome.files))
    say(f"  {'report':10} {summary.name}")
    say(f"done in {time.perf_counter() - begun:.0f} seconds")
    return outcomes


def run_case(case: Case, out: Path, *, say: Printer) -> Outcome:
    """Fit one case, write its posterior and its plots."""
    data = case.load()
    missing = int(np.isnan(data.to_numpy()).sum())
    say(f"    {len(data)} time steps, {missing} missing; {case.engine!r}")
    with Stopwatch() as watch, heartbeat(say):
        posterior = sk.infer(0, case.engine, case.program, data, progress=False)
    say(f"    inferred in {watch.seconds:.1f} s, of which {watch.compiling:.1f} s compiling")
    with heartbeat(say):
        files = [write_posterior(posterior, out / f"{case.name}.nc")]
        files += write_plots(case, posterior, out)
    summary = posterior.summary()
    found = notes(posterior, summary)
    for note in found:
        say(f"    note: {note}")
    seconds = (watch.seconds, watch.compiling)
    return Outcome(case, posterior, summary, found, *seconds, tuple(files))


def write_posterior(posterior: Any, path: Path) -> Path:
    """Write the ArviZ export as netCDF."""
    posterior.to_arviz(num_draws=DRAWS).to_netcdf(str(path))
    return path


def write_plots(case: Case, posterior: Any, out: Path) -> list[Path]:
    """Draw states, components, forecast and, where observations were predicted, residuals."""
    figures = {}
    wholes = {"components": sk.plots.components, "volatility": volatility}
    for panel, units in case.panels:
        whole = wholes.get(panel)
        drawn = whole(posterior) if whole else sk.plots.states(posterior, panel)
        axes = np.ravel(np.asarray(drawn))
        for ax in axes:
            ax.set_ylabel(units, fontsize=LABEL_SIZE)
        figures[panel] = axes[0]
    ahead = sk.forecast(1, posterior, case.forecast_steps)
    figures["forecast"] = sk.plots.forecast(ahead, posterior)
    figures["forecast"].set_ylabel(case.units, fontsize=LABEL_SIZE)
    if has_residuals(posterior):
        figures["residuals"] = sk.plots.residuals(posterior)[0, 0]
    return [save(ax, out / f"{case.name}-{name}.png") for name, ax in figures.items()]


def has_residuals(posterior: Any) -> bool:
    """Whether the engine predicted observations; particles at several parameter draws do not."""
    return posterior.parts.get("predicted_observations") is not None


def volatility(posterior: Any) -> Any:
    """Draw exp(x/2) of a log variance, with its band, over the sizes of the returns."""
    from ssmkit.plots import canvas

    belief, data = posterior.states.marginals, posterior.data
    belief = dataclasses.replace(belief, values=np.exp(belief.values / 2))
    x, ax = canvas.positions(data.labels.times, data.ys.shape[0]), canvas.one_axes(None)
    canvas.draw_data(ax, x, np.abs(data.ys), label="size of the return")
    canvas.draw_band(ax, x, belief, 0, 0.9)
    canvas.label_time(ax, x)
    canvas.tidy(ax, title="volatility, smoothed")
    canvas.legend(ax)
    return ax


def save(ax: Any, path: Path) -> Path:
    """Write the figure of some axes and let go of it."""
    import matplotlib.pyplot as plt

    ax.figure.savefig(path, dpi=DPI)
    plt.close(ax.figure)
    return path


def notes(posterior: Any, summary: Any) -> list[str]:
    """What the summary and the residuals warn of, one sentence each."""
    found = list(summary.warnings)
    for test in summary.tests:
        if test.p_value < 0.05:
            found.append(f"residuals: {test.name} is in doubt, p = {test.p_value:.3f}")
    if not has_residuals(posterior):
        return found
    return found + correlation_notes(sk.residuals(posterior)[:, 0])


def correlation_notes(errors: np.ndarray, lags: int = 24) -> list[str]:
    """Name the lag at which residuals are most correlated, if beyond three standard errors."""
    seen = np.isfinite(errors)
    z = np.where(seen, errors - np.nanmean(errors), 0.0)
    limit = 3 / np.sqrt(seen.sum())
    each = [np.sum(z[k:] * z[:-k]) / np.sum(z**2) for k in range(1, min(lags, len(z) - 1) + 1)]
    largest = int(np.argmax(np.abs(each)))
    if abs(each[largest]) <= limit:
        return []
    return [
        f"residuals: correlation {each[largest]:.2f} at lag {largest + 1}, where white noise stays "
        f"within ±{limit:.2f}: the model misses something there"
    ]


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """The table: what was fitted how, what came out, how long it took."""
    header = ("series", "model", "engine", "log evidence, nats", "estimate ± se", "seconds")
    return table(header, [outcome_row(outcome) for outcome in outcomes])


def outcome_row(outcome: Outcome) -> tuple[str, ...]:
    """Cells of one outcome; a cell may have several lines."""
    posterior, case = outcome.posterior, outcome.case
    inner = type(posterior.state_engine).__name__
    seconds = f"{outcome.seconds:.1f}\n({outcome.compiling:.1f} compiling)"
    engine = f"{type(posterior.engine).__name__}\n({inner})"
    model = case.model.replace(", ", ",\n").replace(" + ", "\n+ ")
    return (
        case.series,
        model,
        engine,
        evidence_cell(posterior),
        estimates_cell(outcome.summary.table),
        seconds,
    )


def evidence_cell(posterior: Any) -> str:
    """The log evidence with what it is, and of what."""
    try:
        value = float(posterior.log_evidence)
    except NotComputed:
        return "not estimated\nby this engine"
    return f"{value:.2f}\n{posterior.evidence_kind}, of\n{posterior.evidence_of}"


def estimates_cell(frame: Any) -> str:
    """One line a parameter: estimate and standard error, or mean and deviation of the draws."""
    if frame is None:
        return "all given"
    values = [number(v, 5) for v in frame.iloc[:, 0]]
    errors = [number(v, 3) for v in frame.iloc[:, 1]]
    widths = [max(map(len, column)) for column in (frame.index, values, errors)]
    spread = " (sd)" if "mean" in frame else ""
    lines = [
        f"{name:{widths[0]}}  {value:>{widths[1]}} ± {error:>{widths[2]}}{spread}"
        for name, value, error in zip(frame.index, values, errors, strict=True)
    ]
    return "\n".join(lines)


def number(value: float, digits: int) -> str:
    """A number to so many digits, without an exponent where it can be read without one."""
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    return f"{value:.{max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))}f}"


def write_summary(path: Path, report: str, outcomes: Sequence[Outcome]) -> Path:
    """Write the table, and under it the full summary of each posterior with its notes."""
    parts = [report]
    for outcome in outcomes:
        case = outcome.case
        title = f"{case.name}: {case.model}\n{case.remark}"
        lines = [f"note: {note}" for note in outcome.notes]
        parts.append("\n".join([title, "", repr(outcome.summary), *lines]))
    path.write_text("\n\n\n".join(parts) + "\n", encoding="utf-8")
    return path
