"""The autoencoder whose latents are looked up in a learned codebook.

(1) zq = e_k,  k = argmin_j |z - e_j|^2                              van den Oord et al. 2017, arXiv:1711.00937, eq. 1-2
(2) loss = |sg(z) - zq|^2 + commitment_cost |z - sg(zq)|^2           the same, eq. 3, with sg() stopping the gradient
(3) gradients pass the lookup as if it were the identity
(4) perplexity = exp(-sum_j p_j log p_j), p_j the share of code j in the batch
(5) cosine codes: z and e_j are divided by their lengths                 Yu et al. 2021, arXiv:2110.04627, section 3.2
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from ldm_jax.autoencoder.encoder_decoder import Decoder, Encoder
from ldm_jax.autoencoder.posterior import DiagonalGaussian
from ldm_jax.config import AutoencoderVQConfig, Remat
from ldm_jax.nn.conv import Conv
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel
from ldm_jax.nn.parameter import parameter

_BLOCK_PRODUCTS = 2**24  # 64 MiB in float32
_SMALLEST_SQUARE = 1e-24  # of a length


class Codebook(nn.Module):
    """The codes and the lookup, in float32."""

    size: int
    channels: int
    cosine: bool = False
    block_products: int | None = None
    """Products of latents and codes that are in memory at once; None takes all of them."""

    def setup(self) -> None:
        """Create the codes, spread as in VQ-VAE: uniform in [-1/size, 1/size]."""
        self.embedding = parameter(self, "embedding", _uniform_codes, (self.size, self.channels))

    def indices(self, z: Float[Array, "b *latent z"]) -> Int[Array, "b *latent"]:
        """The nearest code of each latent vector (1)."""
        # |z|^2 is the same for every code, so it does not change the nearest one.
        # Highest precision: accelerators multiply float32 in fewer bits by default, which picks other codes.
        codes = self._codes()

        def nearest(z: Float[Array, "*n z"]) -> Int[Array, "*n"]:
            products = jnp.matmul(z, codes.T, precision="highest")
            return jnp.argmax(products - 0.5 * jnp.sum(jnp.square(codes), axis=-1), axis=-1)

        if self.block_products is None:
            return nearest(z)
        block = max(self.block_products // self.size, 1)
        return jax.lax.map(nearest, z.reshape(-1, z.shape[-1]), batch_size=block).reshape(z.shape[:-1])

    def look_up(self, indices: Int[Array, "b *latent"]) -> Float[Array, "b *latent z"]:
        """The codes at `indices`."""
        return jnp.take(self._codes(), indices, axis=0)

    def _codes(self) -> Float[Array, "n z"]:
        return unit_length(self.embedding) if self.cosine else self.embedding


def unit_length(x: Float[Array, "*n z"]) -> Float[Array, "*n z"]:
    """Vectors of the same direction and length 1 (5); a vector without length stays one, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), _SMALLEST_SQUARE))


def _uniform_codes(key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike) -> Float[Array, "n z"]:
    return jax.random.uniform(key, shape, dtype, -1.0 / shape[0], 1.0 / shape[0])


class AutoencoderVQ(nn.Module):
    """Encoder to latent vectors, codebook, and decoder; the diffusion model sees the vectors before the lookup."""

    config: AutoencoderVQConfig
    image_channels: int = 3
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE
    remat: Remat = "none"
    strip_rows: int | None = None
    """Rows of a feature map that are computed at a time, but in training; None computes all of them."""

    def setup(self) -> None:
        """Name the parts."""
        channels = self.config.latent_channels
        z_channels = self.config.z_channels or channels
        how = (self.dtype, self.kernel, self.remat, self.strip_rows)
        self.encoder = Encoder(self.config, z_channels, *how, name="encoder")
        block = None if self.strip_rows is None else _BLOCK_PRODUCTS
        self.codebook = Codebook(
            self.config.codebook_size, channels, self.config.cosine_codes, block_products=block, name="codebook"
        )
        if self.config.quant_conv:
            self.quant_conv = Conv(channels, kernel_size=1, dtype=self.dtype, name="quant_conv")
        if self.config.has_post_quant_conv:
            self.post_quant_conv = Conv(z_channels, kernel_size=1, dtype=self.dtype, name="post_quant_conv")
        self.decoder = Decoder(self.config, self.image_channels, *how, name="decoder")

    def encode(self, image: Float[Array, "b *spatial c"], *, train: bool = False) -> DiagonalGaussian:
        """Latents before the lookup of pictures in [-1, 1], as a posterior without spread; float32."""
        h = self.encoder(image, train=train)
        z = (self.quant_conv(h) if self.config.quant_conv else h).astype(jnp.float32)
        z = unit_length(z) if self.config.cosine_codes else z
        return DiagonalGaussian(z, jnp.full_like(z, -jnp.inf))

    def quantize(self, z: Float[Array, "b *latent z"]) -> tuple[Float[Array, "b *latent z"], Int[Array, "b *latent"]]:
        """The nearest codes (1) and their indices."""
        indices = self.codebook.indices(z)
        return self.codebook.look_up(indices), indices

    def decode(self, z: Float[Array, "b *latent z"], *, train: bool = False) -> Float[Array, "b *spatial c"]:
        """Pictures of latents, which are quantised first."""
        return self.decode_quantized(self.quantize(z)[0], train=train)

    def decode_quantized(self, zq: Float[Array, "b *latent z"], *, train: bool = False) -> Float[Array, "b *spatial c"]:
        """Pictures of latents as they are."""
        return self.decoder(self.post_quant_conv(zq) if self.config.has_post_quant_conv else zq, train=train)

    def __call__(
        self, image: Float[Array, "b *spatial c"], keys: Key[Array, " b"], *, train: bool = False
    ) -> tuple[Float[Array, "b *spatial k"], Float[Array, " b"], dict[str, Float[Array, ""]]]:
        """Reconstruction, the weighted codebook loss (2) of each picture, and metrics; `keys` are not needed.

        Codes that follow by averages have no gradient; the metrics `code_share` and `code_total` move them.
        """
        del keys  # the posterior is a point
        by_gradient = self.config.codes == "gradient"
        z = self.encode(image, train=train).mode()
        zq, indices = self.quantize(z)
        zq = zq if by_gradient else jax.lax.stop_gradient(zq)
        to_code = _mean_square(jax.lax.stop_gradient(z) - zq)
        to_latent = _mean_square(z - jax.lax.stop_gradient(zq))
        regulariser = self.config.codebook_weight * (by_gradient * to_code + self.config.commitment_cost * to_latent)
        straight_through = z + jax.lax.stop_gradient(zq - z)  # (3)
        share = code_share(indices, self.config.codebook_size)
        metrics = {
            "perplexity": perplexity(indices, self.config.codebook_size),
            "code_usage": jnp.mean(share > 0),
            "codebook_loss": jnp.mean(to_code),
        }
        if not by_gradient:
            vectors, chosen = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]), indices.reshape(-1)
            total = jax.ops.segment_sum(vectors, chosen, self.config.codebook_size) / len(chosen)
            metrics |= {"code_share": share, "code_total": total}
        return self.decode_quantized(straight_through, train=train), regulariser, metrics


def _mean_square(x: Float[Array, "b *latent z"]) -> Float[Array, " b"]:
    return jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)))


def code_share(indices: Int[Array, "b *latent"], codebook_size: int) -> Float[Array, " k"]:
    """Share of each code in the batch."""
    return jnp.bincount(indices.reshape(-1), length=codebook_size) / indices.size


def perplexity(indices: Int[Array, "b *latent"], codebook_size: int) -> Float[Array, ""]:
    """How many codes are in use, counted by the entropy of their shares (4)."""
    share = code_share(indices, codebook_size)
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-10))))
