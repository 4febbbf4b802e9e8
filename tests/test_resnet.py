"""The residual block: it starts as its skip connection, and its embedding adds, or scales and shifts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import abstract_call, apply, compiled, param_shapes, random_array, random_params

from ldm_jax.nn.norm import group_norm
from ldm_jax.nn.resample import downsample_mean, upsample_nearest
from ldm_jax.nn.resnet import ResBlock

X, EMBEDDING = random_array(2, 4, 6, 8), random_array(2, 12, seed=1)


def test_it_starts_as_the_identity_when_its_last_convolution_is_zero() -> None:
    block = ResBlock(8, num_groups=4, zero_init=True)
    first = compiled(lambda x, e: block.apply(block.init(jax.random.key(0), x, e), x, e))(X, EMBEDDING)
    np.testing.assert_array_equal(first, X)


@pytest.mark.parametrize(("resample", "resize"), [("up", upsample_nearest), ("down", downsample_mean)])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_resampling_changes_both_paths(resample: str, resize, dims: int) -> None:
    x = random_array(2, *(2, 4, 6)[-dims:], 8)
    block = ResBlock(8, num_groups=4, resample=resample, zero_init=True)
    assert abstract_call(block, x)[0].shape == jax.eval_shape(resize, x).shape
    if dims == 2:
        params = random_params(block, x)
        params["conv_1"] = jax.tree.map(np.zeros_like, params["conv_1"])
        np.testing.assert_allclose(apply(block, params, x), compiled(resize)(x), atol=1e-6)


def test_the_skip_connection_is_projected_only_when_the_channels_change() -> None:
    assert not [p for p in param_shapes(ResBlock(8, num_groups=4), X) if p.startswith("skip")]
    assert param_shapes(ResBlock(12, num_groups=4), X)["skip/kernel"] == (1, 1, 8, 12)


def test_the_parameter_tree_reads_like_the_equation() -> None:
    assert sorted(param_shapes(ResBlock(8, num_groups=4), X, EMBEDDING)) == sorted(
        f"{layer}/{leaf}"
        for layer, leaves in {
            "norm_0": ("scale", "bias"),
            "conv_0": ("kernel", "bias"),
            "embedding": ("kernel", "bias"),
            "norm_1": ("scale", "bias"),
            "conv_1": ("kernel", "bias"),
        }.items()
        for leaf in leaves
    )


@pytest.mark.parametrize("scale_shift_norm", [False, True])
def test_the_embedding_enters_as_the_equations_say(scale_shift_norm: bool) -> None:
    block = ResBlock(8, num_groups=4, scale_shift_norm=scale_shift_norm)
    params = random_params(block, X, EMBEDDING)
    assert params["embedding"]["kernel"].shape == (12, 16 if scale_shift_norm else 8)

    def convolve(x, layer):
        return (
            jax.lax.conv_general_dilated(
                x, params[layer]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            + params[layer]["bias"]
        )

    def norm(x, layer):
        return group_norm(x, params[layer]["scale"], params[layer]["bias"], 4, 1e-5)

    def equations(x, embedding):
        e = jax.nn.silu(embedding) @ params["embedding"]["kernel"] + params["embedding"]["bias"]
        e = e[:, None, None]
        h = convolve(jax.nn.silu(norm(x, "norm_0")), "conv_0")
        h = norm(h, "norm_1") * (1 + e[..., :8]) + e[..., 8:] if scale_shift_norm else norm(h + e, "norm_1")
        return x + convolve(jax.nn.silu(h), "conv_1")

    expected = compiled(equations)(X, EMBEDDING)
    np.testing.assert_allclose(apply(block, params, X, EMBEDDING), expected, atol=2e-5)
    if scale_shift_norm:  # and in bfloat16 it is the same, but for rounding
        rounded = apply(block.copy(dtype=jnp.bfloat16), params, X, EMBEDDING)
        assert 1e-4 < np.sqrt(np.mean(np.square(rounded - expected))) < 0.03 * np.std(expected)


def test_dropout_acts_in_training_only_and_follows_its_key() -> None:
    block = ResBlock(8, num_groups=4, dropout=0.5)
    params = {"params": random_params(block, X)}
    still = compiled(block.apply)(params, X)
    train = compiled(lambda x, seed: block.apply(params, x, train=True, rngs={"dropout": jax.random.key(seed)}))
    one, other = train(X, 0), train(X, 1)
    assert not np.allclose(one, still) and not np.allclose(one, other)
    np.testing.assert_array_equal(one, train(X, 0))


def test_bfloat16_stays_bfloat16_between_layers() -> None:
    block = ResBlock(8, num_groups=4, dtype=jnp.bfloat16, scale_shift_norm=True)
    output, params = abstract_call(block, X.astype(jnp.bfloat16), EMBEDDING)
    assert output.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
