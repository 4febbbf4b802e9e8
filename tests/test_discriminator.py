"""The discriminator: its shape, the patch it sees, and its normalisations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax import sharding
from ldm_jax.autoencoder.discriminator import Discriminator, largest_singular_value
from ldm_jax.config import DiscriminatorConfig, MeshConfig

NORMS = ("batch", "group", "spectral", "none")


def build(norm: str, layers: int = 2, size: int = 16) -> tuple[Discriminator, dict, jax.Array]:
    module = Discriminator(DiscriminatorConfig(base_channels=4, num_layers=layers, norm=norm))  # pyright: ignore
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, size, size, 3)).astype(np.float32))
    params = jax.jit(module.init)(jax.random.key(0), image)["params"]
    numbers = np.random.default_rng(1)
    return module, jax.tree.map(lambda x: jnp.asarray(0.5 * numbers.normal(size=x.shape), jnp.float32), params), image


def apply(module: Discriminator):
    return jax.jit(lambda params, image: module.apply({"params": params}, image))


def test_the_number_of_parameters_is_that_of_the_original():
    shapes = jax.eval_shape(Discriminator(DiscriminatorConfig()).init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 2_765_633  # pix2pix: 3 layers, batch norm


@pytest.mark.parametrize("norm", NORMS)
def test_there_is_a_verdict_for_each_patch(norm: str):
    module, params, image = build(norm)
    assert apply(module)(params, image).shape == (8, 2, 2, 1)


def test_a_verdict_sees_its_patch_and_nothing_else():
    module, params, _ = build("none", layers=1, size=32)
    image = jnp.zeros((1, 32, 32, 3))
    seen = jax.grad(lambda x: module.apply({"params": params}, x)[0, 6, 6, 0])(image + 0.1)
    rows = np.flatnonzero(np.asarray(jnp.abs(seen).sum((0, 2, 3))))
    assert rows.max() - rows.min() + 1 == 16  # 4 + 2 * 3 + 2 * 3: of a 4x4 kernel, stride 2, then two of stride 1


def test_batch_statistics_are_those_of_the_global_batch():
    module, params, image = build("batch")
    mesh = sharding.make_mesh(MeshConfig())
    split = jax.device_put(image, NamedSharding(mesh, P(("data", "fsdp"))))
    np.testing.assert_allclose(apply(module)(params, split), apply(module)(params, image), atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "spectral", "none"])
def test_without_batch_statistics_a_picture_is_judged_alone(norm: str):
    module, params, image = build(norm)
    judge = apply(module)
    np.testing.assert_allclose(judge(params, image)[3:4], judge(params, image[3:4]), rtol=1e-5, atol=1e-5)


def test_the_largest_singular_value():
    numbers = np.random.default_rng(0)
    u, _ = np.linalg.qr(numbers.normal(size=(12, 6)))
    v, _ = np.linalg.qr(numbers.normal(size=(6, 6)))
    matrix = (u * np.asarray([4, 1, 0.5, 0.3, 0.2, 0.1])) @ v.T
    assert float(largest_singular_value(jnp.asarray(matrix, jnp.float32))) == pytest.approx(4.0, rel=1e-4)
    gradient = jax.grad(largest_singular_value)(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], v[:, 0]), atol=1e-3)


def test_spectral_kernels_do_not_depend_on_their_size():
    module, params, image = build("spectral")
    larger = jax.tree_util.tree_map_with_path(lambda path, x: 3 * x if path[-1].key == "kernel" else x, params)
    np.testing.assert_allclose(apply(module)(params, image), apply(module)(larger, image), rtol=1e-3, atol=1e-4)
