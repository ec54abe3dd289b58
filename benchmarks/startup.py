"""What it costs to begin: the import, and the first inference, each in fresh processes."""

import os
import resource
import statistics
import subprocess
import sys
import time

IMPORTS = {"jax + numpyro": "import jax, numpyro", "ssmkit": "import ssmkit"}
FIRST = """
import time
import jax
jax.config.update("jax_enable_x64", True)
import ssmkit as sk
nile, model = sk.data.load("nile"), sk.models.LocalLevel(1469.0, 15099.0)
wall, cpu = time.perf_counter(), time.process_time()
posterior = sk.infer(0, sk.Kalman(), model, nile)
jax.block_until_ready(posterior.states.mean())
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def _environment() -> dict[str, str]:
    """Ours, without a cache of compiled code."""
    return {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}


def _fresh(code: str) -> tuple[float, float, str]:
    """Wall and CPU seconds of a new process, and what it printed."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, check=True, env=_environment(), capture_output=True, text=True)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, result.stdout


def import_seconds(repetitions: int = 7) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each import; the bare interpreter is included in both."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    for code in IMPORTS.values():
        _fresh(code)  # files into the cache of the operating system
    for _ in range(repetitions):
        for name, code in IMPORTS.items():
            samples[name].append(_fresh(code)[:2])
    return {
        name: (statistics.median(w for w, _ in s), statistics.median(c for _, c in s))
        for name, s in samples.items()
    }


def first_infer_seconds(repetitions: int = 3) -> tuple[float, float]:
    """Median wall and CPU seconds of the first `infer` on the Nile series, compilation included."""
    runs = [tuple(map(float, _fresh(FIRST)[2].split())) for _ in range(repetitions)]
    return statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)
