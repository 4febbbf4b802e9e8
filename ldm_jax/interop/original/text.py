"""Text encoders inside the single files of latent-diffusion, Stable Diffusion and SDXL: the format of their weights.

| kind      | class in the YAML                 | weights                                         |
|-----------|-----------------------------------|-------------------------------------------------|
| bert      | BERTEmbedder, TransformerEmbedder | transformer.attn_layers.*, as in x-transformers |
| clip      | FrozenCLIPEmbedder                | transformer.text_model.*, as in transformers    |
| open_clip | FrozenOpenCLIPEmbedder            | model.*, as in OpenCLIP                         |
| sdxl      | GeneralConditioner                | embedders.0 and embedders.1, the two before     |

Names are those behind `cond_stage_model.` or, for SDXL, `conditioner.`. What no text encoder here uses is left out when
reading and not written: x-transformers' layer of logits, the scale of CLIP's logits, counts of positions.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import assert_never

import numpy as np

from ldm_jax.config import ClipTextConditioning, SdxlConditioning, TextConditioning
from ldm_jax.interop.mapping import Slot, SlotOf, TensorSource, read_params, torch_layout, write_tensors
from ldm_jax.interop.original import open_clip
from ldm_jax.interop.original.text_options import TextStage, TextStageKind
from ldm_jax.interop.transformers import ldm_bert
from ldm_jax.interop.transformers import text as transformers_text
from ldm_jax.model import Params

_BERT_OUTSIDE = {"token": "token_emb", "norm_out": "norm"}
# The layers of one of ours are two of theirs: attention, then feed-forward, each a list of norm and layer.
_BERT_LAYER = {
    "norm_0": (0, "0"),
    "attention/query": (0, "1.to_q"),
    "attention/key": (0, "1.to_k"),
    "attention/value": (0, "1.to_v"),
    "attention/out": (0, "1.to_out"),
    "norm_1": (1, "0"),
    "feed_forward/dense_0": (1, "1.net.0.0"),
    "feed_forward/dense_1": (1, "1.net.2"),
}
_SDXL = ("embedders.0.", "embedders.1.")


def text_stage_slot(kind: TextStageKind, names: Iterable[str] | None = None) -> SlotOf:
    """The format of a kind; `names` of a file decide between the two spellings of `clip` and of SDXL's first half."""
    match kind:
        case "bert":
            return _bert_slot
        case "clip":
            return _clip_slot("", names)
        case "open_clip":
            return _open_clip_slot("")
        case "sdxl":
            first, second = _clip_slot(_SDXL[0], names), _open_clip_slot(_SDXL[1])
            return lambda path: _half(path, first, second)
        case _:
            assert_never(kind)


def is_no_text_weight(kind: TextStageKind, name: str) -> bool:
    """Whether a tensor of such a file is known and no parameter."""
    match kind:
        case "bert":
            return ldm_bert.is_no_text_weight(name.removeprefix("transformer."))
        case "clip":
            return transformers_text.is_buffer(name.removeprefix("transformer."))
        case "open_clip":
            return open_clip.is_no_open_clip_weight(name.removeprefix("model."))
        case "sdxl":
            first, second = (name.removeprefix(half) for half in _SDXL)
            return is_no_text_weight("clip", first) or is_no_text_weight("open_clip", second)
        case _:
            assert_never(kind)


def read_text_stage_params(source: TensorSource, stage: TextStage, where: str) -> Params:
    """The parameters of a text encoder.

    Raises:
        UserError: the file does not hold exactly its weights.
    """
    slot_of = text_stage_slot(stage.kind, source.names())
    ignore = partial(is_no_text_weight, stage.kind)
    return read_params(source, slot_of, abstract_text_stage(stage), where=where, ignore=ignore)


def write_text_stage_params(params: Params, stage: TextStage) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a text encoder."""
    return write_tensors(params, text_stage_slot(stage.kind))


def abstract_text_stage(stage: TextStage) -> Params:
    """Shapes of the parameters."""
    match stage.config:
        case TextConditioning() as config:
            return ldm_bert.abstract_text(config)
        case ClipTextConditioning() as config:
            return transformers_text.abstract_clip_text(config)
        case SdxlConditioning() as config:
            return {
                "first": transformers_text.abstract_clip_text(config.first),
                "second": transformers_text.abstract_clip_text(config.second),
            }
        case _:
            assert_never(stage.config)


def _bert_slot(path: str) -> Slot:
    module, _, leaf = path.rpartition("/")
    weight, layout = torch_layout(path)
    if leaf == "position":
        return Slot("transformer.pos_emb.emb.weight", layout)
    if module in _BERT_OUTSIDE:
        return Slot(f"transformer.{_BERT_OUTSIDE[module]}.{weight}", layout)
    layer, _, rest = module.removeprefix("layer_").partition("/")
    half, name = _BERT_LAYER[rest]
    return Slot(f"transformer.attn_layers.layers.{2 * int(layer) + half}.{name}.{weight}", layout)


def _clip_slot(before: str, names: Iterable[str] | None) -> SlotOf:
    return transformers_text.clip_text_slot(transformers_text.clip_text_prefix(names, f"{before}transformer."))


def _open_clip_slot(before: str) -> SlotOf:
    def slot_of(path: str) -> Slot:
        slot = open_clip.open_clip_slot(path)
        return slot._replace(name=f"{before}model.{slot.name}")

    return slot_of


def _half(path: str, first: SlotOf, second: SlotOf) -> Slot:
    """The slot of a parameter of either of SDXL's text encoders."""
    half, _, rest = path.partition("/")
    return first(rest) if half == "first" else second(rest)
