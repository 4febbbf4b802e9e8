"""The bundle: shapes that agree from picture to latent and back, and parameters that are reached by their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import compiled, random_array, random_params

from ldm_jax import rng
from ldm_jax.conditioning.conditions import Conditions
from ldm_jax.config import (
    AutoencoderKLConfig,
    AutoencoderVQConfig,
    ClassConditioning,
    DataConfig,
    Experiment,
    FirstStageConfig,
    TextConditioning,
    Unconditional,
    UNetConfig,
)
from ldm_jax.model import LatentDiffusion, make_model, num_parameters

SMALL = {"base_channels": 4, "num_res_blocks": 1, "num_groups": 2}
TEXT = TextConditioning(vocab_size=30, context_length=5, context_dim=6, num_layers=1, num_heads=2)


def small_model(
    autoencoder: type = AutoencoderKLConfig,
    conditioning=TEXT,
    image_size: int = 16,
    dims: int = 2,
    compute_dtype: str = "float32",
) -> LatentDiffusion:
    first_stage = autoencoder(**SMALL, channel_mult=(1, 1), latent_channels=3, spatial_dims=dims, patch_size=2)
    denoiser = UNetConfig(**SMALL, channel_mult=(1, 1), attention_levels=(), num_head_channels=2, spatial_dims=dims)
    return make_model(
        Experiment(
            data=DataConfig(image_size=image_size),
            first_stage=FirstStageConfig(autoencoder=first_stage),
            conditioning=conditioning,
            denoiser=denoiser,
            compute_dtype=compute_dtype,
        )
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_encoding_and_decoding_agree_with_the_shapes_announced(dims: int) -> None:
    model = small_model(dims=dims)
    picture = jnp.zeros((2, *model.image_shape))
    params = {**jax.eval_shape(model.init_autoencoder, jax.random.key(0)), **model.init_latent()}
    posterior = jax.eval_shape(model.encode, params, picture)
    assert posterior.mean.shape == (2, *model.latent_shape)
    assert jax.eval_shape(model.decode, params, posterior.mean).shape == picture.shape


@pytest.mark.parametrize(
    ("autoencoder", "conditioning"),
    [
        (AutoencoderKLConfig, TEXT),
        (AutoencoderVQConfig, ClassConditioning(num_classes=3, context_dim=6)),
        (AutoencoderKLConfig, Unconditional()),
    ],
)
def test_a_model_of_any_parts_denoises(autoencoder: type, conditioning) -> None:
    model = small_model(autoencoder, conditioning)
    params = jax.eval_shape(model.init_denoiser, jax.random.key(0))
    inputs = model.conditioner.null_inputs(3)
    conditions = jax.eval_shape(model.condition, params, inputs)
    zt, t = jnp.zeros((3, *model.latent_shape)), jnp.zeros((3,), jnp.int32)
    prediction = jax.eval_shape(model.denoise, params, zt, t, conditions)
    assert (prediction.shape, prediction.dtype) == (zt.shape, zt.dtype)


def test_bfloat16_models_speak_float32() -> None:
    model = small_model(compute_dtype="bfloat16")
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert set(params) == {"autoencoder", "latent", "conditioner", "denoiser"}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    z = jax.eval_shape(model.encode, params, jnp.zeros((1, *model.image_shape)))
    assert z.mean.dtype == jnp.float32
    assert jax.eval_shape(model.decode, params, z.mean).dtype == jnp.float32


def test_the_default_latent_statistics_change_nothing() -> None:
    model = small_model()
    z = random_array(2, *model.latent_shape)
    np.testing.assert_array_equal(compiled(model.normalize)(model.init_latent(), z), z)


def test_normalising_subtracts_the_mean_and_divides_by_the_spread() -> None:
    model = small_model()
    z = random_array(2, *model.latent_shape)
    mean, std = np.array([1.0, -2.0, 0.0]), np.array([0.5, 2.0, 1.0])
    z0 = compiled(model.normalize)({"latent": {"mean": mean, "std": std}}, z)
    np.testing.assert_allclose(z0 * std + mean, z, atol=1e-6)
    np.testing.assert_allclose(z0[..., 0], (z[..., 0] - 1) / 0.5, atol=1e-6)


@pytest.mark.parametrize("autoencoder", [AutoencoderKLConfig, AutoencoderVQConfig])
def test_decoding_undoes_the_normalisation(autoencoder: type) -> None:
    """And it quantises where the autoencoder does: the picture is that of the autoencoder's own latent."""
    model = small_model(autoencoder, image_size=8)
    latent = {"latent": {"mean": np.array([1.0, -2.0, 0.0]), "std": np.array([0.5, 2.0, 1.0])}}

    picture = jnp.zeros((1, *model.image_shape))
    autoencoder = random_params(model.autoencoder, picture, rng.sample_keys(rng.root_key(0), jnp.arange(1)))
    params = {"autoencoder": autoencoder, **latent}

    def pictures(params, z):
        ours = model.decode(params, model.normalize(params, z))
        return ours, model.autoencoder.apply({"params": params["autoencoder"]}, z, method="decode")

    ours, expected = compiled(pictures)(params, random_array(2, *model.latent_shape))
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.std(ours) > 1e-3


def test_dropout_keys_reach_conditioner_and_denoiser() -> None:
    model = make_model(
        Experiment(
            data=DataConfig(image_size=8),
            first_stage=FirstStageConfig(autoencoder=AutoencoderKLConfig(**SMALL, channel_mult=(1, 1))),
            conditioning=TextConditioning(
                vocab_size=30, context_length=5, context_dim=6, num_layers=1, num_heads=2, dropout=0.5
            ),
            denoiser=UNetConfig(**SMALL, channel_mult=(1,), attention_levels=(), num_head_channels=2, dropout=0.5),
        )
    )
    zt, t = jnp.zeros((1, *model.latent_shape)), jnp.zeros((1,), jnp.int32)
    inputs = model.conditioner.null_inputs(1)

    def run(key):
        params = model.init_denoiser(key)
        conditions = model.condition(params, inputs, train=True, dropout_key=key)
        return model.denoise(params, zt, t, conditions, train=True, dropout_key=key)

    assert jax.eval_shape(run, jax.random.key(0)).shape == zt.shape
    params = jax.eval_shape(model.init_denoiser, jax.random.key(0))
    with pytest.raises(Exception, match="dropout"):  # training without a key is a mistake, never silence
        jax.eval_shape(lambda p: model.condition(p, inputs, train=True), params)


def test_a_seed_gives_the_same_parameters_and_another_seed_others() -> None:
    model = small_model(conditioning=ClassConditioning(num_classes=3, context_dim=6))

    @compiled
    def table(key):
        return model.init_denoiser(key)["conditioner"]["embedding"]["embedding"]

    np.testing.assert_array_equal(table(rng.root_key(0)), table(rng.root_key(0)))
    assert np.abs(table(rng.root_key(0)) - table(rng.root_key(1))).max() > 0.01


def test_parameters_are_counted() -> None:
    assert num_parameters({"a": {"b": jnp.zeros((3, 4))}, "c": jnp.zeros(5)}) == 17


def test_without_conditions_the_denoiser_is_told_nothing() -> None:
    model = small_model(conditioning=Unconditional())
    assert model.condition({"conditioner": {}}, {}) == Conditions()
