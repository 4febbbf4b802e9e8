"""The samples of a run as a set of pictures: sample i is the same whatever is drawn before it or with it.

Conditions are dealt out in turn, so that any number of samples is as even as it can be: class i mod K, the caption of
held-out picture i mod N, or none.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from ldm_jax import sharding
from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.conditioning.tokenizer import token_inputs
from ldm_jax.config import ClassConditioning, MeshConfig, SamplingConfig, to_dict
from ldm_jax.data.preparation import digest
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.evaluation.command import EvaluateCommand
from ldm_jax.evaluation.pictures import PictureSet
from ldm_jax.model import make_model, require_diffusion_of_pictures
from ldm_jax.sampling.batches import BatchDrawer, guidance_numbers
from ldm_jax.sampling.generate import Method, Request
from ldm_jax.sampling.model_hash import model_hash
from ldm_jax.sampling.session import Session


def drawn_pictures(
    session: Session, config: SamplingConfig, *, name: str, count: int, seed: int, batch_size: int
) -> PictureSet:
    """`count` samples of a model, drawn when they are read.

    Raises:
        UserError: the model draws no pictures, or the sampler does not fit it.
    """
    session.require_denoiser()
    require_diffusion_of_pictures(session.experiment)
    captions = held_out_captions(session)
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices())
    local = dataclasses.replace(
        session, model=make_model(session.experiment, mesh), params=sharding.within_reach(session.params)
    )
    read = sample_reader(local, config, mesh, captions, seed=seed, batch_size=batch_size)
    weights, used = model_hash(session), _used(config)
    experiment = to_dict(session.experiment)
    told = [captions, experiment["diffusion"]]
    if not session.given.is_empty:
        told += [experiment["given"], session.given.heldout.info.fingerprint]
    about = {"kind": "samples", "path": name, "seed": seed, "sampling": used, "weights_sha256": weights}
    about |= {"autoencoder_sha256": model_hash(session, "autoencoder")}
    return PictureSet(
        name=name,
        fingerprint=digest(["samples", weights, used, seed, *told]),
        count=count,
        read=read,
        about={**about, "conditions": _kind(session)},
    )


def sampling_of(command: EvaluateCommand, default: SamplingConfig) -> SamplingConfig:
    """The sampling configuration of a model with the flags that were given; raises UserError where one of them would
    do nothing."""
    names = ("sampler", "num_sample_steps", "guidance_scale", "eta")
    given = {name: getattr(command, name) for name in names if getattr(command, name) is not None}
    config = dataclasses.replace(default, **given)
    config.require_used(given)
    return config


def dealt_captions(session: Session, count: int) -> list[str]:
    """The caption of each sample.

    Raises:
        UserError: the model takes no captions, or its data set has none.
    """
    captions = held_out_captions(session)
    if not captions:
        raise UserError(f"{session.experiment.name} takes no prompts, to which its pictures could belong")
    return [captions[i % len(captions)] for i in range(count)]


def sample_reader(
    session: Session,
    config: SamplingConfig,
    mesh: Mesh,
    captions: Sequence[str],
    *,
    seed: int,
    batch_size: int,
) -> Callable[[int, int], UInt8[np.ndarray, "b h w c"]]:
    """What draws the samples from an index up to another one, at most `batch_size` later, on the devices of a mesh for
    which the model was made.

    Raises:
        UserError: the sampler does not fit the model; when it is called, the pictures are not finite numbers.
    """
    drawer = BatchDrawer(session.model, session.params, session.sampler(config), config, mesh)
    size = drawer.batch_size(batch_size, batch_size)

    def read(start: int, stop: int) -> UInt8[np.ndarray, "b h w c"]:
        index = np.arange(start, start + size)
        inputs, null = _inputs(session, index, captions), session.model.conditioner.null_inputs(size)
        method = Method(guided=config.guidance_scale != 1.0 and bool(inputs), calls=config.guidance_calls)
        request = Request(inputs, null, guidance_numbers(config, [config.guidance_scale] * size))
        return drawer.draw(request, method, np.full(size, seed), index)[: stop - start]

    return read


def _used(config: SamplingConfig) -> dict:
    """The fields that decide what a sample is."""
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in ("prompts", "samples_per_prompt")}


def _kind(session: Session) -> str:
    conditioning = session.experiment.conditioning
    if not session.given.is_empty:
        return f"{type(session.experiment.given).__name__} of held-out pictures in turn"
    if token_inputs(conditioning):
        return "held-out captions in turn"
    return "classes in turn" if isinstance(conditioning, ClassConditioning) else "none"


def held_out_captions(session: Session) -> list[str]:
    """The captions that samples are drawn for; none where the model takes no prompts.

    Raises:
        UserError: it does, and the data have none.
    """
    if not token_inputs(session.experiment.conditioning):
        return []
    source = load_source(session.experiment.data, "test")
    if not source.info.has_captions:
        raise UserError(f"the data set {source.info.name} has no captions, from which prompts could be drawn")
    return [source.annotation(i)["caption"] for i in range(len(source))]


def _inputs(session: Session, index: np.ndarray, captions: Sequence[str]) -> Inputs:
    return _told(session, index, captions) | heldout_given(session, index)


def heldout_given(session: Session, index: np.ndarray) -> Inputs:
    """What held-out pictures in turn give to a model that is given something; nothing to another."""
    shelf = session.given
    rows = [] if shelf.is_empty else [shelf.of_heldout(int(i) % len(shelf.heldout)) for i in index]
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows) if rows else {}


def _told(session: Session, index: np.ndarray, captions: Sequence[str]) -> Inputs:
    conditioning = session.experiment.conditioning
    if captions:
        return session.prompt_inputs([captions[int(i) % len(captions)] for i in index])
    if isinstance(conditioning, ClassConditioning):
        return session.class_inputs([str(i % conditioning.num_classes) for i in index])
    return session.null_inputs(len(index))
