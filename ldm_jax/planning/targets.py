"""The compilers of absent accelerators: jax's environment for them, and the devices of a topology.

The environment has to be set before jax is imported. GPUs are described to XLA by the data sheet below; TPUs are known
to libtpu by name.
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ldm_jax.errors import UserError
from ldm_jax.planning.topology import Topology

_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no machine of Google's to ask
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # libtpu takes a lock file otherwise, for a chip that is not there
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # unused, but missed with a warning
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_GPU_ENVIRONMENT = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}


def require_compiler(topology: Topology) -> None:
    """Refuse a topology whose compiler is not installed.

    Raises:
        UserError: naming the extra to install.
    """
    if topology.chip.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"planning for {topology.name} needs the TPU compiler (libtpu), which is not installed: "
                "pip install 'ldm_jax[tpu]'"
            )
    elif not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(
            f"planning for {topology.name} needs the GPU compiler (jax's CUDA plugin), which is not installed: "
            "pip install 'ldm_jax[cuda12]'"
        )


def prepare_environment(topology: Topology) -> None:
    """Set jax up to compile for absent devices; to be called before jax is imported.

    Compiled programs cannot be read back without a device, so jax's own cache of them is off.
    """
    wanted = _TPU_ENVIRONMENT if topology.chip.platform == "tpu" else _GPU_ENVIRONMENT
    os.environ.update({**wanted, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"})
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def topology_devices(topology: Topology) -> list[Any]:
    """The devices of a topology, which can be compiled for and nothing else.

    Raises:
        UserError: the compiler does not know it.
    """
    from jax.experimental import topologies

    if topology.chip.platform == "tpu":
        options: dict[str, Any] = {}
        if topology.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as jax runs there
        if topology.num_chips == 1:
            options["chips_per_host_bounds"] = (1,) * 3
        platform, name = "tpu", f"{topology.chip.name}:{topology.layout}"
    else:
        options = {"target_config": gpu_target(topology.chip.name), "topology": topology.layout}
        platform, name = "cuda", topology.chip.name
    try:
        with _silent():
            return list(topologies.get_topology_desc(name, platform, **options).devices)
    except RuntimeError as error:
        what = str(error).partition("\n")[0]
        raise UserError(f"the compiler refuses the topology {topology.name} ({topology.layout}): {what}") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what native code writes to stderr while it starts up; it is shown if it ends in an exception."""
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            sys.stderr.write(kept.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@dataclass(frozen=True, kw_only=True)
class GpuSheet:
    """What XLA asks of a GPU: figures of NVIDIA's data sheets and of the CUDA programming guide."""

    description: str
    major: int
    cores: int
    """Streaming multiprocessors."""
    shared_memory: int
    """Bytes of shared memory of a multiprocessor."""
    l2_cache: int
    clock_ghz: float
    memory: int
    bandwidth: int


_SHEETS = {
    "a100": GpuSheet(
        description="NVIDIA A100-SXM4-80GB",
        major=8,
        cores=108,
        shared_memory=167936,
        l2_cache=41943040,
        clock_ghz=1.41,
        memory=85095874560,
        bandwidth=2039000000000,
    ),
    "h100": GpuSheet(
        description="NVIDIA H100 80GB HBM3",
        major=9,
        cores=132,
        shared_memory=233472,
        l2_cache=52428800,
        clock_ghz=1.98,
        memory=84929347584,
        bandwidth=3352320000000,
    ),
    "h200": GpuSheet(
        description="NVIDIA H200",
        major=9,
        cores=132,
        shared_memory=233472,
        l2_cache=52428800,
        clock_ghz=1.98,
        memory=150109880320,
        bandwidth=4800000000000,
    ),
}


def gpu_target(name: str) -> str:
    """XLA's description of a GPU, a `GpuTargetConfigProto` as text."""
    sheet = _SHEETS[name]
    return f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {sheet.shared_memory} threads_per_core_limit: 2048 core_count: {sheet.cores}
  fpus_per_core: {128 if sheet.major == 9 else 64} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {sheet.bandwidth} l2_cache_size: {sheet.l2_cache}
  clock_rate_ghz: {sheet.clock_ghz} device_memory_size: {sheet.memory}
  shared_memory_per_block_optin: {sheet.shared_memory - 1024} registers_per_core_limit: 65536
  registers_per_block_limit: 65536 cuda_compute_capability {{ major: {sheet.major} minor: 0 }} }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{sheet.description}"
"""
