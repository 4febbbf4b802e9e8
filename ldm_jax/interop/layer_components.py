"""The networks that can be compared layer by layer with their PyTorch originals, and random inputs for them.

Inputs and outputs are in PyTorch's layouts, channels first, and by its names; `torch_layers` calls the originals with
the same.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.autoencoder.vq import AutoencoderVQ
from ldm_jax.conditioning.clip_text import ClipTextTransformer
from ldm_jax.config import ClipTextConditioning
from ldm_jax.denoiser.unet import UNet
from ldm_jax.errors import UserError
from ldm_jax.interop.cases.components import unet_arguments
from ldm_jax.interop.diffusers.autoencoder import (
    DiffusersAutoencoder,
    autoencoder_slot,
    read_autoencoder_config,
    read_autoencoder_params,
)
from ldm_jax.interop.diffusers.component import TRANSFORMERS, read_config, read_weights
from ldm_jax.interop.diffusers.unet import read_unet_config, read_unet_params, unet_slot
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.interop.mapping import SlotOf
from ldm_jax.interop.transformers.text import clip_text_prefix, clip_text_slot, read_clip_text, read_clip_text_config
from ldm_jax.model import Params

BATCH = 2
_TOKENS = 7  # of a context, whose length is free
_SMALLEST = 8  # side of a map, so that a norm's groups have some positions

Inputs = dict[str, np.ndarray]
Outputs = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class Component:
    """A network in a folder of another system, and what it takes to run it here as PyTorch does there."""

    folder: Path
    torch_class: str
    params: Params
    inputs: Inputs
    """Random numbers of the right shapes."""
    module: Callable[[DTypeLike], nn.Module]
    """Our module with this compute dtype."""
    call: Callable[[Any, Mapping[str, Any]], Outputs]
    """From the bound module and the inputs to the outputs."""
    slot_of: Callable[[Iterable[str]], SlotOf]
    """The format, for the names that PyTorch gives the modules."""


def read_component(folder: Path, torch_class: str, size: int | None = None) -> Component:
    """The network in a folder.

    Args:
        folder: with config.json and weights, as diffusers or transformers write it.
        torch_class: PyTorch's class.
        size: side of the input map: latents of a U-Net, pixels of an autoencoder; None is a small one.

    Raises:
        UserError: the model or the size is not supported, or a file is damaged.
    """
    return COMPONENTS[torch_class](folder, torch_class, size)


def _read_unet(folder: Path, torch_class: str, size: int | None) -> Component:
    unet = read_unet_config(*read_config(folder))
    side = _side(size, 2 ** (len(unet.config.channel_mult) - 1), folder)
    return Component(
        folder=folder,
        torch_class=torch_class,
        params=read_weights(folder, read_unet_params, unet),
        inputs=unet_inputs(unet, side),
        module=lambda dtype: UNet(unet.config, unet.out_channels, dtype),
        call=lambda module, inputs: {"sample": _first(module(**unet_arguments(unet, inputs)))},
        slot_of=lambda _: unet_slot(unet),
    )


def unet_inputs(unet: DiffusersUNet, side: int, *, batch: int = BATCH, tokens: int = _TOKENS) -> Inputs:
    """Noise, times and whatever conditions the U-Net takes."""
    draw, width = np.random.default_rng(0), unet.config.vector_dim or 0

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal((batch, *shape), np.float32)

    inputs = {"sample": normal(unet.in_channels, side, side), "timestep": draw.integers(0, 1000, batch)}
    if unet.context_dim is not None:
        inputs["encoder_hidden_states"] = normal(tokens, unet.context_dim)
    if unet.config.num_classes is not None:
        inputs["class_labels"] = draw.integers(0, unet.config.num_classes, batch)
    match unet.vector:
        case "projection":
            inputs["class_labels"] = normal(width)
        case "timestep":
            inputs["class_labels"] = draw.integers(0, 1000, batch)
        case "text_time":
            size_dim = unet.size_dim or 1
            sizes = min(6, (width - 1) // size_dim)  # how many are sizes, the configuration does not say
            inputs["text_embeds"] = normal(width - sizes * size_dim)
            inputs["time_ids"] = draw.integers(0, 1024, (batch, sizes))
    return inputs


def _read_autoencoder(folder: Path, torch_class: str, size: int | None) -> Component:
    record = read_autoencoder_config(*read_config(folder))
    factor = record.config.downsample_factor
    return Component(
        folder=folder,
        torch_class=torch_class,
        params=read_weights(folder, read_autoencoder_params, record),
        inputs=_autoencoder_inputs(record, _side(size, factor, folder)),
        module=lambda dtype: make_autoencoder(record.config, record.out_channels, jnp.dtype(dtype).name),
        call=_call_autoencoder,
        slot_of=lambda _: autoencoder_slot(record),
    )


def _autoencoder_inputs(record: DiffusersAutoencoder, side: int) -> Inputs:
    """A picture, and latents of another: what the encoder gets wrong must not reach the decoder."""
    draw, latent = np.random.default_rng(0), side // record.config.downsample_factor
    return {
        "sample": draw.standard_normal((BATCH, record.in_channels, side, side), np.float32),
        "latents": draw.standard_normal((BATCH, record.config.latent_channels, latent, latent), np.float32),
    }


def _call_autoencoder(module: Any, inputs: Mapping[str, Any]) -> Outputs:
    """What the picture is encoded to, and what the latents as they are decode to."""
    posterior, latents = module.encode(_last(inputs["sample"])), _last(inputs["latents"])
    if isinstance(module, AutoencoderVQ):
        return {"latents": _first(posterior.mean), "reconstruction": _first(module.decode_quantized(latents))}
    moments = {"mean": _first(posterior.mean), "logvar": _first(posterior.logvar)}
    return {**moments, "reconstruction": _first(module.decode(latents))}


def _read_text(folder: Path, torch_class: str, size: int | None) -> Component:
    del size  # a text has no sides
    values, where = read_config(folder)
    config = read_clip_text_config(values, where, architecture=torch_class)
    return Component(
        folder=folder,
        torch_class=torch_class,
        params=read_weights(folder, read_clip_text, config, TRANSFORMERS),
        inputs={"input_ids": _tokens(config)},
        module=lambda dtype: ClipTextTransformer(config, dtype),
        call=_call_text,
        slot_of=lambda names: clip_text_slot(clip_text_prefix(names)),
    )


def _tokens(config: ClipTextConditioning) -> np.ndarray:
    """Texts of full length that end with the end mark."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (BATCH, config.context_length))
    tokens[:, -1] = config.end_token
    return tokens


def _call_text(module: ClipTextTransformer, inputs: Mapping[str, Any]) -> Outputs:
    text = module.encode(inputs["input_ids"])
    pooled = "pooler_output" if module.config.projection_dim is None else "text_embeds"
    return {"last_hidden_state": text.last, pooled: text.pooled}


def _side(size: int | None, factor: int, folder: Path) -> int:
    """The side of the input map: `size`, if all levels can halve it."""
    if size is None:
        return max(_SMALLEST, 2 * factor)
    if size < 1 or size % factor != 0:
        below = max(size // factor, 1) * factor
        raise UserError(
            f"--size={size} is not a multiple of {factor}, by which {folder} reduces its input; nearest usable: "
            f"{below} and {below + factor}"
        )
    return size


def _last(x: Any) -> jax.Array:
    return jnp.moveaxis(x, 1, -1)


def _first(x: Any) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)


COMPONENTS: dict[str, Callable[[Path, str, int | None], Component]] = {
    "UNet2DModel": _read_unet,
    "UNet2DConditionModel": _read_unet,
    "AutoencoderKL": _read_autoencoder,
    "VQModel": _read_autoencoder,
    "CLIPTextModel": _read_text,
    "CLIPTextModelWithProjection": _read_text,
}
"""Every class that can be compared."""
