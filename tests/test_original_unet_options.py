"""Options of the original code's U-Net: heads as its code counts them, every refusal, and back."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_original_unet import TINY, options, unet

from ldm_jax.config import UNetConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.unet import OriginalUNet, abstract_params
from ldm_jax.interop.original.unet_export import describe_unet, options_of_unet
from ldm_jax.interop.original.unet_options import unet_from_options, with_concatenation

TRANSFORMER = {"use_spatial_transformer": True, "context_dim": 8}
SGM = {**{name: value for name, value in TINY.items() if name != "image_size"}, "context_dim": 8}


@pytest.mark.parametrize(
    ("changes", "down", "up"),
    [
        ({"num_heads": 4}, 4, 4),
        ({"num_heads": 4, "legacy": False}, 4, 4),
        ({"num_heads": 4, "num_heads_upsample": 2}, 4, 2),
        ({"num_heads": 4, "num_heads_upsample": 2, "legacy": False}, 4, 4),
        ({"num_heads": 4, "num_head_channels": 16, "num_heads_upsample": 2}, 4, 4),
        ({"num_heads": -1, "num_head_channels": 32}, 2, 2),
        ({"num_heads": 4, "num_heads_upsample": 2, **TRANSFORMER}, 4, 4),
        ({"num_heads": 4, "num_head_channels": 32, **TRANSFORMER}, 2, 2),
        # 96 / 40 = 2 heads, which `legacy` makes 48 wide
        ({"channel_mult": [1, 3], "num_heads": -1, "num_head_channels": 40, **TRANSFORMER}, 2, 2),
        # 64 / (64 / 24) = 32 heads of 2 channels
        ({"num_heads": 24, "legacy": False}, 32, 32),
    ],
)
def test_heads_are_counted_as_the_original_counts_them(changes: dict, down: int, up: int) -> None:
    config = unet(**changes).config
    assert (config.heads_at(1), config.heads_at(1, "mid"), config.heads_at(1, "up")) == (down, down, up)


def test_attention_stands_at_downsampling_factors() -> None:
    config = unet(channel_mult=[1, 1, 2, 2], attention_resolutions=[32, 8, 1]).config
    assert config.attention_levels == (0, 3)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"dropout": 0.25}, "dropout", 0.25),
        ({"dims": 3}, "spatial_dims", 3),
        ({"num_res_blocks": [1, 2]}, "num_res_blocks", (1, 2)),
        ({"num_res_blocks": 2, "num_attention_blocks": [0, 1]}, "num_attention_blocks", (0, 1)),
        ({"use_scale_shift_norm": True}, "scale_shift_norm", True),
        ({"resblock_updown": True, "conv_resample": False}, "resample_with_res_blocks", True),
        ({"num_classes": 7}, "num_classes", 7),
        ({"num_classes": "sequential", "adm_in_channels": 9}, "vector_dim", 9),
        ({"num_classes": 7, "adm_in_channels": 9}, "vector_dim", None),
        ({"n_embed": 11}, "num_codebook_ids", 11),
        ({**TRANSFORMER, "transformer_depth": [1, 3]}, "transformer_depth", (1, 3)),
        ({**TRANSFORMER, "transformer_depth_middle": 2}, "mid_transformer_depth", 2),
        ({**TRANSFORMER, "use_linear_in_transformer": True}, "linear_projection", True),
        ({**TRANSFORMER, "disable_self_attentions": [True, True]}, "cross_attention_only_levels", (1,)),
        ({**TRANSFORMER, "disable_middle_self_attn": True}, "mid_cross_attention_only", True),
        ({**TRANSFORMER, "disable_middle_transformer": True}, "mid_attention", False),
        ({"disable_self_attentions": [True, True], "use_checkpoint": True, "use_fp16": True}, "attention", "self"),
    ],
)
def test_options_become_settings(changes: dict, field: str, value: Any) -> None:
    assert getattr(unet(**changes).config, field) == value


def test_the_context_may_be_a_list_of_one_width() -> None:
    assert unet(**TRANSFORMER | {"context_dim": [8]}).context_dim == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_mult": [2, 2]}, "channel_mult=[2, 2] is not supported; the original runs only with 1 for the first"),
        ({"channel_mult": [1, 1.5]}, "channel_mult=[1, 1.5] is not supported; it has to be a list of whole numbers"),
        ({"conv_resample": False}, "conv_resample=False is not supported; resolution is changed by a convolution"),
        ({"dims": 4}, "dims=4 is not supported; use 1 or 2 or 3"),
        ({"dims": 1, **TRANSFORMER}, "dims=1 is not supported; the original's spatial transformers are for images"),
        ({"num_classes": "continuous"}, "num_classes='continuous' is not supported; use a number of classes"),
        ({"num_classes": "sequential"}, "adm_in_channels is missing"),
        ({"num_attention_blocks": [2, 1]}, "num_attention_blocks=[2, 1] is not supported; attention follows residual"),
        ({"num_heads": -1}, "num_heads=-1 is not supported; set num_heads or num_head_channels"),
        ({"num_heads": 3}, "num_heads=3 is not supported; it does not divide the 64 channels of level 1"),
        ({"num_head_channels": 24}, "num_head_channels=24 is not supported; it does not divide the 64 channels"),
        ({"num_head_channels": 99}, "num_head_channels=99 is not supported; it does not divide the 64 channels"),
        ({"context_dim": 8}, "context_dim=8 is not supported; plain attention sees no context"),
        ({"use_spatial_transformer": True}, "context_dim=None is not supported; spatial transformers need the one"),
        ({**TRANSFORMER, "context_dim": [8, 9]}, "context_dim=[8, 9] is not supported; spatial transformers need"),
        ({**TRANSFORMER, "disable_self_attentions": [True]}, "disable_self_attentions=[True] is not supported; give"),
        ({**TRANSFORMER, "spatial_transformer_attn_type": "linear"}, "spatial_transformer_attn_type='linear' is not"),
        ({"use_magic": 1}, "use_magic=1 is not supported; no such option"),
        ({"model_channels": 48}, "UNetConfig.num_groups=32 does not divide 48 channels"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        unet(**changes)
    assert message in str(error.value)


def test_missing_options_are_named() -> None:
    with pytest.raises(UserError, match=r"project.yaml: model_channels is missing"):
        unet_from_options(Options({"channel_mult": [1]}, "project.yaml"))


def test_the_later_code_has_transformers_only_and_may_have_no_context() -> None:
    there = unet_from_options(Options(SGM, "f"), "sgm")
    assert there.config.attention == "transformer" and there.context_dim == 8
    without = unet_from_options(Options({**SGM, "context_dim": None}, "f"), "sgm")
    assert without.context_dim is None


def test_channels_besides_the_latent_are_concatenated() -> None:
    there = with_concatenation(unet(in_channels=7), 3, Options({}, "f"))
    assert there.config.concat_channels == 4
    for changes, message in (
        ({"in_channels": 2}, "f: in_channels=2 is not supported; the latent has 3 channels"),
        ({"out_channels": 6}, "f: out_channels=6 is not supported; the latent has 3 channels"),
    ):
        with pytest.raises(UserError, match=message):
            with_concatenation(unet(**changes), 3, Options({}, "f"))


# --- back ------------------------------------------------------------------------------------------------------------


@given(options(), st.sampled_from([{}, {"num_heads_upsample": 2}]))
def test_options_there_and_back_describe_the_same_network(o: dict[str, Any], changes: dict) -> None:
    there = unet_from_options(Options(o | changes, "f"))
    library = "sgm" if there.config.attention == "transformer" and o["n_embed"] is None else "ldm"
    for kind in {"ldm", library}:
        assert unet_from_options(Options(options_of_unet(there, kind), "f"), kind) == there


def test_widths_are_read_off_the_parameters() -> None:
    there = unet(in_channels=5, **TRANSFORMER)
    assert describe_unet(there.config, abstract_params(there)) == there
    assert describe_unet(unet().config, abstract_params(unet())).context_dim is None


@pytest.mark.parametrize(
    ("changes", "library", "named"),
    [
        ({"num_groups": 16}, "ldm", "num_groups=16"),
        ({"norm_epsilon": 1e-6}, "ldm", "norm_epsilon=1e-06"),
        ({"time_frequencies": "half_minus_one"}, "ldm", "time_frequencies='half_minus_one'"),
        ({"time_order": "sin_cos"}, "ldm", "time_order='sin_cos'"),
        ({"channel_mult": (2, 2)}, "ldm", "channel_mult=(2, 2)"),
        ({"attention_levels": (0, 1), "num_heads": (4, 4), "channel_mult": (1, 2)}, "ldm", None),
        ({"attention_levels": (0, 1), "num_heads": (2, 1)}, "ldm", "num_heads=(2, 1)"),
        ({"num_classes": 3, "vector_dim": 4}, "ldm", "num_classes=3"),
        ({"spatial_dims": 3, "attention": "transformer"}, "ldm", "spatial_dims=3"),
        ({"attention": "self"}, "sgm", "attention='self'"),
        ({"mid_attention": False}, "ldm", "mid_attention=False"),
        ({"attention": "transformer", "mid_transformer_depth": 2}, "ldm", "mid_transformer_depth=2"),
        ({"attention": "transformer", "transformer_depth": (1, 2)}, "ldm", "transformer_depth=(1, 2)"),
        ({"attention": "transformer", "num_codebook_ids": 2}, "sgm", "num_codebook_ids=2"),
    ],
)
def test_what_the_original_cannot_express_is_named(changes: dict, library: Any, named: str | None) -> None:
    there = unet(**TRANSFORMER) if changes.get("attention") == "transformer" else unet()
    there = dataclasses.replace(there, config=dataclasses.replace(there.config, **changes))
    if named is None:
        assert options_of_unet(there, library)["num_heads"] == 4
        return
    with pytest.raises(UserError) as error:
        options_of_unet(there, library)
    assert str(error.value) == f"the original code's U-Net ({library}) cannot express UNetConfig.{named}"


def test_heads_of_one_width_on_levels_of_their_own_are_written_by_their_width() -> None:
    config = UNetConfig(
        base_channels=32, channel_mult=(1, 2), attention_levels=(0, 1), num_heads=(2, 4), num_head_channels=None
    )
    options = options_of_unet(OriginalUNet(config=config, in_channels=3, out_channels=3, context_dim=4))
    assert options["num_head_channels"] == 16 and "num_heads" not in options
