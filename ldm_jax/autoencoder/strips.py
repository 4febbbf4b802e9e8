"""The encoder and decoder a few rows at a time, for pictures whose feature maps do not fit into memory together.

The result is that of the whole map up to rounding: there are no tiles, and so no seams. A convolution reads the rows
around its own, attention takes a few queries at a time, and a normalisation has the moments of the whole map, put
together from those of its strips:

(1) mean <- mean + s d,  variance <- variance + s (v - variance) + s (1 - s) d^2,  d = m - mean
    for a strip of moments m, v whose share of all rows so far is s        Chan et al. 1983, doi:10.2307/2683386

A residual block holds two maps, its input and what lies between its convolutions, and adds its result to the first.
Where the decoder reaches the resolution of the picture, two maps are too many: the block's input is upsampled, and what
lies between its convolutions computed, anew in each of its passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ldm_jax.config import AutoencoderConfig
from ldm_jax.nn.attention import SelfAttentionBlock
from ldm_jax.nn.conv import Conv
from ldm_jax.nn.dot_product_attention import AttentionKernel
from ldm_jax.nn.norm import GroupNorm, Moments, group_moments
from ldm_jax.nn.resample import Upsample, depth_to_space, space_to_depth

Params = dict[str, Any]
Begin = int | Int[Array, ""]
C = TypeVar("C")


@dataclass(frozen=True)
class Rows:
    """A feature map of `[b, h, w, c]`, of which rows are computed when they are read."""

    shape: tuple[int, ...]
    """`(b, h, w, c)`."""
    read: Callable[[Begin, int], Array]
    """`count` rows from `begin` on, `[b, count, w, c]`; those outside of the map are any numbers."""
    whole: Array | None = None
    """The map, if it is in memory."""

    def padded(self, begin: Begin, count: int) -> Float[Array, "b count w c"]:
        """The same with zeros outside of the map."""
        index = begin + jnp.arange(count)
        inside = (index >= 0) & (index < self.shape[1])
        rows = self.read(begin, count)
        return jnp.where(inside[:, None, None], rows, jnp.zeros((), rows.dtype))


def held(x: Float[Array, "b h w c"]) -> Rows:
    """A map that is in memory."""

    def read(begin: Begin, count: int) -> Float[Array, "b count w c"]:
        return jnp.take(x, jnp.clip(begin + jnp.arange(count), 0, x.shape[1] - 1), axis=1)

    return Rows(x.shape, read, x)


def _apply(module: nn.Module, params: Params, *arguments: Any) -> Any:
    return module.apply({"params": params}, *arguments)


@dataclass(frozen=True)
class InStrips:
    """The layers of an autoencoder on maps of two axes, `rows` of each at a time."""

    config: AutoencoderConfig
    norm_epsilon: float
    dtype: DTypeLike
    kernel: AttentionKernel
    rows: int

    def encode(self, params: Params, image: Float[Array, "b h w c"]) -> Float[Array, "b y x z"]:
        """What `Encoder` makes of pictures, with its parameters."""
        x = held(space_to_depth(image.astype(self.dtype), self.config.patch_size))
        h = held(self.hold(self.conv(x, params["conv_in"])))
        for level in range(len(self.config.channel_mult)):
            if level > 0:
                h = held(self.hold(self.downsampled(h, params[f"downsample_{level - 1}"])))
            h = self.blocks(h, params[f"down_{level}"])
        return self.hold(self.head(self.blocks(h, params["mid"]), params))

    def decode(self, params: Params, z: Float[Array, "b y x z"]) -> Float[Array, "b h w c"]:
        """What `Decoder` makes of latents, with its parameters."""
        h = held(self.hold(self.conv(held(z.astype(self.dtype)), params["conv_in"])))
        h = self.blocks(h, params["mid"])
        for level in reversed(range(len(self.config.channel_mult))):
            of_level = params[f"up_{level}"]
            lean = level == 0 and "skip" in of_level["block_0"]["resnet"]
            h = self.blocks(h if lean else held(self.hold(h)), of_level, lean=lean)
            if level > 0:
                h = self.upsampled(h, params[f"upsample_{level}"])
        image = self.hold(self.head(h, params))
        return depth_to_space(image, self.config.patch_size).astype(jnp.float32)

    def blocks(self, x: Rows, params: Params, *, lean: bool = False) -> Rows:
        """The blocks of a level or of the middle; `lean` as for the residual block, of the first one."""
        for i in range(len(params)):
            block = params[f"block_{i}"]
            x = held(self.residual_block(x, block["resnet"], lean=lean and i == 0))
            if "attention" in block:
                kernel = AttentionKernel("blocked", self.kernel.mesh)
                attend = SelfAttentionBlock(
                    1, self.config.num_groups, self.norm_epsilon, dtype=self.dtype, kernel=kernel
                )
                x = held(_apply(attend, block["attention"], self.hold(x)))
        return x

    def residual_block(self, x: Rows, params: Params, *, lean: bool) -> Float[Array, "b h w d"]:
        """`ResBlock`; `lean` holds nothing but the result, and takes more time."""
        h = self.conv(self.activated(x, params["norm_0"]), params["conv_0"])
        h = h if lean else held(self.hold(h))
        branch = self.conv(self.activated(h, params["norm_1"]), params["conv_1"])
        return self.add(self.hold(self.conv(x, params["skip"]) if "skip" in params else x), branch)

    def head(self, x: Rows, params: Params) -> Rows:
        """The last normalisation and convolution."""
        return self.conv(self.activated(x, params["norm_out"]), params["conv_out"])

    def conv(self, x: Rows, params: Params) -> Rows:
        """A convolution that keeps the resolution."""
        size, features = params["kernel"].shape[0], params["kernel"].shape[-1]
        around = size // 2
        module = Conv(features, size, dtype=self.dtype, padding=((0, 0), (around, around)))

        def read(begin: Begin, count: int) -> Float[Array, "b count w d"]:
            return _apply(module, params, x.padded(begin - around, count + 2 * around))

        return Rows((*x.shape[:3], features), read)

    def activated(self, x: Rows, params: Params) -> Rows:
        """Group normalisation and activation."""
        moments = self.moments(x)
        module = GroupNorm(self.config.num_groups, self.norm_epsilon, self.dtype)
        return Rows(
            x.shape,
            lambda begin, count: jax.nn.silu(_apply(module, params, x.read(begin, count), moments)),
        )

    def downsampled(self, x: Rows, params: Params) -> Rows:
        """`Downsample` without padding before the first position: row i is made of rows 2i to 2i + 2."""
        batch, height, width, channels = x.shape
        module = Conv(channels, dtype=self.dtype, strides=(2, 2), padding=((0, 0), (0, 1)))
        return Rows(
            (batch, height // 2, width // 2, channels),
            lambda begin, count: _apply(module, params["conv"], x.padded(2 * begin, 2 * count + 1)),
        )

    def upsampled(self, x: Rows, params: Params) -> Rows:
        """`Upsample`: rows 2i and 2i + 1 are made of rows i - 1 to i + 1."""
        batch, height, width, channels = x.shape
        module = Upsample(self.dtype)

        def read(begin: Begin, count: int) -> Float[Array, "b count w c"]:
            first = begin // 2 - 1
            made = _apply(module, params, x.padded(first, count // 2 + 3))  # the outermost lack a neighbour
            return jax.lax.dynamic_slice_in_dim(made, begin - 2 * first, count, axis=1)

        return Rows((batch, 2 * height, 2 * width, channels), read)

    def moments(self, x: Rows) -> Moments:
        """Moments of the groups of a whole map (1)."""

        def put_in(begin: Begin, count: int, so_far: Moments) -> Moments:
            mean, variance = group_moments(x.read(begin, count), self.config.num_groups)
            share = count / (begin + count)
            shift = mean - so_far.mean
            both = so_far.variance + share * (variance - so_far.variance) + share * (1 - share) * jnp.square(shift)
            return Moments(so_far.mean + share * shift, both)

        nothing = jnp.zeros((x.shape[0], 1, 1, x.shape[3]))
        return self._over_strips(x.shape[1], put_in, Moments(nothing, nothing))

    def hold(self, x: Rows) -> Float[Array, "b h w c"]:
        """The map in memory, computed unless it is there."""
        if x.whole is not None:
            return x.whole

        def write(begin: Begin, count: int, whole: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
            return jax.lax.dynamic_update_slice_in_dim(whole, x.read(begin, count), begin, axis=1)

        # One buffer for each map, not before its turn: of zeros the compiler makes one, which it keeps, and copies.
        anything = x.read(0, 1)[0, 0, 0, 0]
        return self._over_strips(x.shape[1], write, jnp.broadcast_to(anything, x.shape))

    def add(self, x: Float[Array, "b h w c"], branch: Rows) -> Float[Array, "b h w c"]:
        """The sum of two maps, in the place of the first."""

        def write(begin: Begin, count: int, whole: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
            rows = jax.lax.dynamic_slice_in_dim(whole, begin, count, axis=1) + branch.read(begin, count)
            return jax.lax.dynamic_update_slice_in_dim(whole, rows, begin, axis=1)

        return self._over_strips(x.shape[1], write, x)

    def _over_strips(self, height: int, step: Callable[[Begin, int, C], C], begin_with: C) -> C:
        """Steps over strips of `rows` rows, and one more over those that are left."""
        count = min(self.rows, height)
        result = jax.lax.fori_loop(0, height // count, lambda i, c: step(i * count, count, c), begin_with)
        left = height % count
        return step(height - left, left, result) if left else result
