"""What the compilers for TPU and GPU make of the training step: memory, bytes and types, with the targets asserted.

Nothing runs: steps are compiled for slices and GPUs that are not here. Needs the extra `tpu` or `cuda12`, minutes, and
for the whole steps several GB of memory each.
"""

import math
from typing import Any

import accelerator_steps as steps
import jax
import jax.numpy as jnp
import pytest

from ldm_jax.config import MeshConfig
from ldm_jax.nn.attention import SpatialTransformer
from ldm_jax.nn.dot_product_attention import AttentionKernel
from ldm_jax.nn.resnet import ResBlock
from ldm_jax.planning.compiler import bytes_accessed
from ldm_jax.planning.hlo import parse_program
from ldm_jax.planning.steps import abstract_step
from ldm_jax.sharding import batch_sharding, make_mesh, replicated

GIB = 2**30

# MaxDiffusion's blocks, forward and backward, bfloat16, batch 4 a chip on v5e:2x2 (shared/reference/aot.md):
# kind, side, channels, most GB accessed, most GiB of temporary memory.
BLOCKS = [
    ("resnet", 64, 320, 2.23, 0.094),
    ("resnet", 32, 640, 1.24, 0.007),
    ("resnet", 16, 1280, 1.34, 0.029),
    ("transformer", 64, 320, 5.82, 3.186 / 4),
    ("transformer", 32, 640, 2.99, 0.198),
    ("transformer", 16, 1280, 1.98, 0.048),
]


def compile_block(kind: str, side: int, channels: int) -> tuple[Any, Any]:
    """A block, forward and backward to its parameters and inputs, and its abstract parameters."""
    mesh = steps.mesh_of("v5e:2x2", MeshConfig())
    kernel = AttentionKernel.choose("auto", mesh)
    block = ResBlock(channels, dtype=jnp.bfloat16)
    if kind == "transformer":
        block = SpatialTransformer(8, dtype=jnp.bfloat16, kernel=kernel)

    def abstract(shape: tuple[int, ...], dtype: Any = jnp.bfloat16, place: Any = None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place or batch_sharding(mesh))

    x, other = abstract((16, side, side, channels)), abstract((16, 1280) if kind == "resnet" else (16, 77, 768))
    params = jax.eval_shape(block.init, jax.random.key(0), x, other)["params"]
    params = jax.tree.map(lambda leaf: abstract(leaf.shape, leaf.dtype, replicated(mesh)), params)

    def both_ways(params, x, other, gradient):
        _, backward = jax.vjp(lambda *inputs: block.apply({"params": inputs[0]}, *inputs[1:]), params, x, other)
        return backward(gradient)

    return jax.jit(both_ways).lower(params, x, other, x).compile(), params


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "side", "channels", "most_gb", "most_gib"), BLOCKS)
def test_blocks_move_and_keep_less_than_maxdiffusions(kind, side, channels, most_gb, most_gib) -> None:
    block, _ = compile_block(kind, side, channels)
    assert block.cost_analysis()["bytes accessed"] / 1e9 < most_gb  # kernels are counted on neither side
    assert block.memory_analysis().temp_size_in_bytes / GIB < most_gib


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "side", "channels"), [("resnet", 64, 320), ("transformer", 32, 640)])
def test_no_float32_activation_is_written(kind: str, side: int, channels: int) -> None:
    """Statistics and sums are in float32, but what has the size of an activation never leaves a fusion; gradients of
    parameters are in float32, and some are as large."""
    block, params = compile_block(kind, side, channels)
    of_parameters = {f"f32[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(params)}
    written = set(steps.float32_results(block.as_text())) - of_parameters
    assert [array for array in written if steps.num_values(array) >= 4 * side * side * channels] == []


@pytest.mark.slow
def test_stable_diffusions_step_on_v5p() -> None:
    """4 chips, data parallel, batch 8 a chip, against MaxDiffusion's 37.3 GiB and 319 GB."""
    step = abstract_step(steps.sd1(batch_size=32), "diffusion", steps.mesh_of("v5p:2x2x1", MeshConfig()))
    compiled = step.function.lower(*step.arguments).compile()
    memory = compiled.memory_analysis()
    moved, _ = bytes_accessed(parse_program(compiled.as_text()), compiled.cost_analysis())
    assert memory.temp_size_in_bytes / GIB <= 37.3 / 3
    assert moved / 1e9 <= 174
    assert memory.alias_size_in_bytes >= nbytes(step.arguments[0], of_one=True)


@pytest.mark.slow
def test_stable_diffusions_step_on_8_h100() -> None:
    """Data parallel, batch 8 a GPU, against MaxDiffusion's 46.8 GiB."""
    step = abstract_step(steps.sd1(batch_size=64), "diffusion", steps.mesh_of("h100-8", MeshConfig()))
    compiled = step.function.lower(*step.arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes / GIB <= 46.8 / 2


def test_fsdp_over_eight_leaves_a_seventh_of_parameters_moments_and_averages() -> None:
    """Stable Diffusion 1's state by its shardings, which are those that the step is compiled with."""
    state = abstract_step(steps.sd1(batch_size=8), "diffusion", make_mesh(MeshConfig(data=1, fsdp=8))).arguments[0]
    for tree in (state.params, state.opt_state, state.ema_params):
        assert nbytes(tree, of_one=True) <= nbytes(tree, of_one=False) / 7


def nbytes(tree: Any, *, of_one: bool) -> int:
    """Bytes of abstract arrays, on one device or on all that share them."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        shape = leaf.shape if leaf.sharding is None or not of_one else leaf.sharding.shard_shape(leaf.shape)
        return leaf.dtype.itemsize * math.prod(shape)

    return sum(map(size, jax.tree.leaves(tree)))
