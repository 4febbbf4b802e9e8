"""A source in memory for the tests of the data room."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ldm_jax.data.source import SourceInfo

CLASSES = ("even", "odd")


@dataclass(frozen=True, eq=False)
class PictureSource:
    """`size` pictures whose every pixel in row i is i; counts what is read."""

    size: int
    shape: tuple[int, int, int] = (4, 4, 3)
    info: SourceInfo = field(
        default_factory=lambda: SourceInfo(
            name="fake", split="train", fingerprint="f", class_names=CLASSES, has_captions=True, max_tags=3
        )
    )
    reads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads.append(index)
        image = np.random.default_rng(index).integers(256, size=self.shape, dtype=np.uint8)
        return {"image": image, **self.annotation(index)}

    def annotation(self, index: int) -> dict[str, Any]:
        return {"caption": f"number {index}", "tags": ("a", "b", "c", "d"), "label": index % 2, "id": str(index)}
