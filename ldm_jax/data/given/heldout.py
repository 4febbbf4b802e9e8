"""What held-out examples give to a model, the same in evaluation, in grids and in `ldm sample`."""

from collections.abc import Sequence

from ldm_jax.config import DataConfig
from ldm_jax.data.given.given import Arrays, Given
from ldm_jax.data.source import Example, Source
from ldm_jax.data.transforms import Transform, evaluation_transforms, sample_rng

HELDOUT_SEED = 0
"""Seed of what is random in them."""


def heldout_example(source: Source, config: DataConfig, index: int) -> Example:
    """An example as evaluation sees it; its `image` is float32 in [-1, 1]."""
    example = source[index]
    transforms: Sequence[Transform] = evaluation_transforms(config)
    for transform in transforms:
        example = transform(example, index)
    return example


def heldout_inputs(given: Given, example: Example, index: int) -> Arrays:
    """What an example of `heldout_example` gives."""
    return given.of_example(example, sample_rng(HELDOUT_SEED, "given", index))
