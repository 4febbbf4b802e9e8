"""The conditioning stages of the original code (`cond_stage_config`, sgm: `emb_models`), to our configuration and back.

Text encoders name a published model; its sizes are in the tables below.
"""

from collections.abc import Callable, Iterator
from typing import Any

from ldm_jax.config import (
    ClassConditioning,
    ClipTextConditioning,
    Conditioning,
    SdxlConditioning,
    SpatialConditioning,
    TextConditioning,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.original_options import Options

LDM, SGM = "ldm.modules.encoders.modules.", "sgm.modules.encoders.modules."
_NULL_CLASS_ENTRIES = 1001  # ImageNet's classes and one for none (cin256-v2)

_CLIP = {  # width, layers, heads
    "openai/clip-vit-large-patch14": (768, 12, 12),
    "openai/clip-vit-base-patch32": (512, 12, 8),
    "openai/clip-vit-base-patch16": (512, 12, 8),
}
_OPEN_CLIP = {  # width, layers, heads; the projection is as wide
    "ViT-H-14": (1024, 24, 16),
    "ViT-bigG-14": (1280, 32, 20),
    "ViT-g-14": (1024, 24, 16),
    "ViT-L-14": (768, 12, 12),
    "ViT-B-32": (512, 12, 8),
}
_BERT = {"vocab_size": 30522, "begin_token": 101, "end_token": 102, "pad_token": 0}  # bert-base-uncased
_BERT_HEADS = {"num_heads": 8, "num_head_channels": 64}  # the defaults of the transformer that it trains


def conditioning_from_options(target: str, options: Options, null_class: bool | None = None) -> Conditioning:
    """The conditioner that a class and its options describe.

    Args:
        target: the class.
        options: its options.
        null_class: whether the last class of a table stands for none; None takes it so where the table has 1001
            entries, or where training drops classes (`ucg_rate`).

    Raises:
        UserError: the class or an option is not known, or has a value that is not supported.
    """
    library, _, name = target.rpartition(".")
    if f"{library}." not in (LDM, SGM) or name not in _READERS:
        raise UserError(f"{options.where}: target={target} is not supported; known: {', '.join(_READERS)}")
    conditioning = _classes(options, null_class) if name == "ClassEmbedder" else _READERS[name](options)
    options.finish()
    return conditioning


def _classes(options: Options, null_class: bool | None = None) -> ClassConditioning:
    options.ignore("key")
    entries, dropped = options.whole("n_classes", 1000), options.number("ucg_rate", 0.0)
    if "add_sequence_dim" in options:  # sgm adds a vector without it
        options.only("add_sequence_dim", True, "the class is a token of the context")
    null = True if null_class is None and dropped > 0 else null_class
    return _classes_of(entries, null, options.whole("embed_dim"))


def _classes_of(entries: int, null_class: bool | None, width: int) -> ClassConditioning:
    null = null_class if null_class is not None else entries == _NULL_CLASS_ENTRIES
    return ClassConditioning(num_classes=entries - null, null_class=null, context_dim=width)


def label_conditioning(entries: int, null_class: bool | None = None) -> ClassConditioning:
    """Classes that the U-Net embeds itself: the table of tokens here has nobody who looks at it, and one column."""
    return _classes_of(entries, null_class, 1)


def _map(options: Options) -> SpatialConditioning:
    options.one_of("method", ("bilinear", "area"), "bilinear")  # by 1/2 both are means of 2x2 positions
    options.only("multiplier", 0.5, "each stage halves the map")
    options.only("bias", False, "the channel mapper has no bias")
    out_channels = options.whole_or_none("out_channels")
    return SpatialConditioning(
        in_channels=options.whole("in_channels", 3),
        num_stages=options.whole("n_stages", 1),
        out_channels=out_channels,
    )


def _bert(options: Options) -> TextConditioning:
    options.ignore("device")
    options.only("embedding_dropout", 0.0, "embeddings are not dropped")
    captions = options.flag("use_tokenizer", True)
    marks = _BERT if captions else {}
    vocab_size = options.whole("vocab_size", _BERT["vocab_size"])
    return TextConditioning(
        **{**marks, **_BERT_HEADS, "vocab_size": vocab_size},  # pyright: ignore[reportArgumentType]
        tokens="captions" if captions else "boxes",
        context_length=options.whole("max_seq_len", 77),
        context_dim=options.whole("n_embed"),
        num_layers=options.whole("n_layer"),
    )


def _clip(options: Options) -> ClipTextConditioning:
    options.ignore("device", "freeze", "always_return_pooled")
    width, layers, heads = _CLIP[options.one_of("version", _CLIP, "openai/clip-vit-large-patch14")]
    layer, index = options.one_of("layer", ("last", "hidden"), "last"), options.whole_or_none("layer_idx")
    if layer == "hidden" and index not in (layers - 1, -2):
        raise options.refused("layer_idx", index, f"use the last but one, {layers - 1} or -2")
    return ClipTextConditioning(
        context_length=options.whole("max_length", 77),
        context_dim=width,
        num_layers=layers,
        num_heads=heads,
        context_layer="penultimate" if layer == "hidden" else "last",
        context_norm=layer == "last",
    )


def _open_clip(options: Options, *, legacy: bool = True, projected: bool = False) -> ClipTextConditioning:
    options.ignore("device", "freeze", "always_return_pooled")
    width, layers, heads = _OPEN_CLIP[options.one_of("arch", _OPEN_CLIP, "ViT-H-14")]
    layer = options.one_of("layer", ("last", "penultimate"), "last")
    if layer == "last" and not legacy:
        raise options.refused("layer", layer, "without `legacy` it has no final normalisation; use penultimate")
    return ClipTextConditioning(
        context_length=options.whole("max_length", 77),
        context_dim=width,
        num_layers=layers,
        num_heads=heads,
        activation="quick_gelu" if options.raw("version", "") == "openai" else "gelu",
        context_layer=layer,
        context_norm=legacy,
        projection_dim=width if projected else None,
        pooled_at="largest",
        pad_token=0,
    )


def _open_clip_2(options: Options) -> ClipTextConditioning:
    legacy = options.flag("legacy", True)
    return _open_clip(options, legacy=legacy, projected=not legacy)


_READERS: dict[str, Callable[[Options], Conditioning]] = {
    "ClassEmbedder": _classes,
    "SpatialRescaler": _map,
    "BERTEmbedder": _bert,
    "FrozenCLIPEmbedder": _clip,
    "FrozenOpenCLIPEmbedder": _open_clip,
    "FrozenOpenCLIPEmbedder2": _open_clip_2,
}


def sdxl_from_options(embedders: list[tuple[str, str, Options]]) -> SdxlConditioning:
    """SDXL's conditioner from input key, class and options of each of its embedders.

    Raises:
        UserError: they are others than SDXL's base model has.
    """
    keys = ["txt", "txt", "original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple"]
    names = ["FrozenCLIPEmbedder", "FrozenOpenCLIPEmbedder2", *["ConcatTimestepEmbedderND"] * 3]
    found = [(key, target) for key, target, _ in embedders]
    if found != [(key, SGM + name) for key, name in zip(keys, names, strict=True)]:
        where = embedders[0][2].where if embedders else "emb_models"
        listing = ", ".join(f"{key}: {target}" for key, target in found)
        raise UserError(f"{where}: this set of embedders is not supported: {listing}; known: one, or those of SDXL")
    sizes = {options.whole("outdim") for _, _, options in embedders[2:]}
    if len(sizes) > 1:
        raise UserError(f"{embedders[2][2].where}: outdim differs among the sizes: {sorted(sizes)}; use one")
    first, second = (conditioning_from_options(target, options) for _, target, options in embedders[:2])
    assert isinstance(first, ClipTextConditioning) and isinstance(second, ClipTextConditioning)  # by their classes
    return SdxlConditioning(first=first, second=second, size_dim=sizes.pop())


def options_of_conditioning(conditioning: Conditioning, library: str = LDM) -> dict[str, Any]:
    """Class and options (`cond_stage_config`) that describe a conditioner.

    Raises:
        UserError: the original code has none that does the same.
    """
    for name, params in _candidates(conditioning):
        if _READERS[name](Options(params, name)) == conditioning or name == "ClassEmbedder":
            return {"target": library + name, "params": params}
    raise UserError(f"the original code has no conditioner for {conditioning}")


def _candidates(conditioning: Conditioning) -> Iterator[tuple[str, dict[str, Any]]]:
    """Classes with options that might describe a conditioner."""
    match conditioning:
        case ClassConditioning():
            params = {"n_classes": conditioning.num_entries, "embed_dim": conditioning.context_dim}
            yield "ClassEmbedder", {**params, "key": "class_label"}
        case SpatialConditioning():
            params = {"n_stages": conditioning.num_stages, "in_channels": conditioning.in_channels}
            yield (
                "SpatialRescaler",
                params | ({} if conditioning.out_channels is None else {"out_channels": conditioning.out_channels}),
            )
        case TextConditioning():
            for tokenizer in (True, False):
                params = {"n_embed": conditioning.context_dim, "n_layer": conditioning.num_layers}
                sizes = {"vocab_size": conditioning.vocab_size, "max_seq_len": conditioning.context_length}
                yield "BERTEmbedder", params | sizes | {"use_tokenizer": tokenizer}
        case ClipTextConditioning():
            yield from _clip_candidates(conditioning)
        case _:
            return


def _clip_candidates(conditioning: ClipTextConditioning) -> Iterator[tuple[str, dict[str, Any]]]:
    length = {"max_length": conditioning.context_length}
    layer = conditioning.context_layer
    for version, (_, layers, _) in _CLIP.items():
        hidden = {} if layer == "last" else {"layer": "hidden", "layer_idx": layers - 1}
        yield "FrozenCLIPEmbedder", {"version": version} | length | hidden
    for arch in _OPEN_CLIP:
        for version in ({}, {"version": "openai"}):
            params = {"arch": arch, "layer": layer} | version | length
            yield "FrozenOpenCLIPEmbedder", params
            if layer == "penultimate":
                yield "FrozenOpenCLIPEmbedder2", params | {"legacy": False, "always_return_pooled": True}
