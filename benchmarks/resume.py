"""``ssmkit stream`` killed at random points: is the output that of the run nobody disturbed?

``python benchmarks/resume.py`` runs the real program on a file with gaps in time, missing values
and malformed lines, kills it (SIGKILL) again and again, starts it anew each time, and compares the
bytes in the end. Exits with 1 where they differ; writes ``results/resume.md``.
"""

import argparse
import datetime
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timing

HERE = Path(__file__).resolve().parent
ENGINES = ("Kalman()", "SMC(num_particles=500)")
EVERY = ("1", "25", "0.2s")
KILLS_A_CHAIN = 5
AT_START = 0.2  # share of the kills that come at a random time after the start, compiling included
START_SECONDS = 1.5
NUM_ROWS = 2500
MODEL = """\
import ssmkit as sk

model = sk.models.LinearGaussian(
    initial_mean=[0.0, 0.0], initial_cov=[[1.0, 0.0], [0.0, 1.0]],
    transition_matrix=[[0.9, 0.1], [0.0, 0.8]], transition_cov=[[0.1, 0.0], [0.0, 0.2]],
    emission_matrix=[[1.0, 0.0], [0.5, 1.0]], emission_cov=[[0.3, 0.0], [0.0, 0.3]],
)
"""
HEADER = ("engine", "checkpoint every", "kills", "of these while starting", "same bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "resume.md")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "resumed_model.py").write_text(MODEL)
        (folder / "data.csv").write_text(data(arguments.rows, arguments.seed))
        lines, seconds = chains(folder, arguments.kills, rng)
    arguments.results.write_text(report(lines, seconds, arguments))
    print(arguments.results.read_text())
    return 0 if all(line[-1] == "yes" for line in lines) else 1


def data(num_rows: int, seed: int) -> str:
    """Rows with gaps in time, missing values and malformed lines."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.choice([1, 1, 1, 1, 3], num_rows))
    lines = ["t,a,b"]
    for t, (a, b) in zip(times, rng.normal(size=(num_rows, 2)), strict=True):
        cells = [str(t), "" if rng.random() < 0.1 else f"{a:.6f}", f"{b:.6f}"]
        lines.append("what is this?" if rng.random() < 0.01 else ",".join(cells))
    return "\n".join(lines) + "\n"


def chains(folder: Path, kills: int, rng: random.Random) -> tuple[list, dict[str, float]]:
    """Runs that are killed several times each, beside one that is not; by engine."""
    whole, seconds = {}, {}
    for engine in ENGINES:
        for _ in range(2):  # the first one compiles
            begun = time.perf_counter()
            output = folder / f"whole {len(whole)}"
            output.unlink(missing_ok=True)
            start(folder, engine, output, None, "1").wait()
            seconds[engine] = time.perf_counter() - begun
        whole[engine] = output.read_bytes()
    lines = []
    for chain in range(-(-kills // KILLS_A_CHAIN)):
        engine, every = ENGINES[chain % len(ENGINES)], EVERY[chain % len(EVERY)]
        count = min(KILLS_A_CHAIN, kills - chain * KILLS_A_CHAIN)
        output, checkpoint = folder / f"rows {chain}", folder / f"checkpoint {chain}"
        size = len(whole[engine])
        starting = 0
        for target in sorted(rng.uniform(0, 0.95) for _ in range(count)):
            process = start(folder, engine, output, checkpoint, every)
            starting += kill(process, output, int(target * size), rng)
        code = start(folder, engine, output, checkpoint, every).wait()
        same = code == 0 and output.read_bytes() == whole[engine]
        lines.append([engine, every, str(count), str(starting), "yes" if same else "NO"])
        print(lines[-1], flush=True)
    return lines, seconds


def start(folder: Path, engine: str, output: Path, checkpoint: Path | None, every: str):
    """The program on the whole file."""
    command = [sys.executable, "-m", "ssmkit.cli", "stream", "--model", "resumed_model.py:model"]
    command += ["--engine", engine, "--time", "t", "--step", "1", "--on-error", "skip"]
    command += ["--run-length", "1000", "--output", str(output)]
    if checkpoint is not None:
        command += ["--checkpoint", str(checkpoint), "--every", every]
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parent),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with (folder / "data.csv").open("rb") as lines:
        return subprocess.Popen(
            command, cwd=folder, stdin=lines, stderr=subprocess.DEVNULL, env=environment
        )


def kill(process: subprocess.Popen, output: Path, size: int, rng: random.Random) -> bool:
    """SIGKILL once the output is so long, or at some time after the start; says which."""
    at_start = rng.random() < AT_START
    if at_start:
        time.sleep(rng.uniform(0, START_SECONDS))
    else:
        while process.poll() is None and not (output.exists() and output.stat().st_size > size):
            time.sleep(1e-3)
        time.sleep(rng.uniform(0, 0.02))
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"the run ended before it was killed, with {process.returncode}")
    return at_start


def report(lines: list, seconds: dict[str, float], arguments: argparse.Namespace) -> str:
    same = sum(int(line[2]) for line in lines if line[-1] == "yes")
    total = sum(int(line[2]) for line in lines)
    runs = ", ".join(f"{engine} {value:.1f} s" for engine, value in seconds.items())
    today = f"{datetime.date.today()}, Python {platform.python_version()}, {platform.system()}"
    return (
        "# Resume on the command line\n\n"
        f"{today}, CPU. `ssmkit stream --output --checkpoint`, {arguments.rows:,} lines with gaps "
        "in time, missing values and malformed lines, an alarm; killed by SIGKILL at random points "
        f"and started anew. An undisturbed run, start and all, on a machine with other "
        f"work to do: {runs}. Seed {arguments.seed}.\n\n"
        f"**{same} of {total} kills left no trace**: the output equals the undisturbed run's byte "
        "for byte.\n\n" + timing.markdown(list(HEADER), lines) + "\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
