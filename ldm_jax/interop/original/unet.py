"""The U-Net of the original code (`openaimodel.UNetModel`), as latent-diffusion, Stable Diffusion 1, 2 and XL have it.

Its layers stand in flat lists (`input_blocks`, `output_blocks`) whose indices follow from the configuration. Its plain
attention keeps queries, keys and values in one kernel, whose rows are ordered in one of two ways:

(1) legacy: [heads, 3, channels of a head]    (2) new: [3, heads, channels of a head]

and its heads are counted as follows, with `legacy` and without (integer division):

(3) transformer: num_heads, or channels / num_head_channels where that is given
(4) plain attention: the same; without `legacy` channels / (channels / num_heads), on the way up as well, with it
    num_heads_upsample there.

Source: github.com/CompVis/latent-diffusion, ldm/modules/diffusionmodules/openaimodel.py (a506df5), and the same file of
Stability-AI/stablediffusion (cf1d67a) and Stability-AI/generative-models (0ad7de9).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.config import Place, UNetConfig
from ldm_jax.denoiser.unet import UNet
from ldm_jax.interop.mapping import (
    PLAIN,
    Layout,
    Slot,
    SlotOf,
    TensorSource,
    dense_as_convolution,
    read_params,
    torch_layout,
    write_tensors,
)
from ldm_jax.model import Params

AttentionOrder = Literal["legacy", "new"]
NUM_GROUPS, NORM_EPSILON = 32, 1e-5  # of every normalisation outside of the transformers


@dataclass(frozen=True, kw_only=True)
class OriginalUNet:
    """A U-Net of the original code in our configuration, with what that does not hold."""

    config: UNetConfig
    in_channels: int
    """Channels of the noisy latent and of what is concatenated to it."""
    out_channels: int
    """Channels of the prediction."""
    context_dim: int | None = None
    """Width of the context tokens; None where it has no cross-attention to any."""
    attention_order: AttentionOrder = "legacy"
    """Order of the rows of the kernels of plain attention, (1) or (2)."""

    @property
    def module(self) -> UNet:
        """The network."""
        return UNet(self.config, self.out_channels)


@functools.cache
def abstract_params(unet: OriginalUNet) -> Params:
    """The network's parameters as shapes."""
    config = unet.config
    side = 2 ** (len(config.channel_mult) - 1)

    def zeros(*shape: int | None, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct | None:
        return None if None in shape else jax.ShapeDtypeStruct(tuple(n or 0 for n in shape), dtype)

    inputs = (
        zeros(1, *(side,) * config.spatial_dims, unet.in_channels),
        zeros(1),
        zeros(1, 1, unet.context_dim),
        None if config.num_classes is None else zeros(1, dtype=jnp.int32),
        None,
        zeros(1, config.vector_dim),
    )
    return jax.eval_shape(unet.module.init, jax.random.key(0), *inputs)["params"]


def read_unet(source: TensorSource, unet: OriginalUNet, *, where: str, ema: bool = False) -> Params:
    """The network's parameters from its tensors.

    Args:
        source: tensors under the names that they have in the module (`input_blocks.0.0.weight`).
        unet: the network.
        where: the file, for messages.
        ema: the names have no dots, as LitEma keeps moving averages.

    Raises:
        UserError: tensors are missing, unexpected or of another shape.
    """
    slot_of = unet_slots(unet.config, unet.attention_order)
    return read_params(source, without_dots(slot_of) if ema else slot_of, abstract_params(unet), where=where)


def unet_tensors(params: Params, unet: OriginalUNet) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of the network's parameters, the inverse of `read_unet`."""
    return write_tensors(params, unet_slots(unet.config, unet.attention_order))


def without_dots(slot_of: SlotOf) -> SlotOf:
    """The same format with the names that LitEma gives to moving averages."""

    def slot(path: str) -> Slot:
        name, layout, part = slot_of(path)
        return Slot(name.replace(".", ""), layout, part)

    return slot


# --- names and layouts -----------------------------------------------------------------------------------------------


class _Module(NamedTuple):
    """A module of the original code: its name, its kind, and for plain attention its heads."""

    name: str
    kind: Literal["layer", "res_block", "attention", "transformer"] = "layer"
    num_heads: int = 1


_ENDS = {
    "time/dense_0": _Module("time_embed.0"),
    "time/dense_1": _Module("time_embed.2"),
    "vector/dense_0": _Module("label_emb.0.0"),
    "vector/dense_1": _Module("label_emb.0.2"),
    "class_embedding": _Module("label_emb"),
    "conv_in": _Module("input_blocks.0.0"),
    "norm_out": _Module("out.0"),
    "conv_out": _Module("out.2"),
    "norm_ids": _Module("id_predictor.0"),
    "conv_ids": _Module("id_predictor.1"),
}
_RES_BLOCK = {
    "norm_0": "in_layers.0",
    "conv_0": "in_layers.2",
    "embedding": "emb_layers.1",
    "norm_1": "out_layers.0",
    "conv_1": "out_layers.3",
    "skip": "skip_connection",
}
_TRANSFORMER = {"norm": "norm", "project_in": "proj_in", "project_out": "proj_out"}
_TRANSFORMER_BLOCK = {
    "self_attention": "attn1",
    "cross_attention": "attn2",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "feed_forward": "ff",
    "dense_0": "net.0.proj",
    "dense_1": "net.2",
    "norm_0": "norm1",
    "norm_1": "norm2",
    "norm_2": "norm3",
}
_PARTS = ("query", "key", "value")


def unet_slots(config: UNetConfig, attention_order: AttentionOrder = "legacy") -> SlotOf:
    """The format: names as inside `model.diffusion_model`."""
    modules = _ENDS | _numbered(config)

    def slot_of(path: str) -> Slot:
        parts = path.split("/")
        prefix = next(p for n in range(len(parts), 0, -1) if (p := "/".join(parts[:n])) in modules)
        module, rest = modules[prefix], parts[prefix.count("/") + 1 :]
        if module.kind == "attention":
            return _attention_slot(module, rest, attention_order)
        leaf, layout = torch_layout(path)
        inner = [_inner_name(module.kind, rest[:-1])] if len(rest) > 1 else []
        return Slot(".".join([module.name, *inner, leaf]), layout)

    return slot_of


def _inner_name(kind: str, parts: list[str]) -> str:
    if kind == "res_block":
        return _RES_BLOCK[parts[0]]
    if len(parts) == 1:
        return _TRANSFORMER[parts[0]]
    block = parts[0].removeprefix("block_")
    return ".".join(["transformer_blocks", block, *(_TRANSFORMER_BLOCK[part] for part in parts[1:])])


def _attention_slot(module: _Module, rest: list[str], order: AttentionOrder) -> Slot:
    leaf, layout = torch_layout(rest[-1])
    if rest[0] == "norm":
        return Slot(f"{module.name}.norm.{leaf}", layout)
    if rest[1] == "out":
        return Slot(f"{module.name}.proj_out.{leaf}", PLAIN if leaf == "bias" else dense_as_convolution(1))
    return Slot(f"{module.name}.qkv.{leaf}", qkv_layout(module.num_heads, order), _PARTS.index(rest[1]))


def qkv_layout(num_heads: int, order: AttentionOrder) -> Layout:
    """Queries, keys and values in one tensor: kernels `[3 c, c, 1]` there, `[c, c]` here; biases `[3 c]`, `[c]`."""
    axis = 1 if order == "legacy" else 0  # (1) or (2)
    leading = (num_heads, 3) if order == "legacy" else (3, num_heads)

    def read(x: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = x.reshape(*leading, -1, *x.shape[1:2])
        parts = (rows.take(part, axis).reshape(-1, *x.shape[1:2]) for part in range(3))
        return tuple(part.T for part in parts)

    def write(*parts: np.ndarray) -> np.ndarray:
        rows = np.stack([part.T.reshape(num_heads, -1, *part.shape[:-1]) for part in parts], axis)
        return rows.reshape(3 * parts[0].shape[-1], *parts[0].shape[:-1], *(1,) * (parts[0].ndim - 1))

    return Layout(read=read, write=write)


def _numbered(config: UNetConfig) -> dict[str, _Module]:
    """The modules whose names are numbers, by our paths."""
    lowest = len(config.channel_mult) - 1
    modules: dict[str, _Module] = {}
    number = 1
    for level in range(lowest + 1):
        for i in range(config.res_blocks_at(level)):
            modules |= _block(config, level, "down", i, f"down_{level}/block_{i}", f"input_blocks.{number}", 0)
            number += 1
        if level < lowest:
            modules |= _resample(f"down_{level}/resample", f"input_blocks.{number}.0")
            number += 1
    modules |= _block(config, lowest, "mid", 0, "mid/block_0", "middle_block", 0)
    modules |= _block(config, lowest, "mid", 1, "mid/block_1", "middle_block", 2)
    number = 0
    for level in reversed(range(lowest + 1)):
        for i in range(config.res_blocks_at(level) + 1):
            modules |= _block(config, level, "up", i, f"up_{level}/block_{i}", f"output_blocks.{number}", 0)
            number += 1
        if level > 0:
            layer = 1 + config.attention_at(level, "up", config.res_blocks_at(level))
            modules |= _resample(f"up_{level}/resample", f"output_blocks.{number - 1}.{layer}")
    return modules


def _block(
    config: UNetConfig, level: int, place: Place, index: int, path: str, name: str, layer: int
) -> dict[str, _Module]:
    modules = {f"{path}/resnet": _Module(f"{name}.{layer}", "res_block")}
    if config.attention_at(level, place, index):
        kind = "attention" if config.attention == "self" else "transformer"
        modules[f"{path}/attention"] = _Module(f"{name}.{layer + 1}", kind, config.heads_at(level, place))
    return modules


def _resample(path: str, name: str) -> dict[str, _Module]:
    return {
        f"{path}/downsample/conv": _Module(f"{name}.op"),
        f"{path}/upsample/conv": _Module(f"{name}.conv"),
        f"{path}/resnet": _Module(name, "res_block"),
    }
