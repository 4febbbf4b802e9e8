"""What every test shares: eight CPU devices, quick compilation with a cache, and nothing else that is global."""

import os
from pathlib import Path

NUM_DEVICES = 8

# Before jax is imported by anyone: it reads these once. Without LLVM's optimisations the suite compiles in half the time.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={NUM_DEVICES} "
    "--xla_backend_optimization_level=0"
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldm_jax" / "xla"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where prepared data sets are kept for the session."""
    return tmp_path_factory.mktemp("data")
