"""OpenCLIP's text transformer: its architectures by name, and the format of its weights.

Query, key and value are one fused tensor, and the projection is stored `[in, out]` as here.
"""

from typing import NamedTuple

import numpy as np

from ldm_jax.interop.mapping import PLAIN, Layout, Slot, torch_layout

_OUTSIDE = {"token": "token_embedding", "norm_out": "ln_final"}
_LAYER = {
    "norm_0": "ln_1",
    "norm_1": "ln_2",
    "attention/out": "attn.out_proj",
    "feed_forward/dense_0": "mlp.c_fc",
    "feed_forward/dense_1": "mlp.c_proj",
}
_FUSED = ("attention/query", "attention/key", "attention/value")
_QUICK = "-quickgelu"


class TextTower(NamedTuple):
    """Sizes of the text half of an architecture; all have 77 positions, 49408 tokens and fourfold feed-forwards."""

    context_dim: int
    num_layers: int
    num_heads: int


_SMALL = TextTower(context_dim=512, num_layers=12, num_heads=8)
_LARGE = TextTower(context_dim=768, num_layers=12, num_heads=12)
_HUGE = TextTower(context_dim=1024, num_layers=24, num_heads=16)
_GIGANTIC = TextTower(context_dim=1280, num_layers=32, num_heads=20)

# From open_clip/model_configs. Where two have the same text tower, the first is the one that is written.
OPEN_CLIP_TOWERS = {
    "ViT-H-14": _HUGE,
    "ViT-bigG-14": _GIGANTIC,
    "ViT-L-14": _LARGE,
    "ViT-B-32": _SMALL,
    "ViT-B-16": _SMALL,
    "ViT-g-14": _HUGE,
}
"""Text towers by OpenCLIP's names for the whole model; each projects to its own width."""

OPENAI_TOWERS = {
    "openai/clip-vit-large-patch14": _LARGE,
    "openai/clip-vit-large-patch14-336": _LARGE,
    "openai/clip-vit-base-patch32": _SMALL,
    "openai/clip-vit-base-patch16": _SMALL,
}
"""Text towers by transformers' names for OpenAI's models."""


def split_architecture(name: str) -> tuple[str, bool]:
    """The name of an architecture without its suffix, and whether the suffix asks for the quick GELU."""
    return name.removesuffix(_QUICK), name.endswith(_QUICK)


_KERNELS = Layout(
    read=lambda x: tuple(part.T for part in np.split(x, 3)),
    write=lambda *parts: np.concatenate([part.T for part in parts]),
)
_BIASES = Layout(read=lambda x: tuple(np.split(x, 3)), write=lambda *parts: np.concatenate(parts))


def open_clip_slot(path: str) -> Slot:
    """The format of the weights of a text transformer."""
    module, _, leaf = path.rpartition("/")
    weight, layout = torch_layout(path)
    if leaf == "position":
        return Slot("positional_embedding", PLAIN)
    if module == "projection":
        return Slot("text_projection", PLAIN)
    if module in _OUTSIDE:
        return Slot(f"{_OUTSIDE[module]}.{weight}", layout)
    layer, _, rest = module.removeprefix("layer_").partition("/")
    block = f"transformer.resblocks.{layer}"
    if rest in _FUSED:
        return Slot(f"{block}.attn.in_proj_{weight}", _KERNELS if leaf == "kernel" else _BIASES, _FUSED.index(rest))
    return Slot(f"{block}.{_LAYER[rest]}.{weight}", layout)


def is_no_open_clip_weight(name: str) -> bool:
    """Whether a tensor is no parameter of a text transformer: the causal mask, or what only compares with pictures."""
    return name in ("attn_mask", "logit_scale")
