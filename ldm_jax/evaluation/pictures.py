"""Sets of 8-bit pictures to evaluate: a folder, an .npz, or a data set as training sees it; none is in memory at once.

Nothing is guessed: pictures of different sizes, some of them grey, or with transparency are refused and named, for
each way to make them equal gives other scores.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm_jax.config import DataConfig
from ldm_jax.data.pictures import SUFFIXES, fit_square, open_picture, to_array
from ldm_jax.data.preparation import digest
from ldm_jax.data.source import Source
from ldm_jax.data.transforms import evaluation_transforms
from ldm_jax.errors import UserError
from ldm_jax.manifest import NAME, read_manifest
from ldm_jax.model import hash_params
from ldm_jax.pictures import to_uint8


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Pictures in an order, read in parts."""

    name: str
    """For messages and file names."""
    fingerprint: str
    """SHA-256 (hex) of what the pictures are; of drawn ones, of what they are drawn with, not of how many."""
    count: int
    read: Callable[[int, int], UInt8[np.ndarray, "b h w c"]]
    """Those from an index up to another one."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where they are from, for the record."""


def folder_pictures(folder: Path, image_size: int | None = None) -> PictureSet:
    """The picture files below a folder, sorted by their paths.

    Args:
        folder: where they are; hidden files and folders are not looked at.
        image_size: resize and crop them to squares of this side, as training does; None takes them as they are.

    Raises:
        UserError: there are none.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; name a folder of pictures, an .npz or a run")
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist; name one with pictures")
    files = drawn_files(folder) or _files_below(folder)
    if not files:
        raise UserError(f"there are no pictures in {folder}; files that end in {' '.join(sorted(SUFFIXES))} are taken")
    return file_pictures(folder, files, image_size)


def file_pictures(folder: Path, files: Sequence[str], image_size: int | None = None) -> PictureSet:
    """Files of a folder, by their paths inside it, as `folder_pictures` reads them."""
    contents = [(path, _file_digest(folder / path)) for path in files]
    first: list[tuple[int, ...]] = []  # the shape of the first picture, once it is known

    def read(start: int, stop: int) -> UInt8[np.ndarray, "b h w c"]:
        if not first:
            first.append(_read_file(folder / files[0], image_size).shape)
        pictures = [_read_file(folder / path, image_size) for path in files[start:stop]]
        for path, picture in zip(files[start:stop], pictures, strict=True):
            if picture.shape != first[0]:
                raise _unequal(folder / path, picture.shape, folder / files[0], first[0])
        return np.stack(pictures)

    return PictureSet(
        name=str(folder),
        fingerprint=digest(["folder", image_size, contents]),
        count=len(files),
        read=read,
        about={"kind": "folder", "path": str(folder.resolve()), "image_size": image_size},
    )


def npz_pictures(file: Path, pictures: UInt8[np.ndarray, "n h w c"]) -> PictureSet:
    """The pictures of an .npz, which lie in memory."""
    fingerprint = hash_params({"arr_0": pictures})
    about = {"kind": "npz", "path": str(file.resolve()), "sha256": fingerprint}
    return PictureSet(
        name=str(file),
        fingerprint=fingerprint,
        count=len(pictures),
        read=lambda start, stop: pictures[start:stop],
        about=about,
    )


def source_pictures(source: Source, config: DataConfig) -> PictureSet:
    """A split of a data set, resized and cropped by the loader of training, nothing drawn at random."""
    transforms = evaluation_transforms(config)

    def one(index: int) -> UInt8[np.ndarray, "h w c"]:
        example = source[index]
        for transform in transforms:
            example = transform(example, index)
        return to_uint8(example["image"])

    shape: dict[str, Any] = {"image_size": config.image_size, "image_channels": config.image_channels}
    if config.resize is not None:
        shape["resize"] = config.resize
    return PictureSet(
        name=f"{source.info.name}/{source.info.split}",
        fingerprint=digest(["source", source.info.fingerprint, shape]),
        count=len(source),
        read=lambda start, stop: np.stack([one(i) for i in range(start, stop)]),
        about={
            "kind": "data set",
            "name": source.info.name,
            "split": source.info.split,
            "fingerprint": source.info.fingerprint,
            **shape,
        },
    )


def local_batch(rows: UInt8[np.ndarray, "b h w c"], size: int) -> UInt8[np.ndarray, "s h w c"]:
    """The rows filled up with the last of them, so that a compiled function sees one shape."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def local_size(batch_size: int) -> int:
    """The pictures of a batch in a process: those asked for, rounded up to a multiple of its devices."""
    return -(-batch_size // len(jax.local_devices())) * len(jax.local_devices())


def drawn_files(folder: Path) -> list[str]:
    """The pictures of a finished folder of `ldm sample`, without the grid of them; none for another folder."""
    try:
        manifest = read_manifest(folder / NAME)
    except UserError:
        return []
    return sorted(manifest["results"]) if manifest["kind"] == "samples" else []


def _files_below(folder: Path) -> list[str]:
    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [str(path) for path in sorted(inside) if not any(part.startswith(".") for part in path.parts)]


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); make it readable, or move it away"
        ) from None


def _read_file(path: Path, image_size: int | None) -> UInt8[np.ndarray, "h w c"]:
    _refuse_transparent(path)
    picture = open_picture(path, str(path))
    if image_size is not None:
        picture = fit_square(picture, image_size, len(picture.getbands()))
    return to_array(picture)


def _refuse_transparent(path: Path) -> None:
    """Whatever it is laid on becomes part of the score."""
    try:
        with Image.open(path) as picture:
            alpha = np.asarray(picture.convert("RGBA").getchannel("A")) if picture.has_transparency_data else None
    except Exception:  # what cannot be read, `open_picture` says better
        return
    if alpha is not None and alpha.min() < 255:
        raise UserError(
            f"{path} is transparent in places; lay it on the background that the others have, and save it as RGB"
        )


def _unequal(path: Path, shape: tuple[int, ...], other: Path, wanted: tuple[int, ...]) -> UserError:
    if shape[:2] == wanted[:2]:
        kinds = {1: "grey", 3: "RGB"}
        return UserError(f"{path} is {kinds[shape[2]]} and {other} is {kinds[wanted[2]]}; save all of them in one mode")
    return UserError(
        f"{path} has {shape[1]}x{shape[0]} pixels and {other} has {wanted[1]}x{wanted[0]}; give pictures of one size, "
        "or resize and crop all of them with --image-size N"
    )
