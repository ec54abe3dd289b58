"""Settings every test runs under: CPU, float64, no windows, repeatable random examples."""

import gc
import os
from pathlib import Path

# Before the first import of jax, which reads it once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import jax
import pytest

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"

jax.config.update("jax_enable_x64", True)
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

# Compilation makes the first example slow, so a deadline would only report that.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="module", autouse=True)
def compiled_functions_end_with_their_file():
    """Each holds memory maps, of which Linux grants a process 65,530 and then kills it."""
    yield
    jax.clear_caches()
    gc.collect()
