"""LPIPS, a distance between pictures as people see it, and the classifiers' trunks that it compares them by.

(1) Trunks: the convolutions of AlexNet (Krizhevsky 2014, arXiv:1404.5997) and of VGG16 (Simonyan and Zisserman 2015,
    arXiv:1409.1556), each with five maps y_l behind a ReLU.
(2) d(a, b) = sum_l mean_hw sum_c w_lc (u(y_l(a)) - u(y_l(b)))_hwc^2 with u(y) = y / (|y| + 1e-10), |.| over channels
    (Zhang et al. 2018, arXiv:1801.03924, equation 1; w_l are the `linear` weights of their version 0.1).
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.config import SMALLEST_PICTURE, PerceptualNet
from ldm_jax.errors import UserError
from ldm_jax.nn.parameter import parameter

# What the trunks saw in training, for pictures in [-1, 1] instead of [0, 1].
_MEAN = (-0.030, -0.088, -0.188)
_STD = (0.458, 0.448, 0.450)


class Stage(NamedTuple):
    """Convolutions, each with a ReLU, of which the last gives a map."""

    channels: tuple[int, ...]
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: bool = True
    """Whether a max pooling of stride 2 comes first."""


class TrunkShape(NamedTuple):
    """A trunk (1)."""

    stages: tuple[Stage, ...]
    pool_window: int


TRUNKS: dict[PerceptualNet, TrunkShape] = {
    "vgg16": TrunkShape(
        (Stage((64,) * 2, pool=False), Stage((128,) * 2), Stage((256,) * 3), Stage((512,) * 3), Stage((512,) * 3)),
        2,
    ),
    "alexnet": TrunkShape(
        (
            Stage((64,), kernel=11, stride=4, padding=2, pool=False),
            Stage((192,), kernel=5, padding=2),
            Stage((384,)),
            Stage((256,), pool=False),
            Stage((256,), pool=False),
        ),
        3,
    ),
}


def standardize(image: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
    """Pictures in [-1, 1], grey or RGB, as the trunks take them."""
    image = jnp.broadcast_to(image, (*image.shape[:-1], 3))
    return (image - jnp.asarray(_MEAN, image.dtype)) / jnp.asarray(_STD, image.dtype)


class Trunk(nn.Module):
    """The five maps of a standardised picture (1)."""

    net: PerceptualNet
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Compute the maps, largest first.

        Raises:
            UserError: the pictures are too small.
        """
        shape, smallest = TRUNKS[self.net], SMALLEST_PICTURE[self.net]
        if min(image.shape[1:3]) < smallest:
            raise UserError(
                f"{self.net} sees nothing in pictures of {image.shape[1]}x{image.shape[2]} pixels; they need "
                f"{smallest} at least"
            )
        maps, x, number = [], image, 0
        for stage in shape.stages:
            if stage.pool:
                x = nn.max_pool(x, (shape.pool_window,) * 2, (2, 2))
            for channels in stage.channels:
                conv = nn.Conv(
                    channels,
                    (stage.kernel,) * 2,
                    stage.stride,
                    stage.padding,
                    dtype=self.dtype,
                    name=f"conv_{number}",
                )
                x, number = nn.relu(conv(x)), number + 1
            maps.append(x)
        return tuple(maps)


class Lpips(nn.Module):
    """LPIPS of pictures in [-1, 1] (2)."""

    net: PerceptualNet
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, first: Float[Array, "b h w c"], second: Float[Array, "b h w c"]) -> Float[Array, " b"]:
        """The distance of each pair; raises UserError where the trunk does.

        One after the other: the maps of a picture that has no gradient need not be kept.
        """
        trunk, distance = Trunk(self.net, self.dtype, name="trunk"), jnp.zeros(len(first))
        for i, pair in enumerate(zip(*(trunk(standardize(x)) for x in (first, second)), strict=True)):
            a, b = (_unit(maps.astype(jnp.float32)) for maps in pair)
            weight = parameter(self, f"head_{i}", nn.initializers.constant(1.0 / a.shape[-1]), (a.shape[-1],))
            distance += ((a - b) ** 2 @ weight).mean((1, 2))
        return distance


def _unit(y: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """u of (2); where all of y is 0, so is its gradient, and not undefined."""
    return y / (jnp.sqrt(jnp.maximum((y**2).sum(-1, keepdims=True), 1e-20)) + 1e-10)
