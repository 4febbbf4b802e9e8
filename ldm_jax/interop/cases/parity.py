"""Parity cases: what another system computed, and what this project computes from the same weights and inputs.

A case is a folder in another system's format with inputs and outputs in `io.npz`, in PyTorch's layouts, or an .npz of a
sampler. This file knows which kind a case is; each kind has a function from its path to comparisons.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm_jax.errors import UserError
from ldm_jax.files.json_files import read_json
from ldm_jax.interop.cases.arrays import Arrays, read_arrays
from ldm_jax.interop.cases.comparison import FORWARD, RUN, Comparison, compare
from ldm_jax.interop.cases.components import (
    run_autoencoder_case,
    run_bert_case,
    run_clip_text_case,
    run_clip_vision_case,
    run_unet_case,
)
from ldm_jax.interop.cases.original import run_original_case
from ldm_jax.interop.cases.pipelines import run_pipeline_case
from ldm_jax.interop.cases.samplers import is_sampler_case, run_sampler_case
from ldm_jax.interop.cases.training import is_training_case, run_training_case
from ldm_jax.interop.diffusers.pipeline import is_pipeline

Run = Callable[[Path, Arrays, float], list[Comparison]]
"""A case's folder, its arrays, and the tolerance of one forward pass to comparisons."""


def run_case(path: Path, tolerance: float | None = None) -> list[Comparison]:
    """Run the parity case at `path`.

    Args:
        path: a case of any kind.
        tolerance: relative to max(1, largest reference); by default 1e-4 for a forward pass and 2e-3 for a whole run.

    Raises:
        UserError: it is no case, or asks for something that is not supported.
    """
    if is_sampler_case(path):
        outputs = run_sampler_case(path)
        return [compare(name, *values, tolerance or RUN) for name, values in outputs.items()]
    if is_training_case(path):
        return run_training_case(path, tolerance or RUN)
    if not (path / "io.npz").is_file():
        raise UserError(f"{path} is no parity case: a folder with io.npz, a training recipe, or an .npz of a sampler")
    arrays = read_arrays(path / "io.npz")
    if is_pipeline(path):
        return run_pipeline_case(path, arrays, tolerance or RUN)
    return _kind_of(path)(path, arrays, tolerance or FORWARD)


def _kind_of(path: Path) -> Run:
    if next(path.glob("*.yaml"), None) is not None:
        return run_original_case
    config = read_json(path / "config.json")
    name = config.get("_class_name") or (config.get("architectures") or [None])[0] or config.get("model_type")
    kinds: dict[Any, Run] = {
        "UNet2DModel": run_unet_case,
        "UNet2DConditionModel": run_unet_case,
        "AutoencoderKL": run_autoencoder_case,
        "VQModel": run_autoencoder_case,
        "CLIPTextModel": run_clip_text_case,
        "CLIPTextModelWithProjection": run_clip_text_case,
        "clip_text_model": run_clip_text_case,
        "CLIPVisionModelWithProjection": run_clip_vision_case,
        "LDMBertModel": run_bert_case,
    }
    if not isinstance(name, str) or name not in kinds:
        raise UserError(f"{path}: {name!r} is no model known here; known: {', '.join(kinds)}")
    return kinds[name]
