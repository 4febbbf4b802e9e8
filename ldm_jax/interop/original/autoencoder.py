"""The first stages of the original code (`AutoencoderKL`, `VQModel`, `VQModelInterface`): names and layouts.

The attention's queries, keys, values and output are 1x1 convolutions there and dense layers here.

Source: github.com/CompVis/latent-diffusion, ldm/models/autoencoder.py and ldm/modules/diffusionmodules/model.py
(a506df5), and sgm/models/autoencoder.py of Stability-AI/generative-models (0ad7de9).
"""

import functools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.autoencoder.kl import AutoencoderKL
from ldm_jax.autoencoder.vq import AutoencoderVQ
from ldm_jax.config import AutoencoderKLConfig, AutoencoderVQConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.mapping import (
    PLAIN,
    Slot,
    SlotOf,
    TensorSource,
    dense_as_convolution,
    read_params,
    torch_layout,
    write_tensors,
)
from ldm_jax.interop.original.unet import without_dots
from ldm_jax.model import Params

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OriginalAutoencoder:
    """An autoencoder of the original code in our configuration, with what that does not hold."""

    config: AutoencoderKLConfig | AutoencoderVQConfig
    image_channels: int = 3
    resolution: int = 256
    """Height and width of the pictures that it was made for."""
    codebook: str = "quantize"
    """Name of the module that holds the codes."""

    @property
    def picture_channels(self) -> Literal[1, 3]:
        """Channels of the pictures.

        Raises:
            UserError: they are neither grey nor RGB.
        """
        match self.image_channels:
            case 1 | 3 as channels:
                return channels
        raise UserError(f"the first stage has in_channels={self.image_channels}; pictures here have 1 or 3")

    @property
    def module(self) -> AutoencoderKL | AutoencoderVQ:
        """The network."""
        return make_autoencoder(self.config, self.image_channels, "float32")


@functools.cache
def abstract_params(autoencoder: OriginalAutoencoder) -> Params:
    """The network's parameters as shapes."""
    side, module = autoencoder.config.downsample_factor, autoencoder.module
    image = jax.ShapeDtypeStruct((1, side, side, autoencoder.image_channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, jax.random.split(jax.random.key(0), 1)), image)[
        "params"
    ]


def read_autoencoder(
    source: TensorSource, autoencoder: OriginalAutoencoder, *, where: str, ema: bool = False
) -> Params:
    """The network's parameters from its tensors, without those of its training losses.

    Args:
        source: tensors under the names that they have in the module (`encoder.conv_in.weight`).
        autoencoder: the network.
        where: the file, for messages.
        ema: take the moving averages (`model_ema.encoderconv_inweight`).

    Raises:
        UserError: tensors are missing, unexpected or of another shape.
    """
    slot_of = autoencoder_slots(autoencoder.codebook)
    losses = [name for name in source.names() if name.startswith("loss.")]
    if losses:
        logger.info("%s: %d tensors of the training losses are left out (%s, ...)", where, len(losses), losses[0])
    if ema:
        averages = _with_prefix(without_dots(slot_of), "model_ema.")
        return read_params(source, averages, abstract_params(autoencoder), where=where, ignore=_is_besides_averages)
    return read_params(source, slot_of, abstract_params(autoencoder), where=where, ignore=_is_besides_parameters)


def has_averages(source: TensorSource) -> bool:
    """Whether an autoencoder's tensors come with moving averages."""
    return any(name.startswith("model_ema.encoder") for name in source.names())


def autoencoder_tensors(params: Params, autoencoder: OriginalAutoencoder) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of the network's parameters, the inverse of `read_autoencoder`."""
    return write_tensors(params, autoencoder_slots(autoencoder.codebook))


def _is_besides_parameters(name: str) -> bool:
    return name.startswith(("loss.", "model_ema.")) or name == "colorize"


def _is_besides_averages(name: str) -> bool:
    network = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.", "regularization.")
    averages = name in ("model_ema.decay", "model_ema.num_updates") or name.startswith("model_ema.loss")
    return averages or name == "colorize" or name.startswith(("loss.", *network))


def _with_prefix(slot_of: SlotOf, prefix: str) -> SlotOf:
    return lambda path: slot_of(path)._replace(name=prefix + slot_of(path).name)


# --- names and layouts -----------------------------------------------------------------------------------------------

_MODULES = (
    (r"mid/block_0/resnet", "mid.block_1"),
    (r"mid/block_1/resnet", "mid.block_2"),
    (r"mid/block_0/attention", "mid.attn_1"),
    (r"(down|up)_(\d+)/block_(\d+)/resnet", r"\1.\2.block.\3"),
    (r"(down|up)_(\d+)/block_(\d+)/attention", r"\1.\2.attn.\3"),
    (r"(down|up)sample_(\d+)/conv", r"\1.\2.\1sample.conv"),
)
_LAYERS = {
    "norm_0": "norm1",
    "norm_1": "norm2",
    "conv_0": "conv1",
    "conv_1": "conv2",
    "skip": "nin_shortcut",
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "proj_out",
}


def autoencoder_slots(codebook: str = "quantize") -> SlotOf:
    """The format: names as inside `first_stage_model`."""

    def slot_of(path: str) -> Slot:
        leaf, layout = torch_layout(path)
        if path == "codebook/embedding":
            return Slot(f"{codebook}.embedding.weight", PLAIN)
        module = path.rpartition("/")[0]
        if "/attention/attention/" in path and leaf == "weight":
            layout = dense_as_convolution(2)
        module = module.replace("/attention/attention/", "/attention/")
        for pattern, replacement in _MODULES:
            module = re.sub(pattern, replacement, module)
        parts = (_LAYERS.get(part, part) for part in module.split("/"))
        return Slot(".".join([*parts, leaf]), layout)

    return slot_of
