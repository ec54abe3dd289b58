"""Posteriors with several modes: masses by flows, by chains, and as they are."""

import dataclasses
import sys
import time
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
from fab_models import CASES, Case
from sections import Section
from targets import Target

import ssmkit as sk

SEEDS = (0, 1, 2)
ITERATIONS = {"sign": 400, "labels": 600, "alias": 800}


class Answer(NamedTuple):
    """What a method says."""

    masses: np.ndarray
    gap: float
    ess: float
    note: str
    seconds: float


def by_flow(engine: Any, seed: int, case: Case) -> Answer:
    """Weighted draws of a flow."""
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk.errors.LearningWarning)
        found = sk.infer(seed, engine, case.program, case.ys, case.us)
    seconds = time.process_time() - begun
    log_weights = found.params.log_weights[0]
    flat = jax.tree.map(lambda a: np.asarray(a[0]), found.params.values)
    shares = np.asarray(jax.nn.softmax(log_weights))
    masses = np.bincount(case.label(flat), weights=shares, minlength=len(case.masses))
    report = found.diagnostics
    note = "; ".join(text.split(":")[0] for text in report["severe"]) or "no warning"
    gap = float(found.log_evidence) - case.log_evidence
    return Answer(masses, gap, report["flow_ess"] / len(shares), note, seconds)


def by_chains(seed: int, case: Case, *, quick: bool) -> Answer:
    """Four chains, begun at draws from the prior, with a full warm-up."""
    size = 10 if quick else 1000
    engine = sk.NUTS(case.evidence, num_warmup=size, num_samples=size, num_chains=4)
    begun = time.process_time()
    found = sk.infer(seed, engine, case.program, case.ys, case.us)
    seconds = time.process_time() - begun
    flat = {name: np.asarray(a) for name, a in found.params.flat().items()}
    labels = case.label(flat).astype(int)
    masses = np.bincount(labels, minlength=len(case.masses)) / labels.size
    note = f"R-hat {found.diagnostics['max_rhat']:.2f}"
    return Answer(masses, np.nan, np.nan, note, seconds)


def posteriors(*, quick: bool = False) -> Section:
    """Row C."""
    lines, worst = [], {}
    for name, make in CASES.items():
        for seed in SEEDS[:1] if quick else SEEDS:
            case = make(seed + 10)
            count = 2 if quick else ITERATIONS[name]
            engine = sk.FAB(evidence=case.evidence, num_iterations=count)
            plain = sk.FAB.as_published(evidence=case.evidence, num_iterations=count)
            if quick:
                small = {"batch_size": 16, "num_draws": 50, "num_check": 0}
                engine, plain = (dataclasses.replace(e, **small) for e in (engine, plain))
            answers = {
                "FAB": by_flow(engine, seed, case),
                "as published": by_flow(plain, seed, case),
                "NUTS": by_chains(seed, case, quick=quick),
            }
            exact = " ".join(f"{m:.3f}" for m in case.masses)
            lines.append([name, "exact", str(seed), exact, f"{case.log_evidence:.3f}", "", "", ""])
            for method, answer in answers.items():
                masses = " ".join(f"{m:.3f}" for m in answer.masses)
                told = [f"{answer.gap:+.3f}", f"{answer.ess:.3f}", answer.note]
                lines.append([name, method, str(seed), masses, *told, f"{answer.seconds:.0f}"])
                print(*lines[-1], file=sys.stderr, flush=True)
            gap = float(np.max(np.abs(answers["FAB"].masses - case.masses)))
            worst.setdefault(name, []).append((gap, abs(answers["FAB"].gap), answers["FAB"].ess))
    targets = []
    for name, found in worst.items():
        gaps, evidences, shares = np.array(found).T
        targets += [
            Target(f"{name}: masses", "within 0.03", f"{gaps.max():.3f}", bool(gaps.max() <= 0.03)),
            Target(f"{name}: log evidence", "within 0.05", f"{evidences.max():.3f}",
                   bool(evidences.max() <= 0.05)),
            Target(f"{name}: effective share", "≥ 0.5", f"{shares.min():.2f}",
                   bool(shares.min() >= 0.5)),
        ]  # fmt: skip
    remarks = (
        "“sign”: the sign of a loading, 3 parameters, 60 observations; “labels”: three states with "
        "labels that can be exchanged, 4 parameters, 80 observations; “alias”: a frequency that "
        "gaps between bursts leave open, 2 parameters, 24 observations. Data are drawn anew for "
        "each seed, for “alias” until two basins hold more than a twentieth. Exact answers are by "
        "grids, and for labels by symmetry and draws from a Student law. The column of the log "
        "evidence holds the exact value, and below it what each method is off by."
    )
    header = ("target", "by", "seed", "masses", "log evidence", "ESS", "note", "CPU s")
    return Section("C. Posteriors with several modes", remarks, header, lines, targets)
