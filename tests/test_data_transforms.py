"""Transforms are pure functions of the seed, the purpose and the sample index."""

import numpy as np
import pytest
from data_fakes import PictureSource
from hypothesis import given
from hypothesis import strategies as st

from ldm_jax.config import DataConfig
from ldm_jax.data.source import training_texts
from ldm_jax.data.transforms import (
    ChooseCaption,
    FitPicture,
    Mirror,
    evaluation_transforms,
    sample_rng,
    training_transforms,
)

IMAGE = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
EXAMPLE = {"image": IMAGE, "caption": "red apple", "tags": ("fruit", "food", "sweet"), "label": 1, "id": "x"}


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_random_numbers_are_a_function_of_seed_and_index(seed, n):
    assert sample_rng(seed, "mirror", n).random() == sample_rng(seed, "mirror", n).random()
    others = [(seed + 1, "mirror", n), (seed, "caption", n), (seed, "mirror", n + 1)]
    assert all(sample_rng(seed, "mirror", n).random() != sample_rng(*other).random() for other in others)


def test_fit_maps_bytes_to_minus_one_and_one():
    image = np.array([[[0], [255]], [[255], [0]]], np.uint8)
    out = FitPicture(DataConfig(image_size=2, image_channels=1))({"image": image}, 0)["image"]
    assert out.dtype == np.float32
    assert out.ravel().tolist() == [-1.0, 1.0, 1.0, -1.0]
    assert image.max() == 255, "the input is left as it is"


@pytest.mark.parametrize("channels", [1, 3])
def test_fit_changes_size_and_channels(channels):
    out = FitPicture(DataConfig(image_size=8, image_channels=channels))(EXAMPLE, 0)
    assert out["image"].shape == (8, 8, channels)
    assert out["image"].min() >= -1 and out["image"].max() <= 1
    assert out["caption"] == "red apple"


def test_mirror_is_drawn_for_half_of_the_samples():
    mirror = Mirror(3, 0.5)
    flipped = [not np.array_equal(mirror(EXAMPLE, n)["image"], IMAGE) for n in range(400)]
    assert 150 < sum(flipped) < 250
    assert flipped == [not np.array_equal(mirror(EXAMPLE, n)["image"], IMAGE) for n in range(400)]
    np.testing.assert_array_equal(mirror(EXAMPLE, flipped.index(True))["image"], IMAGE[:, ::-1])


def test_moments_are_mirrored_where_pictures_are():
    moments = np.stack([np.zeros((2, 2, 8), np.float32), np.ones((2, 2, 8), np.float32)])
    mirror = Mirror(7, 0.5)
    for n in range(50):
        picture_flipped = not np.array_equal(mirror(EXAMPLE, n)["image"], IMAGE)
        assert mirror({"moments": moments}, n)["moments"].mean() == float(picture_flipped)


def test_sizes_that_were_stored_for_both_mirrorings_alike_are_taken():
    sizes = np.arange(6, dtype=np.int32)
    assert all(Mirror(7, 0.5)({"sizes": sizes}, n)["sizes"].tolist() == sizes.tolist() for n in range(8))


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((40, 60, 3), [40, 60, 0, 2, 8, 8]), ((60, 40, 1), [60, 40, 2, 0, 8, 8]), ((8, 8, 3), [8, 8, 0, 0, 8, 8])],
)
def test_sizes_tell_how_a_picture_was_cut(shape, sizes):
    told = FitPicture(DataConfig(image_size=8), tell_sizes=True)({"image": np.zeros(shape, np.uint8)}, 0)["sizes"]
    assert told.tolist() == [sizes, sizes] and told.dtype == np.int32, "the centre of the mirror image is as far away"


def test_captions_carry_zero_to_max_tags():
    choose = ChooseCaption(0, 2)
    captions = [choose(EXAMPLE, n)["caption"] for n in range(300)]
    assert captions == [choose(EXAMPLE, n)["caption"] for n in range(300)]
    parts = [caption.split(", ") for caption in captions]
    assert {len(p) - 1 for p in parts} == {0, 1, 2}
    assert all(p[0] == "red apple" and len(set(p)) == len(p) and set(p[1:]) <= set(EXAMPLE["tags"]) for p in parts)
    assert {tag for p in parts for tag in p[1:]} == set(EXAMPLE["tags"])


@pytest.mark.parametrize("max_tags, tags", [(0, ("a",)), (3, ())])
def test_without_tags_the_caption_is_bare(max_tags, tags):
    assert all(ChooseCaption(0, max_tags)({**EXAMPLE, "tags": tags}, n)["caption"] == "red apple" for n in range(20))


def test_evaluation_has_nothing_random():
    config = DataConfig(image_size=4, horizontal_flip=True)
    for n in range(20):
        example = EXAMPLE
        for transform in evaluation_transforms(config):
            example = transform(example, n)
        np.testing.assert_array_equal(example["image"], FitPicture(config)(EXAMPLE, 0)["image"])
        assert example["caption"] == "red apple"


def test_training_follows_the_configuration():
    info = PictureSource(1).info
    assert training_transforms(DataConfig(horizontal_flip=True), info, 5)[1:] == (Mirror(5, 0.5), ChooseCaption(5, 3))
    assert training_transforms(DataConfig(), info, 5)[1] == Mirror(5, 0.0)


def test_texts_for_the_tokenizer_hold_every_tag():
    assert training_texts(PictureSource(2)) == ["number 0, a, b, c, d", "number 1, a, b, c, d"]
