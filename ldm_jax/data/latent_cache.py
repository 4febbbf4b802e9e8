"""Latents of a whole data set, encoded once and kept in memory: a source for the diffusion stage of small data sets.

The encoder comes in as a function, so nothing here depends on how it is built or on what it runs.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from ldm_jax.config import DataConfig
from ldm_jax.data.pipeline import epoch
from ldm_jax.data.preparation import digest
from ldm_jax.data.source import Example, Source, SourceInfo
from ldm_jax.data.transforms import evaluation_transforms
from ldm_jax.errors import UserError

Encode: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Maps pictures float32 [b, h, w, c] in [-1, 1] to the moments of their latents, float32 [b, h', w', c'].

c' is 2 x latent channels (mean, log variance) for a KL autoencoder and latent channels for a VQ autoencoder."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LatentSource:
    """A source whose examples carry `moments` instead of `image`; everything is in memory."""

    info: SourceInfo
    moments: Float32[np.ndarray, "n flips h w c"]
    """As they are, and, if there are two, mirrored; `Mirror` chooses."""
    annotations: tuple[Example, ...]
    pictures: Source | None = None
    """Where examples have their pictures from as well, for models that are given something of them."""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.moments)

    def __getitem__(self, index: int) -> Example:
        """The example at an index."""
        example = self.annotations[index] if self.pictures is None else self.pictures[index]
        return {"moments": self.moments[index], **example}

    def annotation(self, index: int) -> Example:
        """The example without its moments and pictures."""
        return self.annotations[index]


def cached_latents(
    path: Path,
    source: Source,
    encode: Encode,
    *,
    config: DataConfig,
    autoencoder: str,
    batch_size: int,
    rows: Sequence[int] | np.ndarray | None = None,
    have_all: Callable[[bool], bool] = bool,
    writes: bool = True,
    with_pictures: bool = False,
) -> LatentSource:
    """The latents of a source, from the file if it fits, else encoded now and saved there.

    Args:
        path: the cache file (.npz).
        source: the pictures.
        encode: see `Encode`; is called with the `rows` of batch_size pictures, and gives the moments of all of them.
        config: says how pictures are cut and whether mirror images are wanted.
        autoencoder: fingerprint of the encoder's parameters.
        batch_size: pictures in one call of `encode`.
        rows: rows of each batch that this process reads, where several encode together; None reads all.
        have_all: whether every process says yes; all encode if the file of one does not fit.
        writes: whether this is the process that saves the file.
        with_pictures: whether examples carry their pictures as well.

    Raises:
        UserError: the file cannot be written.
    """
    fingerprint = latent_fingerprint(source.info, config, autoencoder)
    moments = load_latents(path, fingerprint)
    if not have_all(moments is not None):
        moments = encode_source(source, encode, config=config, batch_size=batch_size, rows=rows)
        if writes:
            save_latents(path, moments, fingerprint)
    assert moments is not None  # every process has loaded them, or has encoded them with the others
    annotations = tuple(source.annotation(index) for index in range(len(source)))
    return LatentSource(source.info, moments, annotations, source if with_pictures else None)


def latent_fingerprint(info: SourceInfo, config: DataConfig, autoencoder: str) -> str:
    """SHA-256 (hex) of all that latents depend on: the data, how they are cut, mirroring, and the autoencoder."""
    return digest(
        [info.fingerprint, config.image_size, config.image_channels, config.horizontal_flip, autoencoder, "moments 1"]
    )


def encode_source(
    source: Source,
    encode: Encode,
    *,
    config: DataConfig,
    batch_size: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Float32[np.ndarray, "n flips h w c"]:
    """Encode every picture of a source as it is and, if the configuration mirrors pictures, mirrored."""
    _log.info("encoding %d pictures of %s/%s", len(source), source.info.name, source.info.split)
    parts = []
    pictures = epoch(
        source,
        transforms=evaluation_transforms(config),
        batch_size=batch_size,
        rows=rows,
        num_threads=config.num_threads,
    )
    for batch in pictures:
        sides = [batch["image"], batch["image"][:, :, ::-1]] if config.horizontal_flip else [batch["image"]]
        parts.append(np.stack([np.asarray(encode(side), np.float32) for side in sides], axis=1))
    return np.concatenate(parts)[: len(source)]  # the last batch is filled up


def save_latents(path: Path, moments: Float32[np.ndarray, "n flips h w c"], fingerprint: str) -> None:
    """Write the latents whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    work = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".latents-", delete=False) as file:
            work = Path(file.name)
            np.savez(file, moments=moments, fingerprint=np.array(fingerprint))
        os.replace(work, path)
    except OSError as error:
        raise UserError(
            f"cannot write the latents {path} ({error.strerror or error}); free space or permit writing"
        ) from error
    finally:
        if work is not None:
            work.unlink(missing_ok=True)


def load_latents(path: Path, fingerprint: str) -> Float32[np.ndarray, "n flips h w c"] | None:
    """Latents saved under a fingerprint; None if there are none, others, or a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["moments"] if str(file["fingerprint"]) == fingerprint else None
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile and numpy raise anything from RuntimeError to struct.error on damaged bytes
        _log.warning("the cached latents %s are damaged (%s): they are encoded again", path, error)
        return None
