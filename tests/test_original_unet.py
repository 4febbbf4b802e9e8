"""Names and layouts of the original code's U-Net, against its constructor written down once more."""

from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from foreign_tensors import Tensors, foreign_shapes, random_tensors_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.unet import (
    OriginalUNet,
    abstract_params,
    qkv_layout,
    read_unet,
    unet_slots,
    unet_tensors,
    without_dots,
)
from ldm_jax.interop.original.unet_options import unet_from_options

TINY = {
    "image_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "num_heads": 2,
}

Shapes = dict[str, tuple[int, ...]]


def unet(**changes: Any) -> OriginalUNet:
    return unet_from_options(Options(TINY | changes, "project.yaml"))


# --- the constructor of the original, as names and shapes -----------------------------------------------------------


def affine(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def res_block(name: str, c_in: int, c_out: int, o: dict) -> Shapes:
    kernel = (3,) * o["dims"]
    features = c_out * (2 if o["use_scale_shift_norm"] else 1)
    shapes = affine(f"{name}.in_layers.0", c_in) | affine(f"{name}.in_layers.2", c_out, c_in, *kernel)
    shapes |= affine(f"{name}.emb_layers.1", features, 4 * o["model_channels"])
    shapes |= affine(f"{name}.out_layers.0", c_out) | affine(f"{name}.out_layers.3", c_out, c_out, *kernel)
    return shapes | ({} if c_in == c_out else affine(f"{name}.skip_connection", c_out, c_in, *(1,) * o["dims"]))


def attention(name: str, c: int, o: dict) -> Shapes:
    shapes = affine(f"{name}.norm", c)
    if not o["use_spatial_transformer"]:
        return shapes | affine(f"{name}.qkv", 3 * c, c, 1) | affine(f"{name}.proj_out", c, c, 1)
    ones = () if o["use_linear_in_transformer"] else (1, 1)
    shapes |= affine(f"{name}.proj_in", c, c, *ones) | affine(f"{name}.proj_out", c, c, *ones)
    for depth in range(o["transformer_depth"]):
        block = f"{name}.transformer_blocks.{depth}"
        for attn, width in (("attn1", c), ("attn2", o["context_dim"])):
            shapes |= {f"{block}.{attn}.to_{x}.weight": (c, width if x in "kv" else c) for x in "qkv"}
            shapes |= affine(f"{block}.{attn}.to_out.0", c, c)
        shapes |= affine(f"{block}.ff.net.0.proj", 8 * c, c) | affine(f"{block}.ff.net.2", c, 4 * c)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= affine(f"{block}.{norm}", c)
    return shapes


def ends(o: dict) -> Shapes:
    c, kernel, width = o["model_channels"], (3,) * o["dims"], 4 * o["model_channels"]
    shapes = affine("time_embed.0", width, c) | affine("time_embed.2", width, width)
    shapes |= affine("input_blocks.0.0", c, o["in_channels"], *kernel)
    shapes |= affine("out.0", c) | affine("out.2", o["out_channels"], c, *kernel)
    if o["n_embed"]:
        shapes |= affine("id_predictor.0", c) | affine("id_predictor.1", o["n_embed"], c, *(1,) * o["dims"])
    if o["num_classes"] == "sequential":
        shapes |= affine("label_emb.0.0", width, o["adm_in_channels"]) | affine("label_emb.0.2", width, width)
    elif o["num_classes"]:
        shapes |= {"label_emb.weight": (o["num_classes"], width)}
    return shapes


def constructed(o: dict) -> Shapes:
    """Every tensor of `UNetModel(**o)`."""
    shapes, c, kernel = ends(o), o["model_channels"], (3,) * o["dims"]
    widths, factor, number = [c], 1, 1
    last = len(o["channel_mult"]) - 1
    for level, mult in enumerate(o["channel_mult"]):
        for _ in range(o["num_res_blocks"][level]):
            name, wide = f"input_blocks.{number}", mult * o["model_channels"]
            shapes |= res_block(f"{name}.0", c, wide, o)
            shapes |= attention(f"{name}.1", wide, o) if factor in o["attention_resolutions"] else {}
            c, number = wide, number + 1
            widths.append(c)
        if level < last:
            name = f"input_blocks.{number}.0"
            shapes |= res_block(name, c, c, o) if o["resblock_updown"] else affine(f"{name}.op", c, c, *kernel)
            factor, number = 2 * factor, number + 1
            widths.append(c)
    shapes |= res_block("middle_block.0", c, c, o) | attention("middle_block.1", c, o)
    shapes |= res_block("middle_block.2", c, c, o)
    number = 0
    for level in range(last, -1, -1):
        for i in range(o["num_res_blocks"][level] + 1):
            name, wide, layer = f"output_blocks.{number}", o["channel_mult"][level] * o["model_channels"], 1
            shapes |= res_block(f"{name}.0", c + widths.pop(), wide, o)
            if factor in o["attention_resolutions"]:
                shapes |= attention(f"{name}.1", wide, o)
                layer = 2
            if level and i == o["num_res_blocks"][level]:
                up = f"{name}.{layer}"
                up_shapes = affine(f"{up}.conv", wide, wide, *kernel)
                shapes |= res_block(up, wide, wide, o) if o["resblock_updown"] else up_shapes
                factor //= 2
            c, number = wide, number + 1
    return shapes


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Options of the original's U-Net that it accepts."""
    levels = draw(st.integers(1, 3))
    transformer = draw(st.booleans())
    classes = draw(st.sampled_from([None, 5, "sequential"]))
    return {
        "in_channels": draw(st.integers(1, 7)),
        "out_channels": draw(st.integers(1, 4)),
        "model_channels": draw(st.sampled_from([32, 64])),
        "channel_mult": [1, *draw(st.lists(st.integers(1, 3), min_size=levels - 1, max_size=levels - 1))],
        "num_res_blocks": draw(st.lists(st.integers(1, 2), min_size=levels, max_size=levels)),
        "attention_resolutions": draw(st.lists(st.sampled_from([1, 2, 4, 8, 16]), unique=True)),
        "dims": 2 if transformer else draw(st.integers(1, 3)),
        "num_classes": classes,
        "adm_in_channels": 6 if classes == "sequential" else None,
        **draw(st.sampled_from([{"num_heads": 4}, {"num_head_channels": 16}])),
        "use_scale_shift_norm": draw(st.booleans()),
        "resblock_updown": draw(st.booleans()),
        "use_new_attention_order": draw(st.booleans()),
        "legacy": draw(st.booleans()),
        "n_embed": draw(st.sampled_from([None, 9])),
        "use_spatial_transformer": transformer,
        "transformer_depth": draw(st.integers(1, 2)) if transformer else 1,
        "context_dim": 12 if transformer else None,
        "use_linear_in_transformer": transformer and draw(st.booleans()),
    }


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(options())
def test_every_tensor_of_the_constructor_has_its_parameters_and_no_other(o: dict[str, Any]) -> None:
    found = unet_from_options(Options(o, "project.yaml"))
    assert foreign_shapes(unet_slots(found.config), abstract_params(found)) == constructed(o)


# --- layouts ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(["legacy", "new"]), st.booleans())
def test_fused_kernels_are_taken_apart_and_put_together(heads: int, width: int, order: Any, bias: bool) -> None:
    channels = heads * width
    fused = np.random.default_rng(0).normal(size=(3 * channels, *(() if bias else (channels, 1))))
    layout = qkv_layout(heads, order)
    parts = layout.read(fused)
    assert [part.shape for part in parts] == [(channels,) if bias else (channels, channels)] * 3
    np.testing.assert_array_equal(layout.write(*parts), fused)


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(["legacy", "new"]))
def test_each_row_of_a_fused_kernel_belongs_to_its_head(heads: int, width: int, order: Any) -> None:
    shape = (heads, 3, width) if order == "legacy" else (3, heads, width)
    fused = np.arange(3 * heads * width).reshape(-1)
    for part, values in enumerate(qkv_layout(heads, order).read(fused)):
        for row, value in enumerate(values):
            head, channel = divmod(row, width)
            place = (head, part, channel) if order == "legacy" else (part, head, channel)
            assert value == np.ravel_multi_index(place, shape)


# --- reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"use_new_attention_order": True, "resblock_updown": True, "num_classes": 4},
        {"use_spatial_transformer": True, "context_dim": 5, "transformer_depth": 2},
    ],
)
def test_reading_and_writing_are_inverse_to_the_bit(changes: dict) -> None:
    there = unet(**changes)
    tensors = random_tensors_of(foreign_shapes(unet_slots(there.config), abstract_params(there)))
    written = dict(unet_tensors(read_unet(tensors, there, where="f"), there))
    assert set(written) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)


def test_heads_of_the_way_up_order_their_kernels() -> None:
    few, many = unet(num_heads_upsample=1), unet(num_heads_upsample=4)
    tensors = random_tensors_of(foreign_shapes(unet_slots(few.config), abstract_params(few)))
    one, four = (flatten_dict(read_unet(tensors, u, where="f"), sep="/") for u in (few, many))
    differing = {path.split("/")[0] for path in one if not np.array_equal(one[path], four[path])}
    assert differing == {"up_1"}


def test_moving_averages_have_names_without_dots() -> None:
    there = unet()
    tensors = random_tensors_of(foreign_shapes(unet_slots(there.config), abstract_params(there)))
    averages = Tensors({name.replace(".", ""): tensor for name, tensor in tensors.items()})
    assert without_dots(unet_slots(there.config))("conv_in/kernel").name == "input_blocks00weight"
    plain, averaged = read_unet(tensors, there, where="f"), read_unet(averages, there, where="f", ema=True)
    for path, leaf in flatten_dict(plain, sep="/").items():
        np.testing.assert_array_equal(flatten_dict(averaged, sep="/")[path], leaf)


def test_wrong_files_are_refused_tensor_by_tensor() -> None:
    there = unet()
    tensors = random_tensors_of(foreign_shapes(unet_slots(there.config), abstract_params(there)))
    tensors["extra.weight"] = tensors.pop("out.2.bias")
    tensors["time_embed.0.bias"] = np.zeros(7)
    with pytest.raises(UserError, match="does not hold the weights that its configuration describes") as error:
        read_unet(tensors, there, where="model.ckpt")
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "missing: out.2.bias",
        "unexpected: extra.weight",
        "wrong shape: time_embed.0.bias is [7], the configuration asks for [128]",
    ]
