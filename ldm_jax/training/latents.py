"""Latents for the second stage: the statistics that bring them to unit spread, and the batches made of them."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from ldm_jax import sharding
from ldm_jax.config import ClipTextConditioning, SdxlConditioning
from ldm_jax.data.latent_manifest import recipe_differences
from ldm_jax.data.latent_records import EMBEDDED
from ldm_jax.data.latent_shards import clear_others
from ldm_jax.data.latent_source import LatentSource, WithPictures, misfit, open_latents
from ldm_jax.data.latent_statistics import LatentSums, sum_latents
from ldm_jax.data.memory import MemorySource
from ldm_jax.data.source import Source, Split
from ldm_jax.errors import UserError
from ldm_jax.files.places import is_local
from ldm_jax.model import Params
from ldm_jax.training import processes
from ldm_jax.training.latent_factory import (
    LatentFactory,
    identify_autoencoder,
    identify_texts,
    make_encoder,
    make_factory,
    share_of_process,
    sides_of,
)
from ldm_jax.training.step import Batch
from ldm_jax.training.workspace import Workspace

logger = logging.getLogger(__name__)

STATISTICS_PICTURES = 16384  # enough for three digits of the spread when the set is too large to be encoded once


def latent_statistics(sums: LatentSums, scale: Literal["global", "per_channel"]) -> Params:
    """Mean and spread of latents as the model's `latent` parameters.

    One spread for all channels goes with a mean of zero, as in LDM, though it is measured about the mean.

    Raises:
        UserError: a channel does not vary, or its values are not finite: the first stage has collapsed.
    """
    mean, std = sums.per_channel()
    if scale == "global":
        mean, std = np.zeros_like(mean), np.full_like(std, sums.overall()[1])
    if not (np.isfinite(std).all() and (std > 1e-6).all()):
        raise UserError(f"the latents have spread {std}: the first stage has collapsed; train it longer or otherwise")
    logger.info("latents of %d positions: mean %s, spread %s", sums.count, mean.round(3), std.round(3))
    return {"latent": {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}}


class LatentReader:
    """Latent batches and statistics of a run: from a set of latents, given or made here, or encoded batch by batch."""

    def __init__(self, work: Workspace, params: Params) -> None:
        """Prepare the latents of the run's data, which `data.latents` has or which are written into the run.

        `params` are those of the autoencoder, and of the conditioner where that is not trained.
        """
        self.work = work
        self.batch_size = work.experiment.first_stage.training.batch_size
        self._encode = partial(make_encoder(work.model), {"autoencoder": params["autoencoder"]})
        self._sets: dict[Split, LatentSource] = {}
        if work.experiment.data.latents is not None:
            self._sets = {split: self._given(source, params) for split, source in self._splits()}
        elif work.experiment.data.cache_latents:
            factory = make_factory(
                work.experiment,
                work.mesh,
                {"autoencoder": params["autoencoder"]},
                batch_size=self.batch_size,
                with_sizes=work.experiment.tells_sizes,
            )
            self._sets = {split: self._made(source, factory) for split, source in self._splits()}
        self._sources = {split: self._complete(split, latents) for split, latents in self._sets.items()}

    def _splits(self) -> list[tuple[Split, Source]]:
        return [("train", self.work.train), ("test", self.work.test)]

    def _given(self, source: Source, params: Params) -> LatentSource:
        """Latents that were there before, if they are of this model."""
        assert isinstance(source, LatentSource)  # the workspace has opened them
        recipe, experiment = source.manifest.recipe, self.work.experiment
        conditioning, wanted = experiment.conditioning, identify_autoencoder(experiment, params)
        if (
            isinstance(conditioning, ClipTextConditioning | SdxlConditioning)
            and not conditioning.trainable
            and recipe.texts
        ):
            assert self.work.encode_caption is not None  # it takes prompts
            wanted |= identify_texts(experiment, params, self.work.encode_caption)
        elif recipe.texts:
            source = replace(source, left_out=frozenset(EMBEDDED))
        if self.work.experiment.tells_sizes and recipe.data.crop == "random":  # of centres little is told
            wanted["has_sizes"] = True
        if changed := recipe_differences(recipe, replace(recipe, **wanted)):
            raise UserError(misfit(source, changed))
        if recipe.compute_dtype != experiment.compute_dtype:
            logger.info("the latents in %s were computed in %s", source.folder, recipe.compute_dtype)
        return source

    def _complete(self, split: Split, latents: LatentSource) -> Source:
        """Latents, with their pictures where the model is given something of them."""
        remembered, shelf = MemorySource(latents), self.work.shelf
        return remembered if shelf.is_empty else WithPictures(remembered, shelf.source(split))

    def _made(self, source: Source, factory: LatentFactory) -> LatentSource:
        """Latents in the run, written there now unless they are whole and fit."""
        folder, share = self.work.run.latents / source.info.split, share_of_process()
        if not is_local(self.work.run.path) and share.count > 1:  # each machine has a disk of its own
            folder, share = folder / f"process_{share.index}", share_of_process(own_disk=True)
        processes.note("looking at the latents that are there", "longest")
        if share.index == 0:
            clear_others(folder, factory.recipe(source))
        factory.write(source, folder, share)
        return open_latents(folder)

    def statistics(self) -> Params:
        """The latent statistics of the training split, with mirror images where training sees those."""
        scale = self.work.experiment.first_stage.latent_scale
        if "train" in self._sets:
            return latent_statistics(self._sets["train"].manifest.sums, scale)
        pictures = self.work.epoch(self.work.train, self.batch_size)
        some = itertools.islice(pictures, -(-STATISTICS_PICTURES // self.batch_size))
        mirrored = self.work.experiment.data.horizontal_flip
        sides = ((side, b["valid"]) for b in some for side in sides_of(b["image"], with_mirror=mirrored))
        encoded = ((self._encode(side), valid) for side, valid in sides)
        return latent_statistics(
            sum_latents(sharding.to_host(m)[sharding.to_host(valid)] for m, valid in encoded), scale
        )

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """Training batches with `moments`, from a step on."""
        source = self._sources.get("train", self.work.train)
        batches = self.work.train_batches(source, self.work.experiment.training, "diffusion", start_step)
        return map(self._with_moments, batches)

    def heldout_batches(self, batch_size: int) -> Iterator[Batch]:
        """One pass over the test split, with `moments`."""
        source = self._sources.get("test", self.work.test)
        return map(self._with_moments, self.work.epoch(source, batch_size, for_denoiser=True))

    def _with_moments(self, batch: Batch) -> Batch:
        if "moments" in batch:
            return batch
        return {**batch, "moments": self._encode(batch["image"])}
