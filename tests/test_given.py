"""What models are given: right from examples, and from files right or refused with what to do."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fakes import PictureSource
from PIL import Image

from ldm_jax.config import LowResolution, MaskedPicture
from ldm_jax.data.given import make
from ldm_jax.data.given.degradation import blur, degrade, gaussian_kernel, shrink
from ldm_jax.data.given.descriptor import WIDTH, describe
from ldm_jax.data.given.given import Given
from ldm_jax.data.given.label_map import GivenLabelMap, palette
from ldm_jax.data.given.layout import GivenLayout
from ldm_jax.data.given.low_resolution import GivenLowResolution
from ldm_jax.data.given.masked_picture import GivenMaskedPicture
from ldm_jax.data.given.masks import MIN_SHARE, random_mask
from ldm_jax.data.given.neighbours import make_database
from ldm_jax.errors import UserError

NAMES = ("cat", "dog", "sun")
SIZE = 16
LAYOUT = GivenLayout(NAMES, vocab_size=101, context_length=8, size=(SIZE, SIZE))
KINDS: dict[str, Given] = {
    "LowResolution": GivenLowResolution(LowResolution(), (SIZE, SIZE), 3),
    "MaskedPicture": GivenMaskedPicture(MaskedPicture(), (SIZE, SIZE), 3),
    "LabelMap": GivenLabelMap(("background", *NAMES), (SIZE, SIZE)),
    "Layout": LAYOUT,
    "Neighbours": make_database(PictureSource(9, shape=(SIZE, SIZE, 3)), 9, 3, SIZE, 3),
}


def example() -> dict[str, Any]:
    numbers = np.random.default_rng(0)
    return {
        "image": numbers.uniform(-1, 1, (SIZE, SIZE, 3)).astype(np.float32),
        "label_map": numbers.integers(4, size=(SIZE, SIZE, 1), dtype=np.uint8),
        "boxes": np.array([[0.0, 0.0, 0.3, 0.3], [0.2, 0.5, 1.0, 1.0], [0.5, 0.1, 0.6, 0.2]], np.float32),
        "box_labels": np.array([0, 2, 1]),
        "id": "3",
    }


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_table_knows_every_kind():
    assert {kind.__name__ for kind in make._MODULES} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_gives_the_same_for_the_same_numbers_and_can_be_shown(name: str):
    given = KINDS[name]
    assert isinstance(given, Given)
    one, other = (given.of_example(example(), rng()) for _ in range(2))
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
    shown = given.shown(one)
    assert shown.shape == (SIZE, SIZE, 3) and shown.dtype == np.uint8


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(array, mode).save(path)
    return path


def refused(given: Given, files: dict[str, Path], message: str) -> None:
    with pytest.raises(UserError) as error:
        given.of_files(files)
    assert message in str(error.value)


@pytest.mark.parametrize("name", KINDS)
def test_another_size_is_that_of_files_and_of_what_is_shown(name: str, tmp_path: Path):
    given, (height, width) = KINDS[name].at((8, 24)), (8, 24)
    shapes = {"small": (2, 6, 3), "picture": (height, width, 3), "mask": (height, width), "labels": (height, width)}
    files = {
        part.name: save(
            tmp_path / f"{part.name}.png", np.full(shapes[part.name], 2 if part.name == "labels" else 200, np.uint8)
        )
        for part in given.parts
        if part.name in shapes
    }
    if name == "Layout":
        box = {"label": "cat", "left": 0.5, "top": 0.0, "right": 1.0, "bottom": 1.0}
        (tmp_path / "boxes.json").write_text(json.dumps([box]))
        files = {"boxes": tmp_path / "boxes.json"}
    if name == "Neighbours":
        files = {"like": save(tmp_path / "like.png", np.zeros((5, 7, 3), np.uint8))}
    assert [f"{width} x {height}" in part.what or "6 x 2" in part.what for part in given.parts] == [given.is_map] * len(
        files
    )
    arrays = given.of_files(files)
    assert given.shown(arrays).shape == (height, width, 3)
    if given.is_map:
        with pytest.raises(UserError):
            KINDS[name].of_files(files)


def test_margins_touch_the_edge_and_leave_a_rectangle():
    sides = set()
    for seed in range(30):
        mask = random_mask(("margins",), 32, 0.7, rng(seed))
        left = np.argwhere(~mask)
        (top, first), (bottom, last) = left.min(0), left.max(0) + 1
        assert not mask[top:bottom, first:last].any() and mask.sum() == mask.size - (bottom - top) * (last - first)
        sides |= {name for name, at in {"t": top, "l": first, "b": 32 - bottom, "r": 32 - last}.items() if at}
    assert sides == set("tlbr")


# --- super-resolution ------------------------------------------------------------------------------------------------


def test_a_kernel_sums_to_one_and_turns():
    kernel = gaussian_kernel(2.0, 0.3, 0.4)
    assert kernel.sum() == pytest.approx(1.0) and kernel.shape == (9, 9)
    np.testing.assert_allclose(gaussian_kernel(2.0, 0.3, np.pi / 2), gaussian_kernel(0.3, 2.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(gaussian_kernel(1.0, 1.0, 0.3), gaussian_kernel(1.0, 1.0, 1.7), atol=1e-12)


def test_blurring_keeps_what_is_even():
    flat = np.full((12, 12, 3), 77.0, np.float32)
    np.testing.assert_allclose(blur(flat, 4, rng(1)), flat, rtol=1e-5)


def test_degradation_is_worse_than_shrinking_but_of_the_same_picture():
    y, x = np.mgrid[0:64, 0:64]
    image = (
        np.stack([128 + 60 * np.sin(x / 9), 128 + 60 * np.cos(y / 7), 2.0 * x + y], -1).clip(0, 255).astype(np.uint8)
    )
    clean = shrink(image, 4).astype(float)
    errors = [np.abs(degrade(image, 4, rng(seed)).astype(float) - clean).mean() for seed in range(8)]
    assert all(0.5 < error < 25 for error in errors) and len(set(errors)) == 8


def test_a_small_picture_from_a_file(tmp_path: Path):
    given, small = KINDS["LowResolution"], rng().integers(256, size=(4, 4, 3), dtype=np.uint8)
    arrays = given.of_files({"small": save(tmp_path / "small.png", small)})
    np.testing.assert_allclose(arrays["map"], small / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(given.shown(arrays)[::4, ::4], small)
    message = "has 8 x 8 pixels, and the picture to enlarge 4 times, 4 x 4 pixels has to have 4 x 4; resize or crop"
    refused(given, {"small": save(tmp_path / "large.png", np.zeros((8, 8, 3), np.uint8))}, message)
    clear = save(tmp_path / "clear.png", np.zeros((4, 4, 4), np.uint8))
    refused(given, {"small": clear}, "has an alpha channel (mode RGBA), and the picture to enlarge 4 times")
    refused(given, {"small": tmp_path / "none.png"}, "none.png cannot be read (No such file or directory); give the p")
    (tmp_path / "text.png").write_text("no picture")
    refused(given, {"small": tmp_path / "text.png"}, "cannot be read as a picture: it is no picture of a known format")


# --- inpainting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["boxes", "brush", "wide", "margins"])
def test_masks_cover_some_of_the_picture(kind: Any):
    masks = [random_mask((kind,), 32, 0.5, rng(seed)) for seed in range(20)]
    shares = [mask.mean() for mask in masks]
    assert min(shares) >= MIN_SHARE and max(shares) <= 0.5 and len(set(shares)) > 10


@pytest.mark.parametrize(("order", "hole"), [("ldm", -1.0), ("sd", 0.0)])
def test_holes_are_painted_over(order: Any, hole: float):
    given = GivenMaskedPicture(MaskedPicture(order=order), (SIZE, SIZE), 3)
    arrays = given.of_example(example(), rng())
    holes = arrays["mask"][..., 0] == 1
    assert set(np.unique(arrays["mask"])) == {0.0, 1.0}
    assert (arrays["masked"][holes] == hole).all()
    np.testing.assert_array_equal(arrays["masked"][~holes], example()["image"][~holes])


def test_a_picture_and_its_mask_from_files(tmp_path: Path):
    given, picture = KINDS["MaskedPicture"], rng().integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4:8, 2:5] = 255
    files = {"picture": save(tmp_path / "picture.png", picture), "mask": save(tmp_path / "mask.png", mask)}
    arrays = given.of_files(files)
    assert arrays["mask"].sum() == 12 and (arrays["masked"][4:8, 2:5] == -1).all()
    small = save(tmp_path / "small.png", mask[:8, :8])
    refused(given, files | {"mask": small}, "small.png has 8 x 8 pixels, and the mask, 16 x 16 pixels, white in the ho")
    clear = save(tmp_path / "clear.png", np.zeros((SIZE, SIZE, 4), np.uint8))
    refused(given, files | {"mask": clear}, "clear.png has an alpha channel (mode RGBA), and the mask, 16 x 16 pixels")
    refused(given, files | {"picture": clear}, "flatten it, and give a mask as a file of its own")
    empty = save(tmp_path / "empty.png", 0 * mask)
    refused(given, files | {"mask": empty}, "empty.png has no white pixel: there is nothing to fill in; paint the hole")


# --- semantic synthesis ----------------------------------------------------------------------------------------------


def test_a_label_map_from_a_file(tmp_path: Path):
    given, labels = KINDS["LabelMap"], rng().integers(4, size=(SIZE, SIZE), dtype=np.uint8)
    for name, mode in (("grey", None), ("palette", "P")):
        path = tmp_path / f"{name}.png"
        image = Image.fromarray(labels) if mode is None else Image.fromarray(labels).convert("P")
        if mode == "P":
            image = Image.fromarray(labels)
            image.putpalette([7 * i % 256 for i in range(768)])
        image.save(path)
        np.testing.assert_array_equal(given.of_files({"labels": path})["map"].argmax(-1), labels)
    np.testing.assert_array_equal(given.shown(given.of_files({"labels": path})), palette(4)[labels])
    other = labels.copy()
    other[3, 5] = 9
    message = (
        "has the unknown label 9 at x=5, y=3; give the label map, 16 x 16 pixels in grey or with a palette, of the"
    )
    refused(given, {"labels": save(tmp_path / "other.png", other)}, message)
    refused(
        given, {"labels": save(tmp_path / "small.png", labels[:4])}, "small.png has 16 x 4 pixels; give the label m"
    )
    colours = save(tmp_path / "colours.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    refused(given, {"labels": colours}, "colours.png has mode RGB, and its pixels are no numbers of classes; give the")
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:60])
    refused(given, {"labels": tmp_path / "cut.png"}, "cut.png cannot be read as a label map (")


def test_a_palette_tells_classes_apart():
    colours = palette(10).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(10, dtype=int)
    assert apart.min() > 40 and (colours[0] == 255).all()


# --- layout ----------------------------------------------------------------------------------------------------------


def test_the_tokens_of_a_layout():
    # a grid of 10 lines: corners are row * 10 + column; `none` is 100; the last two are the corners of the picture
    boxes, labels = np.array([[0.0, 0.0, 1.0, 0.5], [0.34, 0.1, 0.56, 0.2]]), np.array([2, 0])
    assert LAYOUT.lines == 10 and LAYOUT.max_objects == 2
    assert LAYOUT.tokens(boxes[:1], labels[:1]).tolist() == [2, 0, 49, 100, 100, 100, 0, 99]
    assert LAYOUT.tokens(boxes, labels).tolist()[3:6] == [0, 13, 25]
    without = dataclasses.replace(LAYOUT, context_length=6)
    assert without.tokens(boxes[:1], labels[:1]).tolist() == [2, 0, 49, 100, 100, 100]


def test_ldm_has_room_for_thirty_objects_on_a_grid_of_ninety():
    assert (GivenLayout(NAMES, 8192, 92, (256, 256)).max_objects, GivenLayout(NAMES, 8192, 92, (256, 256)).lines) == (
        30,
        90,
    )


def test_too_many_objects_leave_the_largest_in_random_order():
    seen = {tuple(LAYOUT.of_example(example(), rng(seed))["tokens"][[0, 3]].tolist()) for seed in range(10)}
    assert seen == {(0, 2), (2, 0)}, "the small dog is left out"


BOX = {"label": "cat", "left": 0.1, "top": 0.2, "right": 0.5, "bottom": 0.6}
WRONG = {
    "json": ("[", "is not valid JSON (Expecting value"),
    "list": (
        {"boxes": []},
        "is not a list of objects; give a JSON list of boxes, in fractions of the picture, such as",
    ),
    "none": ([], "has 0 boxes; the model takes 1 to 2"),
    "many": ([BOX] * 3, "has 3 boxes; the model takes 1 to 2"),
    "label": ([BOX | {"label": "cow"}], "box 0 has the unknown label 'cow'; labels: cat, dog, sun"),
    "label of another kind": ([BOX | {"label": []}], "box 0 has the unknown label []; labels: cat, dog, sun"),
    "fields": ([{"label": "cat", "x": 1}], "box 0 has label, x; it has to be as in [{"),
    "pixels": ([BOX, BOX | {"right": 14}], "box 1 is [0.1, 0.2, 14, 0.6]; all of left, top, right, bottom have to lie"),
    "nan": ('[{"label": "cat", "left": NaN, "top": 0, "right": 1, "bottom": 1}]', "have to lie between 0 and 1"),
    "words": ([BOX | {"left": "0.1"}], "box 0 is ['0.1', 0.2, 0.5, 0.6]; all of left"),
    "empty": ([BOX | {"left": 0.5}], "box 0 is [0.5, 0.2, 0.5, 0.6]; left has to be less than right, and top less tha"),
}


@pytest.mark.parametrize("name", WRONG)
def test_boxes_that_are_none(name: str, tmp_path: Path):
    content, message = WRONG[name]
    path = tmp_path / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    refused(LAYOUT, {"boxes": path}, message)


def test_boxes_that_are_not_there(tmp_path: Path):
    refused(
        LAYOUT, {"boxes": tmp_path / "none.json"}, "none.json cannot be read (No such file or directory); give a JSON"
    )


def test_boxes_from_a_file(tmp_path: Path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([BOX]))
    assert LAYOUT.of_files({"boxes": path})["tokens"].tolist() == [0, 21, 54, 100, 100, 100, 0, 99]


# --- neighbours ------------------------------------------------------------------------------------------------------


def test_an_embedding_is_unlike_for_other_edges_and_colours():
    _y, x = np.mgrid[0:SIZE, 0:SIZE]
    waves = np.repeat(np.sin(x)[..., None], 3, -1).astype(np.float32)
    others = {"turned": np.swapaxes(waves, 0, 1), "red": waves * [1, 0.2, 0.2], "paler": waves * 0.9}
    assert describe(waves).shape == (WIDTH,) and np.square(describe(waves)).mean() == pytest.approx(1.0, abs=1e-3)
    far = {
        name: float(np.linalg.norm(describe(other.astype(np.float32)) - describe(waves)))
        for name, other in others.items()
    }
    assert far["paler"] < 0.5 * min(far["turned"], far["red"])


def test_a_picture_is_none_of_its_own_neighbours_and_its_copy_is_the_first():
    given, source = KINDS["Neighbours"], PictureSource(9, shape=(SIZE, SIZE, 3))
    own = given.embeddings[4]
    image = source[4]["image"] / np.float32(127.5) - 1
    inside = given.of_example({"image": image, "id": "4"}, rng())["embeddings"]
    outside = given.of_example({"image": image, "id": "new"}, rng())["embeddings"]
    assert inside.shape == outside.shape == (3, WIDTH)
    np.testing.assert_allclose(outside[0], own, atol=1e-5)
    np.testing.assert_array_equal(outside[1:], inside[:2])


def test_the_neighbours_of_a_file(tmp_path: Path):
    given, image = KINDS["Neighbours"], PictureSource(9, shape=(SIZE, SIZE, 3))[2]["image"]
    path = save(tmp_path / "like.png", image)
    np.testing.assert_array_equal(given.of_files({"like": path})["embeddings"][0], given.embeddings[2])
