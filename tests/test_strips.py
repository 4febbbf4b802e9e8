"""The autoencoder in strips: the numbers of the whole maps, whatever the strips, in less memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import abstract_params, compiled, random_array, random_params

from ldm_jax import rng
from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.config import AutoencoderConfig, AutoencoderKLConfig, AutoencoderVQConfig, Experiment
from ldm_jax.errors import UserError
from ldm_jax.nn.norm import GroupNorm, group_moments

SIZES = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "num_groups": 4, "latent_channels": 2}
PLAIN = AutoencoderKLConfig(**SIZES, mid_attention=False)
AUTOENCODERS = {
    "attention": AutoencoderKLConfig(**SIZES, attention_levels=(0,), decoder_attention_levels=(1,), patch_size=2),
    "sums_of_taps": AutoencoderKLConfig(**{**SIZES, "base_channels": 32}, mid_attention=False),  # quick upsampling
    "one_width": AutoencoderKLConfig(**{**SIZES, "channel_mult": (1, 1)}, mid_attention=False, quant_conv=False),
    "three_levels": AutoencoderKLConfig(**{**SIZES, "channel_mult": (1, 2, 2)}),
    "codes": AutoencoderVQConfig(**{**SIZES, "channel_mult": (1,), "num_res_blocks": 2}, codebook_size=32),
    "cosine_codes": AutoencoderVQConfig(**SIZES, codebook_size=32, cosine_codes=True, patch_size=2),
}


QUICK = ("sums_of_taps", "codes")


@functools.cache
def autoencoder(config: AutoencoderConfig, strip_rows: int | None = None, dtype: str = "float32"):
    return make_autoencoder(config, 3, dtype, strip_rows=strip_rows)


@functools.cache
def params_of(config: AutoencoderConfig):
    shape = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    return random_params(autoencoder(config), shape, rng.sample_keys(rng.root_key(0), jnp.arange(1)))


def call(config: AutoencoderConfig, strip_rows: int | None, method: str, x: np.ndarray, dtype: str = "float32"):
    module = autoencoder(config, strip_rows, dtype)
    return compiled(lambda p, x: module.apply({"params": p}, x, method=method))(params_of(config), x)


def assert_same_numbers(config: AutoencoderConfig, picture: np.ndarray, strip_rows: int) -> None:
    whole, strips = (call(config, rows, "encode", picture) for rows in (None, strip_rows))
    np.testing.assert_allclose(strips.mean, whole.mean, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(strips.logvar, whole.logvar, atol=1e-5, rtol=1e-5)
    whole_picture, picture_in_strips = (call(config, rows, "decode", whole.mean) for rows in (None, strip_rows))
    assert np.std(whole_picture) > 0.1
    np.testing.assert_allclose(picture_in_strips, whole_picture, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in AUTOENCODERS])
def test_strips_make_what_the_whole_maps_make(name: str) -> None:
    assert_same_numbers(AUTOENCODERS[name], random_array(2, 24, 16, 3), strip_rows=5)


@pytest.mark.parametrize("strip_rows", [1, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 100))])
def test_their_height_is_of_no_consequence(strip_rows: int) -> None:
    assert_same_numbers(PLAIN, random_array(1, 28, 8, 3), strip_rows)


@pytest.mark.slow
def test_half_precision_is_as_exact_as_it_is() -> None:
    config, z = PLAIN, random_array(1, 8, 8, 2)
    exact = call(config, None, "decode", z)
    whole, strips = (np.abs(call(config, rows, "decode", z, "bfloat16") - exact) for rows in (None, 3))
    assert strips.mean() < 1.2 * whole.mean()


def test_moments_of_a_part_are_not_those_of_the_whole() -> None:
    x = jnp.asarray(random_array(2, 6, 4, 8)) + jnp.arange(6.0)[:, None, None]
    norm = GroupNorm(4)
    params = norm.init(rng.root_key(0), x)
    whole = norm.apply(params, x)
    by_part = norm.apply(params, x[:, :2], group_moments(x, 4))
    np.testing.assert_allclose(by_part, whole[:, :2], atol=1e-6)
    assert np.abs(norm.apply(params, x[:, :2]) - whole[:, :2]).max() > 0.1


@pytest.mark.slow
def test_memory_of_large_maps_is_a_part_of_what_it_was() -> None:
    """By the compiler's own account, of a decoder and an encoder that widen as Stable Diffusion's do."""
    config = AutoencoderKLConfig(**{**SIZES, "channel_mult": (1, 2, 4)}, mid_attention=False)

    def bytes_of(strip_rows: int | None, method: str, shape: tuple[int, ...]) -> int:
        module = autoencoder(config, strip_rows)
        function = jax.jit(lambda p, x: module.apply({"params": p}, x, method=method))
        lowered = function.lower(params_of(config), jax.ShapeDtypeStruct(shape, jnp.float32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    map_bytes = 256 * 256 * 8 * 4
    for method, shape, least in (("decode", (1, 64, 64, 2), 5), ("encode", (1, 256, 256, 3), 2.9)):
        strips, whole = (bytes_of(rows, method, shape) / map_bytes for rows in (8, None))
        assert strips < 2.2 < least < whole, (method, strips, whole)


def test_training_is_not_in_strips() -> None:
    config, picture = PLAIN, random_array(1, 16, 8, 3)
    keys = rng.sample_keys(rng.root_key(0), jnp.arange(1))

    def loops(**changes) -> bool:
        module = autoencoder(config, 3)
        call = functools.partial(module.apply, {"params": params_of(config)}, **changes)
        return "scan" in str(jax.make_jaxpr(call)(picture, keys))

    assert loops() and not loops(train=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strip_rows": 0}, "strip_rows=0 must be greater than 0"),
        ({"strip_rows": -4}, "strip_rows=-4 must be greater than 0"),
    ],
)
def test_what_is_no_number_of_rows_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(Experiment(), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["decode", "encode"])
def test_stable_diffusions_autoencoder_at_2048_pixels_fits_into_6_gb(method: str) -> None:
    """The compiler's account at full width in float32, with the parameters; docs/first_stage.md has a run's."""
    module = autoencoder(AutoencoderKLConfig(channel_mult=(1, 2, 4, 4)), strip_rows=32)
    keys = rng.sample_keys(rng.root_key(0), jnp.arange(1))
    picture = jax.ShapeDtypeStruct((1, 2048, 2048, 3), jnp.float32)
    params = abstract_params(module, picture, keys)
    x = jax.ShapeDtypeStruct((1, 256, 256, 4), jnp.float32) if method == "decode" else picture
    memory = jax.jit(lambda p, x: module.apply({"params": p}, x, method=method)).lower(params, x).compile()
    analysis = memory.memory_analysis()
    sizes = (analysis.temp_size_in_bytes, analysis.argument_size_in_bytes, analysis.output_size_in_bytes)
    assert 4e9 < sum(sizes) < 6e9
