"""The KL autoencoder: PyTorch's numbers, the published parameter counts, and the weight of its regulariser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign_tensors import assert_close
from golden_weights import golden_arrays, golden_autoencoder
from module_trials import abstract_call, compiled, num_params, random_array, random_params

from ldm_jax import rng
from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.autoencoder.kl import AutoencoderKL
from ldm_jax.autoencoder.posterior import LOGVAR_RANGE
from ldm_jax.config import AutoencoderKLConfig

TINY = AutoencoderKLConfig(
    base_channels=4,
    channel_mult=(1,),
    num_res_blocks=1,
    mid_attention=False,
    patch_size=2,
    num_groups=2,
    latent_channels=2,
    kl_weight=0.5,
)
KEYS, OTHER_KEYS = (rng.sample_keys(rng.root_key(seed), jnp.arange(2)) for seed in (0, 1))
PICTURE = jnp.asarray(random_array(2, 8, 4, 3))


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"channel_mult": (1, 2, 4), "latent_channels": 3}, 55_312_063),  # kl-f4
        ({"channel_mult": (1, 2, 4, 4), "latent_channels": 4}, 83_653_863),  # kl-f8, that of Stable Diffusion
        ({"channel_mult": (1, 1, 2, 2, 4), "latent_channels": 16, "attention_levels": (4,)}, 69_610_963),  # kl-f16
        ({"channel_mult": (1, 1, 2, 2, 4, 4), "latent_channels": 64, "attention_levels": (4, 5)}, 103_880_131),  # f32
    ],
)
def test_parameter_counts_are_those_published(changes: dict, count: int) -> None:
    module = make_autoencoder(AutoencoderKLConfig(**changes), 3, "float32")
    assert num_params(module, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), KEYS[:1]) == count


def test_it_computes_what_pytorch_computes() -> None:
    golden, (record, params) = golden_arrays("autoencoder_kl"), golden_autoencoder("autoencoder_kl")
    module = make_autoencoder(record.config, record.out_channels, "float32")

    def call(method: str, x: np.ndarray):
        return compiled(lambda p, x: module.apply({"params": p}, x, method=method))(params, x)

    posterior = call("encode", golden["sample"])
    assert_close(posterior.mean, golden["mean"])
    assert_close(posterior.logvar, golden["logvar"])
    assert_close(call("decode", golden["mean"]), golden["reconstruction"])


@pytest.fixture(scope="module")
def tiny():
    """Parameters, and a compiled call with the posterior and its divergence beside it."""
    module = AutoencoderKL(TINY)

    def call(params, keys):
        posterior = module.apply({"params": params}, PICTURE, method="encode")
        return posterior, posterior.kl(), *module.apply({"params": params}, PICTURE, keys)

    return random_params(module, PICTURE, KEYS), compiled(call)


def test_the_regulariser_is_the_weighted_divergence_per_value_of_the_picture(tiny) -> None:
    params, call = tiny
    posterior, kl, reconstruction, regulariser, metrics = call(params, KEYS)
    assert reconstruction.shape == PICTURE.shape
    np.testing.assert_allclose(regulariser, 0.5 * kl / (8 * 4 * 3), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], kl.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["posterior_std"], np.exp(0.5 * posterior.logvar).mean(), rtol=1e-5)


def test_the_reconstruction_comes_from_a_sample_drawn_with_the_keys(tiny) -> None:
    params, call = tiny
    first, again, other = (call(params, keys)[2] for keys in (KEYS, KEYS, OTHER_KEYS))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_log_variances_are_clipped_so_that_nothing_overflows(tiny) -> None:
    params, call = tiny
    bias = np.array([0.0, 0.0, 1e6, -1e6])  # two means, two log-variances
    wild, kl, *_ = call({**params, "quant_conv": {**params["quant_conv"], "bias": bias}}, KEYS)
    low, high = LOGVAR_RANGE
    np.testing.assert_array_equal(wild.logvar[..., 0], high)
    np.testing.assert_array_equal(wild.logvar[..., 1], low)
    assert np.all(np.isfinite(kl))


@pytest.mark.parametrize(
    ("behind", "before", "expected"),
    [
        (True, None, {"quant_conv", "post_quant_conv"}),
        (False, None, set()),
        (True, False, {"quant_conv"}),
        (False, True, {"post_quant_conv"}),
    ],
)
def test_each_convolution_around_the_latent_can_be_left_out(behind: bool, before: bool | None, expected: set) -> None:
    config = dataclasses.replace(TINY, quant_conv=behind, post_quant_conv=before)
    _, params = abstract_call(make_autoencoder(config, 3, "float32"), PICTURE, KEYS)
    assert set(params) - {"encoder", "decoder"} == expected


def test_bfloat16_keeps_float32_parameters_moments_and_pictures() -> None:
    module = make_autoencoder(dataclasses.replace(TINY, patch_size=2), 1, "bfloat16")
    picture = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    outputs, params = abstract_call(module, picture, KEYS)
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, params))} == {jnp.dtype("float32")}
    assert isinstance(module, AutoencoderKL)
