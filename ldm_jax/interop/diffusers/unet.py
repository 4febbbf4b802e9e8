"""The U-Nets of diffusers, `UNet2DModel` and `UNet2DConditionModel`: configuration and parameters, both ways."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.denoiser.unet import UNet
from ldm_jax.interop.diffusers import blocks
from ldm_jax.interop.diffusers.options import Options, complete
from ldm_jax.interop.diffusers.unet_2d import OPTIONS as OPTIONS_2D
from ldm_jax.interop.diffusers.unet_2d import read_unet_2d, write_unet_2d
from ldm_jax.interop.diffusers.unet_2d_condition import OPTIONS as OPTIONS_2D_CONDITION
from ldm_jax.interop.diffusers.unet_2d_condition import read_unet_2d_condition, write_unet_2d_condition
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.interop.foreign_options import refusal
from ldm_jax.interop.mapping import Slot, SlotOf, TensorSource, read_params, torch_layout
from ldm_jax.model import Params

_OUTSIDE_LEVELS = {
    "time/dense_0": "time_embedding.linear_1",
    "time/dense_1": "time_embedding.linear_2",
    "class_embedding": "class_embedding",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def read_unet_config(config: Options, where: str) -> DiffusersUNet:
    """What the config.json of a U-Net describes.

    Raises:
        UserError: an option is unknown, or has a value that our U-Net cannot follow; `where` names the file.
    """
    match config.get("_class_name"):
        case "UNet2DModel":
            return read_unet_2d(config, where)
        case "UNet2DConditionModel":
            return read_unet_2d_condition(config, where)
        case name:
            raise refusal(where, "_class_name", name, "usable: 'UNet2DModel', 'UNet2DConditionModel'")


def write_unet_config(unet: DiffusersUNet) -> dict[str, Any]:
    """A complete config.json: the inverse of `read_unet_config`.

    Raises:
        UserError: diffusers has no option for what the configuration asks for; the field is named.
    """
    if unet.config.attention == "self":
        return complete("UNet2DModel", OPTIONS_2D, write_unet_2d(unet))
    return complete("UNet2DConditionModel", OPTIONS_2D_CONDITION, write_unet_2d_condition(unet))


def unet_slot(unet: DiffusersUNet, *, before_2023: bool = False) -> SlotOf:
    """Names of the parameters; `before_2023` with the first names of plain attention."""
    lowest = len(unet.config.channel_mult) - 1
    plain = unet.config.attention == "self"
    attention = blocks.plain_attention(before_2023) if plain else blocks.transformer
    vector = "add_embedding" if unet.vector == "text_time" else "class_embedding"
    outside = {**_OUTSIDE_LEVELS, "vector/dense_0": f"{vector}.linear_1", "vector/dense_1": f"{vector}.linear_2"}

    def module_name(module: str) -> str:
        if module in outside:
            return outside[module]
        level, _, part = module.partition("/")
        if level == "mid":
            return f"mid_block.{blocks.block(part, attention)}"
        direction, index = level.split("_")
        index = int(index) if direction == "down" else lowest - int(index)  # diffusers' way up begins with 0
        name = _resampling(part, direction) if part.startswith("resample/") else blocks.block(part, attention)
        return f"{direction}_blocks.{index}.{name}"

    def slot_of(path: str) -> Slot:
        leaf, layout = torch_layout(path)
        return Slot(f"{module_name(path.rsplit('/', 1)[0])}.{leaf}", layout)

    return slot_of


def _resampling(part: str, direction: str) -> str:
    _, kind, inner = part.split("/", 2)
    return f"{direction}samplers.0.{blocks.resnet(inner) if kind == 'resnet' else inner}"


@functools.cache
def abstract_unet_params(unet: DiffusersUNet) -> Params:
    """The parameters' shapes, for the channels and conditions of the record."""
    config = unet.config
    size = 2 ** (len(config.channel_mult) - 1)
    arguments = {
        "zt": jnp.zeros((1, size, size, unet.in_channels)),
        "t": jnp.zeros((1,)),
        "context": None if unet.context_dim is None else jnp.zeros((1, 1, unet.context_dim)),
        "class_labels": None if config.num_classes is None else jnp.zeros((1,), jnp.int32),
        "vector": None if config.vector_dim is None else jnp.zeros((1, config.vector_dim)),
    }
    return jax.eval_shape(UNet(config, unet.out_channels).init, jax.random.key(0), **arguments)["params"]


def read_unet_params(source: TensorSource, unet: DiffusersUNet, where: str) -> Params:
    """The parameters from a file that must hold exactly them, float32.

    Raises:
        UserError: tensors are missing, unexpected or of another shape; every one is named.
    """
    slot_of = unet_slot(unet, before_2023=blocks.has_names_from_before_2023(source.names()))
    return read_params(source, slot_of, abstract_unet_params(unet), where=where)
