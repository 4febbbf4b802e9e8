"""Text encoders in the YAML files of latent-diffusion, Stable Diffusion and SDXL: classes and their options."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from ldm_jax.config import ClipTextConditioning, SdxlConditioning, TextConditioning, differences
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.ldm_bert import BERT_MARKS, marks_within
from ldm_jax.interop.open_clip import OPEN_CLIP_TOWERS, OPENAI_TOWERS, TextTower, split_architecture

TextStageKind: TypeAlias = Literal["bert", "clip", "open_clip", "sdxl"]

_LDM = "ldm.modules.encoders.modules."
_SGM = "sgm.modules.encoders.modules."
_CONDITIONER = "sgm.modules.GeneralConditioner"
_OPENAI = "openai/clip-vit-large-patch14"
_SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
_NEITHER_HERE_NOR_THERE = ("device", "freeze")


class TextStage(NamedTuple):
    """A text encoder of an original file: which format its weights have, and what it is here."""

    kind: TextStageKind
    config: TextConditioning | ClipTextConditioning | SdxlConditioning


def read_text_stage(target: str, params: Mapping[str, Any], where: str) -> TextStage:
    """The text encoder that a YAML file asks for.

    Args:
        target: its class, of which the last part counts.
        params: its options.
        where: the file, for messages.

    Raises:
        UserError: the class is no text encoder that is known here, or an option is not supported.
    """
    options = Options(params, where)
    match target.rpartition(".")[2]:
        case "BERTEmbedder":
            return TextStage("bert", _read_bert(options, tokenizer=True))
        case "TransformerEmbedder":
            return TextStage("bert", _read_bert(options, tokenizer=False))
        case "FrozenCLIPEmbedder":
            return TextStage("clip", _read_clip(options))
        case "FrozenOpenCLIPEmbedder":
            return TextStage("open_clip", _read_open_clip(options, norm=True))
        case "GeneralConditioner":
            return TextStage("sdxl", _read_sdxl(options))
    known = "BERTEmbedder, TransformerEmbedder, FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder or GeneralConditioner"
    raise options.refuse("target", target, f"the text encoders that can be imported are {known}")


def write_text_stage(stage: TextStage) -> tuple[str, dict[str, Any]]:
    """Class and options of a text encoder for a YAML file.

    Raises:
        UserError: the original class cannot be told to be like this; the message names the fields.
    """
    match stage:
        case TextStage("bert", TextConditioning() as config):
            target, params = f"{_LDM}BERTEmbedder", _write_bert(config)
        case TextStage("clip", ClipTextConditioning() as config):
            target, params = f"{_LDM}FrozenCLIPEmbedder", _write_clip(config)
        case TextStage("open_clip", ClipTextConditioning() as config):
            target, params = f"{_LDM}FrozenOpenCLIPEmbedder", _write_open_clip(config)
        case TextStage("sdxl", SdxlConditioning() as config):
            target, params = _CONDITIONER, _write_sdxl(config)
        case _:
            raise UserError(f"a {type(stage.config).__name__} cannot be written as a text encoder of kind {stage.kind}")
    again = read_text_stage(target, params, target).config
    if lost := list(differences(_deciding(stage.config), _deciding(again))):
        raise UserError(f"{target} cannot be told to be like this text encoder:\n  " + "\n  ".join(lost))
    return target, params


def _read_bert(options: Options, *, tokenizer: bool) -> TextConditioning:
    vocab_size = options.positive("vocab_size", 30522)
    if tokenizer:
        tokenizer = options.take("use_tokenizer", bool, True)
        options.neutral("embedding_dropout", 0.0)
    fields = {
        "vocab_size": vocab_size,
        "context_length": options.positive("max_seq_len", 77),
        "context_dim": options.positive("n_embed", 0),
        "num_layers": options.positive("n_layer", 0),
        **(marks_within(vocab_size) if tokenizer else {"tokens": "boxes"}),  # of its models only layout2img has none
    }
    options.skip(_NEITHER_HERE_NOR_THERE)
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


def _read_clip(options: Options) -> ClipTextConditioning:
    tower = options.choose("version", OPENAI_TOWERS, _OPENAI)
    layer = options.choose("layer", {"last": "last", "hidden": "hidden"}, "last")
    index = options.take_or_none("layer_idx", int, None)
    context: dict[str, Any] = {}
    if layer == "hidden":
        # hidden states are the embedded tokens and the output of each layer
        names = {tower.num_layers: "last", -1: "last", tower.num_layers - 1: "penultimate", -2: "penultimate"}
        if index not in names:
            raise options.refuse("layer_idx", index, f"use {' or '.join(map(str, names))}")
        context = {"context_layer": names[index], "context_norm": False}
    options.neutral("max_length", 77)
    options.neutral("always_return_pooled", False)
    options.skip(_NEITHER_HERE_NOR_THERE)
    return options.build(ClipTextConditioning, **tower._asdict(), **context)


def _write_clip(config: ClipTextConditioning) -> dict[str, Any]:
    params: dict[str, Any] = {"version": _name_of(config, OPENAI_TOWERS)}
    if config.context_norm and config.context_layer == "last":
        return {**params, "layer": "last"}
    index = config.num_layers - (1 if config.context_layer == "penultimate" else 0)
    return {**params, "layer": "hidden", "layer_idx": index}


def _read_open_clip(options: Options, *, norm: bool) -> ClipTextConditioning:
    given = options.take("arch", str, "ViT-H-14")
    name, quick = split_architecture(given)
    if name not in OPEN_CLIP_TOWERS:
        raise options.refuse("arch", given, f"use {', '.join(OPEN_CLIP_TOWERS)}, with -quickgelu or without")
    tower = OPEN_CLIP_TOWERS[name]
    quick = options.take("version", str, "laion2b_s32b_b79k") == "openai" or quick
    layer = options.choose("layer", {"last": "last", "penultimate": "penultimate"}, "last")
    options.neutral("max_length", 77)
    options.skip(_NEITHER_HERE_NOR_THERE)
    return options.build(
        ClipTextConditioning,
        **tower._asdict(),
        activation="quick_gelu" if quick else "gelu",
        context_layer=layer,
        context_norm=norm,
        projection_dim=tower.context_dim,
        pooled_at="largest",
        pad_token=0,
    )


def _write_open_clip(config: ClipTextConditioning) -> dict[str, Any]:
    suffix = "-quickgelu" if config.activation == "quick_gelu" else ""
    return {"arch": _name_of(config, OPEN_CLIP_TOWERS) + suffix, "layer": config.context_layer}


def _read_sdxl(options: Options) -> SdxlConditioning:
    entries = options.take("emb_models", list, [])
    options.finish()
    keys = [entry.get("input_key") if isinstance(entry, Mapping) else None for entry in entries]
    if keys != ["txt", "txt", *_SIZES]:
        remedy = (
            f"only SDXL's two text encoders and sizes can be imported, in this order: txt, txt, {', '.join(_SIZES)}"
        )
        raise options.refuse("emb_models with input_key", keys, remedy)
    first, second, *sizes = (_embedder(entry, f"{options.where}: emb_models[{i}]") for i, entry in enumerate(entries))
    dims = {_size_dim(*size) for size in sizes}
    if len(dims) > 1:
        raise options.refuse("outdim", sorted(dims), "the three sizes are embedded alike")
    trainable = [bool(entry.get("is_trainable")) for entry in entries[:2]]
    if len(set(trainable)) > 1:
        raise options.refuse("is_trainable", trainable, "both text encoders are trained or neither")
    config = {"first": _first_of_sdxl(*first), "second": _second_of_sdxl(*second), "size_dim": dims.pop()}
    return options.build(SdxlConditioning, **config, trainable=trainable[0])


def _embedder(entry: Mapping[str, Any], where: str) -> tuple[str, Options]:
    """Class and options of an entry of `emb_models`; how often it was dropped in training is of no concern here."""
    options = Options(entry, where)
    options.skip(("is_trainable", "ucg_rate", "legacy_ucg_value", "input_key"))
    target, params = options.take("target", str, ""), options.take_or_none("params", dict, None)
    options.finish()
    return target.rpartition(".")[2], Options(params or {}, where)


def _first_of_sdxl(target: str, options: Options) -> ClipTextConditioning:
    if target != "FrozenCLIPEmbedder":
        raise options.refuse("target", target, "SDXL's first text encoder is a FrozenCLIPEmbedder")
    return _read_clip(options)


def _second_of_sdxl(target: str, options: Options) -> ClipTextConditioning:
    if target != "FrozenOpenCLIPEmbedder2":
        raise options.refuse("target", target, "SDXL's second text encoder is a FrozenOpenCLIPEmbedder2")
    for name, needed, default in (("always_return_pooled", True, False), ("legacy", False, True)):
        options.choose(name, {needed: needed}, default)
    return _read_open_clip(options, norm=False)


def _size_dim(target: str, options: Options) -> int:
    if target != "ConcatTimestepEmbedderND":
        raise options.refuse("target", target, "SDXL's sizes are embedded by a ConcatTimestepEmbedderND")
    dim = options.positive("outdim", 0)
    options.finish()
    return dim


def _write_sdxl(config: SdxlConditioning) -> dict[str, Any]:
    second = {**_write_open_clip(config.second), "legacy": False, "always_return_pooled": True}
    entries = [
        ("txt", f"{_SGM}FrozenCLIPEmbedder", _write_clip(config.first)),
        ("txt", f"{_SGM}FrozenOpenCLIPEmbedder2", second),
        *((key, f"{_SGM}ConcatTimestepEmbedderND", {"outdim": config.size_dim}) for key in _SIZES),
    ]
    return {
        "emb_models": [
            {"is_trainable": config.trainable and key == "txt", "input_key": key, "target": target, "params": params}
            for key, target, params in entries
        ]
    }


def _name_of(config: ClipTextConditioning, towers: Mapping[str, TextTower]) -> str:
    """Name of the architecture with these sizes."""
    for name, tower in towers.items():
        if all(getattr(config, field) == value for field, value in tower._asdict().items()):
            return name
    raise UserError(
        f"no architecture is called by name that has context_dim={config.context_dim}, num_layers={config.num_layers} "
        f"and num_heads={config.num_heads}; known: {', '.join(towers)}"
    )


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
