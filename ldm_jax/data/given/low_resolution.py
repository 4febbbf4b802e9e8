"""Super-resolution: a picture some times smaller as a map beside the latent."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from ldm_jax.config import Experiment, LowResolution
from ldm_jax.data.given.degradation import degrade, shrink
from ldm_jax.data.given.files import read_exact, to_float, to_rgb
from ldm_jax.data.given.given import Arrays, Part
from ldm_jax.data.given.make import Load
from ldm_jax.data.source import Example
from ldm_jax.files.places import Place


def make(experiment: Experiment, object_names: tuple[str, ...], load: Load) -> "GivenLowResolution":
    """For the pictures of an experiment."""
    del object_names, load
    assert isinstance(experiment.given, LowResolution)
    side = experiment.data.image_size
    return GivenLowResolution(experiment.given, (side, side), experiment.data.image_channels)


@dataclass(frozen=True)
class GivenLowResolution:
    """`map` [h / factor, w / factor, c] in [-1, 1]."""

    is_map: ClassVar[bool] = True

    config: LowResolution
    size: tuple[int, int]
    """Height and width of what is drawn."""
    channels: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """The small picture."""
        height, width = self._small
        return (Part("small", f"the picture to enlarge {self.config.factor} times, {width} x {height} pixels"),)

    def at(self, size: tuple[int, int]) -> "GivenLowResolution":
        """The same for a larger or smaller result."""
        return replace(self, size=size)

    def of_example(self, example: Example, rng: np.random.Generator) -> Arrays:
        """The example's picture made small, and worse where the configuration says so."""
        image = np.clip(np.rint((example["image"] + 1.0) * 127.5), 0, 255).astype(np.uint8)
        factor = self.config.factor
        small = degrade(image, factor, rng) if self.config.degradation == "bsrgan_light" else shrink(image, factor)
        return {"map": to_float(small)}

    def of_files(self, files: Mapping[str, Place]) -> Arrays:
        """The small picture of a file; raises UserError where `read_exact` does."""
        (part,) = self.parts
        return {"map": to_float(read_exact(files["small"], part.what, self._small, self.channels))}

    def shown(self, arrays: Arrays) -> UInt8[np.ndarray, "h w 3"]:
        """The small picture, enlarged pixel by pixel."""
        return to_rgb(arrays["map"], self.config.factor)

    @property
    def _small(self) -> tuple[int, int]:
        height, width = self.size
        return height // self.config.factor, width // self.config.factor
