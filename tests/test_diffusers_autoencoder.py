"""Autoencoders of diffusers: its numbers, what each option becomes, what is refused, and the way out."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import jax
import numpy as np
import pytest
from diffusers_draws import draw_autoencoder_kl, draw_vq_model, picture, torch_call, torch_model, torch_tensors
from foreign_tensors import Tensors, assert_close
from golden_weights import golden_autoencoder, golden_options, golden_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from module_trials import compiled, random_array
from safetensors.numpy import save_file

from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.config import AutoencoderKLConfig, AutoencoderVQConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers import autoencoder as diffusers_autoencoder
from ldm_jax.interop.diffusers.autoencoder import (
    DiffusersAutoencoder,
    abstract_autoencoder_params,
    autoencoder_slot,
    read_autoencoder_config,
    read_autoencoder_params,
    write_autoencoder_config,
)
from ldm_jax.interop.mapping import write_tensors

DRAWS = {"AutoencoderKL": draw_autoencoder_kl, "VQModel": draw_vq_model}
GOLDEN_CASES = ("autoencoder_kl", "autoencoder_vq")

KL = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
VQ = {**KL, "_class_name": "VQModel"}


def read(options: dict[str, Any], **changes: Any) -> DiffusersAutoencoder:
    return read_autoencoder_config({**options, **changes}, "config.json")


# --- reading ---------------------------------------------------------------------------------------------------------


def test_the_golden_configurations_are_read() -> None:
    shared = {"base_channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "num_groups": 8}
    assert golden_autoencoder("autoencoder_kl")[0] == DiffusersAutoencoder(
        config=AutoencoderKLConfig(**shared, latent_channels=4), latent_std=(1 / 0.18215,)
    )
    assert golden_autoencoder("autoencoder_vq")[0] == DiffusersAutoencoder(
        config=AutoencoderVQConfig(**shared, latent_channels=3, codebook_size=64), latent_std=(1 / 0.18215,)
    )


@pytest.mark.parametrize(
    ("options", "changes", "fields"),
    [
        (KL, {}, {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": ()}),
        (KL, {"block_out_channels": [16, 24]}, {"base_channels": 16, "channel_mult": (1, 1.5)}),
        (
            KL,
            {
                "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
                "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
            },
            {"attention_levels": (1,), "decoder_attention_levels": None},
        ),
        (
            KL,
            {"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]},
            {"attention_levels": (), "decoder_attention_levels": (1,)},
        ),
        (KL, {"mid_block_add_attention": False}, {"mid_attention": False}),
        (KL, {"use_quant_conv": False}, {"quant_conv": False, "post_quant_conv": True}),
        (
            KL,
            {"use_quant_conv": False, "use_post_quant_conv": False},
            {"quant_conv": False, "post_quant_conv": None, "has_post_quant_conv": False},
        ),
        (VQ, {"latent_channels": 3}, {"latent_channels": 3, "z_channels": None, "codebook_size": 256}),
        (VQ, {"latent_channels": 3, "vq_embed_dim": 3}, {"latent_channels": 3, "z_channels": None}),
        (VQ, {"latent_channels": 3, "vq_embed_dim": 5}, {"latent_channels": 5, "z_channels": 3}),
        (VQ, {"num_vq_embeddings": 7}, {"codebook_size": 7}),
    ],
)
def test_what_an_option_becomes(options: dict, changes: dict, fields: dict) -> None:
    config = read(options, **changes).config
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({}, (0.0,), (1 / 0.18215,)),
        ({"scaling_factor": 2}, (0.0,), (0.5,)),
        ({"scaling_factor": 2, "shift_factor": 0.5}, (0.5,), (0.5,)),
        (
            {"scaling_factor": 0.5, "latents_mean": [0.0, 1.0, 2.0, 3.0], "latents_std": [1.0, 1.0, 1.5, 2.0]},
            (0.0, 1.0, 2.0, 3.0),
            (2.0, 2.0, 3.0, 4.0),
        ),
    ],
)
def test_statistics_of_the_latents_take_one_form(changes: dict, mean: tuple, std: tuple) -> None:
    """(z - mean) / std is what the pipelines of diffusers give their denoiser."""
    autoencoder = read(KL, **changes)
    assert (autoencoder.latent_mean, autoencoder.latent_std) == (mean, std)


def test_values_that_change_nothing_are_accepted() -> None:
    assert read(KL, force_upcast=False, act_fn="swish", _name_or_path="x") == read(KL)
    assert read(VQ, force_upcast=True, lookup_from_codebook=True) == read(VQ)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (KL, {"_class_name": "AutoencoderDC"}, "_class_name='AutoencoderDC' is not supported; usable: 'AutoencoderKL'"),
        (KL, {"vq_embed_dim": 3}, "vq_embed_dim=3 is not supported; AutoencoderKL has the options act_fn, block_out_"),
        (KL, {"act_fn": "relu"}, "act_fn='relu' is not supported; usable: 'silu', 'swish'"),
        (KL, {"layers_per_block": [1, 2]}, "layers_per_block=(1, 2) is not supported; usable: a whole number"),
        (
            KL,
            {"down_block_types": ["DownEncoderBlock2D", "DownBlock2D"]},
            "down_block_types='DownBlock2D' is not supported; usable: DownEncoderBlock2D, AttnDownEncoderBlock2D",
        ),
        (KL, {"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types=('UpDecoderBlock2D',) is not supported; block_"),
        (KL, {"norm_num_groups": 3}, "AutoencoderKLConfig.num_groups=3 does not divide 8 channels"),
        (KL, {"scaling_factor": 0}, "scaling_factor=0 is not supported; usable: a number above 0"),
        (KL, {"use_quant_conv": None}, "use_quant_conv=None is not supported; usable: True, False"),
        (
            KL,
            {"latents_mean": [0.0] * 4},
            "latents_std=None is not supported; usable: 4 numbers in each of latents_mean and latents_std",
        ),
        (
            KL,
            {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1},
            "shift_factor=0.1 is not supported; usable beside latents_mean: None",
        ),
        (VQ, {"norm_type": "spatial"}, "norm_type='spatial' is not supported; usable: 'group'"),
        (VQ, {"latents_mean": [0.0]}, "latents_mean=(0.0,) is not supported; VQModel has the options act_fn, "),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(options: dict, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match="^config.json: " + re.escape(message)):
        read(options, **changes)


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_what_is_read_is_written_as_it_was(case: str) -> None:
    autoencoder, params = golden_autoencoder(case)
    options = golden_options(case)
    if case == "autoencoder_vq":
        options["vq_embed_dim"] = options["latent_channels"]  # said in words
    assert write_autoencoder_config(autoencoder) == options
    written, original = dict(write_tensors(params, autoencoder_slot(autoencoder))), golden_tensors(case)
    assert set(written) == set(original)
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)


def old_tensors(autoencoder: DiffusersAutoencoder, params: dict) -> dict[str, np.ndarray]:
    return dict(write_tensors(params, autoencoder_slot(autoencoder, before_2023=True)))


def test_names_from_before_2023_are_read() -> None:
    autoencoder, params = golden_autoencoder("autoencoder_kl")
    old = old_tensors(autoencoder, params)
    assert {name for name in old if "decoder.mid_block.attentions" in name} == {
        f"decoder.mid_block.attentions.0.{part}.{leaf}"
        for part in ("group_norm", "query", "key", "value", "proj_attn")
        for leaf in ("weight", "bias")
    }
    again = read_autoencoder_params(Tensors(old), autoencoder, "old")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_file_with_names_from_both_times_is_refused() -> None:
    autoencoder, params = golden_autoencoder("autoencoder_kl")
    tensors = old_tensors(autoencoder, params)
    tensors["encoder.mid_block.attentions.0.to_k.bias"] = tensors.pop("encoder.mid_block.attentions.0.key.bias")
    with pytest.raises(UserError) as error:
        read_autoencoder_params(Tensors(tensors), autoencoder, "mixed.safetensors")
    assert "missing: encoder.mid_block.attentions.0.key.bias" in str(error.value)
    assert "unexpected: encoder.mid_block.attentions.0.to_k.bias" in str(error.value)


@pytest.mark.parametrize("kind", DRAWS)
@settings(max_examples=100)
@given(random=st.randoms(use_true_random=False))
def test_any_configuration_comes_back(kind: str, random: Random) -> None:
    autoencoder = read(DRAWS[kind](random))
    again = read_autoencoder_config(json.loads(json.dumps(write_autoencoder_config(autoencoder))), "written")
    np.testing.assert_array_equal(np.float32(again.latent_mean), np.float32(autoencoder.latent_mean))
    np.testing.assert_array_equal(np.float32(again.latent_std), np.float32(autoencoder.latent_std))
    statistics = {"latent_mean": autoencoder.latent_mean, "latent_std": autoencoder.latent_std}
    assert dataclasses.replace(again, **statistics) == autoencoder


@pytest.mark.parametrize("kind", DRAWS)
def test_every_parameter_has_a_tensor_of_its_own(kind: str) -> None:
    autoencoder = read(DRAWS[kind](Random(3)))
    shapes, tree = jax.tree.flatten(abstract_autoencoder_params(autoencoder))
    params = tree.unflatten(np.full(leaf.shape, number, np.float32) for number, leaf in enumerate(shapes))
    tensors = dict(write_tensors(params, autoencoder_slot(autoencoder)))
    again = read_autoencoder_params(Tensors(tensors), autoencoder, "written")
    jax.tree.map(np.testing.assert_array_equal, again, params)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_spread_in_float32_is_written_as_the_factor_that_it_came_from() -> None:
    autoencoder = read(KL, scaling_factor=0.18215)
    rounded = dataclasses.replace(autoencoder, latent_std=(float(np.float32(1 / 0.18215)),))
    assert rounded.latent_std != autoencoder.latent_std
    assert write_autoencoder_config(rounded)["scaling_factor"] == 0.18215


def test_one_number_beside_many_is_written_for_each_channel() -> None:
    autoencoder = dataclasses.replace(read(KL), latent_std=(1.0, 2.0, 3.0, 4.0))
    options = write_autoencoder_config(autoencoder)
    assert options["latents_mean"] == [0.0] * 4 and options["latents_std"] == [1.0, 2.0, 3.0, 4.0]
    assert options["scaling_factor"] == 1 and options["shift_factor"] is None


@pytest.mark.parametrize(
    ("record", "fields", "message"),
    [
        (KL, {"patch_size": 2}, "AutoencoderKLConfig.patch_size=2 cannot be written for diffusers: it has no option"),
        (KL, {"spatial_dims": 1}, "AutoencoderKLConfig.spatial_dims=1 cannot be written for diffusers: it has no opt"),
        (KL, {"z_channels": 8}, "AutoencoderKLConfig.z_channels=8 cannot be written for diffusers: AutoencoderKL has "),
        (
            VQ,
            {"quant_conv": False},
            "AutoencoderVQConfig.quant_conv=False cannot be written for diffusers: VQModel has",
        ),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_name(record: dict, fields: dict, message: str) -> None:
    autoencoder = read(record)
    ours = dataclasses.replace(autoencoder, config=dataclasses.replace(autoencoder.config, **fields))
    with pytest.raises(UserError, match="^" + re.escape(message)):
        write_autoencoder_config(ours)


def test_a_vq_model_has_one_factor_for_its_latents() -> None:
    with pytest.raises(UserError, match=r"^latents of mean \(0.0,\) and spread \(1.0, 2.0\) cannot be written"):
        write_autoencoder_config(dataclasses.replace(read(VQ), latent_std=(1.0, 2.0)))


# --- against diffusers -----------------------------------------------------------------------------------------------


def assert_equal_to_diffusers(options: dict[str, Any], folder: Path, seed: int) -> None:
    """Latents and reconstructions are the same, and so is the model that diffusers loads from what is written."""
    random = Random(seed)
    model = torch_model(options, seed)
    autoencoder = read_autoencoder_config(json.loads(model.to_json_string()), "config.json")
    params = read_autoencoder_params(Tensors(torch_tensors(model)), autoencoder, "weights")
    module = make_autoencoder(autoencoder.config, autoencoder.out_channels, "float32")
    unit = autoencoder.config.downsample_factor
    size = [random.randint(unit, 4 * unit + 3) for _ in range(2)]
    image = random_array(2, *size, autoencoder.in_channels)

    def call(method: str, x: np.ndarray) -> Any:
        return compiled(lambda params, x: module.apply({"params": params}, x, method=method))(params, x)

    encoded, posterior = torch_call(model.encode, image), call("encode", image)
    if isinstance(autoencoder.config, AutoencoderKLConfig):
        z = encoded.latent_dist.mean
        assert_close(posterior.logvar, picture(encoded.latent_dist.logvar))
    else:
        z = encoded.latents
        indices = model.quantize(z)[2][2].numpy()
        np.testing.assert_array_equal(call("quantize", picture(z))[1].reshape(-1), indices)
    assert_close(posterior.mean, picture(z))
    reconstruction = torch_call(model.decode, picture(z)).sample
    assert_close(call("decode", picture(z)), picture(reconstruction))

    (folder / "config.json").write_text(json.dumps(write_autoencoder_config(autoencoder)))
    tensors = dict(write_tensors(params, autoencoder_slot(autoencoder)))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    again, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    np.testing.assert_array_equal(torch_call(again.eval().decode, picture(z)).sample.numpy(), reconstruction.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", DRAWS)
def test_any_configuration_computes_what_diffusers_computes(kind: str, seed: int, tmp_path: Path) -> None:
    assert_equal_to_diffusers(DRAWS[kind](Random(seed)), tmp_path, seed)


@pytest.mark.slow
def test_diffusers_reads_names_from_before_2023_as_we_do(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    autoencoder, params = golden_autoencoder("autoencoder_kl")
    (tmp_path / "config.json").write_text(json.dumps(write_autoencoder_config(autoencoder)))
    save_file(old_tensors(autoencoder, params), tmp_path / "diffusion_pytorch_model.safetensors")
    tensors = torch_tensors(diffusers.AutoencoderKL.from_pretrained(tmp_path))
    for name, tensor in golden_tensors("autoencoder_kl").items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [("AutoencoderKL", "OPTIONS_KL"), ("VQModel", "OPTIONS_VQ")])
def test_the_options_and_their_defaults_are_those_of_diffusers(kind: str, options: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    signature = inspect.signature(getattr(diffusers, kind).__init__).parameters
    theirs = {name: parameter.default for name, parameter in signature.items() if name != "self"}
    assert theirs == dict(getattr(diffusers_autoencoder, options))
