"""Picture files of people, taken exactly as they are: of the right size, opaque, or refused."""

import io

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from ldm_jax.data.pictures import open_picture, to_array
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place


def read_exact(path: Place, what: str, size: tuple[int, int], channels: int) -> UInt8[np.ndarray, "h w c"]:
    """A picture of a height and width, in grey (1) or RGB (3).

    Raises:
        UserError: it cannot be read, is transparent or has another size; `what` says what it should be.
    """
    data = read_bytes(path, what)
    picture = open_picture(data, str(path))
    refuse_alpha(data, path, what)
    height, width = size
    if picture.size != (width, height):
        raise UserError(
            f"{path} has {picture.width} x {picture.height} pixels, and {what} has to have {width} x {height}; resize "
            "or crop it, or say how large the result is to be by --width and --height"
        )
    return to_array(picture.convert("L" if channels == 1 else "RGB"))


def read_bytes(path: Place, what: str) -> bytes:
    """The contents of a file.

    Raises:
        UserError: there is no such file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give {what}") from None


def refuse_alpha(data: bytes, path: Place, what: str) -> None:
    """Refuse a picture in whose file transparency is said, as it would have to be laid on a colour first.

    Raises:
        UserError: it has an alpha channel, or a transparent colour.
    """
    with Image.open(io.BytesIO(data)) as picture:
        if picture.has_transparency_data:
            raise UserError(
                f"{path} has an alpha channel (mode {picture.mode}), and {what} has to be opaque; flatten it, and give "
                "a mask as a file of its own"
            )


def to_float(image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
    """8-bit values as float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_rgb(image: Float32[np.ndarray, "h w c"], factor: int = 1) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Values in [-1, 1] as an RGB picture, enlarged so many times pixel by pixel."""
    array = np.clip(np.rint((image + 1.0) * 127.5), 0, 255).astype(np.uint8)
    array = np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
    return array.repeat(factor, axis=0).repeat(factor, axis=1)
