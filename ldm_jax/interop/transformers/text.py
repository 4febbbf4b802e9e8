"""CLIP's text transformer as transformers stores it: CLIPTextModel, CLIPTextModelWithProjection, or inside CLIPModel.

Which layer's output a pipeline uses is not in its files: Stable Diffusion takes the last one, SDXL the one before
without the final normalisation (`sdxl_conditioning`). The marks around a prompt are the tokenizer's; the ids in a
config.json only say where the embedding of the whole caption is read, and old files have a wrong one (2) that means
the largest id.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning.clip_text import ClipTextTransformer
from ldm_jax.config import ClipTextConditioning, SdxlConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.mapping import SlotOf, TensorSource, read_params, write_tensors
from ldm_jax.interop.transformers.clip import clip_prefix, clip_section, clip_slot, read_clip_layers, write_clip_layers
from ldm_jax.interop.transformers.options import class_of, skip_bookkeeping
from ldm_jax.model import Params

PREFIX = "text_model."
"""Before every name but the projection's. Transformers 5 leaves it out where there is no projection, and reads both."""

_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel")
_LEGACY_END = 2

_OUTSIDE = {"token": "embeddings.token_embedding", "norm_out": "final_layer_norm"}


def read_clip_text_config(
    values: Mapping[str, Any], where: str, *, architecture: str | None = None
) -> ClipTextConditioning:
    """Our configuration from a config.json.

    The marks are those of the file, or the last two entries of the vocabulary, as in CLIP's own, where the file is old
    or names none that exist. A tokenizer's folder knows better.

    Args:
        values: the contents of config.json.
        where: the file, for messages.
        architecture: the class, where another file names it (model_index.json); None takes it from `values`.

    Raises:
        UserError: an option is unknown or asks for what the text transformer here does not have.
    """
    architecture = class_of(values, where, _CLASSES, architecture)
    if architecture == "CLIPModel" or values.get("model_type") == "clip":
        values = clip_section(values, "text", where)
    options = Options(values, where)
    vocab_size = options.positive("vocab_size", 49408)
    projection_dim = options.positive("projection_dim", 512)
    fields = {
        "vocab_size": vocab_size,
        "context_length": options.positive("max_position_embeddings", 77),
        "context_dim": options.positive("hidden_size", 512),
        **read_clip_layers(options, num_heads=8, mlp_dim=2048),
        "projection_dim": None if architecture == "CLIPTextModel" else projection_dim,
        **_read_marks(options, vocab_size),
    }
    skip_bookkeeping(options)
    return options.build(ClipTextConditioning, **fields)


def write_clip_text_config(config: ClipTextConditioning) -> dict[str, Any]:
    """The contents of config.json.

    Raises:
        UserError: transformers' pipelines cannot use this context, or its files cannot say where the pooled text is.
    """
    layer, norm = config.context_layer, config.context_norm
    if (layer, norm) not in (("last", True), ("penultimate", False)):
        raise UserError(
            f"context_layer={layer} with context_norm={norm} cannot be written for transformers, whose pipelines use "
            "the last layer with the norm or the penultimate one without; end_at_context makes an equal model of the "
            "penultimate one with the norm"
        )
    if config.pooled_at == "end" and config.end_token == _LEGACY_END:
        raise UserError(
            "end_token=2 with pooled_at=end cannot be written for transformers, which takes an eos_token_id of 2 for "
            "the largest token id; use pooled_at=largest if the end mark is the largest id, or another end mark"
        )
    projected = config.projection_dim is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        **write_clip_layers(config, config.context_dim),
        "bos_token_id": config.begin_token,
        "eos_token_id": config.end_token if config.pooled_at == "end" else _LEGACY_END,
        "pad_token_id": config.pad_token,
    }


def sdxl_conditioning(first: ClipTextConditioning, second: ClipTextConditioning, size_dim: int) -> SdxlConditioning:
    """SDXL's conditioner of the configurations of `text_encoder` and `text_encoder_2`.

    Raises:
        UserError: the second has no projection.
    """
    first, second = (
        dataclasses.replace(config, context_layer="penultimate", context_norm=False) for config in (first, second)
    )
    return SdxlConditioning(first=first, second=second, size_dim=size_dim)


def end_at_context(config: ClipTextConditioning, params: Params) -> tuple[ClipTextConditioning, Params]:
    """A transformer of one layer less with the same context, from one whose context is the normalised penultimate one.

    This is how SD 2 is distributed for diffusers. The pooled text, which SD 2 does not use, would be another one; so
    the projection goes too.

    Raises:
        UserError: the context is another one, or there is no layer to spare.
    """
    if config.context_layer != "penultimate" or not config.context_norm or config.num_layers < 2:
        raise UserError(
            f"context_layer={config.context_layer}, context_norm={config.context_norm} and num_layers="
            f"{config.num_layers} leave no layer out; it takes penultimate, True and at least 2"
        )
    shorter = dataclasses.replace(config, context_layer="last", num_layers=config.num_layers - 1, projection_dim=None)
    unused = (f"layer_{shorter.num_layers}", "projection")
    return shorter, {name: value for name, value in params.items() if name not in unused}


def clip_text_slot(prefix: str = PREFIX) -> SlotOf:
    """The format of the weights, with or without the prefix."""
    return clip_slot(prefix, _OUTSIDE, "text_projection")


def _read_marks(options: Options, vocab_size: int) -> dict[str, Any]:
    """Where the pooled text is read, and the marks."""
    end = options.whole("eos_token_id", 49407)
    begin, pad = (
        options.whole_or_none(name, default) for name, default in (("bos_token_id", 49406), ("pad_token_id", 1))
    )
    if end == _LEGACY_END:
        marks = {"begin_token": vocab_size - 2, "end_token": vocab_size - 1, "pad_token": vocab_size - 1}
        return {"pooled_at": "largest", **marks}
    if not 0 <= end < vocab_size:
        raise options.refused(
            "eos_token_id", end, f"it has to be in the vocabulary of {vocab_size}, or 2 for the largest id"
        )
    inside = range(vocab_size)
    return {
        "pooled_at": "end",
        "begin_token": begin if begin in inside else vocab_size - 2,
        "end_token": end,
        "pad_token": pad if pad in inside else end,
    }


def clip_text_prefix(names: Iterable[str] | None, before: str = "") -> str:
    """The prefix that a file with these names uses, or else the usual one, behind what stands `before` every name."""
    return clip_prefix(PREFIX, names, before)


def is_buffer(name: str) -> bool:
    """Whether a tensor is the count of positions that old files store."""
    return name.removeprefix(PREFIX) == "embeddings.position_ids"


def is_no_text_weight(name: str) -> bool:
    """Whether a tensor is no parameter of a text transformer, but a buffer or of CLIP's other half."""
    return is_buffer(name) or name.startswith(("vision_model.", "visual_projection.")) or name == "logit_scale"


def read_clip_text(source: TensorSource, config: ClipTextConditioning, where: str) -> Params:
    """The parameters of the text transformer from the file of any of the three classes.

    Raises:
        UserError: the file does not hold exactly the weights of `config`.
    """
    slot_of = clip_text_slot(clip_text_prefix(source.names()))
    return read_params(source, slot_of, abstract_clip_text(config), where=where, ignore=is_no_text_weight)


def write_clip_text(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of CLIPTextModel, or with a projection of CLIPTextModelWithProjection, for every transformers."""
    return write_tensors(params, clip_text_slot())


@functools.cache
def abstract_clip_text(config: ClipTextConditioning) -> Params:
    """Shapes of the parameters."""
    tokens = jax.ShapeDtypeStruct((1, config.context_length), jnp.int32)
    return jax.eval_shape(ClipTextTransformer(config).init, jax.random.key(0), {"tokens": tokens})["params"]
