"""Importing Stable Diffusion 1 at its full size: memory and time, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_tensors import foreign_shapes

from ldm_jax.config import load_experiment
from ldm_jax.files.write_safetensors import LazyTensor, write_safetensors
from ldm_jax.interop.original.autoencoder import OriginalAutoencoder, autoencoder_slots
from ldm_jax.interop.original.autoencoder import abstract_params as abstract_autoencoder
from ldm_jax.interop.original.checkpoint import FIRST_STAGE, UNET
from ldm_jax.interop.original.project import OriginalProject
from ldm_jax.interop.original.project_file_export import project_yaml
from ldm_jax.interop.original.text import abstract_text_stage, text_stage_slot
from ldm_jax.interop.original.text_options import text_stage_of
from ldm_jax.interop.original.unet import OriginalUNet, unet_slots
from ldm_jax.interop.original.unet import abstract_params as abstract_unet

IMPORT = """
import json, sys, time
start = time.perf_counter()
from pathlib import Path
from ldm_jax.cli import start_jax
start_jax(1)
from ldm_jax.interop.model_files import open_model
session = open_model(Path(sys.argv[1]))
from ldm_jax.benchmark.service import peak_memory
from ldm_jax.model import num_parameters
peak = peak_memory()
seconds = time.perf_counter() - start
print(json.dumps({"peak": peak, "seconds": seconds, "parameters": num_parameters(session.params)}))
"""


def stable_diffusion() -> OriginalProject:
    experiment = load_experiment("zoo/sd1")
    return OriginalProject(
        unet=OriginalUNet(config=experiment.denoiser, in_channels=4, out_channels=4, context_dim=768),
        autoencoder=OriginalAutoencoder(config=experiment.first_stage.autoencoder),
        conditioning=experiment.conditioning,
        diffusion=experiment.diffusion,
        scale_factor=0.18215,
        image_size=512,
    )


def write_random(project: OriginalProject, folder: Path) -> None:
    """A single file of random float16 numbers, of which a million are drawn."""
    text = text_stage_of(project.conditioning)  # pyright: ignore[reportArgumentType]
    parts = {
        UNET: (unet_slots(project.unet.config), abstract_unet(project.unet)),
        FIRST_STAGE: (autoencoder_slots(), abstract_autoencoder(project.autoencoder)),
        "cond_stage_model.": (text_stage_slot(text.kind), abstract_text_stage(text)),
    }
    numbers = np.random.default_rng(0).normal(size=2**20).astype(np.float16)
    tensors = {
        prefix + name: LazyTensor(
            shape=shape, dtype=np.dtype(np.float16), read=lambda shape=shape: np.resize(numbers, shape)
        )
        for prefix, (slot_of, abstract) in parts.items()
        for name, shape in foreign_shapes(slot_of, abstract).items()
    }
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "project.yaml").write_text(project_yaml(project))


@pytest.mark.slow
def test_stable_diffusion_is_read_within_half_again_its_size_and_a_minute(tmp_path: Path) -> None:
    write_random(stable_diffusion(), tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", IMPORT, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["parameters"] == 859_520_964 + 83_653_863 + 123_060_480 + 2 * 4
    size = 4 * found["parameters"]
    assert found["peak"] <= 1.5 * size, f"{found['peak'] / size:.2f} times the size of the parameters"
    assert found["seconds"] <= 60
