"""Plans by the real compilers, where they are installed: a small step for a TPU and for a GPU, and ImageNet LDM-4."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

needs_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: pip install 'ldm_jax[tpu]'"
)
needs_gpu = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="no GPU compiler, which is too large (6 GB) for CI: pip install 'ldm_jax[cuda12]'",
)


def plan(experiment: str, topology: str, folder: Path, *flags: str) -> dict[str, Any]:
    """The plan of an experiment, made in a process of its own: a compiler has to be chosen before jax starts."""
    script = "import sys; from ldm_jax.cli import run, COMMANDS; sys.exit(run(COMMANDS['plan'], sys.argv[1:]))"
    arguments = [experiment, "--topology", topology, "--json", *flags]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LDM_JAX_CACHE": str(folder)}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(result: dict[str, Any], kinds: set[str]) -> None:
    memory = result["compiled"]["memory"]
    assert result["fits"]
    state = result["num_parameters"] * 4 * 4  # parameters, average and two moments
    assert memory["aliased"] > state / result["topology"]["chips"]
    assert memory["arguments"] < memory["peak"]
    assert result["compiled"]["bytes_accessed"] > memory["arguments"]
    found = {(each["kind"], tuple(each["axes"])) for each in result["compiled"]["collectives"]}
    assert kinds <= {kind for kind, _ in found}
    assert {axes for _, axes in found} <= {("data",), ("fsdp",), ("data", "fsdp")}
    assert 0 < result["prediction"]["mfu"] < 1


@needs_tpu
def test_a_small_step_for_a_tpu(tmp_path: Path):
    check(plan("smoke", "v5e-8", tmp_path, "--mesh", "data=4,fsdp=2"), {"all-reduce", "all-gather"})


@needs_tpu
def test_too_little_memory_of_a_tpu_is_a_result(tmp_path: Path):
    result = plan("smoke", "v5e-4", tmp_path, "--batch-per-chip", "4194304")
    memory = result["compiled"]["memory"]
    assert not result["fits"] and result["prediction"] is None
    assert memory["needed"] > memory["available"] > 14 * 2**30


@needs_gpu
def test_a_small_step_for_a_gpu(tmp_path: Path):
    check(plan("smoke", "h100-8", tmp_path, "--mesh", "data=4,fsdp=2"), {"all-reduce", "all-gather"})


@needs_tpu
def test_imagenet_for_a_slice(tmp_path: Path):
    flags = ("--batch-per-chip", "4", "--mesh", "data=2,fsdp=8", "--effort", "-1")
    result = plan("imagenet256_ldm4", "v5e-16", tmp_path, *flags)
    assert result["num_parameters"] == pytest.approx(400.9e6, rel=0.01)
    assert result["batch_size"] == 64
    assert result["compiled"]["memory"]["arguments"] < 3 * 2**30  # of 6.9 GiB of state, an eighth of what is split
    assert result["compiled"]["memory"]["aliased"] > 0.7 * 400.9e6 * 16 / 8
    assert any(
        each["axes"] == ["data", "fsdp"] or each["axes"] == ["data"] for each in result["compiled"]["collectives"]
    )
