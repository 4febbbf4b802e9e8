"""One folder of a model of diffusers or transformers: its config.json and its weights, read and written."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.files.json_files import read_json, write_json
from ldm_jax.files.tensor_file import Tensors
from ldm_jax.files.weight_files import find_weights, open_tensors
from ldm_jax.files.write_safetensors import FloatType, save_weights
from ldm_jax.model import Params

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""Stems of the names of weights."""


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """The options of a component, and the file that they are from.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / "config.json"
    return read_json(path), str(path)


def read_weights(
    folder: Path,
    read: Callable[[Tensors, Any, str], Params],
    config: Any,
    stem: str = DIFFUSERS,
    variant: str | None = None,
) -> Params:
    """The parameters of a component, as `read(tensors, config, where)` makes them.

    Raises:
        UserError: there are no weights, or they do not fit the configuration.
    """
    path = find_weights(folder, stem, variant)
    with open_tensors(path) as tensors:
        return read(tensors, config, str(path))


def write_component(
    folder: Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    stem: str = DIFFUSERS,
    dtype: FloatType | None = None,
) -> None:
    """Write the folder of a component; `dtype` is that of the numbers, None keeps float32.

    Raises:
        UserError: there are such weights already, or they cannot be written.
    """
    write_json(folder / "config.json", config)
    save_weights(folder, stem, dict(tensors), dtype=dtype)
