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


# Files that prove a method, which is the same on every version; what versions may break is in the
# contracts, and in the other files of the same engines.
STUDIES = {
    "test_annealed_importance",
    "test_ensemble_kalman",
    "test_fab",
    "test_fab_joint",
    "test_guided_smc",
    "test_online_amortised",
    "test_online_averaging",
    "test_online_exactness",
    "test_online_network",
    "test_online_recursive",
    "test_online_window",
    "test_recursive_likelihood",
    "test_replay_buffer",
    "test_whitening",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in STUDIES:
            item.add_marker(pytest.mark.study)


@pytest.fixture(scope="module", autouse=True)
def compiled_functions_end_with_their_file():
    """Each holds memory maps, of which Linux grants a process 65,530 and then kills it."""
    yield
    jax.clear_caches()
    gc.collect()
