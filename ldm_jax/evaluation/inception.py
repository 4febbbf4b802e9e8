"""Inception-v3 (Szegedy et al. 2016, arXiv:1512.00567), in the two versions that scores are computed with.

(1) `fid`: TensorFlow's graph of 2015-12-05, whose conversion to PyTorch is pt_inception-2015-12-05-6726825d.pth. Its
    average pools leave the padding out, the last block pools by maximum, and the classes are 1008.
(2) `torchvision`: average pools count the padding, the last block averages, 1000 classes.

The score of classes uses logits without their bias in (1), as ADM's evaluator, and with it in (2). Spatial features
are the first 7 channels of the 17 x 17 map behind the 1 x 1 branch of Mixed_6d, `mixed_6/conv` in TensorFlow
(Nash et al. 2021, arXiv:2103.03841; Dhariwal and Nichol 2021, arXiv:2105.05233, evaluator).
"""

import functools
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.evaluation.frozen_norm import FrozenNorm, average_pool, mean_over_space, torch_slot
from ldm_jax.interop.mapping import Slot

InceptionKind: TypeAlias = Literal["fid", "torchvision"]

NUM_CLASSES: dict[InceptionKind, int] = {"fid": 1008, "torchvision": 1000}
SPATIAL_CHANNELS = 7


class InceptionOutputs(NamedTuple):
    """What scores are computed from."""

    pooled: Float[Array, "b 2048"]
    logits: Float[Array, "b k"]
    spatial: Float[Array, "b s"]


class Convolution(nn.Module):
    """Convolution, frozen norm and ReLU; strided ones have no padding, others keep the size unless told."""

    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padded: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Apply."""
        padding = "SAME" if self.padded and self.stride == 1 else "VALID"
        x = nn.Conv(self.channels, self.kernel, self.stride, padding, use_bias=False, name="conv")(x)
        return nn.relu(FrozenNorm(1e-3, name="bn")(x))


class Inception(nn.Module):
    """Pictures of 299 x 299 x 3, standardised, to features."""

    kind: InceptionKind

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> InceptionOutputs:
        """Compute the features."""
        x = self._stem(image)
        for name, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self._block_a(name, x, pool)
        x = self._reduce("Mixed_6a", x, _TO_17)
        spatial = x
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x, first = self._block_c(name, x, width)
            spatial = first if name == "Mixed_6d" else spatial
        x = self._reduce("Mixed_7a", x, _TO_8)
        x = self._block_e("Mixed_7b", x, maximum=False)
        x = self._block_e("Mixed_7c", x, maximum=self.kind == "fid")
        pooled = mean_over_space(x)
        logits = nn.Dense(NUM_CLASSES[self.kind], use_bias=self.kind == "torchvision", name="fc")(pooled)
        spatial = spatial[..., :SPATIAL_CHANNELS].reshape(len(image), -1)
        return InceptionOutputs(pooled, logits, spatial)

    def _stem(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b _ _ 192"]:
        x = Convolution(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = Convolution(32, (3, 3), padded=False, name="Conv2d_2a_3x3")(x)
        x = Convolution(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = Convolution(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = Convolution(192, (3, 3), padded=False, name="Conv2d_4a_3x3")(x)
        return nn.max_pool(x, (3, 3), (2, 2))

    def _chain(self, block: str, x: Float[Array, "b h w c"], *layers: tuple) -> Float[Array, "b h w _"]:
        """Convolutions one after the other: (name, channels, kernel side or sides)."""
        for name, channels, kernel in layers:
            sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
            x = Convolution(channels, sides, name=f"{block}-{name}")(x)
        return x

    def _pooled(self, block: str, x: Float[Array, "b h w c"], channels: int, *, maximum: bool = False) -> Array:
        if maximum:
            x = nn.max_pool(x, (3, 3), padding="SAME")
        else:
            x = average_pool(x, count_padding=self.kind == "torchvision")
        return self._chain(block, x, ("branch_pool", channels, 1))

    def _block_a(self, block: str, x: Float[Array, "b h w c"], pool: int) -> Float[Array, "b h w _"]:
        first = self._chain(block, x, ("branch1x1", 64, 1))
        second = self._chain(block, x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))
        third = self._chain(block, x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))
        return jnp.concatenate([first, second, third, self._pooled(block, x, pool)], axis=-1)

    def _reduce(self, block: str, x: Float[Array, "b h w c"], branches: tuple[tuple, ...]) -> Float[Array, "b _ _ _"]:
        """Branches whose last convolution has stride 2, and a pooling of stride 2."""
        ends = []
        for *layers, (name, channels, side) in branches:
            last = Convolution(channels, (side, side), 2, name=f"{block}-{name}")
            ends.append(last(self._chain(block, x, *layers)))
        return jnp.concatenate([*ends, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)

    def _block_c(self, block: str, x: Float[Array, "b h w c"], width: int) -> tuple[Array, Array]:
        """The block, and its first branch alone."""
        row, column = (1, 7), (7, 1)
        first = self._chain(block, x, ("branch1x1", 192, 1))
        second = self._chain(
            block, x, ("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)
        )
        third = self._chain(
            block,
            x,
            ("branch7x7dbl_1", width, 1),
            ("branch7x7dbl_2", width, column),
            ("branch7x7dbl_3", width, row),
            ("branch7x7dbl_4", width, column),
            ("branch7x7dbl_5", 192, row),
        )
        return jnp.concatenate([first, second, third, self._pooled(block, x, 192)], axis=-1), first

    def _block_e(self, block: str, x: Float[Array, "b h w c"], *, maximum: bool) -> Float[Array, "b h w 2048"]:
        first = self._chain(block, x, ("branch1x1", 320, 1))
        parts = [first]
        for stem in ((("branch3x3_1", 384, 1),), (("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))):
            y, name = self._chain(block, x, *stem), "branch3x3_2" if len(stem) == 1 else "branch3x3dbl_3"
            parts += [self._chain(block, y, (f"{name}{half}", 384, sides)) for half, sides in _HALVES]
        return jnp.concatenate([*parts, self._pooled(block, x, 192, maximum=maximum)], axis=-1)


_TO_17 = (
    (("branch3x3", 384, 3),),
    (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
)
_TO_8 = (
    (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)),
    (
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, 3),
    ),
)
_HALVES = (("a", (1, 3)), ("b", (3, 1)))


def inception_slot(path: str) -> Slot:
    """The tensor of a parameter, which is called alike in torchvision and in the conversion of (1)."""
    module, _, leaf = path.rpartition("/")
    return torch_slot(module.replace("-", ".").replace("/", "."), leaf)


def is_no_inception_weight(name: str) -> bool:
    """Whether a tensor is not needed: counters, the auxiliary classifier, and the bias that (1) does not use."""
    return name.endswith("num_batches_tracked") or name.startswith("AuxLogits.") or name == "fc.bias"


@functools.cache
def abstract_inception(kind: InceptionKind) -> dict[str, Any]:
    """Shapes of the parameters."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    return jax.eval_shape(Inception(kind).init, jax.random.key(0), image)["params"]
