"""Stable Diffusion 1 for accelerators that are not here, and what can be read from a compiled program."""

import dataclasses
import importlib.util
import math
import re
from typing import Any

import pytest
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.config import EmbeddingConditioning, Experiment, MeshConfig, load_experiment
from ldm_jax.planning.targets import prepare_environment, topology_devices
from ldm_jax.planning.topology import parse_topology

_COMPILERS = {"tpu": ("libtpu", "tpu"), "gpu": ("jax_cuda12_plugin", "cuda12")}


def mesh_of(topology: str, config: MeshConfig) -> Mesh:
    """A mesh of absent devices; skips where their compiler is not installed."""
    parsed = parse_topology(topology)
    module, extra = _COMPILERS[parsed.chip.platform]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs the compiler of the extra `{extra}`")
    prepare_environment(parsed)
    return sharding.make_mesh(config, topology_devices(parsed))


def sd1(batch_size: int, **changes: Any) -> Experiment:
    """Stable Diffusion 1 in bfloat16, with `changes` to its training; latents and text are encoded before the step."""
    experiment = load_experiment("zoo/sd1")
    changes = {"gradient_accumulation": 1, "batch_size": batch_size, **changes}
    return dataclasses.replace(
        experiment,
        compute_dtype="bfloat16",
        conditioning=EmbeddingConditioning(context_dim=768, context_length=77),
        training=dataclasses.replace(experiment.training, **changes),
        optimizer=dataclasses.replace(experiment.optimizer, max_grad_norm=1.0),
    )


_ARRAY = re.compile(r"\b(f32)\[([\d,]*)\]")
_RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_NOT_WRITTEN = ("parameter", "get-tuple-element", "tuple", "bitcast", "custom-call")


def num_values(shape: str) -> int:
    """Number of values of an array, as `f32[...]`."""
    return max((math.prod(int(n) for n in dims.split(",") if n) for _, dims in _ARRAY.findall(shape)), default=0)


def float32_results(hlo: str) -> list[str]:
    """The float32 arrays that instructions outside of fusions write, as `f32[...]`, but for those of kernels."""
    inside, found = False, []
    for line in hlo.splitlines():
        if line and not line[0].isspace():  # a computation begins or ends
            inside = "fused" in line.split("(")[0] or "region" in line.split("(")[0]
        match = _RESULT.match(line)
        if match and not inside and match[3] not in _NOT_WRITTEN:
            found += [f"f32[{dims}]" for _, dims in _ARRAY.findall(match[2])]
    return found
