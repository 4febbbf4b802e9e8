"""Parity cases in the format of the original latent-diffusion repository: `project.yaml` beside one file of weights."""

from pathlib import Path

from ldm_jax.errors import UserError
from ldm_jax.interop.case_arrays import Arrays
from ldm_jax.interop.comparison import Comparison


def run_original_case(path: Path, arrays: Arrays, tolerance: float) -> list[Comparison]:
    """To come with the reader of original files."""
    raise UserError(f"{path}: {sorted(arrays)} {tolerance}")
