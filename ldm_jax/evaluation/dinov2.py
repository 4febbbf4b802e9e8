"""DINOv2's vision transformer (Oquab et al. 2023, arXiv:2304.07193): the class token behind the last norm.

Read from a folder of transformers (`Dinov2Model`: config.json and weights) or from a file of the original repository
(dinov2_vitb14_pretrain.pth and its like), whose heads are 64 wide. Layers are

(1) x + l_1 attention(norm(x)),  then  x + l_2 mlp(norm(x)), with l a learned factor for each channel (arXiv:2103.17239)

The position embedding is that of pictures of another size, resized by PyTorch's bicubic interpolation.
"""

import dataclasses
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.errors import UserError
from ldm_jax.evaluation.resize import resize_matrix
from ldm_jax.files.json_files import read_json
from ldm_jax.files.weight_files import find_weights, open_tensors
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.mapping import PLAIN, Layout, Slot, TensorSource, read_params, torch_layout
from ldm_jax.interop.transformers.options import class_of, skip_bookkeeping
from ldm_jax.nn.attention import Attention, FeedForward
from ldm_jax.nn.norm import layer_norm
from ldm_jax.nn.parameter import parameter

_HEAD_CHANNELS = 64


@dataclass(frozen=True, kw_only=True)
class Dinov2Config:
    """A transformer without register tokens and with a plain feed-forward layer: ViT-S/B/L-14."""

    width: int
    num_layers: int
    num_heads: int
    patch_size: int = 14
    trained_grid: int = 37
    """Patches along a side of the pictures that the position embedding is for."""
    norm_epsilon: float = 1e-6
    mlp_ratio: int = 4


class Dinov2(nn.Module):
    """Pictures, standardised, whose sides are multiples of the patch, to features [b, width]."""

    config: Dinov2Config

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Compute the features."""
        config = self.config
        patch, width = (config.patch_size,) * 2, config.width
        x = nn.Conv(width, patch, patch, padding="VALID", name="patch")(image)
        grid, normal = x.shape[1], nn.initializers.normal(0.02)
        token = parameter(self, "class_token", normal, (1, 1, width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, width)), x.reshape(len(x), -1, width)], axis=1)
        position = parameter(self, "position", normal, (1, config.trained_grid**2 + 1, width))
        x = x + _resized(position, config.trained_grid, grid)
        for i in range(config.num_layers):
            x = Layer(config, name=f"layer_{i}")(x)
        return layer_norm(jnp.float32, "norm_out", config.norm_epsilon)(x)[:, 0]


class Layer(nn.Module):
    """One layer (1)."""

    config: Dinov2Config

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Apply the layer."""
        config, ones = self.config, nn.initializers.ones
        attention = Attention(config.num_heads, use_bias=True, name="attention")
        feed_forward = FeedForward("gelu", config.mlp_ratio * config.width, name="feed_forward")
        norms = (layer_norm(jnp.float32, f"norm_{i}", config.norm_epsilon) for i in range(2))
        for i, (norm, layer) in enumerate(zip(norms, (attention, feed_forward), strict=True)):
            x = x + parameter(self, f"scale_{i}", ones, (config.width,)) * layer(norm(x))
        return x


def _resized(position: Float[Array, "1 n d"], trained: int, grid: int) -> Float[Array, "1 _ d"]:
    """The position embedding of `grid` x `grid` patches."""
    if grid == trained:
        return position
    matrix = jnp.asarray(resize_matrix(trained, grid, "torch-bicubic"), jnp.float32)
    patches = position[:, 1:].reshape(1, trained, trained, -1)
    patches = jnp.einsum("ih,bhwd,jw->bijd", matrix, patches, matrix, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([position[:, :1], patches.reshape(1, grid * grid, -1)], axis=1)


def read_dinov2(path: Path) -> tuple[Dinov2Config, dict[str, Any]]:
    """Configuration and parameters, from a folder of transformers or a file of the original repository.

    Raises:
        UserError: it is neither, or of a version that is not known here (registers, SwiGLU).
    """
    if path.is_dir():
        config = _read_config(path / "config.json")
        with open_tensors(find_weights(path, "model")) as tensors:
            is_new = any(".attention.q_proj." in name for name in tensors.names())
            return config, _read(tensors, config, path, _TRANSFORMERS_5 if is_new else _TRANSFORMERS)
    with open_tensors(path) as tensors:
        config = _original_config(tensors, path)
        return config, _read(tensors, config, path, _ORIGINAL)


@functools.cache
def abstract_dinov2(config: Dinov2Config) -> dict[str, Any]:
    """Shapes of the parameters."""
    image = jax.ShapeDtypeStruct((1, 2 * config.patch_size, 2 * config.patch_size, 3), jnp.float32)
    return jax.eval_shape(Dinov2(config).init, jax.random.key(0), image)["params"]


def _read(tensors: TensorSource, config: Dinov2Config, path: Path, names: dict[str, str]) -> dict[str, Any]:
    return read_params(
        tensors,
        lambda parameter: _slot(parameter, names),
        abstract_dinov2(config),
        where=str(path),
        ignore=lambda name: name.endswith("mask_token"),
    )


def _read_config(file: Path) -> Dinov2Config:
    values = read_json(file)
    class_of(values, str(file), ("Dinov2Model",), None)
    options = Options(values, str(file))
    options.only("use_swiglu_ffn", False)
    options.only("hidden_act", "gelu")
    options.only("qkv_bias", True)
    options.ignore("attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate", "layerscale_value")
    options.ignore("apply_layernorm", "out_features", "out_indices", "reshape_hidden_states", "stage_names")
    options.ignore("use_mask_token", "num_channels")
    patch, size = options.positive("patch_size", 14), options.positive("image_size", 224)
    fields = {
        "width": options.positive("hidden_size", 768),
        "num_layers": options.positive("num_hidden_layers", 12),
        "num_heads": options.positive("num_attention_heads", 12),
        "patch_size": patch,
        "trained_grid": size // patch,
        "norm_epsilon": options.number("layer_norm_eps", 1e-6),
        "mlp_ratio": options.positive("mlp_ratio", 4),
    }
    skip_bookkeeping(options)
    return options.build(Dinov2Config, **fields)


def _original_config(tensors: TensorSource, path: Path) -> Dinov2Config:
    names = set(tensors.names())
    if not {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"} <= names or "register_tokens" in names:
        raise UserError(f"{path} is no DINOv2 without registers: it lacks pos_embed and blocks.0.attn.qkv, or has more")
    width, _, patch, _ = tensors.shape("patch_embed.proj.weight")
    layers = [int(found[1]) for name in names if (found := re.match(r"blocks\.(\d+)\.", name))]
    grid = round((tensors.shape("pos_embed")[1] - 1) ** 0.5)
    config = Dinov2Config(width=width, num_layers=max(layers) + 1, num_heads=width // _HEAD_CHANNELS)
    return dataclasses.replace(config, patch_size=patch, trained_grid=grid)


_TRANSFORMERS = {
    "patch": "embeddings.patch_embeddings.projection",
    "class_token": "embeddings.cls_token",
    "position": "embeddings.position_embeddings",
    "norm_out": "layernorm",
    "layer": "encoder.layer.{}",
    "norm_0": "norm1",
    "norm_1": "norm2",
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/out": "attention.output.dense",
    "feed_forward/dense_0": "mlp.fc1",
    "feed_forward/dense_1": "mlp.fc2",
    "scale_0": "layer_scale1.lambda1",
    "scale_1": "layer_scale2.lambda1",
}

_TRANSFORMERS_5 = {
    **_TRANSFORMERS,
    "attention/query": "attention.q_proj",
    "attention/key": "attention.k_proj",
    "attention/value": "attention.v_proj",
    "attention/out": "attention.o_proj",
}

_ORIGINAL = {
    **_TRANSFORMERS,
    "patch": "patch_embed.proj",
    "class_token": "cls_token",
    "position": "pos_embed",
    "norm_out": "norm",
    "layer": "blocks.{}",
    **dict.fromkeys(("attention/query", "attention/key", "attention/value"), "attn.qkv"),
    "attention/out": "attn.proj",
    "scale_0": "ls1.gamma",
    "scale_1": "ls2.gamma",
}

_PARTS = ("attention/query", "attention/key", "attention/value")


def _split(layout: Layout) -> Layout:
    """Query, key and value in one tensor, one after the other."""
    return Layout(
        read=lambda x: tuple(layout.read(part)[0] for part in np.split(x, 3)),
        write=lambda *parts: np.concatenate([layout.write(part) for part in parts]),
    )


def _slot(path: str, names: dict[str, str]) -> Slot:
    """The tensor of a parameter; `names` are those of modules."""
    if path in ("class_token", "position"):
        return Slot(names[path], PLAIN)
    layer = re.match(r"layer_(\d+)/", path)
    prefix = names["layer"].format(layer[1]) + "." if layer else ""
    inner = path.removeprefix(layer[0] if layer else "")
    if inner.startswith("scale_"):
        return Slot(prefix + names[inner], PLAIN)
    module = inner.rpartition("/")[0]
    leaf, layout = torch_layout(path)
    together = module in _PARTS and names[_PARTS[0]] == names[_PARTS[1]]
    part = _PARTS.index(module) if together else 0
    return Slot(f"{prefix}{names[module]}.{leaf}", _split(layout) if together else layout, part)
