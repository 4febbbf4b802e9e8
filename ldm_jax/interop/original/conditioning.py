"""The conditioning stages of the original code (`cond_stage_config`, sgm: `emb_models`), to our configuration and back.

Text encoders are in `text_options`.
"""

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
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.clip_options import FindModel, find_none
from ldm_jax.interop.original.text_options import (
    LDM,
    SGM,
    read_text_stage,
    text_stage_of,
    write_text_stage,
)

_NULL_CLASS_ENTRIES = 1001  # ImageNet's classes and one for none (cin256-v2)
_TEXT = ("BERTEmbedder", "TransformerEmbedder", "FrozenCLIPEmbedder", "FrozenOpenCLIPEmbedder")


def conditioning_from_options(
    target: str, options: Options, null_class: bool | None = None, find_model: FindModel = find_none
) -> Conditioning:
    """The conditioner that a class and its options describe.

    Args:
        target: the class.
        options: its options.
        null_class: whether the last class of a table stands for none; None takes it so where the table has 1001
            entries, or where training drops classes (`ucg_rate`).
        find_model: where a CLIP is found whose `version` is not the name of a published one.

    Raises:
        UserError: the class or an option is not known, or has a value that is not supported.
    """
    library, _, name = target.rpartition(".")
    known = ("ClassEmbedder", "SpatialRescaler", *_TEXT)
    if f"{library}." not in (LDM, SGM) or name not in known:
        raise UserError(f"{options.where}: target={target} is not supported; known: {', '.join(known)}")
    if name in _TEXT:
        return read_text_stage(target, options, find_model).config
    conditioning = _classes(options, null_class) if name == "ClassEmbedder" else _map(options)
    options.finish()
    return conditioning


def _classes(options: Options, null_class: bool | None) -> ClassConditioning:
    options.ignore("key")
    entries, dropped = options.whole("n_classes", 1000), options.number("ucg_rate", 0.0)
    options.only("add_sequence_dim", True, because="the class is a token of the context")  # sgm adds a vector without
    null = True if null_class is None and dropped > 0 else null_class
    return _classes_of(entries, null, options.whole("embed_dim"))


def _classes_of(entries: int, null_class: bool | None, width: int) -> ClassConditioning:
    null = null_class if null_class is not None else entries == _NULL_CLASS_ENTRIES
    return ClassConditioning(num_classes=entries - null, null_class=null, context_dim=width)


def label_conditioning(entries: int, null_class: bool | None = None) -> ClassConditioning:
    """Classes that the U-Net embeds itself: the table of tokens here has nobody who looks at it, and one column."""
    return _classes_of(entries, null_class, 1)


def _map(options: Options) -> SpatialConditioning:
    options.choose("method", ("bilinear", "area"), "bilinear")  # by 1/2 both are means of 2x2 positions
    options.only("multiplier", 0.5, because="each stage halves the map")
    options.only("bias", False, because="the channel mapper has no bias")
    out_channels = options.whole_or_none("out_channels")
    return SpatialConditioning(
        in_channels=options.whole("in_channels", 3),
        num_stages=options.whole("n_stages", 1),
        out_channels=out_channels,
    )


def options_of_conditioning(conditioning: Conditioning, folder: str | None = None) -> dict[str, Any]:
    """Class and options (`cond_stage_config`) that describe a conditioner; `folder` as for `write_text_stage`.

    Raises:
        UserError: the original code has none that does the same.
    """
    match conditioning:
        case ClassConditioning():
            params = {"n_classes": conditioning.num_entries, "embed_dim": conditioning.context_dim}
            return {"target": f"{LDM}ClassEmbedder", "params": params | {"key": "class_label"}}
        case SpatialConditioning():
            params = {"n_stages": conditioning.num_stages, "in_channels": conditioning.in_channels}
            mapper = {} if conditioning.out_channels is None else {"out_channels": conditioning.out_channels}
            return {"target": f"{LDM}SpatialRescaler", "params": params | mapper}
        case TextConditioning() | ClipTextConditioning() | SdxlConditioning():
            target, params = write_text_stage(text_stage_of(conditioning), folder)
            return {"target": target, "params": params}
        case _:
            raise UserError(f"the original code has no conditioner for {conditioning}")
