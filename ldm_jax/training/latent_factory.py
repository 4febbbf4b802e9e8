"""The latent factory: every picture of a data set through the encoder, once, into a set of latents.

Each process encodes shards of its own on its own devices. Nothing is exchanged between them, and what is in a shard
depends neither on their number nor on interruptions: the last bits of a row of a batch depend on its place in it, so a
device never has pictures of two shards at once. They depend on the pictures that a device has at once alone.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ldm_jax import sharding
from ldm_jax.autoencoder.vq import AutoencoderVQ
from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.conditioning.tokenizer import PromptEncoder
from ldm_jax.config import ClipTextConditioning, Experiment, SdxlConditioning
from ldm_jax.config.same_model import autoencoder_form, embedding_form
from ldm_jax.data.latent_manifest import Recipe, data_of
from ldm_jax.data.latent_records import EMBEDDED, ArrayField, Layout
from ldm_jax.data.latent_shards import Share, write_latents
from ldm_jax.data.pipeline import Batch, epoch
from ldm_jax.data.selection import Selection
from ldm_jax.data.source import Example, Source, SourceInfo
from ldm_jax.data.transforms import FitPicture, transform_in_words
from ldm_jax.errors import UserError
from ldm_jax.model import LatentDiffusion, Params, hash_params, make_model
from ldm_jax.training import processes

SHARD_SIZE = 1024

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentFactory:
    """An encoder on the devices of this process, and what else than latents it writes down."""

    experiment: Experiment
    mesh: Mesh
    """Devices of this process."""
    model: LatentDiffusion
    """Made for them."""
    params: Params
    """`autoencoder`, and `conditioner` where captions are embedded, on them."""
    batch_size: int
    """Pictures at once, which the devices divide among them."""
    encode_caption: PromptEncoder | None = None
    """Tokenizer of the captions, if they are embedded."""
    with_sizes: bool = False
    """Whether each record tells how its picture was cut."""
    shard_size: int = SHARD_SIZE

    def write(self, source: Source, folder: Path, share: Share) -> None:
        """Write the latents of a source, or what is missing of them; raises UserError where `write_latents` does."""
        write_latents(folder, self.recipe(source), self.layout, partial(self._examples, source), share)

    def recipe(self, source: Source) -> Recipe:
        """What latents of a source hold."""
        return Recipe(
            info=source.info,
            num_pictures=len(source),
            data=data_of(self.experiment.data),
            transform=transform_in_words(self.experiment.data),
            crop_seed=self._crop_seed(source.info),
            compute_dtype=self.experiment.compute_dtype,
            **self._networks,
            has_sizes=self.with_sizes,
            shard_size=self.shard_size,
        )

    @cached_property
    def layout(self) -> Layout:
        """What each record holds."""
        image = jax.ShapeDtypeStruct((1, *self.model.image_shape), np.float32)
        moments = jax.eval_shape(partial(_moments, self.model), self.params, image)
        is_point = isinstance(self.model.autoencoder, AutoencoderVQ)
        *spatial, channels = moments.shape[1:]
        stored = (self._flips, *spatial, channels // 2 if is_point else channels)
        arrays = {"moments": ArrayField(dtype="float32", shape=stored)}
        if self.with_sizes:
            arrays["sizes"] = ArrayField(dtype="int32", shape=(stored[0], 6))
        if self.encode_caption is not None:
            embedded = jax.eval_shape(self.model.embed_texts, self.params, self.model.null_inputs(1))
            fields = {name: ArrayField(dtype=x.dtype.name, shape=x.shape[1:]) for name, x in embedded.items()}
            arrays |= {name: fields[name] for name in EMBEDDED if name in fields}
        return Layout(arrays=arrays, is_point=is_point)

    @cached_property
    def _networks(self) -> dict[str, Any]:
        autoencoder = identify_autoencoder(self.experiment, self.params)
        if self.encode_caption is None:
            return autoencoder
        return autoencoder | identify_texts(self.experiment, self.params, self.encode_caption)

    @property
    def _flips(self) -> int:
        return 1 + self.experiment.data.horizontal_flip

    def _crop_seed(self, info: SourceInfo) -> int | None:
        """Of where each training picture is cut, once for all epochs; None where that is the centre."""
        is_drawn = self.experiment.data.crop == "random" and info.split == "train"
        return self.experiment.seed if is_drawn else None

    def _examples(self, source: Source, indices: Sequence[int]) -> Iterator[Example]:
        """What is stored of the examples at some indices."""
        of_device = self.batch_size // sharding.num_batch_shards(self.mesh)
        filled, counts = fill_batches(indices, self.shard_size, of_device)
        chosen = Selection(source, filled)
        for batch, arrays in one_ahead(self._encoded(chosen)):
            host = {name: np.asarray(array) for name, array in arrays.items()}
            for row in np.flatnonzero(batch["valid"]).tolist():
                position = int(batch["sample_index"][row])
                if counts[position]:
                    stored = {name: host[name][row] for name in self.layout.arrays}
                    yield {**stored, **chosen.annotation(position)}

    def _encoded(self, chosen: Selection) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Batches, and their arrays as the devices are going to have them."""
        data = self.experiment.data
        fit = FitPicture(data, self._crop_seed(chosen.info), self.with_sizes)
        batches = epoch(
            chosen,
            transforms=[chosen.by_source_index(fit)],
            batch_size=self.batch_size,
            num_threads=data.num_threads,
            encode_caption=self.encode_caption,
        )
        for batch in batches:
            arrays: dict[str, Any] = {"sizes": batch["sizes"][:, : self._flips]} if self.with_sizes else {}
            yield batch, arrays | self._on_devices(batch)

    def _on_devices(self, batch: Batch) -> dict[str, Any]:
        image, data = self._put(batch["image"]), self.experiment.data
        moments = [self._moments(self.params, side) for side in sides_of(image, with_mirror=data.horizontal_flip)]
        arrays = {"moments": _stack(moments)}
        if self.encode_caption is not None:
            tokens = {name: self._put(batch[name]) for name in self.encode_caption.tokenizers}
            arrays |= self._embed_texts(self.params, tokens)
        return arrays

    def _put(self, rows: np.ndarray) -> jax.Array:
        return sharding.put_batch(self.mesh, {"rows": rows})["rows"]

    @cached_property
    def _moments(self) -> Callable[[Params, Array], Array]:
        return make_encoder(self.model)

    @cached_property
    def _embed_texts(self) -> Callable[[Params, Inputs], Inputs]:
        return jax.jit(self.model.embed_texts)


def make_factory(
    experiment: Experiment, mesh: Mesh, params: Params, *, batch_size: int, **options: Any
) -> LatentFactory:
    """The part of this process in a factory on all devices of `mesh`.

    Args:
        experiment: data and model.
        mesh: all devices of all processes.
        params: `autoencoder`, and `conditioner` where captions are embedded, wherever they are.
        batch_size: pictures at once on all of them.
        **options: the other fields of `LatentFactory`.
    """
    own = sharding.own_mesh(mesh)
    params = sharding.place(own, params if own is mesh else jax.tree.map(sharding.to_host, params))
    size = batch_size // sharding.num_batch_shards(mesh) * sharding.num_batch_shards(own)
    return LatentFactory(
        experiment=experiment, mesh=own, model=make_model(experiment, own), params=params, batch_size=size, **options
    )


def share_of_process(*, own_disk: bool = False) -> Share:
    """The share of this process: of work on a disk that all of them see, or all of it on a disk of its own.

    The watch is told of every task, and whenever this process gets on with one: shares are not equal.
    """

    def meet(task: str) -> None:
        if not own_disk:
            processes.barrier("latents", f"waiting to begin {task}")
        processes.note(task)

    if own_disk:
        return Share(meet=meet, advance=processes.advance)
    return Share(index=jax.process_index(), count=jax.process_count(), meet=meet, advance=processes.advance)


def make_encoder(model: LatentDiffusion) -> Callable[[Params, Array], Array]:
    """Parameters and pictures [b, h, w, c] in [-1, 1] to moments [b, h', w', 2c'], compiled.

    Parameters are an argument: as constants they would be part of the program, which would never be found in the
    compilation cache.
    """
    return jax.jit(partial(_moments, model))


def require_embeddable(experiment: Experiment, source: Source) -> None:
    """Refuse to embed captions by what is trained, or captions that are drawn anew for every step.

    Raises:
        UserError: naming the field.
    """
    config = experiment.conditioning
    if not isinstance(config, ClipTextConditioning | SdxlConditioning):
        raise UserError(
            f"--texts embeds captions by a text encoder of CLIP or by SDXL's two; conditioning={type(config).__name__} "
            "is neither"
        )
    if config.trainable:
        raise UserError(
            "--texts embeds captions by a text encoder that stays as it is: use --conditioning.no-trainable"
        )
    if source.info.max_tags:
        raise UserError(
            f"--texts embeds one caption for each picture, and training on {source.info.name} puts other keywords "
            "behind it each time; leave them out with --data.source.max-tags 0"
        )


def sides_of(image: Float[Array, "b h w c"], *, with_mirror: bool) -> Iterator[Float[Array, "b h w c"]]:
    """Pictures, and their mirror images where training sees those, too."""
    yield image
    if with_mirror:
        yield _mirror(image)


@jax.jit
def _mirror(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return image[:, :, ::-1]


def identify_autoencoder(experiment: Experiment, params: Params) -> dict[str, Any]:
    """The fields of a recipe that tell which autoencoder makes latents: its parameters, and what it does with them."""
    config = autoencoder_form(experiment.first_stage.autoencoder)
    return {"autoencoder": hash_params(params["autoencoder"]), "autoencoder_config": config}


def identify_texts(experiment: Experiment, params: Params, encode_caption: PromptEncoder) -> dict[str, Any]:
    """The same of a text encoder (CLIP's or SDXL's two) and its tokenizers."""
    digest = hashlib.sha256(hash_params(params["conditioner"]).encode())
    for name, tokenizer in sorted(encode_caption.tokenizers.items()):
        digest.update(f"{name} {tokenizer.to_str()}".encode())
    assert isinstance(experiment.conditioning, ClipTextConditioning | SdxlConditioning)
    return {"texts": digest.hexdigest(), "conditioning": embedding_form(experiment.conditioning)}


def fill_batches(indices: Sequence[int], shard_size: int, batch_size: int) -> tuple[list[int], list[bool]]:
    """Indices of whole shards, of which each fills up its last batch with its last index, and which of them count."""
    filled: list[int] = []
    counts: list[bool] = []
    for _, shard in itertools.groupby(indices, lambda index: index // shard_size):
        own = list(shard)
        spare = -len(own) % batch_size
        filled += own + own[-1:] * spare
        counts += [True] * len(own) + [False] * spare
    return filled, counts


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each given out when the next is there: what the next starts goes on beside the work on it."""
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.pop(0)
    yield from held


def _moments(
    model: LatentDiffusion, params: Params, image: Float[Array, "b *spatial c"]
) -> Float[Array, "b *latent d"]:
    return model.encode(params, image).moments


def _stack(moments: list[jax.Array]) -> jax.Array:
    return jax.numpy.stack(moments, axis=1)
