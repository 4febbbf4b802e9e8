"""CLIP's vision transformer as transformers stores it: with a projection or without, or inside a CLIPModel."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning.clip_vision import ClipVisionTransformer
from ldm_jax.config import ClipVisionConfig
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.mapping import SlotOf, TensorSource, read_params, write_tensors
from ldm_jax.interop.transformers.clip import clip_prefix, clip_section, clip_slot, read_clip_layers, write_clip_layers
from ldm_jax.interop.transformers.options import class_of, skip_bookkeeping
from ldm_jax.model import Params

PREFIX = "vision_model."
"""Before every name but the projection's. Transformers 5 leaves it out where there is no projection, and reads both."""

_CLASSES = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel")

_OUTSIDE = {
    "patch": "embeddings.patch_embedding",
    "norm_in": "pre_layrnorm",  # so it is called there
    "norm_out": "post_layernorm",
}


def read_clip_vision_config(
    values: Mapping[str, Any], where: str, *, architecture: str | None = None
) -> ClipVisionConfig:
    """Our configuration from a config.json.

    Args:
        values: the contents of config.json.
        where: the file, for messages.
        architecture: the class, where another file names it; None takes it from `values`.

    Raises:
        UserError: an option is unknown or asks for what the vision transformer here does not have.
    """
    architecture = class_of(values, where, _CLASSES, architecture)
    if architecture == "CLIPModel" or values.get("model_type") == "clip":
        values = clip_section(values, "vision", where)
    options = Options(values, where)
    projection_dim = options.positive("projection_dim", 512)
    fields = {
        "image_size": options.positive("image_size", 224),
        "image_channels": options.positive("num_channels", 3),
        "patch_size": options.positive("patch_size", 32),
        "width": options.positive("hidden_size", 768),
        **read_clip_layers(options, num_heads=12, mlp_dim=3072),
        "projection_dim": None if architecture == "CLIPVisionModel" else projection_dim,
    }
    options.ignore("bos_token_id", "eos_token_id", "pad_token_id")  # listed by old files, without a meaning here
    skip_bookkeeping(options)
    return options.build(ClipVisionConfig, **fields)


def write_clip_vision_config(config: ClipVisionConfig) -> dict[str, Any]:
    """The contents of config.json."""
    projected = config.projection_dim is not None
    return {
        "architectures": ["CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "image_size": config.image_size,
        "num_channels": config.image_channels,
        "patch_size": config.patch_size,
        **write_clip_layers(config, config.width),
    }


def clip_vision_slot(prefix: str = PREFIX) -> SlotOf:
    """The format of the weights, with or without the prefix."""
    return clip_slot(prefix, _OUTSIDE, "visual_projection")


def is_no_vision_weight(name: str) -> bool:
    """Whether a tensor is no parameter of a vision transformer: a count of positions, or CLIP's other half."""
    if name.removeprefix(PREFIX) == "embeddings.position_ids":
        return True
    return name.startswith(("text_model.", "text_projection.")) or name == "logit_scale"


def read_clip_vision(source: TensorSource, config: ClipVisionConfig, where: str) -> Params:
    """The parameters of the vision transformer from the file of any of the three classes.

    Raises:
        UserError: the file does not hold exactly the weights of `config`.
    """
    slot_of = clip_vision_slot(clip_prefix(PREFIX, source.names()))
    return read_params(source, slot_of, abstract_clip_vision(config), where=where, ignore=is_no_vision_weight)


def write_clip_vision(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of CLIPVisionModel, or with a projection of CLIPVisionModelWithProjection, for every transformers."""
    return write_tensors(params, clip_vision_slot())


@functools.cache
def abstract_clip_vision(config: ClipVisionConfig) -> Params:
    """Shapes of the parameters."""
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.image_channels), jnp.float32)
    return jax.eval_shape(ClipVisionTransformer(config).init, jax.random.key(0), image)["params"]
