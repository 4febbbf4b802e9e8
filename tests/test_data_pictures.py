"""Odd pictures are read alike, or refused by name."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_jax.data import pictures
from ldm_jax.data.pictures import UnreadablePicture, fit_square, from_array, open_picture, to_array
from ldm_jax.errors import UserError

RED = (200, 30, 40)


def save(picture: Image.Image, path: Path, **options) -> Path:
    picture.save(path, **options)
    return path


def pixel(path: Path, where=(0, 0)):
    return open_picture(path, path.name).getpixel(where)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff", "ppm"])
def test_usual_formats(tmp_path, suffix):
    path = save(Image.new("RGB", (8, 6), RED), tmp_path / f"a.{suffix}")
    picture = open_picture(path, path.name)
    assert picture.mode == "RGB" and picture.size == (8, 6)
    np.testing.assert_allclose(picture.getpixel((3, 3)), RED, atol=4)


def test_grey_stays_grey_and_bytes_are_read(tmp_path):
    path = save(Image.new("L", (3, 3), 77), tmp_path / "a.png")
    assert open_picture(path.read_bytes(), "bytes").mode == "L"
    assert pixel(path) == 77


def test_one_bit(tmp_path):
    assert pixel(save(Image.new("1", (3, 3), 1), tmp_path / "a.png")) == 255


def test_palette(tmp_path):
    assert pixel(save(Image.new("RGB", (3, 3), RED).quantize(4), tmp_path / "a.png")) == RED


def test_palette_with_transparency_lies_on_white(tmp_path):
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([*RED, 0, 0, 0])
    picture.putpixel((1, 0), 1)
    path = save(picture, tmp_path / "a.png", transparency=1)
    assert pixel(path) == RED
    assert pixel(path, (1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(tmp_path, mode):
    picture = Image.new(mode, (2, 2), (0, 0, 0, 128) if mode == "RGBA" else (0, 128))
    assert pixel(save(picture, tmp_path / "a.png")) == (127, 127, 127)


def test_grey_with_one_transparent_value(tmp_path):
    assert pixel(save(Image.new("L", (2, 2), 9), tmp_path / "a.png", transparency=9)) == (255, 255, 255)


def test_cmyk(tmp_path):
    path = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(pixel(path), (255, 0, 0), atol=6)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_keeps_its_range(tmp_path, suffix):
    values = np.array([[0, 128, 257 * 100, 65535]], np.uint16)
    path = save(Image.fromarray(values), tmp_path / f"a.{suffix}")
    assert to_array(open_picture(path, path.name))[0, :, 0].tolist() == [0, 0, 100, 255]


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (16, 8), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    path = save(picture, tmp_path / "a.jpg", exif=exif)
    assert open_picture(path, path.name).size == (8, 16)


def test_damaged_exif_is_ignored(tmp_path):
    path = save(Image.new("RGB", (16, 8), RED), tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_picture(path, path.name).size == (16, 8)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(pixel(path), RED, atol=4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_cut_short_is_refused_by_name(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadablePicture, match=rf"^a\.{suffix} cannot be read as a picture: "):
        open_picture(path, path.name)


def test_text_is_no_picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("hello")
    with pytest.raises(
        UserError,
        match=r"^a\.png cannot be read as a picture: it is no picture of a known format; replace it by a whole ",
    ):
        open_picture(path, path.name)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadablePicture, match=r"b\.png cannot be read as a picture: .*No such file"):
        open_picture(tmp_path / "b.png", "b.png")


def test_no_program_is_started_for_postscript(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    with pytest.raises(UnreadablePicture, match="no picture of a known format"):
        open_picture(buffer.getvalue(), "a.eps")


def test_float_pictures_are_refused(tmp_path):
    path = save(Image.new("F", (4, 4), 0.5), tmp_path / "a.tiff")
    with pytest.raises(UnreadablePicture, match=r"a\.tiff .*no agreed white; save it with 8 or 16 bits"):
        open_picture(path, path.name)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(Image.new("1", (300, 200)), tmp_path / "bomb.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 59_999)
    with pytest.raises(UnreadablePicture, match=r"bomb\.png cannot be read .*300x200 pixels are more than 59999"):
        open_picture(path, path.name)


def test_a_real_bomb_is_refused_unread(tmp_path):
    header = bytearray(save(Image.new("1", (8, 8)), tmp_path / "a.png").read_bytes())
    import zlib

    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(UnreadablePicture, match="bomb"):
        open_picture(bytes(header), "bomb.png")


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from([1, 8, 32]))
@settings(max_examples=60)
def test_any_size_becomes_square(width, height, channels, size):
    picture = fit_square(Image.new("RGB", (width, height), RED), size, channels)
    array = to_array(picture)
    assert array.shape == (size, size, channels)
    assert np.ptp(array.reshape(-1, channels), axis=0).max() == 0  # one colour stays one colour


def test_the_centre_is_kept():
    picture = Image.new("RGB", (30, 10), "white")
    picture.paste((0, 0, 0), (10, 0, 20, 10))
    assert to_array(fit_square(picture, 10, 3)).max() == 0
    assert to_array(fit_square(picture.transpose(Image.Transpose.ROTATE_90), 10, 3)).max() == 0


def test_a_very_long_picture_needs_little_memory():
    assert fit_square(Image.new("L", (100_000, 1)), 256, 3).size == (256, 256)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_and_pictures_are_inverses(channels):
    array = np.random.default_rng(0).integers(256, size=(5, 7, channels), dtype=np.uint8)
    np.testing.assert_array_equal(to_array(from_array(array)), array)
