"""Memory of the log evidence without history: it should not grow with the length of the series.

``python memory.py T engine`` measures one length in a process of its own, so that the peak of
resident memory is that of this length alone.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LENGTHS = (1_000, 10_000, 100_000)
KALMAN, SMC = "Kalman", "SMC"


class Memory(NamedTuple):
    """Bytes for one length ``T``.

    ``temporary`` is what XLA sets aside for intermediate results, ``data`` the observations,
    ``grown`` how far resident memory rose above its height before the call, at its peak.
    """

    T: int
    temporary: int
    data: int
    grown: int


def measure(T: int, engine: str = KALMAN) -> Memory:
    import resource

    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    from kalman import make_problem

    import ssmkit as sk

    *arrays, ys = make_problem(T)
    model, key = sk.models.LinearGaussian(*arrays), jax.random.key(0)
    ys, state_engine = jnp.asarray(ys), getattr(sk, engine)()

    def value(model, ys):  # an argument, any of which may be missing: the larger of the two
        return sk.log_evidence(key, state_engine, model, ys)

    run = jax.jit(value).lower(model, ys).compile()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jax.block_until_ready(run(model, ys))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    analysis = run.memory_analysis()
    return Memory(T, int(analysis.temp_size_in_bytes), ys.nbytes, 1024 * (after - before))


def measure_apart(engine: str = KALMAN, lengths: tuple[int, ...] = LENGTHS) -> list[Memory]:
    """Measure each length in a fresh process."""
    found = []
    for T in lengths:
        command = [sys.executable, str(Path(__file__).resolve()), str(T), engine]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(Memory(*json.loads(result.stdout.splitlines()[-1])))
    return found


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), *sys.argv[2:])))
