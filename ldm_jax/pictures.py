"""Pictures for people: arrays to 8-bit images, and labelled grids as PNG."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ldm_jax.config.places import Place

_PAD = 4
_BACKGROUND = (255, 255, 255)
_INK = (60, 60, 60)


def to_uint8(image: Float[np.ndarray, "*batch h w c"]) -> UInt8[np.ndarray, "*batch h w c"]:
    """Pictures in [-1, 1] as 8-bit values; what lies outside is cut."""
    return np.clip(np.rint((np.asarray(image, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def to_pil(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """An 8-bit picture with 1 or 3 channels as a PIL image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def save_picture(image: UInt8[np.ndarray, "h w c"], path: Place, description: dict[str, str]) -> None:
    """Write a PNG with `description` in its text chunks."""
    info = PngInfo()
    for name, value in description.items():
        info.add_text(name, value)
    with path.open("wb") as file:
        to_pil(image).save(file, "PNG", pnginfo=info)


def draw_grid(
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w c"]]],
    labels: Sequence[str],
    path: Place,
    *,
    footer: str = "",
    tile: int = 96,
) -> None:
    """Write rows of pictures with a label before each row, enlarged to at least `tile` pixels, and a line below."""
    side = max(len(row) for row in rows)
    size = rows[0][0].shape[0]
    scale = max(1, round(tile / size))
    cell = size * scale + _PAD
    font = ImageFont.load_default(size=13)
    margin = 0 if not any(labels) else _PAD + max(round(font.getlength(_short(label))) for label in labels) + _PAD
    height = cell * len(rows) + _PAD + (20 if footer else 0)
    width = max(margin + cell * side + _PAD, round(font.getlength(footer)) + 2 * _PAD)
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for y, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = _PAD + y * cell
        draw.text((_PAD, top + cell // 2), _short(label), _INK, font=font, anchor="lm")
        for x, image in enumerate(row):
            big = to_pil(image).convert("RGB").resize((size * scale, size * scale), Image.Resampling.NEAREST)
            canvas.paste(big, (margin + _PAD + x * cell, top))
    if footer:
        draw.text((_PAD, height - _PAD), footer, _INK, font=font, anchor="lb")
    with path.open("wb") as file:
        canvas.save(file, "PNG")


def _short(label: str, limit: int = 40) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"
