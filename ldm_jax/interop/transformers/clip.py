"""What CLIP's text and vision transformers have in common in transformers' files: options and names of their layers."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ldm_jax.config import ClipTextConditioning, ClipVisionConfig
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.mapping import Slot, SlotOf, torch_layout
from ldm_jax.interop.transformers.options import skip_bookkeeping

_LAYER = {
    "norm_0": "layer_norm1",
    "norm_1": "layer_norm2",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "feed_forward/dense_0": "mlp.fc1",
    "feed_forward/dense_1": "mlp.fc2",
}

_EMBEDDINGS = {"position": "embeddings.position_embedding.weight", "class_token": "embeddings.class_embedding"}

_HALVES = tuple(f"{half}_config{suffix}" for half in ("text", "vision") for suffix in ("", "_dict"))


def clip_layer_name(module: str) -> str:
    """Name of a module inside a layer, such as `layer_3/attention/query`."""
    layer, _, rest = module.removeprefix("layer_").partition("/")
    return f"encoder.layers.{layer}.{_LAYER[rest]}"


def clip_slot(prefix: str, outside: Mapping[str, str], projection: str) -> SlotOf:
    """The format of a half: what stands before every name, the modules outside the layers, and the projection."""

    def slot_of(path: str) -> Slot:
        module, _, leaf = path.rpartition("/")
        weight, layout = torch_layout(path)
        if module == "projection":
            return Slot(f"{projection}.weight", layout)
        if leaf in _EMBEDDINGS:
            return Slot(prefix + _EMBEDDINGS[leaf], layout)
        return Slot(f"{prefix}{outside.get(module) or clip_layer_name(module)}.{weight}", layout)

    return slot_of


def clip_prefix(usual: str, names: Iterable[str] | None, before: str = "") -> str:
    """The prefix that a file with these names uses, or else the usual one, behind what stands `before` every name."""
    whole = before + usual
    return whole if names is None or any(name.startswith(whole) for name in names) else before


def read_clip_layers(options: Options, *, num_heads: int, mlp_dim: int) -> dict[str, Any]:
    """Our fields for the layers; the two halves differ in their defaults.

    Raises:
        UserError: an option has a value that is not supported.
    """
    for name in ("attention_dropout", "dropout"):
        options.only(name, 0.0)
    return {
        "num_layers": options.positive("num_hidden_layers", 12),
        "num_heads": options.positive("num_attention_heads", num_heads),
        "mlp_dim": options.positive("intermediate_size", mlp_dim),
        "activation": options.choose("hidden_act", ("quick_gelu", "gelu"), "quick_gelu"),
        "norm_epsilon": options.number("layer_norm_eps", 1e-5),
    }


def write_clip_layers(config: ClipTextConditioning | ClipVisionConfig, width: int) -> dict[str, Any]:
    """The options of the layers of a transformer of this width."""
    return {
        "hidden_size": width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim or 4 * width,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_epsilon,
        "attention_dropout": 0.0,
        "projection_dim": config.projection_dim or width,
    }


def clip_section(values: Mapping[str, Any], half: Literal["text", "vision"], where: str) -> dict[str, Any]:
    """The options of one half of a whole CLIPModel.

    Where an old file holds a second table for it, that one counts alone, as in transformers.

    Raises:
        UserError: an option of the whole is not known.
    """
    options = Options(values, where)
    first, second = (options.table_or_none(f"{half}_config{suffix}") for suffix in ("", "_dict"))
    options.ignore(*_HALVES, "logit_scale_init_value")
    projection_dim = options.positive("projection_dim", 512)
    skip_bookkeeping(options)
    options.finish()
    return {**((first or {}) if second is None else second), "projection_dim": projection_dim}
