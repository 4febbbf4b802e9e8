"""From pictures to features, sharded over devices and processes, part by part, and kept for the next time."""

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
from ldm_jax.evaluation.pictures import PictureSet, local_batch, local_shards
from ldm_jax.evaluation.scores import FeatureSet


def extract_features(
    pictures: PictureSet, network: FeatureNetwork, cache: Path, batch_size: int, kept: Path | None = None
) -> FeatureSet:
    """The features of all pictures.

    Args:
        pictures: what to look at.
        network: what looks at it.
        cache: folder of the parts, found again by the fingerprints of both and the size of a part.
        batch_size: pictures at once in a process; rounded up to a multiple of its devices.
        kept: folder where drawn pictures are kept, for another network or another time.

    Raises:
        UserError: a picture cannot be used; parts that are done stay.
    """
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices())
    size = -(-batch_size // local_shards()) * local_shards()
    params = jax.device_put(network.params, sharding.replicated(mesh))
    read = _keeping(pictures, kept, size) if pictures.drawn and kept else pictures.read

    def compute(start: int, stop: int) -> Part:
        batch = local_batch(read(start, stop), size)
        features = network.extract(params, jax.device_put(batch, sharding.batch_sharding(mesh)))
        return {name: np.asarray(rows)[: stop - start] for name, rows in features._asdict().items()}

    fingerprint = digest([pictures.fingerprint, network.fingerprint, size])
    chunks = Chunks(folder=cache, fingerprint=fingerprint, size=size)
    parts = all_parts(chunks, pictures.count, compute, what=f"{network.label}: {pictures.name}")
    given = {name: rows if rows.shape[1] else None for name, rows in parts.items()}
    return FeatureSet(pooled=given["pooled"], logits=given["logits"], spatial=given["spatial"])


def kept_pictures(pictures: PictureSet, kept: Path, batch_size: int) -> Part:
    """All pictures of a set that is drawn, under the name that samples have in an .npz."""
    size = -(-batch_size // local_shards()) * local_shards()
    chunks = Chunks(folder=kept, fingerprint=digest([pictures.fingerprint, size]), size=size)
    return all_parts(chunks, pictures.count, lambda a, b: {"arr_0": pictures.read(a, b)}, what=pictures.name)


def _keeping(pictures: PictureSet, kept: Path, size: int) -> Callable[[int, int], UInt8[np.ndarray, "b h w c"]]:
    chunks = Chunks(folder=kept, fingerprint=digest([pictures.fingerprint, size]), size=size)

    def read(start: int, stop: int) -> np.ndarray:
        return chunks.part(start, stop, lambda a, b: {"arr_0": pictures.read(a, b)})["arr_0"]

    return read
