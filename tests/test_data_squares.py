"""Squares that are cut out of pictures: inside, anywhere alike, and told as they are."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm_jax.config import DataConfig, Resize
from ldm_jax.data.source import SourceInfo
from ldm_jax.data.squares import Square, centre_square, cut_boxes, cut_labels, random_square
from ldm_jax.data.transforms import (
    TRANSFORM,
    FitPicture,
    Mirror,
    evaluation_transforms,
    sample_rng,
    training_transforms,
    transform_in_words,
)

SIZES = st.integers(1, 60)


def config(size: int, resize: Resize = None) -> DataConfig:
    return DataConfig(image_size=size, resize=resize, crop="random")


def squares(height: int, width: int, data: DataConfig, count: int) -> list[Square]:
    return [random_square(height, width, data, sample_rng(0, "crop", n)) for n in range(count)]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def fitted(example: dict[str, Any], data: DataConfig, n: int) -> dict[str, Any]:
    return FitPicture(data, 0, tell_sizes=True)(example, n)


def resized(size: int, more: int, most: int) -> list[Resize]:
    return [None, "keep", size + more, (size + more, size + more + most)]


@given(SIZES, SIZES, st.builds(resized, st.just(7), st.integers(0, 30), st.integers(0, 30)), st.integers(0, 1000))
def test_a_square_lies_inside_its_picture(height: int, width: int, resizes: list[Resize], n: int):
    for resize in resizes:
        assert_inside(height, width, config(7, resize), n)


def assert_inside(height: int, width: int, data: DataConfig, n: int) -> None:
    square = random_square(height, width, data, sample_rng(1, "crop", n))
    centre = centre_square(height, width, data)
    for top, left, side, told, mirrored in (square, centre):
        assert 0 <= top <= top + side <= height + 1e-9
        assert 0 <= left <= left + side <= width + 1e-9
        assert side > 0 and min(*told, mirrored) >= 0
    assert fitted({"image": picture(height, width)}, data, n)["image"].shape == (data.image_size, data.image_size, 3)


@pytest.mark.parametrize(
    ("shape", "data", "room"),
    [
        ((6, 10), config(6), (1, 5)),
        ((10, 6), config(6), (5, 1)),
        ((16, 16), config(6, 8), (3, 3)),
        ((5, 7), config(4, "keep"), (2, 4)),
        ((20, 20), config(6, (8, 8)), (3, 3)),
    ],
)
def test_every_place_is_as_likely_as_any_other(shape: tuple[int, int], data: DataConfig, room: tuple[int, int]):
    """5 spreads of a share of 1 / (places) are allowed."""
    places, count = [(top, left) for top in range(room[0]) for left in range(room[1])], 2000
    told = [square.told for square in squares(*shape, data, count)]
    assert set(told) == set(places)
    expected = count / len(places)
    assert all(abs(told.count(place) - expected) < 5 * expected**0.5 for place in places)


def test_a_size_is_drawn_so_that_all_shares_of_a_picture_are_as_likely():
    shares = np.array([square.side / 1000 for square in squares(1000, 1500, config(100, (100, 200)), 1000)])
    assert shares.min() >= 0.5 and shares.max() <= 1
    counts = np.histogram(shares, 10, (0.5, 1.0))[0]
    assert abs(counts - 100).max() < 50


def test_a_cut_is_that_of_the_resized_picture():
    original, data = picture(30, 50), config(12, 18)
    resized = np.asarray(Image.fromarray(original).resize((30, 18), Image.Resampling.LANCZOS), np.float32)
    for n in range(20):
        example = fitted({"image": original}, data, n)
        _, _, top, left, _, _ = example["sizes"][0]
        expected = resized[top : top + 12, left : left + 12]
        np.testing.assert_allclose((example["image"] + 1) * 127.5, expected, atol=1.01)


def test_a_picture_that_is_kept_is_not_resampled_and_one_that_is_too_small_is_enlarged():
    original, data = picture(9, 14), config(6, "keep")
    for n in range(20):
        example = fitted({"image": original}, data, n)
        _, _, top, left, _, _ = example["sizes"][0]
        exact = original[top : top + 6, left : left + 6].astype(np.float32)
        np.testing.assert_allclose((example["image"] + 1) * 127.5, exact, atol=1e-3)
    assert fitted({"image": picture(3, 4)}, data, 0)["sizes"][0].tolist()[:3] == [3, 4, 0]


def test_sizes_are_those_of_the_mirror_image_where_it_is_shown():
    original, data = picture(10, 25), dataclasses.replace(config(8, 10), horizontal_flip=True)
    mirror, flips = Mirror(0, 0.5), 0
    for n in range(30):
        cut = fitted({"image": original}, data, n)
        shown = mirror(cut, n)
        assert shown["sizes"].shape == (6,)
        is_mirrored = not np.array_equal(shown["image"], cut["image"])
        flips += is_mirrored
        whole = original[:, ::-1] if is_mirrored else original
        height, width, top, left, *size = shown["sizes"]
        assert (height, width, *size) == (10, 25, 8, 8)
        exact = whole[top : top + 8, left : left + 8].astype(np.float32)
        np.testing.assert_allclose((shown["image"] + 1) * 127.5, exact, atol=1e-3)
    assert 5 < flips < 25


def test_pictures_that_were_made_smaller_tell_the_size_that_they_had():
    example = {"image": picture(10, 20), "original_size": np.array([100, 200], np.int32)}
    assert fitted(example, config(8, 10), 3)["sizes"][0].tolist()[:2] == [100, 200]


def test_labels_and_boxes_are_cut_with_their_picture():
    """An object is a block of one colour, label and box; a second one is never seen."""
    labels = np.zeros((12, 12, 1), np.uint8)
    labels[3:8, 4:9] = 1
    image = np.repeat(200 * labels, 3, axis=-1)
    boxes = np.array([[4 / 12, 3 / 12, 9 / 12, 8 / 12], [0.0, 0.0, 0.0, 0.0]], np.float32)
    example = {"image": image, "label_map": labels, "boxes": boxes, "box_labels": np.array([7, 8])}
    places = set()
    for n in range(40):
        cut = fitted(example, config(6, 12), n)
        places.add(tuple(cut["sizes"][0][2:4]))
        shown = cut["label_map"][..., 0] == 1
        np.testing.assert_array_equal(shown, cut["image"][..., 0] > 0)
        assert cut["box_labels"].tolist() == [7] and cut["boxes"].dtype == np.float32
        left, top, right, bottom = np.rint(cut["boxes"][0] * 6).astype(int)
        expected = np.zeros((6, 6), bool)
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(shown, expected)
    assert len(places) > 10


def test_boxes_outside_of_a_square_are_left_out():
    boxes = np.array([[0, 0, 0.25, 1], [0.25, 0, 1, 0.5]], np.float32)
    cut, seen = cut_boxes(boxes, Square(0.0, 10.0, 10.0, (0, 10), 20), 10, 40)
    assert seen.tolist() == [1]
    np.testing.assert_allclose(cut, [[0, 0, 1, 0.5]])
    assert cut_labels(np.arange(40, dtype=np.uint8).reshape(1, 40, 1).repeat(10, 0), Square(0, 10, 10, (0, 0), 0), 5)[
        0, :, 0
    ].tolist() == [11, 13, 15, 17, 19]


@pytest.mark.parametrize(("resize", "side"), [(None, 20), (10, 16), ((10, 16), 16), ("keep", 8)])
def test_held_out_pictures_are_cut_in_the_centre(resize: Resize, side: int):
    """Of a picture of 20 x 40 pixels, the square of 8 is cut of so many."""
    data = config(8, resize)
    example, (fit, *_) = {"image": picture(20, 40)}, evaluation_transforms(data)
    square = centre_square(20, 40, data)
    assert square[:3] == ((20 - side) / 2, (40 - side) / 2, side)
    for n in range(5):
        np.testing.assert_array_equal(fit(example, n)["image"], fit(example, 0)["image"])


@pytest.mark.parametrize(
    ("resize", "words"),
    [
        (None, "shorter side to the size by Lanczos"),
        (9, "shorter side to 9 by Lanczos"),
        ((8, 9), "shorter side to 8..9 (held out: 8) by Lanczos"),
        ("keep", "not resized unless smaller than the size"),
    ],
)
def test_what_is_done_is_said_in_words(resize: Resize, words: str):
    where = "a square anywhere (held out: in the centre)"
    assert transform_in_words(config(8, resize)) == f"{words}, {where}, 0..255 to -1..1"
    for same in (DataConfig(image_size=8), DataConfig(image_size=8, resize=8)):
        assert transform_in_words(same) == TRANSFORM, "sets of earlier versions stay what they are"


def test_training_cuts_where_the_configuration_says():
    data = config(4, 8)
    info = SourceInfo(name="fake", split="train", fingerprint="f")
    example = {"image": picture(8, 8), "tags": ()}
    for crop, differ in (("random", True), ("center", False)):
        fit = training_transforms(dataclasses.replace(data, crop=crop), info, 5)[0]
        cuts = [fit(example, n)["image"].tobytes() for n in range(20)]
        assert (len(set(cuts)) > 5) == differ
        assert cuts == [fit(example, n)["image"].tobytes() for n in range(20)]
