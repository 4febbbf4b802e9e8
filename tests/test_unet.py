"""The U-Net: PyTorch's numbers, the published parameter counts, and what every option changes."""

import dataclasses
import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign_tensors import assert_close
from module_trials import (
    abstract_call,
    apply,
    compiled,
    param_shapes,
    random_array,
    random_params,
    replaced,
)

from ldm_jax.config import UNetConfig
from ldm_jax.denoiser.unet import UNet

GOLDEN_CASES = ("unet_sd1", "unet_sd2", "unet_ldm_uncond")
T = np.array([3, 500, 999])
CONTEXT, LABELS = jax.ShapeDtypeStruct((2, 5, 6), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)


def tiny(**changes) -> UNetConfig:
    defaults = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "num_groups": 4}
    return UNetConfig(**{**defaults, "attention_levels": (1,), "num_head_channels": 4, **changes})


def abstract(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@functools.cache
def shapes_of(config: UNetConfig, context=CONTEXT, labels=None, concat=None) -> dict[str, tuple[int, ...]]:
    """Parameter shapes for latents [2, 8, 4, 3]."""
    return param_shapes(UNet(config, 3), abstract(2, 8, 4, 3), LABELS, context, labels, concat)


@pytest.fixture(scope="module")
def golden_unet():
    """Compiled call, inputs and output of a golden case."""
    cases = {}

    def load(case: str):
        if case not in cases:
            golden, (record, params) = golden_weights.golden_arrays(case), golden_weights.golden_unet(case)
            unet = UNet(record.config, record.out_channels)
            inputs = [golden[k] for k in ("sample", "timestep", "encoder_hidden_states") if k in golden]
            call = compiled(lambda params, *inputs: unet.apply({"params": params}, *inputs))
            cases[case] = functools.partial(call, params), inputs, golden["out"]
        return cases[case]

    return load


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_it_computes_what_pytorch_computes(golden_unet, case: str) -> None:
    unet, inputs, out = golden_unet(case)
    assert_close(unet(*inputs), out)


def test_it_starts_by_predicting_zero(golden_unet) -> None:
    """Its last convolution is zero at first; nothing behind it could change that."""
    unet, inputs, out = golden_unet("unet_sd1")
    module = UNet(golden_weights.golden_unet("unet_sd1")[0].config, 4)
    init = compiled(lambda key, *inputs: module.init(key, *inputs)["params"]["conv_out"])
    first = init(jax.random.key(0), *inputs)
    params = {**unet.args[0], "conv_out": first}
    np.testing.assert_array_equal(unet.func(params, *inputs), np.zeros(out.shape))


def test_samples_are_kept_apart_and_their_order_does_not_matter(golden_unet) -> None:
    unet, (zt, t, context), out = golden_unet("unet_sd1")
    np.testing.assert_allclose(unet(zt[::-1], t[::-1], context[::-1]), out[::-1], atol=2e-5)
    other = unet(replaced(zt, 1, 0), replaced(t, 1, 5), replaced(context, 1, context[1] + 1))
    np.testing.assert_allclose(other[0], out[0], atol=2e-5)
    assert np.abs(other[1] - out[1]).max() > 0.1


def test_time_and_context_are_seen(golden_unet) -> None:
    unet, (zt, t, context), out = golden_unet("unet_sd1")
    assert np.abs(unet(zt, t[::-1], context) - out).max() > 0.01
    assert np.abs(unet(zt, t, context[::-1]) - out).max() > 0.01


def test_the_order_of_context_tokens_does_not_matter(golden_unet) -> None:
    """Cross-attention knows no positions: they are the text encoder's to give."""
    unet, (zt, t, context), out = golden_unet("unet_sd1")
    np.testing.assert_allclose(unet(zt, t, context[:, ::-1]), out, atol=2e-5)


def test_all_options_together_run_and_see_class_and_map() -> None:
    config = tiny(
        transformer_depth=(2, 1),
        num_heads=(1, 4),
        num_head_channels=None,
        num_classes=4,
        linear_projection=True,
        scale_shift_norm=True,
        resample_with_res_blocks=True,
        dropout=0.5,
    )
    unet = UNet(config, 2)
    arguments = (random_array(3, 8, 4, 2), T, random_array(3, 5, 6), np.array([0, 1, 3]), random_array(3, 8, 4, 1))
    params = random_params(unet, *arguments)
    predict = compiled(lambda *args: unet.apply({"params": params}, *args))
    out = predict(*arguments)
    assert out.shape == (3, 8, 4, 2) and np.all(np.isfinite(out))
    zt, t, context, labels, concat = arguments
    for other in (
        predict(zt, t, context, replaced(labels, 2, 2), concat),
        predict(zt, t, context, labels, replaced(concat, 2, concat[2] + 1)),
    ):
        np.testing.assert_allclose(other[:2], out[:2], atol=1e-5)
        assert np.abs(other[2] - out[2]).max() > 1e-2


def test_volumes_run() -> None:
    unet = UNet(tiny(spatial_dims=3, attention_levels=()), 3)
    zt, context = random_array(3, 2, 4, 6, 3), random_array(3, 5, 6)
    params = random_params(unet, zt, T, context)
    predict = compiled(lambda *args: unet.apply({"params": params}, *args))
    out = predict(zt, T, context)
    assert out.shape == zt.shape and np.all(np.isfinite(out))
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(predict(zt[order], T[order], context[order]), out[order], atol=1e-5)


def test_sequences_have_kernels_of_one_axis() -> None:
    out, params = abstract_call(UNet(tiny(spatial_dims=1), 3), abstract(2, 12, 3), LABELS, CONTEXT)
    assert out.shape == (2, 12, 3)
    assert params["down_0"]["block_0"]["resnet"]["conv_0"]["kernel"].shape == (3, 8, 8)


def test_any_size_that_halves_at_each_level_is_accepted() -> None:
    unet = UNet(tiny(channel_mult=(1, 1, 2)), 3)
    out, _ = abstract_call(unet, abstract(2, 20, 12, 3), LABELS, CONTEXT)
    assert out.shape == (2, 20, 12, 3)


def test_parameter_paths_read_like_the_figure() -> None:
    shapes = shapes_of(tiny())
    assert {path.split("/")[0] for path in shapes} == {
        *("time", "conv_in", "down_0", "down_1", "mid", "up_1", "up_0", "norm_out", "conv_out")
    }
    assert shapes["down_1/block_0/attention/block_0/self_attention/query/kernel"] == (16, 16)
    assert shapes["down_1/block_0/attention/block_0/cross_attention/key/kernel"] == (6, 16)
    assert shapes["down_0/resample/downsample/conv/kernel"] == (3, 3, 8, 8)
    assert shapes["up_1/resample/upsample/conv/kernel"] == (3, 3, 16, 16)
    assert shapes["up_0/block_1/resnet/conv_0/kernel"] == (3, 3, 16, 8)
    assert shapes["time/dense_0/kernel"] == (8, 32)
    assert not [path for path in shapes if path.startswith(("down_1/resample", "up_0/resample"))]


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"num_classes": 5}, {"class_embedding/embedding": (5, 32)}),
        ({"transformer_depth": (1, 2)}, {"mid/block_0/attention/block_1/norm_0/scale": (16,)}),
        ({"scale_shift_norm": True}, {"mid/block_0/resnet/embedding/kernel": (32, 32)}),
        ({"resample_with_res_blocks": True}, {"down_0/resample/resnet/conv_1/kernel": (3, 3, 8, 8)}),
        ({"linear_projection": True}, {"mid/block_0/attention/project_in/kernel": (16, 16)}),
        ({"attention_levels": ()}, {"mid/block_0/attention/project_in/kernel": (1, 1, 16, 16)}),
        ({"num_res_blocks": 2}, {"up_0/block_2/resnet/conv_0/kernel": (3, 3, 16, 8)}),
        (
            {"time_embedding_dim": 20},
            {"time/dense_1/kernel": (20, 20), "mid/block_0/resnet/embedding/kernel": (20, 16)},
        ),
        ({"up_attention_levels": (0,)}, {"up_0/block_1/attention/norm/scale": (8,)}),
        (
            {"resample_with_res_blocks": (False, True)},
            {"down_0/resample/downsample/conv/bias": (8,), "up_1/resample/resnet/conv_1/bias": (16,)},
        ),
        ({"attention": "self", "mid_attention_groups": 2}, {"mid/block_0/attention/norm/scale": (16,)}),
    ],
)
def test_options_change_the_parameter_tree(changes: dict, new: dict) -> None:
    shapes = shapes_of(tiny(**changes), labels=LABELS)
    assert new.items() <= shapes.items()
    if changes.get("attention_levels") == ():
        assert not [path for path in shapes if "/attention/" in path and not path.startswith("mid/")]


def places_of_attention(config: UNetConfig) -> set[str]:
    return {path.split("/attention/")[0] for path in shapes_of(config) if "/attention/" in path}


def test_attention_follows_the_first_blocks_of_a_level_on_either_way() -> None:
    config = tiny(num_res_blocks=2, attention_levels=(0, 1), num_attention_blocks=(1, 0))
    assert places_of_attention(config) == {"down_0/block_0", "up_0/block_0", "mid/block_0"}
    assert len(places_of_attention(tiny(num_res_blocks=2))) == 2 + 3 + 1


def test_the_middle_has_a_depth_of_its_own_and_may_look_at_the_context_alone() -> None:
    shapes = shapes_of(tiny(mid_transformer_depth=2, mid_cross_attention_only=True))
    assert shapes["mid/block_0/attention/block_1/self_attention/key/kernel"] == (6, 16)
    assert shapes["down_1/block_0/attention/block_0/self_attention/key/kernel"] == (16, 16)
    assert "down_1/block_0/attention/block_1/norm_0/scale" not in shapes


def test_heads_of_the_way_up_change_it_alone() -> None:
    config, zt = tiny(num_heads=2, num_head_channels=None, attention="self"), random_array(3, 8, 4, 3)
    params = random_params(UNet(config, 3), zt, T)
    outputs = [
        compiled(UNet(c, 3).apply)({"params": params}, zt, T)
        for c in (config, dataclasses.replace(config, num_heads_up=2), dataclasses.replace(config, num_heads_up=8))
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-3


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_the_middle_may_have_fewer_blocks(blocks: int) -> None:
    shapes = shapes_of(tiny(mid_res_blocks=blocks, mid_attention=False))
    middle = {path.split("/")[1] for path in shapes if path.startswith("mid/")}
    assert middle == {f"block_{i}" for i in range(blocks)}


def test_the_attention_of_the_middle_may_do_without_normalisation() -> None:
    plain, without = (shapes_of(tiny(attention="self", mid_attention_groups=groups)) for groups in (None, 0))
    assert set(plain) - set(without) == {"mid/block_0/attention/norm/scale", "mid/block_0/attention/norm/bias"}


def test_an_input_can_be_centred() -> None:
    """Centring is the map 2 z - 1 before everything else."""
    centred, plain = (UNet(tiny(attention_levels=(), center_input=centre), 3) for centre in (True, False))
    zt, context = random_array(3, 4, 4, 3), random_array(3, 5, 6)
    params = random_params(plain, zt, T, context)

    out = apply(centred, params, zt, T, context)
    np.testing.assert_allclose(out, apply(plain, params, 2 * zt - 1, T, context), atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_sizes_that_cannot_be_halved_come_back(symmetric: bool) -> None:
    """Padding on both sides rounds up, padding at the end rounds down."""
    unet = UNet(tiny(channel_mult=(1, 1, 2), symmetric_padding=symmetric), 3)
    out, _ = abstract_call(unet, abstract(2, 7, 10, 3), LABELS, CONTEXT)
    assert out.shape == (2, 7, 10, 3)


def test_concatenated_maps_widen_the_first_convolution_only() -> None:
    plain, wide = shapes_of(tiny()), shapes_of(tiny(), concat=abstract(2, 8, 4, 2))
    assert {path: (plain[path], wide[path]) for path in plain if plain[path] != wide.get(path)} == {
        "conv_in/kernel": ((3, 3, 3, 8), (3, 3, 5, 8))
    }
    assert set(wide) == set(plain)


def test_plain_attention_has_no_cross_attention_and_ignores_a_context() -> None:
    with_context, without = (shapes_of(tiny(attention="self"), context) for context in (CONTEXT, None))
    assert with_context == without
    assert with_context["mid/block_0/attention/attention/query/bias"] == (16,)


def test_bfloat16_keeps_float32_parameters_and_predictions() -> None:
    out, params = abstract_call(UNet(tiny(), 3, jnp.bfloat16), abstract(2, 8, 4, 3), LABELS, CONTEXT)
    assert {leaf.dtype for leaf in jax.tree.leaves((out, params))} == {jnp.dtype("float32")}
