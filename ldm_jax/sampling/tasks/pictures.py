"""The files of a task as arrays: pictures of the size that is drawn, masks, and the canvas of outpainting."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from ldm_jax.data.given.files import read_bytes, refuse_alpha
from ldm_jax.data.given.shelf import inputs_checksum
from ldm_jax.data.pictures import open_picture, to_array
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place, is_local, to_place
from ldm_jax.sampling.tasks.task import Fit, PictureTask

Pixels = UInt8[np.ndarray, "h w c"]


class TaskPictures(NamedTuple):
    """What the files of a task hold, all of one size."""

    image: Pixels
    """The picture, or the canvas on which it lies, its edge repeated into the margins."""
    image_to: Pixels | None
    hole: Bool[np.ndarray, "h w"] | None
    """Where it is painted anew."""

    def checksum(self) -> str:
        """SHA-256 of all of it."""
        return inputs_checksum({name: x for name, x in self._asdict().items() if x is not None})

    def shown(self) -> UInt8[np.ndarray, "h w 3"]:
        """The picture with grey holes."""
        image = self.image if self.hole is None else np.where(self.hole[..., None], np.uint8(128), self.image)
        return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def read_pictures(task: PictureTask, size: tuple[int, int], channels: int) -> TaskPictures:
    """Read and check the files of a task.

    Args:
        task: whose files.
        size: height and width of what is drawn.
        channels: 1 for grey, 3 for RGB.

    Raises:
        UserError: a file cannot be read, is transparent or of another size, a mask is empty, or there is no margin.
    """
    if task.outpaint is not None:
        return _canvas(_read(task.image, "the picture to paint around", channels), task.outpaint)
    image = _of_size(task.image, "the picture", size, channels, task.fit)
    to = None if task.image_to is None else _of_size(task.image_to, "the other picture", size, channels, task.fit)
    return TaskPictures(image, to, None if task.mask is None else _read_mask(task.mask, image.shape[:2], task))


def canvas_size(task: PictureTask) -> tuple[int, int] | None:
    """Height and width of the canvas of outpainting; None for other tasks."""
    if task.outpaint is None:
        return None
    height, width = _read(task.image, "the picture to paint around", 3).shape[:2]
    left, right, top, bottom = task.outpaint
    return height + top + bottom, width + left + right


def absolute(path: str) -> str:
    """A path that means the same from any folder."""
    place = to_place(path)
    return str(Path(place).absolute()) if is_local(place) else path


def _canvas(image: Pixels, margins: tuple[int, int, int, int]) -> TaskPictures:
    left, right, top, bottom = margins
    sides = (top, bottom), (left, right)
    hole = np.pad(np.zeros(image.shape[:2], bool), sides, constant_values=True)
    return TaskPictures(np.pad(image, (*sides, (0, 0)), mode="edge"), None, hole)


def _read(path: str, what: str, channels: int) -> Pixels:
    place: Place = to_place(path)
    data = read_bytes(place, what)
    picture = open_picture(data, path)
    refuse_alpha(data, place, what)
    return to_array(picture.convert("L" if channels == 1 else "RGB"))


def _of_size(path: str, what: str, size: tuple[int, int], channels: int, fit: Fit) -> Pixels:
    image, (height, width) = _read(path, what, channels), size
    if image.shape[:2] == size:
        return image
    if fit == "crop":
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        return to_array(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))
    raise UserError(
        f"{path} has {image.shape[1]} x {image.shape[0]} pixels, and {what} has to have {width} x {height}; use "
        "--fit crop, or say how large the result is to be by --width and --height"
    )


def _read_mask(path: str, size: tuple[int, int], task: PictureTask) -> Bool[np.ndarray, "h w"]:
    mask = _of_size(path, "the mask (white where it is painted)", size, 1, task.fit)[..., 0] >= 128
    if not mask.any():
        raise UserError(f"{path} has no white pixel: there is nothing to paint; make the part white that is to change")
    return mask
