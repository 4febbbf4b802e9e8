"""Pictures for people: values to bytes and back, text chunks, and grids whose tiles lie where they should."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm_jax.pictures import draw_grid, save_picture, to_pil, to_uint8


def test_the_range_is_mapped_to_bytes_and_what_lies_outside_is_cut():
    values = np.asarray([-9.0, -1.0, 0.0, 1.0, 9.0], np.float32).reshape(1, 5, 1)
    assert to_uint8(values).ravel().tolist() == [0, 0, 128, 255, 255]


@given(st.integers(0, 255))
def test_bytes_survive_the_way_to_floats_and_back(value: int):
    image = np.full((1, 1, 1), value / 127.5 - 1.0, np.float32)
    assert to_uint8(image).item() == value


def test_batches_keep_their_shape():
    assert to_uint8(np.zeros((2, 3, 4, 5, 3), np.float32)).shape == (2, 3, 4, 5, 3)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grey_and_colour(channels: int, mode: str):
    image = np.arange(4 * 5 * channels, dtype=np.uint8).reshape(4, 5, channels)
    shown = to_pil(image)
    assert shown.mode == mode
    np.testing.assert_array_equal(np.asarray(shown).reshape(image.shape), image)


def test_a_saved_picture_is_exact_and_says_what_it_is(tmp_path: Path):
    image = np.random.default_rng(0).integers(256, size=(6, 7, 3), dtype=np.uint8)
    save_picture(image, tmp_path / "x.png", {"prompt": "rote Äpfel 🍎", "credit": "OpenMoji"})
    read = Image.open(tmp_path / "x.png")
    np.testing.assert_array_equal(np.asarray(read), image)
    assert read.info == {"prompt": "rote Äpfel 🍎", "credit": "OpenMoji"}


def tile(value: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def test_a_grid_shows_every_tile_enlarged_in_its_place(tmp_path: Path):
    draw_grid([[tile(10), tile(20)], [tile(30), tile(40)]], ["", ""], tmp_path / "grid.png", tile=16)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    for value in (10, 20, 30, 40):
        where = np.argwhere((grid == value).all(axis=-1))
        assert len(where) == 16 * 16
    centres = [tuple(np.argwhere((grid == v).all(axis=-1)).mean(axis=0)) for v in (10, 20, 30, 40)]
    assert centres[0][0] == centres[1][0] < centres[2][0] == centres[3][0]
    assert centres[0][1] == centres[2][1] < centres[1][1] == centres[3][1]


def test_labels_and_footer_take_room_and_hide_nothing(tmp_path: Path):
    rows = [[tile(10)], [tile(20)]]
    draw_grid(rows, ["", ""], tmp_path / "bare.png", tile=16)
    draw_grid(rows, ["a red circle", "x" * 200], tmp_path / "full.png", footer="by someone " * 5, tile=16)
    bare, full = (np.asarray(Image.open(tmp_path / name)) for name in ("bare.png", "full.png"))
    assert full.shape[0] > bare.shape[0]
    assert full.shape[1] > bare.shape[1]
    for value in (10, 20):
        assert (full == value).all(axis=-1).sum() == 16 * 16


def test_rows_may_differ_in_length_and_pictures_be_grey_or_large(tmp_path: Path):
    big = np.zeros((200, 200, 1), np.uint8)
    draw_grid([[big, big], [big]], ["a", ""], tmp_path / "grid.png", tile=64)
    width, height = Image.open(tmp_path / "grid.png").size
    assert width > 400
    assert height > 400


def test_labels_in_any_script_are_drawn(tmp_path: Path):
    draw_grid([[tile(1)]], ["рыжий кот 猫 🐈"], tmp_path / "grid.png", footer="© 日本")
