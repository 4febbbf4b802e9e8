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
from ldm_jax.evaluation import reconstruction
from ldm_jax.evaluation.pictures import PictureSet
from ldm_jax.evaluation.reconstruction import Pairs, draw_pairs, pair_scores


def pairs_of(first: np.ndarray, second: np.ndarray) -> Pairs:
    def given(name: str, pictures: np.ndarray) -> PictureSet:
        return PictureSet(
            name=name, fingerprint=name, count=len(pictures), read=lambda start, stop: pictures[start:stop]
        )

    return Pairs(given("first", first), given("second", second))


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, one_device: None) -> Any:
    """Random ones of AlexNet, as if the package had brought them."""
    params = random_perceptual("alexnet")
    monkeypatch.setattr(reconstruction, "_has_weights", lambda net: net == "alexnet")
    monkeypatch.setattr(reconstruction, "read_perceptual", lambda net: params)
    return params


def test_lpips_is_that_of_the_8_bit_pictures(weights: Any, tmp_path: Path):
    """Three pairs in batches of two: the last is filled up, and what fills it does not count."""
    numbers = np.random.default_rng(0)
    first, second = (numbers.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8) for _ in range(2))
    scores = {s.name: s for s in pair_scores(pairs_of(first, second), tmp_path, 2, bootstrap=5, seed=0)}
    a, b = (x.astype(np.float32) / 127.5 - 1 for x in (first, second))
    expected = apply(Lpips("alexnet"), weights, jnp.asarray(a), jnp.asarray(b))
    assert list(scores) == ["psnr", "ssim", "lpips_alexnet"]
    assert scores["lpips_alexnet"].value == pytest.approx(float(np.mean(expected)), rel=1e-4)
    assert scores["lpips_alexnet"].num_samples == 3


def test_pictures_in_which_a_network_sees_nothing_go_without_it(
    weights: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    small = np.zeros((2, 16, 16, 3), np.uint8)
    names = [s.name for s in pair_scores(pairs_of(small, small + 9), tmp_path, 2, bootstrap=0, seed=0)]
    assert names == ["psnr", "ssim"]
    assert "LPIPS over alexnet is left out: it needs 31 pixels at least" in caplog.text


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
        pair_scores(watching, tmp_path / "a", 8, bootstrap=0, seed=0)
    assert pair_scores(watching, tmp_path / "a", 8, bootstrap=0, seed=0) == pair_scores(
        pairs, tmp_path / "b", 8, bootstrap=0, seed=0
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
