"""What every test shares: eight CPU devices, quick compilation with a cache, and nothing else that is global."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings
from quick_compilation import QUICK

NUM_DEVICES = 8

# Before jax is imported by anyone: it reads these once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={NUM_DEVICES}", QUICK]
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldm_jax" / "xla"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

settings.register_profile("patient", deadline=None)  # the first example compiles, and the machine may be busy
settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """Look for garbage seldom: tracing makes objects by the million, and looking took a tenth of all tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where prepared data sets are kept for the session."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test see the first device alone: programs for one compile in half the time of programs for eight."""
    import jax

    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)
