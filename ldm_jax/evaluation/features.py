"""From pictures to features, sharded over devices and processes, part by part, and kept for the next time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from ldm_jax import sharding
from ldm_jax.config import MeshConfig
from ldm_jax.data.preparation import digest
from ldm_jax.evaluation.chunks import Chunks, Part, all_parts
from ldm_jax.evaluation.network import FeatureNetwork
from ldm_jax.evaluation.pictures import PictureSet, local_batch, local_size
from ldm_jax.evaluation.scores import FeatureSet


def extract_features(pictures: PictureSet, network: FeatureNetwork, cache: Path, batch_size: int) -> FeatureSet:
    """The features of all pictures.

    Args:
        pictures: what to look at; a process reads those of its parts alone.
        network: what looks at it.
        cache: folder of the parts, found again by the fingerprints of both and the size of a part.
        batch_size: pictures at once in a process; rounded up to a multiple of its devices.

    Raises:
        UserError: a picture cannot be used; parts that are done stay.
    """
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices())
    size = local_size(batch_size)
    params = jax.device_put(network.params, sharding.replicated(mesh))

    def compute(start: int, stop: int) -> Part:
        batch = local_batch(pictures.read(start, stop), size)
        features = network.extract(params, jax.device_put(batch, sharding.batch_sharding(mesh)))
        return {name: np.asarray(rows)[: stop - start] for name, rows in features._asdict().items()}

    fingerprint = digest([pictures.fingerprint, network.fingerprint, size])
    chunks = Chunks(folder=cache, fingerprint=fingerprint, size=size)
    parts = all_parts(chunks, pictures.count, compute, what=f"{network.label}: {pictures.name}")
    given = {name: rows if rows.shape[1] else None for name, rows in parts.items()}
    return FeatureSet(pooled=given["pooled"], logits=given["logits"], spatial=given["spatial"])


def kept_pictures(pictures: PictureSet, folder: Path, batch_size: int) -> PictureSet:
    """The same pictures, which cost much: a part is computed when one of its pictures is first read, and kept."""
    chunks, compute = _parts_of(pictures, folder, batch_size)

    def read(start: int, stop: int) -> UInt8[np.ndarray, "b h w c"]:
        return chunks.rows(start, stop, pictures.count, compute)["arr_0"]

    return dataclasses.replace(pictures, read=read)


def all_pictures(pictures: PictureSet, folder: Path, batch_size: int) -> Part:
    """All pictures of a set, under the name that samples have in an .npz; each process computes what is missing of its
    parts, in the folder and with the batch size of `kept_pictures`."""
    chunks, compute = _parts_of(pictures, folder, batch_size)
    return all_parts(chunks, pictures.count, compute, what=pictures.name)


def _parts_of(pictures: PictureSet, folder: Path, batch_size: int) -> tuple[Chunks, Callable[[int, int], Part]]:
    size = local_size(batch_size)
    chunks = Chunks(folder=folder, fingerprint=digest([pictures.fingerprint, size]), size=size)
    return chunks, lambda start, stop: {"arr_0": pictures.read(start, stop)}
