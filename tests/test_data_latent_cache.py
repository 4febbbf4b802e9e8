"""Cached latents are what encoding each batch would give, and are encoded again when what they depend on changes."""

import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
from data_fakes import PictureSource

from ldm_jax.config import DataConfig
from ldm_jax.data.latent_cache import (
    LatentSource,
    cached_latents,
    encode_source,
    latent_fingerprint,
    load_latents,
    save_latents,
)
from ldm_jax.data.pipeline import batches
from ldm_jax.data.transforms import training_transforms
from ldm_jax.errors import UserError

CONFIG = DataConfig(image_size=4, horizontal_flip=True, num_threads=0)


class Encoder:
    """Halves the resolution; counts calls and the shapes it sees."""

    def __init__(self) -> None:
        self.shapes = []

    def __call__(self, images):
        self.shapes.append(images.shape)
        return np.concatenate([images[:, ::2, ::2], images[:, 1::2, 1::2]], axis=-1)


def cached(tmp_path, source, encode, config=CONFIG, autoencoder="a"):
    return cached_latents(tmp_path / "l.npz", source, encode, config=config, autoencoder=autoencoder, batch_size=4)


def test_latent_batches_equal_encoded_picture_batches(tmp_path):
    source, encode = PictureSource(10), Encoder()
    latents = cached(tmp_path, source, encode)
    options = {"transforms": training_transforms(CONFIG, source.info, 3), "batch_size": 5, "seed": 1}
    options["encode_caption"] = lambda caption: {"tokens": np.full(3, len(caption), np.int32)}
    pictures, moments = (itertools.islice(batches(s, **options), 6) for s in (source, latents))
    for a, b in zip(pictures, moments, strict=True):
        np.testing.assert_array_equal(encode(a.pop("image")), b.pop("moments"))
        assert a.keys() == b.keys() == {"sample_index", "class_labels", "tokens"}
        assert all((a[key] == b[key]).all() for key in a)


def test_the_encoder_sees_one_shape_and_both_mirrorings():
    encode = Encoder()
    moments = encode_source(PictureSource(10), encode, config=CONFIG, batch_size=4)
    assert moments.shape == (10, 2, 2, 2, 6) and moments.dtype == np.float32
    assert set(encode.shapes) == {(4, 4, 4, 3)} and len(encode.shapes) == 6


def test_without_mirroring_one_set_is_kept():
    config = replace(CONFIG, horizontal_flip=False)
    moments = encode_source(PictureSource(3), Encoder(), config=config, batch_size=2)
    assert moments.shape == (3, 1, 2, 2, 6)
    source = PictureSource(3)
    latents = LatentSource(source.info, moments, tuple(source.annotation(i) for i in range(3)))
    batch = next(batches(latents, transforms=training_transforms(config, source.info, 0), batch_size=3, seed=0))
    assert batch["moments"].shape == (3, 2, 2, 6)


def test_the_file_is_used_when_it_fits(tmp_path):
    first = cached(tmp_path, PictureSource(10), Encoder())
    encode, source = Encoder(), PictureSource(10)
    second = cached(tmp_path, source, encode)
    assert not encode.shapes and not source.reads
    np.testing.assert_array_equal(first.moments, second.moments)
    assert second.annotation(4) == {"caption": "number 4", "tags": ("a", "b", "c", "d"), "label": 0, "id": "4"}
    assert {**second[4], "moments": None} == {**second.annotation(4), "moments": None}


@pytest.mark.parametrize(
    "change",
    [{"autoencoder": "b"}, {"config": replace(CONFIG, image_size=8)}, {"config": replace(CONFIG, image_channels=1)}],
)
def test_another_autoencoder_or_cut_encodes_again(tmp_path, change):
    cached(tmp_path, PictureSource(6), Encoder())
    encode = Encoder()
    cached(tmp_path, PictureSource(6), encode, **change)
    assert encode.shapes


def test_other_data_encode_again():
    info = PictureSource(1).info
    other = replace(info, fingerprint="g")
    assert latent_fingerprint(info, CONFIG, "a") != latent_fingerprint(other, CONFIG, "a")


def test_loading_needs_the_same_fingerprint(tmp_path):
    moments = np.ones((2, 1, 2, 2, 8), np.float32)
    save_latents(tmp_path / "deep" / "l.npz", moments, "one")
    np.testing.assert_array_equal(load_latents(tmp_path / "deep" / "l.npz", "one"), moments)
    assert load_latents(tmp_path / "deep" / "l.npz", "two") is None
    assert load_latents(tmp_path / "none.npz", "one") is None
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["l.npz"], "no temporary file is left"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_damaged_file_is_encoded_again_with_a_warning(tmp_path, caplog, share):
    cached(tmp_path, PictureSource(10), Encoder())
    path = tmp_path / "l.npz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    encode = Encoder()
    with caplog.at_level(logging.WARNING):
        cached(tmp_path, PictureSource(10), encode)
    assert encode.shapes
    assert "are damaged" in caplog.text and "they are encoded again" in caplog.text


def test_a_flipped_bit_is_noticed(tmp_path):
    cached(tmp_path, PictureSource(10), Encoder())
    path = tmp_path / "l.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    encode = Encoder()
    cached(tmp_path, PictureSource(10), encode)
    assert encode.shapes


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the latents .*l\.npz \(.*\); free space or permit writing"):
        save_latents(tmp_path / "file" / "l.npz", np.ones((1, 1, 1, 1, 1), np.float32), "f")


def test_bytes_of_any_kind_are_damage_and_no_failure(tmp_path, caplog):
    """zipfile and numpy raise whatever the damaged field makes them: wherever a bit flips, the answer is the same."""
    save_latents(tmp_path / "l.npz", np.zeros((2, 1, 2, 2, 2), np.float32), "one")
    whole = (tmp_path / "l.npz").read_bytes()
    for place in range(0, 8 * len(whole), 61):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        (tmp_path / "l.npz").write_bytes(content)
        found = load_latents(tmp_path / "l.npz", "one")
        assert found is None or np.array_equal(found, np.zeros((2, 1, 2, 2, 2)))
    assert "they are encoded again" in caplog.text
