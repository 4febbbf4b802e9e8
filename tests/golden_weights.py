"""Golden cases of PyTorch networks: their arrays in our layouts, and their weights read as a user's would be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from foreign_tensors import Tensors
from safetensors.numpy import load_file

from ldm_jax.interop.diffusers.autoencoder import (
    DiffusersAutoencoder,
    read_autoencoder_config,
    read_autoencoder_params,
)
from ldm_jax.interop.diffusers.unet import DiffusersUNet, read_unet_config, read_unet_params

GOLDEN = Path(__file__).parent / "golden"


def golden_arrays(case: str) -> dict[str, np.ndarray]:
    """Inputs and outputs of a case, pictures and latents as NHWC."""
    with np.load(GOLDEN / case / "io.npz") as arrays:
        return {name: np.moveaxis(a, 1, -1) if a.ndim == 4 else a for name, a in arrays.items()}


def golden_options(case: str) -> dict[str, Any]:
    """The config.json of a case."""
    return json.loads((GOLDEN / case / "config.json").read_text())


def golden_tensors(case: str) -> dict[str, np.ndarray]:
    """The weights of a case, with their own names and layouts."""
    return load_file(GOLDEN / case / "diffusion_pytorch_model.safetensors")


def golden_unet(case: str) -> tuple[DiffusersUNet, dict]:
    """A U-Net and its parameters."""
    unet = read_unet_config(golden_options(case), case)
    return unet, read_unet_params(Tensors(golden_tensors(case)), unet, case)


def golden_autoencoder(case: str) -> tuple[DiffusersAutoencoder, dict]:
    """An autoencoder and its parameters."""
    autoencoder = read_autoencoder_config(golden_options(case), case)
    return autoencoder, read_autoencoder_params(Tensors(golden_tensors(case)), autoencoder, case)
