"""Pictures for people: arrays to 8-bit images, and labelled grids as PNG."""

import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ldm_jax.errors import UserError
from ldm_jax.files.places import Place, is_local

_PAD = 4
_LINE = 20
"""Height of a line of text."""
_BACKGROUND = (255, 255, 255)
_INK = (60, 60, 60)


def to_uint8(image: Float[np.ndarray, "*batch h w c"]) -> UInt8[np.ndarray, "*batch h w c"]:
    """Pictures in [-1, 1] as 8-bit values; what lies outside is cut."""
    return np.clip(np.rint((np.asarray(image, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def psnr(mean_square: Float[np.ndarray, "*b"] | float, peak: float) -> Float[np.ndarray, "*b"]:
    """Peak signal to noise ratio 10 log10(peak^2 / mean_square) in dB; infinite where there is no error."""
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(peak**2 / np.asarray(mean_square, np.float64)))


def pixels_digest(image: UInt8[np.ndarray, "h w c"]) -> str:
    """SHA-256 of the shape and the values of an 8-bit picture."""
    return hashlib.sha256(f"{image.shape};".encode() + image.tobytes()).hexdigest()


def to_pil(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """An 8-bit picture with 1 or 3 channels as a PIL image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def save_picture(image: UInt8[np.ndarray, "h w c"], path: Place, description: Mapping[str, str]) -> None:
    """Write a PNG with `description` in its text chunks; a reader finds all of it or nothing."""
    write_png(to_pil(image), path, description)


def write_png(image: Image.Image, path: Place, description: Mapping[str, str]) -> None:
    """As `save_picture`, for a PIL image."""
    info = PngInfo()
    for name, value in description.items():
        info.add_text(name, value)  # iTXt where latin-1 does not hold it
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        image.save(file, format="PNG", pnginfo=info)
        file.flush()
        if is_local(path):
            os.fsync(file.fileno())
    temporary.replace(path)


def read_picture(path: Place) -> tuple[UInt8[np.ndarray, "h w c"], dict[str, str]]:
    """A PNG of `save_picture` and its description.

    Raises:
        UserError: it cannot be read, or is no PNG.
    """
    try:
        with path.open("rb") as file, Image.open(file, formats=("PNG",)) as image:
            pixels = np.asarray(image)
            texts = {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
    except Exception as error:  # a decoder fed with damaged bytes raises anything from SyntaxError to struct.error
        raise UserError(f"{path} cannot be read as a PNG ({error})") from None
    return (pixels if pixels.ndim == 3 else pixels[..., None]), texts


def draw_grid(
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w c"]]],
    labels: Sequence[str],
    path: Place,
    *,
    columns: Sequence[str] = (),
    footer: str = "",
    tile: int = 96,
    description: Mapping[str, str] | None = None,
) -> None:
    """Write rows of pictures with a label before each row, enlarged to at least `tile` pixels, and a line below.

    `columns` are labels above the columns, and `description` goes into the text chunks of the PNG.
    """
    side = max(len(row) for row in rows)
    tall, wide = rows[0][0].shape[:2]
    scale = max(1, round(tile / tall))
    cell, step = tall * scale + _PAD, wide * scale + _PAD
    font = ImageFont.load_default(size=13)
    margin = 0 if not any(labels) else _PAD + max(round(font.getlength(_short(label))) for label in labels) + _PAD
    head = _LINE if columns else 0
    height = head + cell * len(rows) + _PAD + (_LINE if footer else 0)
    width = max(margin + step * side + _PAD, round(font.getlength(footer)) + 2 * _PAD)
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for x, label in enumerate(columns):
        draw.text((margin + _PAD + x * step, _LINE // 2 + _PAD // 2), label, _INK, font=font, anchor="lm")
    for y, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = head + _PAD + y * cell
        draw.text((_PAD, top + cell // 2), _short(label), _INK, font=font, anchor="lm")
        for x, image in enumerate(row):
            big = to_pil(image).convert("RGB").resize((wide * scale, tall * scale), Image.Resampling.NEAREST)
            canvas.paste(big, (margin + _PAD + x * step, top))
    if footer:
        draw.text((_PAD, height - _PAD), footer, _INK, font=font, anchor="lb")
    write_png(canvas, path, description or {})


def _short(label: str, limit: int = 40) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"
