"""Latents for the second stage: the statistics that bring them to unit spread, and the batches made of them.

(1) mean = E[m],  std^2 = E[m^2 + s^2] - mean^2  over posteriors N(m, s^2): the moments of samples, without drawing
"""

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float

from ldm_jax import sharding
from ldm_jax.data.latent_cache import LatentSource, cached_latents
from ldm_jax.data.source import Source
from ldm_jax.errors import UserError
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.training import processes
from ldm_jax.training.step import Batch
from ldm_jax.training.workspace import Workspace

logger = logging.getLogger(__name__)

STATISTICS_PICTURES = 16384  # enough for three digits of the spread when the set is too large to be encoded once


def latent_statistics(moments: Iterable[Float[np.ndarray, "... d"]], scale: Literal["global", "per_channel"]) -> Params:
    """Statistics of latents (1) from batches of their moments, as the model's `latent` parameters.

    Raises:
        UserError: a channel does not vary, or its values are not finite: the first stage has collapsed.
    """
    total, square, count = 0.0, 0.0, 0
    for batch in moments:
        mean, logvar = np.split(np.asarray(batch, np.float64).reshape(-1, batch.shape[-1]), 2, axis=-1)
        total = total + mean.sum(axis=0)
        square = square + (mean**2 + np.exp(logvar)).sum(axis=0)
        count += len(mean)
    mean, second = np.asarray(total / count), np.asarray(square / count)
    if scale == "global":
        mean, second = np.zeros_like(mean), np.full_like(second, second.mean() - mean.mean() ** 2)
    std = np.sqrt(second - mean**2)
    if not (np.isfinite(std).all() and (std > 1e-6).all()):
        raise UserError(f"the latents have spread {std}: the first stage has collapsed; train it longer or otherwise")
    logger.info("latents of %d positions: mean %s, spread %s", count, mean.round(3), std.round(3))
    return {"latent": {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}}


def parameter_fingerprint(params: Params) -> str:
    """SHA-256 of a parameter tree: names, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = sharding.to_host(leaf)
        digest.update(f"{sharding.path_names(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class LatentReader:
    """Latent batches and statistics of a run, from a cache of the whole set or encoded batch by batch."""

    def __init__(self, work: Workspace, autoencoder: Params) -> None:
        """Prepare the latents of the run's data; a cache of them is made or read here."""
        self.work = work
        self.batch_size = work.experiment.first_stage.training.batch_size
        # Parameters are an argument: as constants they would be part of the program, which would never be found in the
        # compilation cache.
        self._encode = partial(jax.jit(partial(_moments, work.model)), autoencoder)
        self._cached: dict[str, LatentSource] = {}
        if work.experiment.data.cache_latents:
            fingerprint = parameter_fingerprint(autoencoder)
            self._cached = {source.info.split: self._cache(source, fingerprint) for source in (work.train, work.test)}

    def _cache(self, source: Source, fingerprint: str) -> LatentSource:
        return cached_latents(
            self.work.run.latents / f"{source.info.split}.npz",
            source,
            lambda image: sharding.to_host(self._encode(sharding.put_batch(self.work.mesh, {"image": image})["image"])),
            config=self.work.experiment.data,
            autoencoder=fingerprint,
            batch_size=self.batch_size,
            rows=sharding.local_rows(self.work.mesh, self.batch_size),
            have_all=lambda mine: bool(sharding.to_all(np.asarray(mine)).all()),
            writes=processes.is_first(),
            with_pictures=not self.work.shelf.is_empty,
        )

    def statistics(self) -> Params:
        """The latent statistics of the training split."""
        scale = self.work.experiment.first_stage.latent_scale
        if "train" in self._cached:
            return latent_statistics([self._cached["train"].moments], scale)
        pictures = self.work.epoch(self.work.train, self.batch_size)
        some = itertools.islice(pictures, -(-STATISTICS_PICTURES // self.batch_size))
        encoded = ((self._encode(b["image"]), b["valid"]) for b in some)
        return latent_statistics((sharding.to_host(m)[sharding.to_host(valid)] for m, valid in encoded), scale)

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """Training batches with `moments`, from a step on."""
        source = self._cached.get("train", self.work.train)
        batches = self.work.train_batches(source, self.work.experiment.training, "diffusion", start_step)
        return map(self._with_moments, batches)

    def heldout_batches(self, batch_size: int) -> Iterator[Batch]:
        """One pass over the test split, with `moments`."""
        return map(self._with_moments, self._epoch_of_test(batch_size))

    def _epoch_of_test(self, batch_size: int) -> Iterator[Batch]:
        return self.work.epoch(self._cached.get("test", self.work.test), batch_size, for_denoiser=True)

    def _with_moments(self, batch: Batch) -> Batch:
        if "moments" in batch:
            return batch
        return {**batch, "moments": self._encode(batch["image"])}


def _moments(
    model: LatentDiffusion, autoencoder: Params, image: Float[Array, "b *spatial c"]
) -> Float[Array, "b *latent d"]:
    return model.encode(autoencoder, image).moments
