"""Training steps compiled for accelerators that are not here."""

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh

from ldm_jax import rng, sharding
from ldm_jax.config import EmbeddingConditioning, Experiment, MeshConfig, load_experiment
from ldm_jax.model import make_model
from ldm_jax.training.diffusion_step import make_diffusion_loss
from ldm_jax.training.optimizers import make_optimizer
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import Step, make_step

H100 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 } }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3\""""


def tpu_mesh(topology: str, config: MeshConfig) -> Mesh:
    """A mesh of a TPU slice; skips where its compiler is not installed."""
    pytest.importorskip("libtpu", reason="needs the compiler of the extra `tpu`")
    # Read by libtpu when it is loaded: no metadata server is asked, and another process may have it open.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    return sharding.make_mesh(config, topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def h100_mesh(count: int, config: MeshConfig) -> Mesh:
    """A mesh of H100s in one machine; skips where the plugin is not installed."""
    pytest.importorskip("jax_cuda12_plugin", reason="needs the compiler of the extra `cuda12`")
    options = {"topology_name": "h100", "target_config": H100, "topology": f"1x1x{count}"}
    return sharding.make_mesh(config, topologies.get_topology_desc(platform="cuda", **options).devices)


def sd1(**changes: Any) -> Experiment:
    """Stable Diffusion 1 in bfloat16, with `changes` to its training; latents and text are encoded before the step."""
    experiment = load_experiment("zoo/sd1")
    return dataclasses.replace(
        experiment,
        compute_dtype="bfloat16",
        conditioning=EmbeddingConditioning(context_dim=768, context_length=77),
        training=dataclasses.replace(experiment.training, gradient_accumulation=1, **changes),
        optimizer=dataclasses.replace(experiment.optimizer, max_grad_norm=1.0),
    )


@dataclass(frozen=True)
class AbstractStep:
    """A step with the shapes and places of its arguments."""

    step: Step
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    root: jax.ShapeDtypeStruct
    shardings: Any
    mesh: Mesh

    def lower(self) -> jax.stages.Lowered:
        """The step as it is run by the loop: state donated, results placed."""
        out = (self.shardings, sharding.replicated(self.mesh))
        return jax.jit(self.step, donate_argnums=0, out_shardings=out).lower(self.state, self.batch, self.root)


def unet_step(experiment: Experiment, mesh: Mesh, batch_per_device: int) -> AbstractStep:
    """The U-Net's training step for a mesh."""
    model = make_model(experiment, mesh)
    optimizer = make_optimizer(experiment.optimizer, experiment.training.num_steps)

    def init(root: Any) -> TrainState:
        return TrainState.create(model.init_denoiser(root), model.init_latent(), optimizer)

    root = jax.eval_shape(lambda: rng.root_key(0))
    state = jax.eval_shape(init, root)
    shardings = sharding.state_shardings(mesh, state)
    rows, place = batch_per_device * sharding.num_batch_shards(mesh), sharding.batch_sharding(mesh)
    batch = {
        "moments": jax.ShapeDtypeStruct((rows, *model.latent_shape[:-1], 8), jnp.float32, sharding=place),
        "embeddings": jax.ShapeDtypeStruct((rows, 77, 768), jnp.float32, sharding=place),
        "sample_index": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=place),
    }
    return AbstractStep(
        step=make_step(make_diffusion_loss(model, experiment.diffusion), optimizer, experiment.training),
        state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings),
        batch=batch,
        root=jax.ShapeDtypeStruct(root.shape, root.dtype, sharding=sharding.replicated(mesh)),
        shardings=shardings,
        mesh=mesh,
    )


_WIDTHS = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
_ARRAY = re.compile(r"\b(f32|s32|u32|bf16|f16|s8|u8|pred)\[([\d,]*)\]")
_RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")


def num_values(shape: str) -> int:
    """Number of values of the largest array in an HLO type."""
    return max((math.prod(int(n) for n in dims.split(",") if n) for _, dims in _ARRAY.findall(shape)), default=0)


def _padded_bytes(shape: str) -> int:
    """Bytes of the arrays of an HLO type in a TPU's memory, whose last axis is padded to 128."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        sizes = [int(n) for n in dims.split(",") if n]
        total += _WIDTHS[dtype] * math.prod([*sizes[:-1], -(-sizes[-1] // 128) * 128] if sizes else [1])
    return total


def kernel_bytes(hlo: str) -> int:
    """Bytes that Pallas kernels read and write, each array once; the compiler's own count has them as zero."""
    results = {m[1]: m[2] for line in hlo.splitlines() if (m := _RESULT.match(line))}
    total = 0
    for line in hlo.splitlines():
        match = _RESULT.match(line)
        if match and match[3] == "custom-call" and "tpu_custom_call" in line:
            operands = re.findall(r"%([\w.\-]+)", match[4].split("), ")[0])
            total += _padded_bytes(match[2]) + sum(_padded_bytes(results.get(name, "")) for name in operands)
    return total


def float32_results(hlo: str) -> list[str]:
    """The float32 arrays that instructions outside of fusions write, as `f32[...]`, but for those of kernels."""
    inside, found = False, []
    for line in hlo.splitlines():
        if line and not line[0].isspace():  # a computation begins or ends
            inside = "fused" in line.split("(")[0] or "region" in line.split("(")[0]
        match = _RESULT.match(line)
        if (
            match
            and not inside
            and match[3] not in ("parameter", "get-tuple-element", "tuple", "bitcast", "custom-call")
        ):
            found += [f"f32[{dims}]" for dtype, dims in _ARRAY.findall(match[2]) if dtype == "f32"]
    return found
