"""What every test shares: eight CPU devices, a compilation cache, and nothing else that is global."""

import os
from pathlib import Path

NUM_DEVICES = 8

# Before jax is imported by anyone: it reads these once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={NUM_DEVICES}"

import jax

XLA_CACHE = Path(
    os.environ.get("JAX_COMPILATION_CACHE_DIR")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldm_jax" / "xla"
)
jax.config.update("jax_compilation_cache_dir", str(XLA_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
