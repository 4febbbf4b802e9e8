"""First stages of the original code: names, layouts, options and refusals."""

import dataclasses
import logging
from typing import Any

import jax
import numpy as np
import pytest
from foreign_tensors import Tensors, foreign_shapes, random_tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_jax.config import AutoencoderVQConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.autoencoder import (
    OriginalAutoencoder,
    abstract_params,
    autoencoder_slots,
    autoencoder_tensors,
    read_autoencoder,
)
from ldm_jax.interop.original.autoencoder_options import autoencoder_from_options, options_of_autoencoder
from ldm_jax.interop.original.checkpoint import read_first_stage

KL, VQ = "ldm.models.autoencoder.AutoencoderKL", "ldm.models.autoencoder.VQModelInterface"
DD = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [16],
    "dropout": 0.0,
}


def autoencoder(target: str = KL, dd: dict | None = None, **changes: Any) -> OriginalAutoencoder:
    dd = DD | {"double_z": target == KL} | (dd or {})
    codes = {} if target == KL else {"n_embed": 7}
    return autoencoder_from_options(target, Options({"embed_dim": 4, "ddconfig": dd} | codes | changes, "project.yaml"))


def tensors_of(there: OriginalAutoencoder) -> Tensors:
    return random_tensors_of(foreign_shapes(autoencoder_slots(there.codebook), abstract_params(there)))


def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def block(name: str, c_in: int, c_out: int) -> dict[str, tuple[int, ...]]:
    shapes = affine(f"{name}.norm1", c_in) | affine(f"{name}.conv1", c_out, c_in, 3, 3)
    shapes |= affine(f"{name}.norm2", c_out) | affine(f"{name}.conv2", c_out, c_out, 3, 3)
    return shapes | (affine(f"{name}.nin_shortcut", c_out, c_in, 1, 1) if c_in != c_out else {})


def attention(name: str, c: int) -> dict[str, tuple[int, ...]]:
    shapes = affine(f"{name}.norm", c)
    for layer in ("q", "k", "v", "proj_out"):
        shapes |= affine(f"{name}.{layer}", c, c, 1, 1)
    return shapes


def constructed(target: str, dd: dict, embed_dim: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the original's constructor."""
    ch, mult, z, double = dd["ch"], dd["ch_mult"], dd["z_channels"], 1 + dd["double_z"]
    shapes = affine("encoder.conv_in", ch, dd["in_channels"], 3, 3)
    shapes |= affine("quant_conv", double * embed_dim, double * z, 1, 1)
    shapes |= affine("post_quant_conv", z, embed_dim, 1, 1)
    attends = dd.get("attn_type") != "none"
    c = ch
    for level, m in enumerate(mult):
        has_attention = attends and dd["resolution"] // 2**level in dd["attn_resolutions"]
        for i in range(dd["num_res_blocks"]):
            shapes |= block(f"encoder.down.{level}.block.{i}", c, m * ch)
            shapes |= attention(f"encoder.down.{level}.attn.{i}", m * ch) if has_attention else {}
            c = m * ch
        if level < len(mult) - 1:
            shapes |= affine(f"encoder.down.{level}.downsample.conv", c, c, 3, 3)
    for side in ("encoder", "decoder"):
        shapes |= block(f"{side}.mid.block_1", c, c) | block(f"{side}.mid.block_2", c, c)
        shapes |= attention(f"{side}.mid.attn_1", c) if attends else {}
    shapes |= affine("encoder.norm_out", c) | affine("encoder.conv_out", double * z, c, 3, 3)
    shapes |= affine("decoder.conv_in", c, z, 3, 3)
    for level in reversed(range(len(mult))):
        has_attention = attends and dd["resolution"] // 2**level in dd["attn_resolutions"]
        for i in range(dd["num_res_blocks"] + 1):
            shapes |= block(f"decoder.up.{level}.block.{i}", c, mult[level] * ch)
            c = mult[level] * ch
            shapes |= attention(f"decoder.up.{level}.attn.{i}", c) if has_attention else {}
        if level:
            shapes |= affine(f"decoder.up.{level}.upsample.conv", c, c, 3, 3)
    shapes |= affine("decoder.norm_out", c) | affine("decoder.conv_out", dd["out_ch"], c, 3, 3)
    return shapes if target == KL else shapes | {"quantize.embedding.weight": (7, embed_dim)}


@pytest.mark.slow
@settings(max_examples=10)
@given(
    st.sampled_from([KL, VQ]),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 2),
    st.lists(st.sampled_from([8, 16, 32]), unique=True),
    st.sampled_from(["vanilla", "none", "vanilla-xformers"]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([1, 3]),
)
def test_every_tensor_of_the_constructor_has_its_parameters_and_no_other(
    target: str, mult: list, blocks: int, sizes: list, kind: str, z: int, embed_dim: int, channels: int
) -> None:
    dd = DD | {"double_z": target == KL, "ch_mult": mult, "num_res_blocks": blocks, "attn_resolutions": sizes}
    dd |= {"attn_type": kind, "z_channels": z, "in_channels": channels, "out_ch": channels}
    there = autoencoder(target, dd, embed_dim=embed_dim)
    assert foreign_shapes(autoencoder_slots(), abstract_params(there)) == constructed(target, dd, embed_dim)
    options = options_of_autoencoder(there)
    assert autoencoder_from_options(options["target"], Options(options["params"], "f")) == there


@pytest.mark.parametrize("target", [KL, VQ])
def test_reading_and_writing_are_inverse_to_the_bit(target: str) -> None:
    there = autoencoder(target)
    tensors = tensors_of(there)
    written = dict(autoencoder_tensors(read_autoencoder(tensors, there, where="f"), there))
    assert set(written) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)


def test_tensors_of_the_losses_are_left_out_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    there = autoencoder()
    tensors = tensors_of(there)
    plain = read_autoencoder(tensors, there, where="f")
    losses = {"loss.logvar": np.zeros(()), "loss.discriminator.main.0.weight": np.zeros((2, 3))}
    with caplog.at_level(logging.INFO):
        params = read_autoencoder(Tensors(tensors | losses | {"colorize": np.zeros(3)}), there, where="model.ckpt")
    assert caplog.messages == ["model.ckpt: 2 tensors of the training losses are left out (loss.logvar, ...)"]
    assert jax.tree.all(jax.tree.map(np.array_equal, params, plain))
    with pytest.raises(UserError, match=r"unexpected: losses\.weight"):
        read_autoencoder(Tensors(tensors | {"losses.weight": np.zeros(1)}), there, where="f")


def test_moving_averages_of_a_file_of_its_own_are_taken_where_they_are() -> None:
    there = autoencoder(VQ)
    raw = tensors_of(there)
    averages = Tensors({f"model_ema.{name.replace('.', '')}": 2 * tensor for name, tensor in raw.items()})
    more = {
        "model_ema.decay": np.zeros(()),
        "model_ema.num_updates": np.zeros(()),
        "model_ema.losslogvar": np.zeros(()),
    }
    both = Tensors(raw | averages | more)
    params = {w: read_first_stage(both, there, where="f", weights=w) for w in ("auto", "ema", "raw")}
    twice = jax.tree.map(lambda x: 2 * x, params["raw"])
    for weights in ("auto", "ema"):
        assert jax.tree.all(jax.tree.map(np.array_equal, params[weights], twice))
    alone = read_first_stage(raw, there, where="f")
    assert jax.tree.all(jax.tree.map(np.array_equal, alone, params["raw"]))
    with pytest.raises(UserError, match=r"^f has no moving averages \(model_ema\.\*\); use weights=raw$"):
        read_first_stage(raw, there, where="f", weights="ema")
    del both["model_ema.quant_convbias"]
    with pytest.raises(UserError, match=r"missing: model_ema\.quant_convbias"):
        read_first_stage(both, there, where="f")


def test_attention_has_sizes_there_and_levels_here() -> None:
    dd = {"resolution": 64, "ch_mult": [1, 1, 2], "attn_resolutions": [64, 16, 7]}
    assert autoencoder(dd=dd).config.attention_levels == (0, 2)
    none = autoencoder(dd=dd | {"attn_type": "none"}).config
    assert none.attention_levels == () and not none.mid_attention


def test_the_codes_of_the_later_code_have_another_name() -> None:
    there = autoencoder_from_options(
        "sgm.models.autoencoder.AutoencoderLegacyVQ",
        Options({"embed_dim": 4, "n_embed": 7, "ddconfig": DD | {"double_z": False}}, "f"),
    )
    assert isinstance(there.config, AutoencoderVQConfig)
    assert autoencoder_slots(there.codebook)("codebook/embedding").name == "regularization.embedding.weight"


def test_options_of_training_change_nothing() -> None:
    extra = {"lossconfig": {"target": "x"}, "monitor": "a", "ckpt_path": "b", "image_key": "c", "colorize_nlabels": 3}
    assert autoencoder(VQ, **extra, remap=None, sane_index_shape=True, use_ema=True) == autoencoder(VQ)


@pytest.mark.parametrize(
    ("target", "dd", "changes", "message"),
    [
        (KL, {"out_ch": 4}, {}, "ddconfig: out_ch=4 is not supported; pictures go in with in_channels=3"),
        (KL, {"double_z": False}, {}, "ddconfig: double_z=False is not supported; mean and variance come from"),
        (VQ, {"double_z": True}, {}, "ddconfig: double_z=True is not supported; mean and variance come from"),
        (KL, {"tanh_out": True}, {}, "ddconfig: tanh_out=True is not supported; the decoder ends with its last"),
        (KL, {"give_pre_end": True}, {}, "ddconfig: give_pre_end=True is not supported; the decoder ends with"),
        (KL, {"use_linear_attn": True}, {}, "ddconfig: use_linear_attn=True is not supported; the decoder ends"),
        (KL, {"attn_type": "linear"}, {}, "attn_type='linear' is not supported; use 'vanilla' or 'vanilla-xformers'"),
        (KL, {"resamp_with_conv": False}, {}, "resamp_with_conv=False is not supported; resolution is changed by a"),
        (KL, {"resolution": 34, "ch_mult": [1, 1, 1], "attn_resolutions": [17]}, {}, "does not halve to whole sizes"),
        (KL, {"magic": 1}, {}, "project.yaml.ddconfig: magic=1 is not supported; no such option"),
        (VQ, {}, {"remap": "used.npy"}, "remap='used.npy' is not supported; indices count the codes as they are"),
        (KL, {}, {"n_embed": 3}, "project.yaml: n_embed=3 is not supported; no such option"),
        (
            "ldm.models.autoencoder.IdentityFirstStage",
            {},
            {},
            "target=ldm.models.autoencoder.IdentityFirstStage is not",
        ),
    ],
)
def test_refusals(target: str, dd: dict, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        autoencoder(target, dd, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 16}, "the original code cannot express AutoencoderKLConfig.num_groups=16"),
        ({"mid_attention": False}, "the original code cannot express AutoencoderKLConfig.attention_levels=(1,)"),
        ({"quant_conv": False}, "the original code cannot express AutoencoderKLConfig.quant_conv=False"),
        ({"patch_size": 2}, "the original code cannot express AutoencoderKLConfig.patch_size=2"),
        ({"spatial_dims": 3}, "the original code cannot express AutoencoderKLConfig.spatial_dims=3"),
        ({"channel_mult": (1, 1.0)}, "the original code cannot express AutoencoderKLConfig.channel_mult=(1, 1.0)"),
    ],
)
def test_what_the_original_cannot_express_is_named(changes: dict, message: str) -> None:
    there = autoencoder()
    there = dataclasses.replace(there, config=dataclasses.replace(there.config, **changes))
    with pytest.raises(UserError) as error:
        options_of_autoencoder(there)
    assert str(error.value) == message


def test_a_resolution_that_does_not_halve_cannot_be_written() -> None:
    with pytest.raises(UserError, match=r"resolution=33 is not divisible by the autoencoder's downsample_factor=2"):
        options_of_autoencoder(dataclasses.replace(autoencoder(), resolution=33))
