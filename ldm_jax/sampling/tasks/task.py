"""What a picture is made from beside its prompt: the words of a request, which a file keeps."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ldm_jax.errors import UserError

TaskKind: TypeAlias = Literal["image", "denoise", "invert"]
Fit: TypeAlias = Literal["exact", "crop"]


@dataclass(frozen=True, kw_only=True)
class PictureTask:
    """The picture from which another one is made, and how."""

    kind: TaskKind
    """Noised to a level (`image`), taken as noisy as it is (`denoise`), or led back to its noise (`invert`)."""
    image: str
    """File of the picture."""
    image_to: str | None = None
    """File of the picture at the other end of an interpolation."""
    strength: float = 1.0
    """Share of the steps that are made, from the noisy end: 1 makes all of them."""
    mask: str | None = None
    """File of a mask, white where the picture is painted anew."""
    outpaint: tuple[int, int, int, int] | None = None
    """Pixels that are painted anew left, right, above and below the picture."""
    paste: bool = True
    """Whether the rest of the picture is put back, pixel by pixel."""
    noise_level: float | None = None
    """Standard deviation of a noisy picture's noise, in values of 255."""
    source_prompt: str | None = None
    """What the picture shows, for the way back to its noise: a prompt, or the class of a model of classes."""
    fit: Fit = "exact"
    """Whether a picture of another size is refused, or cropped and resized."""
    sha256: str = ""
    """Checksum of the pixels of all files."""

    def __post_init__(self) -> None:
        if not 0.0 < self.strength <= 1.0:
            raise UserError(
                f"--strength={self.strength} must be above 0 (nothing but the autoencoder) and at most 1 (all steps)"
            )
        if self.noise_level is not None and not 0.0 < self.noise_level <= 255.0:
            raise UserError(f"--noise-level={self.noise_level} must lie between 0 and 255, the values of a pixel")
        if self.outpaint is not None and (min(self.outpaint) < 0 or not any(self.outpaint)):
            listing = " ".join(f"{side}={n}" for side, n in zip(SIDES, self.outpaint, strict=True))
            raise UserError(f"--outpaint {listing} must name a side with pixels to paint, and none below 0")

    @property
    def has_hole(self) -> bool:
        """Whether a part of the picture is known and stays."""
        return self.mask is not None or self.outpaint is not None

    def words(self) -> str:
        """What it is in a few words."""
        name = self.image.rsplit("/", 1)[-1]
        if self.image_to is not None:
            name += f" to {self.image_to.rsplit('/', 1)[-1]}"
        if self.kind == "denoise":
            return f"denoised {name}"
        if self.kind == "invert":
            return f"inverted {name}"
        verb = "inpainting of" if self.mask else "outpainting of" if self.outpaint else "from"
        return f"{verb} {name}, strength {self.strength:g}"


SIDES = ("left", "right", "top", "bottom")


def task_to_json(task: PictureTask | None) -> dict[str, Any] | None:
    """The fields that are not at their defaults."""
    if task is None:
        return None
    return {f.name: v for f in dataclasses.fields(task) if (v := getattr(task, f.name)) != f.default}


def task_from_json(values: dict[str, Any] | None) -> PictureTask | None:
    """Inverse of `task_to_json` behind JSON."""
    if values is None:
        return None
    sides = values.get("outpaint")
    return PictureTask(**{**values, "outpaint": None if sides is None else tuple(sides)})
