"""Golden cases of PyTorch networks: their arrays in our layouts, and their weights in our parameter trees.

Only for the tests of the modules themselves: it knows just the names that occur in `golden/` (diffusers' folders).
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent / "golden"

# Applied in order to a diffusers name whose dots are already slashes; (\d+) is a number that stays.
_RENAMES = (
    (r"(down|up)_blocks/(\d+)/resnets/(\d+)/", r"\1_\2/block_\3/resnet/"),
    (r"(down|up)_blocks/(\d+)/attentions/(\d+)/", r"\1_\2/block_\3/attention/"),
    (r"mid_block/resnets/(\d+)/", r"mid/block_\1/resnet/"),
    (r"mid_block/attentions/0/", r"mid/block_0/attention/"),
    (r"^down_blocks/(\d+)/downsamplers/0/", r"down_\1/resample/downsample/"),
    (r"^up_blocks/(\d+)/upsamplers/0/", r"up_\1/resample/upsample/"),
    (r"^encoder/down_blocks/(\d+)/downsamplers/0/", r"encoder/downsample_\1/"),
    (r"^decoder/up_blocks/(\d+)/upsamplers/0/", r"decoder/upsample_\1/"),
    (r"transformer_blocks/(\d+)/", r"block_\1/"),
    (r"attention/group_norm/", "attention/norm/"),
    (r"/attention/to_", "/attention/attention/to_"),
    (r"to_out/0", "out"),
    (r"to_q/", "query/"),
    (r"to_k/", "key/"),
    (r"to_v/", "value/"),
    (r"attn1/", "self_attention/"),
    (r"attn2/", "cross_attention/"),
    (r"ff/net/0/proj/", "feed_forward/dense_0/"),
    (r"ff/net/2/", "feed_forward/dense_1/"),
    (r"time_emb_proj/", "embedding/"),
    (r"conv_shortcut/", "skip/"),
    (r"proj_(in|out)/", r"project_\1/"),
    (r"time_embedding/linear_", "time/dense_"),
    (r"quantize/embedding/weight", "codebook/embedding"),
    (r"conv_norm_out/", "norm_out/"),
)


def golden_arrays(case: str) -> dict[str, np.ndarray]:
    """Inputs and outputs of a case, pictures and latents as NHWC."""
    with np.load(GOLDEN / case / "io.npz") as arrays:
        return {name: np.moveaxis(a, 1, -1) if a.ndim == 4 else a for name, a in arrays.items()}


def golden_params(case: str, num_levels: int) -> dict:
    """The weights of a case as the parameters of our module."""
    weights = load_file(GOLDEN / case / "diffusion_pytorch_model.safetensors")
    converted = dict(_convert(name, value, num_levels) for name, value in weights.items())
    return jax.tree.map(jnp.asarray, unflatten_dict(converted, sep="/"))


def assert_close_to_torch(ours: np.ndarray, torch: np.ndarray) -> None:
    """The tolerance of golden/README.md for one forward pass."""
    np.testing.assert_allclose(ours, torch, rtol=0, atol=1e-4 * max(1.0, np.abs(torch).max()))


def _convert(name: str, value: np.ndarray, num_levels: int) -> tuple[str, np.ndarray]:
    path = name.replace(".", "/")
    for pattern, replacement in _RENAMES:
        path = re.sub(pattern, replacement, path)
    # diffusers counts the levels of the way up from the lowest resolution, and layers inside a block from 1
    path = re.sub(r"(up|upsample)_(\d+)/", lambda m: f"{m[1]}_{num_levels - 1 - int(m[2])}/", path)
    path = re.sub(r"(?<=/)norm(\d)/", lambda m: f"norm_{int(m[1]) - 1}/", path)
    path = re.sub(r"(?<=/)conv(\d)/", lambda m: f"conv_{int(m[1]) - 1}/", path)
    path = re.sub(r"time/dense_(\d)/", lambda m: f"time/dense_{int(m[1]) - 1}/", path)
    if not path.endswith("/weight"):
        return path, value
    if value.ndim == 1:
        return path.replace("/weight", "/scale"), value
    kernel = value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)  # OI -> IO, OIHW -> HWIO
    return path.replace("/weight", "/kernel"), kernel
