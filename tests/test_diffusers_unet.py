"""U-Nets of diffusers: its numbers, what each option becomes, what is refused, and the way out."""

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
from diffusers_draws import (
    draw_unet_2d,
    draw_unet_2d_condition,
    picture,
    torch_call,
    torch_model,
    torch_tensors,
)
from foreign_tensors import Tensors, assert_close
from golden_weights import golden_options, golden_tensors, golden_unet
from hypothesis import given, settings
from hypothesis import strategies as st
from module_trials import apply, compiled, random_array
from safetensors.numpy import save_file

from ldm_jax.config import UNetConfig
from ldm_jax.denoiser.unet import UNet
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers import unet_2d as diffusers_unet_2d
from ldm_jax.interop.diffusers import unet_2d_condition as diffusers_unet_2d_condition
from ldm_jax.interop.diffusers.unet import (
    DiffusersUNet,
    abstract_unet_params,
    read_unet_config,
    read_unet_params,
    unet_slot,
    write_unet_config,
)
from ldm_jax.interop.mapping import write_tensors
from ldm_jax.nn.embeddings import sinusoidal_embedding

GOLDEN_CASES = ("unet_sd1", "unet_sd2", "unet_ldm_uncond")
DRAWS = {"UNet2DModel": draw_unet_2d, "UNet2DConditionModel": draw_unet_2d_condition}

PLAIN = {
    "_class_name": "UNet2DModel",
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
}
CROSS = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 6,
}


def read(options: dict[str, Any], **changes: Any) -> DiffusersUNet:
    return read_unet_config({**options, **changes}, "config.json")


# --- reading ---------------------------------------------------------------------------------------------------------


def test_the_golden_configurations_are_read() -> None:
    shared = UNetConfig(
        base_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        num_groups=8,
        attention_levels=(0,),
        num_heads=4,
        num_head_channels=None,
    )
    assert golden_unet("unet_sd1")[0] == DiffusersUNet(
        config=shared, in_channels=4, out_channels=4, sample_size=16, context_dim=12
    )
    assert golden_unet("unet_sd2")[0].config == dataclasses.replace(shared, num_heads=(2, 4), linear_projection=True)
    assert golden_unet("unet_ldm_uncond")[0].config == dataclasses.replace(
        shared, num_res_blocks=2, attention_levels=(1,), attention="self", num_heads=None, num_head_channels=8
    )


@pytest.mark.parametrize(
    ("options", "changes", "fields"),
    [
        (PLAIN, {}, {"attention": "self", "num_heads": None, "num_head_channels": 4, "attention_levels": (1,)}),
        (PLAIN, {"attention_head_dim": None}, {"num_heads": 1, "num_head_channels": None}),
        (PLAIN, {"block_out_channels": [16, 24]}, {"base_channels": 16, "channel_mult": (1, 1.5)}),
        (PLAIN, {"add_attention": False}, {"mid_attention": False, "mid_res_blocks": 2}),
        (PLAIN, {"mid_block_type": None}, {"mid_attention": False, "mid_res_blocks": 0}),
        (PLAIN, {"resnet_time_scale_shift": "scale_shift"}, {"scale_shift_norm": True, "mid_attention_groups": 0}),
        (
            PLAIN,
            {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
            {"scale_shift_norm": True, "mid_attention_groups": None},
        ),
        (PLAIN, {"attn_norm_num_groups": 2}, {"mid_attention_groups": 2}),
        (PLAIN, {"downsample_type": "resnet"}, {"resample_with_res_blocks": False}),  # level 0 has no attention
        (PLAIN, {"upsample_type": "resnet"}, {"resample_with_res_blocks": (False, True)}),
        (
            PLAIN,
            {"down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"], "upsample_type": "resnet"},
            {"resample_with_res_blocks": True, "attention_levels": (), "up_attention_levels": (1,)},
        ),
        (PLAIN, {"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]}, {"attention_levels": (1,)}),
        (PLAIN, {"flip_sin_to_cos": False, "freq_shift": 1}, {"time_order": "sin_cos"}),
        (PLAIN, {"freq_shift": 1}, {"time_frequencies": "half_minus_one", "time_order": "cos_sin"}),
        (PLAIN, {"downsample_padding": 0}, {"symmetric_padding": False}),
        (PLAIN, {"center_input_sample": True}, {"center_input": True}),
        (PLAIN, {"time_embedding_dim": 32}, {"time_embedding_dim": None}),
        (PLAIN, {"time_embedding_dim": 20}, {"time_embedding_dim": 20}),
        (PLAIN, {"num_class_embeds": 5}, {"num_classes": 5, "vector_dim": None}),
        (PLAIN, {"num_class_embeds": 5, "class_embed_type": "timestep"}, {"num_classes": None, "vector_dim": 8}),
        (CROSS, {}, {"attention": "transformer", "num_heads": 4, "num_head_channels": None, "attention_levels": (0,)}),
        (CROSS, {"attention_head_dim": [2, 4]}, {"num_heads": (2, 4)}),
        (CROSS, {"layers_per_block": [1, 2]}, {"num_res_blocks": (1, 2)}),
        (CROSS, {"transformer_layers_per_block": [1, 10]}, {"transformer_depth": (1, 10)}),
        (
            CROSS,
            {"transformer_layers_per_block": [1, 2], "reverse_transformer_layers_per_block": [2, 1]},
            {"transformer_depth": (1, 2)},
        ),
        (CROSS, {"mid_block_type": "UNetMidBlock2D"}, {"mid_res_blocks": 1, "mid_attention": False}),
        (CROSS, {"mid_block_type": None}, {"mid_res_blocks": 0, "mid_attention": False}),
        (CROSS, {"only_cross_attention": True}, {"cross_attention_only_levels": (0, 1)}),
        (CROSS, {"only_cross_attention": [True, False]}, {"cross_attention_only_levels": (0,)}),
        (CROSS, {"use_linear_projection": True}, {"linear_projection": True}),
        (CROSS, {"norm_eps": 1e-6, "dropout": 0.1}, {"norm_epsilon": 1e-6, "dropout": 0.1}),
    ],
)
def test_what_an_option_becomes(options: dict, changes: dict, fields: dict) -> None:
    config = read(options, **changes).config
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("changes", "record", "vector_dim"),
    [
        ({"cross_attention_dim": [6, 6]}, {"context_dim": 6, "vector": None, "size_dim": None}, None),
        ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 9}, {"vector": "projection"}, 9),
        ({"class_embed_type": "timestep"}, {"vector": "timestep"}, 8),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 6,
                "projection_class_embeddings_input_dim": 41,
            },
            {"vector": "text_time", "size_dim": 6},
            41,
        ),
        ({"in_channels": 9, "out_channels": 8, "sample_size": [16, 24]}, {"in_channels": 9, "out_channels": 8}, None),
        ({"sample_size": [16, 24]}, {"sample_size": (16, 24)}, None),
    ],
)
def test_what_is_no_part_of_our_configuration(changes: dict, record: dict, vector_dim: int | None) -> None:
    unet = read(CROSS, **changes)
    assert {name: getattr(unet, name) for name in record} == record
    assert unet.config.vector_dim == vector_dim


def test_without_cross_attention_there_is_no_context() -> None:
    plain = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "mid_block_type": None}
    assert read(CROSS, **plain, cross_attention_dim=None).context_dim is None


REFUSED = [
    ({"_class_name": "UNet3DConditionModel"}, "_class_name='UNet3DConditionModel' is not supported; usable: "
     "'UNet2DModel', 'UNet2DConditionModel'"),
    ({"num_heads": 3}, "num_heads=3 is not supported; UNet2DConditionModel has the options act_fn, addition_embed_"),
    ({"act_fn": "gelu"}, "act_fn='gelu' is not supported; usable: 'silu', 'swish'"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier' is not supported; usable: 'positional'"),
    ({"freq_shift": 2}, "freq_shift=2 is not supported; usable: 0, 1"),
    ({"mid_block_scale_factor": 1.41}, "mid_block_scale_factor=1.41 is not supported; usable: 1"),
    ({"downsample_padding": 2}, "downsample_padding=2 is not supported; usable: 0, 1"),
    ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift='ada_group' is not supported; usable: "
     "'default', 'scale_shift'"),
    ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type='UNetMidBlock2DSimpleCrossAttn' is not "
     "supported; usable: 'UNetMidBlock2DCrossAttn', 'UNetMidBlock2D', None"),
    ({"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]}, "down_block_types="
     "'SimpleCrossAttnDownBlock2D' is not supported; usable: DownBlock2D, ResnetDownsampleBlock2D, CrossAttnDownBloc"),
    ({"up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}, "up_block_types='AttnUpBlock2D' is not supported; usable: "
     "UpBlock2D, ResnetUpsampleBlock2D, CrossAttnUpBlock2D"),
    ({"up_block_types": ["UpBlock2D"]}, "up_block_types=('UpBlock2D',) is not supported; block_out_channels=(8, 16) "
     "needs one for each entry"),
    ({"block_out_channels": [8, 0]}, "block_out_channels=(8, 0) is not supported; usable: whole numbers above 0, one "
     "for each level"),
    ({"layers_per_block": [1, 2, 3]}, "layers_per_block=(1, 2, 3) is not supported; usable: a whole number, or one for "
     "each of the 2 entries of block_out_channels"),
    ({"transformer_layers_per_block": [1, [1, 2]]}, "transformer_layers_per_block=(1, (1, 2)) is not supported"),
    ({"reverse_transformer_layers_per_block": [1, 2]}, "reverse_transformer_layers_per_block=(1, 2) is not supported; "
     "usable: None, or the reverse of the way down, (1, 1)"),
    ({"only_cross_attention": [True]}, "only_cross_attention=(True,) is not supported; usable: True or False, or one "
     "for each of the 2 entries of block_out_channels"),
    ({"attention_head_dim": None}, "attention_head_dim=None is not supported; usable: a whole number"),
    ({"attention_head_dim": 3}, "UNetConfig.num_heads=3 does not divide the 8 channels of level 0; nearest that does"),
    ({"num_attention_heads": 8}, "num_attention_heads=8 is not supported; usable: None"),
    ({"cross_attention_dim": [6, 8]}, "cross_attention_dim=(6, 8) is not supported; usable: the same width at every "
     "level"),
    ({"norm_num_groups": None}, "norm_num_groups=None is not supported; usable: a whole number"),
    ({"encoder_hid_dim": 9}, "encoder_hid_dim=9 is not supported; usable: None"),
    ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type='text_proj' is not supported; usable: None"),
    ({"dual_cross_attention": True}, "dual_cross_attention=True is not supported; usable: False"),
    ({"class_embed_type": "identity"}, "class_embed_type='identity' is not supported; usable: None, 'timestep', "
     "'projection'"),
    ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim=None is not supported; usable: a whole "
     "number"),
    ({"addition_embed_type": "text"}, "addition_embed_type='text' is not supported; usable: None, 'text_time'"),
    ({"addition_embed_type": "text_time"}, "addition_time_embed_dim=None is not supported; usable: a whole number"),
    ({"addition_embed_type": "text_time", "class_embed_type": "timestep"}, "addition_embed_type='text_time' is not "
     "supported; usable with class_embed_type='timestep': None"),
    ({"class_embeddings_concat": True}, "class_embeddings_concat=True is not supported; usable: False"),
    ({"resnet_skip_time_act": True}, "resnet_skip_time_act=True is not supported; usable: False"),
    ({"resnet_out_scale_factor": 1.41}, "resnet_out_scale_factor=1.41 is not supported; usable: 1"),
    ({"time_embedding_act_fn": "silu"}, "time_embedding_act_fn='silu' is not supported; usable: None"),
    ({"timestep_post_act": "silu"}, "timestep_post_act='silu' is not supported; usable: None"),
    ({"time_cond_proj_dim": 256}, "time_cond_proj_dim=256 is not supported; usable: None"),
    ({"conv_in_kernel": 1}, "conv_in_kernel=1 is not supported; usable: 3"),
    ({"conv_out_kernel": 1}, "conv_out_kernel=1 is not supported; usable: 3"),
    ({"attention_type": "gated"}, "attention_type='gated' is not supported; usable: 'default'"),
    ({"cross_attention_norm": "layer_norm"}, "cross_attention_norm='layer_norm' is not supported; usable: None"),
]  # fmt: skip
REFUSED_PLAIN = [
    ({"layers_per_block": [1, 2]}, "layers_per_block=(1, 2) is not supported; usable: a whole number"),
    ({"class_embed_type": "identity"}, "class_embed_type='identity' is not supported; usable: None, 'timestep'"),
    ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types='SkipDownBlock2D' is not supported; "
     "usable: DownBlock2D, ResnetDownsampleBlock2D, AttnDownBlock2D"),
    ({"downsample_type": "fir"}, "downsample_type='fir' is not supported; usable: 'conv', 'resnet'"),
    ({"upsample_type": "fir"}, "upsample_type='fir' is not supported; usable: 'conv', 'resnet'"),
    ({"attention_head_dim": 3}, "UNetConfig.num_head_channels=3 does not divide the 16 channels of level 1"),
    ({"cross_attention_dim": 3}, "cross_attention_dim=3 is not supported; UNet2DModel has the options act_fn, "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [(CROSS, *case) for case in REFUSED] + [(PLAIN, *case) for case in REFUSED_PLAIN],
)
def test_what_cannot_be_followed_is_refused_by_name(options: dict, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match="^config.json: " + re.escape(message)):
        read(options, **changes)


def test_values_that_change_nothing_are_accepted() -> None:
    kept = {"upcast_attention": True, "addition_embed_type_num_heads": 8, "mid_block_only_cross_attention": True}
    assert read(CROSS, **kept, act_fn="swish", _name_or_path="x") == read(CROSS)
    assert read(PLAIN, num_train_timesteps=1000) == read(PLAIN)


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_parameter_count_of_stable_diffusion_xl_is_the_published_one() -> None:
    options = {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    params = abstract_unet_params(read({"_class_name": "UNet2DConditionModel"}, **options))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_567_463_684


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_what_is_read_is_written_as_it_was(case: str) -> None:
    unet, params = golden_unet(case)
    assert write_unet_config(unet) == golden_options(case)
    written, original = dict(write_tensors(params, unet_slot(unet))), golden_tensors(case)
    assert set(written) == set(original)
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)


def test_names_from_before_2023_are_read() -> None:
    unet, params = golden_unet("unet_ldm_uncond")
    old = dict(write_tensors(params, unet_slot(unet, before_2023=True)))
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    names = {re.sub("|".join(new), lambda match: new[match[0]], name) for name in golden_tensors("unet_ldm_uncond")}
    assert set(old) == names != set(golden_tensors("unet_ldm_uncond"))
    again = read_unet_params(Tensors(old), unet, "old")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_file_with_names_from_both_times_is_refused() -> None:
    unet, params = golden_unet("unet_ldm_uncond")
    tensors = dict(write_tensors(params, unet_slot(unet, before_2023=True)))
    tensors["mid_block.attentions.0.to_q.weight"] = tensors.pop("mid_block.attentions.0.query.weight")
    with pytest.raises(UserError) as error:
        read_unet_params(Tensors(tensors), unet, "mixed.safetensors")
    assert "missing: mid_block.attentions.0.query.weight" in str(error.value)
    assert "unexpected: mid_block.attentions.0.to_q.weight" in str(error.value)


@pytest.mark.parametrize("kind", DRAWS)
@settings(max_examples=100)
@given(random=st.randoms(use_true_random=False))
def test_any_configuration_comes_back(kind: str, random: Random) -> None:
    unet = read(DRAWS[kind](random))
    assert read_unet_config(json.loads(json.dumps(write_unet_config(unet))), "written") == unet


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", DRAWS)
def test_every_parameter_has_a_tensor_of_its_own(kind: str, seed: int) -> None:
    unet = read(DRAWS[kind](Random(seed)))
    shapes, tree = jax.tree.flatten(abstract_unet_params(unet))
    params = tree.unflatten(np.full(leaf.shape, number, np.float32) for number, leaf in enumerate(shapes))
    again = read_unet_params(Tensors(dict(write_tensors(params, unet_slot(unet)))), unet, "written")
    jax.tree.map(np.testing.assert_array_equal, again, params)


# --- writing ---------------------------------------------------------------------------------------------------------


def ours(**fields: Any) -> DiffusersUNet:
    record = {name: fields.pop(name) for name in ("context_dim", "vector", "size_dim") if name in fields}
    defaults = {"base_channels": 8, "channel_mult": (1, 2), "num_groups": 4, "num_head_channels": 4}
    config = UNetConfig(**{**defaults, "attention_levels": (1,), **fields})
    return DiffusersUNet(config=config, in_channels=4, out_channels=4, **{"context_dim": 6, **record})


def test_a_width_of_heads_is_written_as_their_number_or_as_it_is() -> None:
    assert write_unet_config(ours())["attention_head_dim"] == [2, 4]
    assert write_unet_config(ours(attention="self"))["attention_head_dim"] == 4
    one = ours(attention="self", num_heads=4, num_head_channels=None)
    assert write_unet_config(one)["attention_head_dim"] == 4  # 16 channels at the only level with attention
    assert write_unet_config(ours(num_head_channels=16))["attention_head_dim"] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"spatial_dims": 3},
            "UNetConfig.spatial_dims=3 cannot be written for diffusers: it has no option for it; use 2",
        ),
        (
            {"num_codebook_ids": 9},
            "UNetConfig.num_codebook_ids=9 cannot be written for diffusers: it has no option for it",
        ),
        ({"context_dim": None}, "a U-Net with spatial transformers and no context cannot be written for diffusers"),
        ({"vector_dim": 9}, "UNetConfig.vector_dim=9 cannot be written for diffusers: say what the vector is"),
        ({"mid_attention": False}, "UNetConfig.mid_res_blocks=2 cannot be written for diffusers: UNet2DConditionModel"),
        (
            {"attention_levels": (0,), "resample_with_res_blocks": True},
            "UNetConfig.resample_with_res_blocks=True cannot be written for diffusers: UNet2DConditionModel has plain",
        ),
        (
            {"attention": "self", "num_res_blocks": (1, 2)},
            "UNetConfig.num_res_blocks=(1, 2) cannot be written for diffusers: UNet2DModel has one number",
        ),
        (
            {"attention": "self", "mid_res_blocks": 1, "mid_attention": False},
            "UNetConfig.mid_res_blocks=1 cannot be written for diffusers: UNet2DModel has 0 or 2",
        ),
        (
            {"attention": "self", "mid_attention_groups": 0},
            "UNetConfig.mid_attention_groups=0 cannot be written for diffusers: UNet2DModel leaves the normalisation",
        ),
        (
            {"attention": "self", "attention_levels": (0, 1), "num_heads": 2, "num_head_channels": None},
            "UNetConfig.num_heads=2 cannot be written for diffusers: UNet2DModel has one width of a head, not [4, 8]",
        ),
        (
            {"attention": "self", "vector_dim": 9, "vector": "projection"},
            "UNetConfig.vector_dim=9 cannot be written for diffusers: UNet2DModel has no vector condition but",
        ),
        (
            {
                "attention": "self",
                "channel_mult": (1, 2, 2),
                "attention_levels": (0, 1),
                "resample_with_res_blocks": (True, False, False, False),
            },
            "UNetConfig.resample_with_res_blocks=(True, False, False, False) cannot be written for diffusers: "
            "UNet2DModel has one choice for all levels with attention",
        ),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        write_unet_config(ours(**fields))


# --- against diffusers -----------------------------------------------------------------------------------------------

NAMED = {
    "a super-resolution model": {
        **CROSS,
        "in_channels": 7,
        "num_class_embeds": 10,
        "only_cross_attention": [True, False],
        "block_out_channels": [8, 8],
    },
    "stable diffusion xl": {
        **CROSS,
        "block_out_channels": [8, 16, 24],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, 2, 3],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 6,
        "projection_class_embeddings_input_dim": 41,
    },
    "ddpm": {**PLAIN, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None},
    "an old checkpoint of ldm": {**PLAIN, "layers_per_block": 1},
}


def conditions(unet: DiffusersUNet, numbers: np.random.Generator) -> tuple[dict, dict]:
    """Random conditions for a batch of three, as keywords of ours and of diffusers'."""
    our, their = {}, {}
    if unet.context_dim is not None:
        our["context"] = their["encoder_hidden_states"] = random_array(3, 5, unet.context_dim, seed=1)
    if unet.config.num_classes:
        our["class_labels"] = their["class_labels"] = numbers.integers(0, unet.config.num_classes, 3)

    def embed(values: np.ndarray, dim: int) -> np.ndarray:
        config = unet.config
        return compiled(lambda t: sinusoidal_embedding(t, dim, config.time_frequencies, config.time_order))(values)

    if unet.vector == "projection":
        our["vector"] = their["class_labels"] = random_array(3, unet.config.vector_dim, seed=2)
    if unet.vector == "timestep":
        their["class_labels"] = numbers.integers(0, 1000, 3)
        our["vector"] = embed(their["class_labels"], unet.config.base_channels)
    if unet.vector == "text_time":
        pooled = random_array(3, unet.config.vector_dim - 6 * unet.size_dim, seed=2)
        sizes = numbers.integers(0, 1024, (3, 6)).astype(np.float32)
        their["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        our["vector"] = np.concatenate([pooled, embed(sizes.reshape(-1), unet.size_dim).reshape(3, -1)], axis=1)
    return our, their


def draw_size(options: dict[str, Any], random: Random) -> tuple[int, int]:
    """Height and width: any that diffusers takes, which where residual blocks resample are multiples only."""
    unit = 2 ** (len(options["block_out_channels"]) - 1)
    any_size = options["_class_name"] == "UNet2DConditionModel"
    any_size &= not any("Resnet" in kind for kind in options["up_block_types"])
    draw = (lambda: random.randint(unit, 4 * unit + 3)) if any_size else (lambda: unit * random.randint(1, 4))
    return draw(), draw()


def assert_equal_to_diffusers(options: dict[str, Any], folder: Path, seed: int) -> None:
    """Read from the weights in memory: the same predictions; written as a folder: a model with the very same ones."""
    random, numbers = Random(seed), np.random.default_rng(seed)
    model = torch_model(options, seed)
    unet = read_unet_config(json.loads(model.to_json_string()), "config.json")
    params = read_unet_params(Tensors(torch_tensors(model)), unet, "weights")
    zt = random_array(3, *draw_size(options, random), unet.in_channels)
    t = random.choice([np.array([0, 500, 999]), np.array([0.5, 20.25, 999.0], np.float32)])
    our, their = conditions(unet, numbers)
    if options["_class_name"] == "UNet2DConditionModel":
        their.setdefault("encoder_hidden_states", random_array(3, 5, 6))
    out = torch_call(model, zt, t, **their).sample
    arguments = (zt, t, our.get("context"), our.get("class_labels"), None, our.get("vector"))
    assert_close(apply(UNet(unet.config, unet.out_channels), params, *arguments), picture(out))

    (folder / "config.json").write_text(json.dumps(write_unet_config(unet)))
    save_file(dict(write_tensors(params, unet_slot(unet))), folder / "diffusion_pytorch_model.safetensors")
    again, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    np.testing.assert_array_equal(torch_call(again.eval(), zt, t, **their).sample.numpy(), out.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_published_kinds_compute_what_diffusers_computes(name: str, tmp_path: Path) -> None:
    assert_equal_to_diffusers(NAMED[name], tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", DRAWS)
def test_any_configuration_computes_what_diffusers_computes(kind: str, seed: int, tmp_path: Path) -> None:
    assert_equal_to_diffusers(DRAWS[kind](Random(seed)), tmp_path, seed)


@pytest.mark.slow
def test_diffusers_reads_names_from_before_2023_as_we_do(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    unet, params = golden_unet("unet_ldm_uncond")
    (tmp_path / "config.json").write_text(json.dumps(write_unet_config(unet)))
    old = dict(write_tensors(params, unet_slot(unet, before_2023=True)))
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    tensors = torch_tensors(diffusers.UNet2DModel.from_pretrained(tmp_path))
    for name, tensor in golden_tensors("unet_ldm_uncond").items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "module"),
    [("UNet2DModel", diffusers_unet_2d), ("UNet2DConditionModel", diffusers_unet_2d_condition)],
)
def test_the_options_and_their_defaults_are_those_of_diffusers(kind: str, module: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    signature = inspect.signature(getattr(diffusers, kind).__init__).parameters
    theirs = {name: parameter.default for name, parameter in signature.items() if name != "self"}
    assert theirs == dict(module.OPTIONS)
