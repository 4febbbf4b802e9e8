"""The autoencoder with a Gaussian posterior that a small KL term holds near the standard normal (LDM, section 3.1)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ldm_jax.autoencoder.encoder_decoder import Decoder, Encoder
from ldm_jax.autoencoder.posterior import LOGVAR_RANGE, DiagonalGaussian
from ldm_jax.config import AutoencoderKLConfig, Remat
from ldm_jax.nn.conv import Conv
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel


class AutoencoderKL(nn.Module):
    """Encoder to posterior, latent to picture."""

    config: AutoencoderKLConfig
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
        self.encoder = Encoder(self.config, 2 * z_channels, *how, name="encoder")
        if self.config.quant_conv:
            self.quant_conv = Conv(2 * channels, kernel_size=1, dtype=self.dtype, name="quant_conv")
        if self.config.has_post_quant_conv:
            self.post_quant_conv = Conv(z_channels, kernel_size=1, dtype=self.dtype, name="post_quant_conv")
        self.decoder = Decoder(self.config, self.image_channels, *how, name="decoder")

    def encode(self, image: Float[Array, "b *spatial c"], *, train: bool = False) -> DiagonalGaussian:
        """Posterior of the latents of pictures in [-1, 1]; moments in float32."""
        h = self.encoder(image, train=train)
        moments = (self.quant_conv(h) if self.config.quant_conv else h).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(logvar, *LOGVAR_RANGE))

    def decode(self, z: Float[Array, "b *latent z"], *, train: bool = False) -> Float[Array, "b *spatial c"]:
        """Pictures of latents."""
        return self.decoder(self.post_quant_conv(z) if self.config.has_post_quant_conv else z, train=train)

    def __call__(
        self, image: Float[Array, "b *spatial c"], keys: Key[Array, " b"], *, train: bool = False
    ) -> tuple[Float[Array, "b *spatial k"], Float[Array, " b"], dict[str, Float[Array, ""]]]:
        """Reconstruction from a posterior sample, the weighted regulariser of each picture, and metrics.

        The regulariser is kl_weight * KL / (values of the picture): LDM adds kl_weight * KL to a reconstruction error
        summed over the picture, and here that error is a mean.
        """
        posterior = self.encode(image, train=train)
        kl = posterior.kl()
        reconstruction = self.decode(posterior.sample(keys), train=train)
        metrics = {"kl": jnp.mean(kl), "posterior_std": jnp.mean(jnp.exp(0.5 * posterior.logvar))}
        return reconstruction, self.config.kl_weight * kl / image[0].size, metrics
