"""Picture files of every usual kind as upright, opaque 8-bit grey or RGB, or an error that names the file.

Read: 1-bit, grey, palette, RGB, CMYK, 16-bit grey, any of them with transparency (laid on white) and EXIF rotation; of
an animation the first frame. Colour profiles are ignored. Refused: what is no picture, is cut short, has more
than `MAX_PIXELS` (a decompression bomb), or holds floating-point numbers, which have no agreed white.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ldm_jax.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""File name endings that are taken for pictures."""

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded (Pillow's own limit)."""

# Only these decoders are tried: others of Pillow start programs (EPS runs Ghostscript).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


class UnreadablePicture(UserError):
    """A file that cannot be read as a picture."""


def open_picture(source: Path | bytes, name: str) -> Image.Image:
    """Read a picture.

    Args:
        source: a file, or its contents.
        name: what errors call it.

    Returns:
        An upright, opaque picture of mode L (8-bit grey) or RGB.

    Raises:
        UnreadablePicture: it is damaged, too large, of an unknown kind, or not a picture.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width}x{picture.height} pixels are more than {MAX_PIXELS}")
            picture.load()
            return _eight_bit(_upright(picture))
    except Exception as error:  # a decoder fed with damaged bytes raises anything from SyntaxError to struct.error
        reason = "it is no picture of a known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UnreadablePicture(
            f"{name} cannot be read as a picture: {reason}; replace it by a whole file of {', '.join(_FORMATS)}"
        ) from error


def fit_square(picture: Image.Image, size: int, channels: int) -> Image.Image:
    """Resize the shorter side to `size` (antialiased Lanczos), keep the centre square, in grey (1) or RGB (3)."""
    side = float(min(picture.size))
    left, top = ((length - side) / 2 for length in picture.size)
    return cut_square(picture, (top, left, side), size, channels)


def cut_square(picture: Image.Image, square: tuple[float, float, float], size: int, channels: int) -> Image.Image:
    """A square of a picture, given by top, left and side in its pixels, at `size` pixels (antialiased Lanczos)."""
    top, left, side = square
    picture = picture.convert("L" if channels == 1 else "RGB")
    box = (left, top, left + side, top + side)
    if side == size and top == int(top) and left == int(left):
        return picture.crop(box)
    # Resizing just the box needs no memory for the rest of a picture that is very long.
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=box)


def shrink(picture: Image.Image, side: int | None, channels: int) -> Image.Image:
    """The whole picture with a shorter side of at most `side` pixels (antialiased Lanczos), in grey (1) or RGB (3)."""
    picture, shorter = picture.convert("L" if channels == 1 else "RGB"), min(picture.size)
    if side is None or shorter <= side:
        return picture
    width, height = (length * side // shorter for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def to_array(picture: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """The numbers of a grey or RGB picture."""
    array = np.asarray(picture)
    return array[:, :, None] if array.ndim == 2 else array


def from_array(array: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Inverse of `to_array`."""
    return Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF says nothing about the picture itself: leave that as it lies
        return picture


def _eight_bit(picture: Image.Image) -> Image.Image:
    if picture.mode in ("L", "RGB") and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I"):  # I;16 and its byte orders; I is how 16-bit PNG and TIFF come at times
        grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("floating-point pictures have no agreed white; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        canvas = Image.new("RGBA", picture.size, "white")
        canvas.alpha_composite(picture.convert("RGBA"))
        return canvas.convert("RGB")
    return picture.convert("L" if picture.mode == "1" else "RGB")
