"""Text encoders in the YAML files of latent-diffusion, Stable Diffusion and SDXL: classes and their options.

The options of CLIP are in `clip_options`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from ldm_jax.config import ClipTextConditioning, SdxlConditioning, TextConditioning, differences
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.clip_options import (
    NEITHER_HERE_NOR_THERE,
    FindModel,
    find_none,
    published,
    read_clip,
    read_open_clip,
    write_clip,
    write_open_clip,
)
from ldm_jax.interop.original.open_clip import OPENAI_TOWERS
from ldm_jax.interop.transformers.ldm_bert import BERT_MARKS, marks_within
from ldm_jax.interop.transformers.text import write_clip_text_config

TextStageKind: TypeAlias = Literal["bert", "clip", "open_clip", "sdxl"]
TextConfig: TypeAlias = TextConditioning | ClipTextConditioning | SdxlConditioning

LDM, SGM = "ldm.modules.encoders.modules.", "sgm.modules.encoders.modules."
CONDITIONER = "sgm.modules.GeneralConditioner"
_SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")


class TextStage(NamedTuple):
    """A text encoder of an original file: which format its weights have, and what it is here."""

    kind: TextStageKind
    config: TextConfig


def text_stage_of(config: TextConfig) -> TextStage:
    """The format of a text encoder of ours: of OpenCLIP's, every one has a projection, of transformers' none.

    Raises:
        UserError: no other system has it.
    """
    match config:
        case TextConditioning(tokens_per_box=1):
            raise UserError(
                "conditioning.tokens_per_box=1 gives each box one place of the context, which no other system here "
                "does; write it as a run"
            )
        case TextConditioning():
            return TextStage("bert", config)
        case ClipTextConditioning():
            return TextStage("clip" if config.projection_dim is None else "open_clip", config)
        case SdxlConditioning():
            return TextStage("sdxl", config)


def read_text_stage(target: str, options: Options, find_model: FindModel = find_none) -> TextStage:
    """The text encoder that a YAML file asks for.

    Args:
        target: its class, of which the last part counts.
        options: its options.
        find_model: where a CLIP is found whose `version` is not the name of a published one.

    Raises:
        UserError: the class is no text encoder that is known here, or an option is not supported.
    """
    match target.rpartition(".")[2]:
        case "BERTEmbedder":
            return TextStage("bert", _read_bert(options, tokenizer=True))
        case "TransformerEmbedder":
            return TextStage("bert", _read_bert(options, tokenizer=False))
        case "FrozenCLIPEmbedder":
            return TextStage("clip", read_clip(options, find_model))
        case "FrozenOpenCLIPEmbedder":
            return TextStage("open_clip", read_open_clip(options, norm=True))
        case "GeneralConditioner":
            return TextStage("sdxl", _read_sdxl(options, find_model))
    known = "BERTEmbedder, TransformerEmbedder, FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder or GeneralConditioner"
    raise options.refused("target", target, f"the text encoders that can be imported are {known}")


def write_text_stage(stage: TextStage, folder: str | None = None) -> tuple[str, dict[str, Any]]:
    """Class and options of a text encoder for a YAML file.

    Args:
        stage: the text encoder.
        folder: name of the folder that holds `model_to_write(stage)`, where that is not None.

    Raises:
        UserError: the original class cannot be told to be like this; the message names the fields.
    """
    model = None if folder is None else model_to_write(stage)
    folder = None if model is None else folder
    match stage:
        case TextStage("bert", TextConditioning() as config):
            target, params = f"{LDM}BERTEmbedder", _write_bert(config)
        case TextStage("clip", ClipTextConditioning() as config):
            target, params = f"{LDM}FrozenCLIPEmbedder", write_clip(config, folder)
        case TextStage("open_clip", ClipTextConditioning() as config):
            target, params = f"{LDM}FrozenOpenCLIPEmbedder", write_open_clip(config)
        case TextStage("sdxl", SdxlConditioning() as config):
            target, params = CONDITIONER, _write_sdxl(config, folder)
        case _:
            raise UserError(f"a {type(stage.config).__name__} cannot be written as a text encoder of kind {stage.kind}")
    again = read_text_stage(target, Options(params, target), {folder: model}.get).config
    if lost := list(differences(_deciding(stage.config), _deciding(again))):
        raise UserError(f"{target} cannot be told to be like this text encoder:\n  " + "\n  ".join(lost))
    return target, params


def model_to_write(stage: TextStage) -> dict[str, Any] | None:
    """The config.json of the CLIP of transformers that a text encoder has, where it is none of the published ones.

    Raises:
        UserError: transformers has no such model.
    """
    config = stage.config.first if isinstance(stage.config, SdxlConditioning) else stage.config
    if not isinstance(config, ClipTextConditioning) or stage.kind == "open_clip":
        return None
    plain = dataclasses.replace(config, context_layer="last", context_norm=True)  # what transformers' files do not say
    if any(_deciding(plain) == _deciding(published(tower)) for tower in OPENAI_TOWERS.values()):
        return None
    return write_clip_text_config(plain)


# --- LDM's own text encoder ------------------------------------------------------------------------------------------


def _read_bert(options: Options, *, tokenizer: bool) -> TextConditioning:
    vocab_size = options.positive("vocab_size", 30522)
    if tokenizer:
        tokenizer = options.flag("use_tokenizer", True)
        options.only("embedding_dropout", 0.0)
    fields = {
        "vocab_size": vocab_size,
        "context_length": options.positive("max_seq_len", 77),
        "context_dim": options.positive("n_embed"),
        "num_layers": options.positive("n_layer"),
        **(marks_within(vocab_size) if tokenizer else {"tokens": "boxes"}),  # of its models only layout2img has none
    }
    options.ignore(*NEITHER_HERE_NOR_THERE)
    # what x-transformers takes whatever the width
    return options.build(TextConditioning, num_heads=8, num_head_channels=64, **fields)


def _write_bert(config: TextConditioning) -> dict[str, Any]:
    marks = {name: getattr(config, name) for name in BERT_MARKS}
    return {
        "n_embed": config.context_dim,
        "n_layer": config.num_layers,
        "vocab_size": config.vocab_size,
        "max_seq_len": config.context_length,
        "use_tokenizer": marks == BERT_MARKS and config.tokens == "captions",
    }


# --- SDXL's two ------------------------------------------------------------------------------------------------------


def _read_sdxl(options: Options, find_model: FindModel) -> SdxlConditioning:
    entries = options.entries("emb_models")
    options.finish()
    keys = [entry.get("input_key") if isinstance(entry, Mapping) else None for entry in entries]
    if keys != ["txt", "txt", *_SIZES]:
        remedy = (
            f"only SDXL's two text encoders and sizes can be imported, in this order: txt, txt, {', '.join(_SIZES)}"
        )
        raise options.refused("emb_models with input_key", keys, remedy)
    first, second, *sizes = (_embedder(entry, f"{options.where}: emb_models[{i}]") for i, entry in enumerate(entries))
    dims = {_size_dim(*size) for size in sizes}
    if len(dims) > 1:
        raise options.refused("outdim", sorted(dims), "the three sizes are embedded alike")
    trainable = [bool(entry.get("is_trainable")) for entry in entries[:2]]
    if len(set(trainable)) > 1:
        raise options.refused("is_trainable", trainable, "both text encoders are trained or neither")
    texts = {"first": _first_of_sdxl(*first, find_model), "second": _second_of_sdxl(*second)}
    return options.build(SdxlConditioning, **texts, size_dim=dims.pop(), trainable=trainable[0])


def _embedder(entry: Mapping[str, Any], where: str) -> tuple[str, Options]:
    """Class and options of an entry of `emb_models`; how often it was dropped in training is of no concern here."""
    options = Options(entry, where)
    options.ignore("is_trainable", "ucg_rate", "legacy_ucg_value", "input_key")
    target, params = options.text("target"), options.table_or_none("params")
    options.finish()
    return target.rpartition(".")[2], Options(params or {}, where)


def _first_of_sdxl(target: str, options: Options, find_model: FindModel) -> ClipTextConditioning:
    if target != "FrozenCLIPEmbedder":
        raise options.refused("target", target, "SDXL's first text encoder is a FrozenCLIPEmbedder")
    return read_clip(options, find_model)


def _second_of_sdxl(target: str, options: Options) -> ClipTextConditioning:
    if target != "FrozenOpenCLIPEmbedder2":
        raise options.refused("target", target, "SDXL's second text encoder is a FrozenOpenCLIPEmbedder2")
    for name, needed, default in (("always_return_pooled", True, False), ("legacy", False, True)):
        options.choose(name, (needed,), default)
    return read_open_clip(options, norm=False)


def _size_dim(target: str, options: Options) -> int:
    if target != "ConcatTimestepEmbedderND":
        raise options.refused("target", target, "SDXL's sizes are embedded by a ConcatTimestepEmbedderND")
    dim = options.positive("outdim")
    options.finish()
    return dim


def _write_sdxl(config: SdxlConditioning, folder: str | None) -> dict[str, Any]:
    second = {**write_open_clip(config.second), "legacy": False, "always_return_pooled": True}
    entries = [
        ("txt", f"{SGM}FrozenCLIPEmbedder", write_clip(config.first, folder)),
        ("txt", f"{SGM}FrozenOpenCLIPEmbedder2", second),
        *((key, f"{SGM}ConcatTimestepEmbedderND", {"outdim": config.size_dim}) for key in _SIZES),
    ]
    return {
        "emb_models": [
            {"is_trainable": config.trainable and key == "txt", "input_key": key, "target": target, "params": params}
            for key, target, params in entries
        ]
    }


def _deciding(config: Any) -> Any:
    """The configuration without what the YAML of a text encoder does not say: tokens, training, where weights are.

    Two ways to say the same become one.
    """
    same: dict[str, Any] = {name: 0 for name in ("begin_token", "end_token", "pad_token")}
    match config:
        case SdxlConditioning():
            halves = {"first": _deciding(config.first), "second": _deciding(config.second)}
            return dataclasses.replace(config, no_prompt="empty", **halves)
        case ClipTextConditioning():
            same |= {"folder": None, "trainable": False, "pooled_at": "end"}
        case TextConditioning():
            same["tokens"] = "captions"
            same["num_head_channels"] = config.num_head_channels or config.context_dim // config.num_heads
    return dataclasses.replace(config, mlp_dim=config.mlp_dim or 4 * config.context_dim, **same)
