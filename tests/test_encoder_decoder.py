"""Encoder and decoder: sizes for every number of axes, parameter paths like the figure, and samples kept apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import abstract_call, compiled, param_shapes, random_array, random_params, replaced

from ldm_jax.autoencoder.encoder_decoder import Decoder, Encoder
from ldm_jax.config import AutoencoderConfig


def tiny(**changes) -> AutoencoderConfig:
    defaults = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "num_groups": 4}
    return AutoencoderConfig(**{**defaults, **changes})


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize(
    ("image", "latent"),  # of patch size 1; volumes keep their depth between levels
    [((16,), (8,)), ((8, 24), (4, 12)), ((2, 8, 4), (2, 4, 2))],
)
def test_sizes_of_latents_and_pictures(image: tuple[int, ...], latent: tuple[int, ...], patch_size: int) -> None:
    config = tiny(spatial_dims=len(image), patch_size=patch_size)
    picture = jax.ShapeDtypeStruct((2, *(patch_size * n for n in image), 3), jnp.float32)
    z, _ = abstract_call(Encoder(config, 5), picture)
    assert z.shape == (2, *latent, 5)
    again, _ = abstract_call(Decoder(config, 3), z)
    assert (again.shape, again.dtype) == (picture.shape, picture.dtype)


def test_parameter_paths_read_like_the_figure() -> None:
    config = tiny(attention_levels=(1,), channel_mult=(1, 2, 2))
    picture = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    encoder = param_shapes(Encoder(config, 4), picture)
    decoder = param_shapes(Decoder(config, 3), jax.ShapeDtypeStruct((1, 4, 4, 4), jnp.float32))
    assert encoder["down_1/block_0/attention/attention/query/kernel"] == (16, 16)
    assert encoder["down_1/block_0/resnet/skip/kernel"] == (1, 1, 8, 16)
    assert encoder["downsample_1/conv/kernel"] == (3, 3, 16, 16)
    assert decoder["up_1/block_1/attention/norm/scale"] == (16,)
    assert decoder["upsample_2/conv/kernel"] == (3, 3, 16, 16)
    tops = {path.split("/")[0] for path in encoder}
    assert tops == {
        *("conv_in", "down_0", "down_1", "down_2", "downsample_0", "downsample_1", "mid", "norm_out", "conv_out")
    }


def test_attention_is_where_the_configuration_puts_it() -> None:
    picture = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)

    def blocks_with_attention(**changes) -> set[str]:
        paths = param_shapes(Encoder(tiny(**changes), 4), picture)
        return {path.split("/attention")[0] for path in paths if "/attention" in path}

    assert blocks_with_attention() == {"mid/block_0"}
    assert blocks_with_attention(mid_attention=False) == set()
    assert blocks_with_attention(attention_levels=(0,), num_res_blocks=2) == {
        *("down_0/block_0", "down_0/block_1", "mid/block_0")
    }


@pytest.mark.parametrize(("levels", "expected"), [(None, {"up_1"}), ((), set()), ((0,), {"up_0"})])
def test_the_decoder_may_have_attention_elsewhere(levels: tuple[int, ...] | None, expected: set[str]) -> None:
    config = tiny(attention_levels=(1,), decoder_attention_levels=levels, mid_attention=False)
    paths = param_shapes(Decoder(config, 3), jax.ShapeDtypeStruct((1, 4, 4, 4), jnp.float32))
    assert {path.split("/")[0] for path in paths if "/attention" in path} == expected


def test_the_decoder_has_one_more_block_in_each_level() -> None:
    z = jax.ShapeDtypeStruct((1, 4, 4, 4), jnp.float32)
    paths = param_shapes(Decoder(tiny(num_res_blocks=2), 3), z)
    assert {path.split("/")[1] for path in paths if path.startswith("up_1/")} == {"block_0", "block_1", "block_2"}


def test_a_patch_moves_space_into_the_first_and_last_convolutions() -> None:
    config = tiny(patch_size=4, spatial_dims=1)
    picture = jax.ShapeDtypeStruct((1, 16, 3), jnp.float32)
    assert param_shapes(Encoder(config, 4), picture)["conv_in/kernel"] == (3, 12, 8)
    z = jax.ShapeDtypeStruct((1, 2, 4), jnp.float32)
    assert param_shapes(Decoder(config, 3), z)["conv_out/kernel"] == (3, 8, 12)


@pytest.mark.parametrize("spatial", [(16,), (2, 8, 4)])
def test_sequences_and_volumes_are_encoded_sample_by_sample(spatial: tuple[int, ...]) -> None:
    encoder = Encoder(tiny(spatial_dims=len(spatial)), 3)
    x = random_array(3, *spatial, 2)
    params = random_params(encoder, x)
    encode = compiled(lambda x: encoder.apply({"params": params}, x))
    z = encode(x)
    assert np.all(np.isfinite(z)) and np.std(z) > 0
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(encode(x[order]), z[order], atol=1e-5)
    others = replaced(x, slice(1, None), random_array(2, *spatial, 2, seed=5))
    np.testing.assert_allclose(encode(others)[0], z[0], atol=1e-5)


def test_bfloat16_keeps_float32_parameters_and_pictures() -> None:
    picture = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    output, params = abstract_call(Decoder(tiny(), 3, jnp.bfloat16), picture)
    assert output.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
