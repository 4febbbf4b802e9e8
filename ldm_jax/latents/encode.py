"""From the flags of `ldm latents encode` to sets of latents: the autoencoder, the data, and the factory on them."""

import logging
from pathlib import Path

from ldm_jax import sharding
from ldm_jax.conditioning.tokenizer import PromptEncoder
from ldm_jax.config import MeshConfig
from ldm_jax.data.sources import load_source
from ldm_jax.files.places import Place
from ldm_jax.interop.starting_point import find_encoders
from ldm_jax.latents.command import EncodeCommand
from ldm_jax.model import require_diffusion_of_pictures
from ldm_jax.training import processes
from ldm_jax.training.latent_factory import LatentFactory, make_factory, require_embeddable, share_of_process
from ldm_jax.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def encode(command: EncodeCommand, run: Place | None, out: Path, batch_size: int) -> list[Path]:
    """Write a set of latents for each split that is asked for, and give their folders.

    Raises:
        UserError: there is no trained autoencoder, the data are missing, or the folder cannot be used.
    """
    experiment = command.experiment
    require_diffusion_of_pictures(experiment)
    with processes.first_before_others():
        sources = {split: load_source(experiment.data, split) for split in dict.fromkeys(command.split)}
    if command.texts:
        require_embeddable(experiment, next(iter(sources.values())))
    processes.note("reading the autoencoder")
    factory = _factory(command, run, batch_size)
    for split, source in sources.items():
        processes.note(f"looking at the latents of the {split} split that are there", "longest")
        factory.write(source, out / split, share_of_process())
    return [out / split for split in sources]


def _factory(command: EncodeCommand, run: Place | None, batch_size: int) -> LatentFactory:
    experiment = command.experiment
    start = find_encoders(experiment, None if run is None else RunFolder(run))
    mesh = sharding.make_mesh(MeshConfig())
    shards = sharding.num_batch_shards(mesh)
    wanted = ("autoencoder", "conditioner") if command.texts else ("autoencoder",)
    return make_factory(
        experiment,
        mesh,
        {name: start.params[name] for name in wanted},
        batch_size=-(-batch_size // shards) * shards,
        encode_caption=PromptEncoder(dict(start.tokenizers)) if command.texts else None,
        with_sizes=command.sizes,
        shard_size=command.shard_size,
    )
