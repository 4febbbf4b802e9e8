"""The samples of a run as a set of pictures: sample i is the same whatever is drawn before it or with it.

Conditions are dealt out in turn, so that any number of samples is as even as it can be: class i mod K, the caption of
held-out picture i mod N, or none.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ldm_jax import sharding
from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.conditioning.tokenizer import token_inputs
from ldm_jax.config import ClassConditioning, MeshConfig, SamplingConfig, to_dict
from ldm_jax.data.preparation import digest
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.evaluation.fingerprint import tree_fingerprint
from ldm_jax.evaluation.pictures import PictureSet
from ldm_jax.model import make_model, require_diffusion_of_pictures
from ldm_jax.sampling.batches import BatchDrawer, guidance_numbers
from ldm_jax.sampling.generate import Method, Request
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
    captions = _captions(session)
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices())
    drawer = BatchDrawer(make_model(session.experiment, mesh), session.params, session.sampler(config), config, mesh)
    size = drawer.batch_size(batch_size, batch_size)

    def read(start: int, stop: int) -> UInt8[np.ndarray, "b h w c"]:
        index = np.arange(start, start + size)
        inputs, null = _inputs(session, index, captions), session.model.conditioner.null_inputs(size)
        method = Method(guided=config.guidance_scale != 1.0 and bool(inputs), calls=config.guidance_calls)
        request = Request(inputs, null, guidance_numbers(config, [config.guidance_scale] * size))
        return drawer.draw(request, method, np.full(size, seed), index)[: stop - start]

    weights, used = tree_fingerprint(session.params), _used(config)
    experiment = to_dict(session.experiment)
    told = [captions, experiment["diffusion"]] + ([] if session.given.is_empty else [experiment["given"]])
    about = {"kind": "samples", "path": name, "seed": seed, "sampling": used, "weights_sha256": weights}
    return PictureSet(
        name=name,
        fingerprint=digest(["samples", weights, used, seed, *told]),
        count=count,
        read=read,
        about={**about, "conditions": _kind(session)},
        drawn=True,
    )


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


def _captions(session: Session) -> list[str]:
    if not token_inputs(session.experiment.conditioning):
        return []
    source = load_source(session.experiment.data, "test")
    if not source.info.has_captions:
        raise UserError(f"the data set {source.info.name} has no captions, from which prompts could be drawn")
    return [source.annotation(i)["caption"] for i in range(len(source))]


def _inputs(session: Session, index: np.ndarray, captions: list[str]) -> Inputs:
    return _told(session, index, captions) | _given(session, index)


def _given(session: Session, index: np.ndarray) -> Inputs:
    """What held-out pictures in turn give to a model that is given something."""
    shelf = session.given
    rows = [] if shelf.is_empty else [shelf.of_heldout(int(i) % len(shelf.heldout)) for i in index]
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows) if rows else {}


def _told(session: Session, index: np.ndarray, captions: list[str]) -> Inputs:
    conditioning = session.experiment.conditioning
    if captions:
        return session.prompt_inputs([captions[i % len(captions)] for i in index])
    if isinstance(conditioning, ClassConditioning):
        return session.class_inputs([str(i % conditioning.num_classes) for i in index])
    return session.null_inputs(len(index))
