"""Sets of pictures, the files of ADM, and parts that are kept: what is read, refused and computed again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_jax.config import DataConfig, Shapes
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.evaluation.chunks import Chunks, all_parts
from ldm_jax.evaluation.moments import statistics_of
from ldm_jax.evaluation.npz_files import npz_samples, npz_statistics, read_npz, write_npz, write_statistics
from ldm_jax.evaluation.pictures import folder_pictures, npz_pictures, source_pictures

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)


def save(folder: Path, pictures: np.ndarray = PICTURES, mode: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        image = Image.fromarray(picture)
        (image.convert(mode) if mode else image).save(folder / f"{i}.png")
    return folder


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path):
    pictures = folder_pictures(save(tmp_path))
    assert pictures.count == 5
    np.testing.assert_array_equal(pictures.read(1, 4), PICTURES[1:4])
    assert folder_pictures(tmp_path).fingerprint == pictures.fingerprint
    (tmp_path / "0.png").unlink()
    assert folder_pictures(tmp_path).fingerprint != pictures.fingerprint
    assert folder_pictures(tmp_path, 4).read(0, 2).shape == (2, 4, 4, 3)


def test_an_opaque_alpha_channel_is_no_transparency(tmp_path: Path):
    np.testing.assert_array_equal(folder_pictures(save(tmp_path, mode="RGBA")).read(0, 5), PICTURES)


def test_what_makes_other_scores_is_refused_and_named(tmp_path: Path):
    with pytest.raises(UserError, match="there are no pictures in"):
        folder_pictures(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist; name one with pictures"):
        folder_pictures(tmp_path / "nowhere")
    save(tmp_path)
    Image.fromarray(PICTURES[0][:4]).save(tmp_path / "5.png")
    with pytest.raises(UserError, match=r"5\.png has 8x4 pixels and .*0\.png has 8x8; give pictures of one size"):
        folder_pictures(tmp_path).read(0, 6)
    Image.fromarray(PICTURES[0]).convert("L").save(tmp_path / "5.png")
    with pytest.raises(UserError, match=r"5\.png is grey and .*0\.png is RGB; save all of them in one mode"):
        folder_pictures(tmp_path).read(4, 6)
    Image.fromarray(np.dstack([PICTURES[0], PICTURES[0][..., 0]])).save(tmp_path / "5.png")
    with pytest.raises(UserError, match=r"5\.png is transparent in places; lay it on the background that the others"):
        folder_pictures(tmp_path).read(4, 6)
    (tmp_path / "5.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"5\.png cannot be read as a picture"):
        folder_pictures(tmp_path).read(4, 6)


def test_a_data_set_comes_as_training_sees_it(data_cache: Path):
    config = DataConfig(source=Shapes(num_examples=20), image_size=8, cache_dir=str(data_cache), num_threads=0)
    source = load_source(config, "train")
    pictures = source_pictures(source, config)
    assert (pictures.name, pictures.count) == ("shapes/train", 20)
    rows = pictures.read(3, 5)
    assert (rows.shape, rows.dtype) == ((2, 8, 8, 3), np.uint8)
    smaller = DataConfig(source=config.source, image_size=4, cache_dir=str(data_cache))
    assert source_pictures(source, smaller).fingerprint != pictures.fingerprint


def test_samples_and_statistics_survive_an_npz(tmp_path: Path):
    write_npz(tmp_path / "a.npz", {"arr_0": PICTURES})
    samples = npz_samples(tmp_path / "a.npz", read_npz(tmp_path / "a.npz"))
    assert samples is not None
    np.testing.assert_array_equal(npz_pictures(tmp_path / "a.npz", samples).read(2, 4), PICTURES[2:4])
    pooled, spatial = (statistics_of(RNG.normal(size=(9, d))) for d in (4, 3))
    write_statistics(tmp_path / "b.npz", "inception_adm", pooled, spatial)
    arrays = read_npz(tmp_path / "b.npz")
    assert npz_samples(tmp_path / "b.npz", arrays) is None
    read = npz_statistics(tmp_path / "b.npz", arrays, "inception_adm")
    assert read.statistics is not None and read.spatial_statistics is not None
    np.testing.assert_array_equal(read.statistics.covariance, pooled.covariance)
    np.testing.assert_array_equal(read.spatial_statistics.mean, spatial.mean)
    assert read.count == 9
    theirs = {name: arrays[name].astype(np.float32) for name in ("mu", "sigma")}  # as guided-diffusion publishes
    assert npz_statistics(tmp_path / "c.npz", theirs, "inception_adm").count is None


def test_an_npz_of_something_else_is_refused(tmp_path: Path):
    file = tmp_path / "a.npz"
    with pytest.raises(UserError, match="holds images; samples are called arr_0, statistics mu and sigma"):
        npz_samples(file, {"images": PICTURES})
    with pytest.raises(UserError, match=r"arr_0 of .* is float32\[2, 3\]; samples are uint8 \[n, height"):
        npz_samples(file, {"arr_0": np.zeros((2, 3), np.float32)})
    statistics = {"mu": np.zeros(3), "sigma": np.eye(4)}
    with pytest.raises(UserError, match=r"mu and sigma of .* are \[3\] and \[4, 4\], not \[d\] and \[d, d\]"):
        npz_statistics(file, statistics, "alexnet")
    with pytest.raises(UserError, match="holds statistics of inception_adm, not of alexnet; choose that network"):
        npz_statistics(file, {**statistics, "network": np.array("inception_adm")}, "alexnet")
    whole, other = {"mu": np.zeros(3), "sigma": np.eye(3)}, np.triu(np.ones((3, 3)))
    cases = {
        "holds no statistics: mu is <U1, and not numbers": {"mu": np.array(["a"] * 3)},
        r"count of .* is float64\[2\], not a number of pictures": {"count": np.zeros(2)},
        "sigma of .* is not symmetric, so it is no covariance; compute it again": {"sigma": other},
        "sigma of .* has negative variances, so it is no covariance; compute it again": {"sigma": -np.eye(3)},
    }
    for message, changes in cases.items():
        with pytest.raises(UserError, match=message):
            npz_statistics(file, whole | changes, "alexnet")
    with pytest.raises(UserError, match="holds arr_0; statistics are called mu and sigma"):
        npz_statistics(file, {"arr_0": PICTURES}, "alexnet")
    with pytest.raises(UserError, match=r"cannot read .*a\.npz \(No such file"):
        read_npz(file)
    file.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"a\.npz is no \.npz of plain arrays"):
        read_npz(file)
    with file.open("wb") as stream:
        np.save(stream, PICTURES)
    with pytest.raises(UserError, match=r"a\.npz is no \.npz of plain arrays \(it is a single array, a \.npy\)"):
        read_npz(file)
    np.savez(file, a=np.array([{}], object))
    with pytest.raises(UserError, match=r"a\.npz is no \.npz of plain arrays"):
        read_npz(file)


def rows_of(start: int, stop: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(start, stop)[:, None]}


def test_what_was_interrupted_goes_on(tmp_path: Path):
    chunks, done = Chunks(folder=tmp_path, fingerprint="a" * 64, size=3), []

    def compute(start: int, stop: int) -> dict[str, np.ndarray]:
        if start == 6 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(start)
        return rows_of(start, stop)

    with pytest.raises(KeyboardInterrupt):
        all_parts(chunks, 10, compute, what="")
    done.append(-1)
    np.testing.assert_array_equal(all_parts(chunks, 10, compute, what="")["x"][:, 0], range(10))
    assert done == [0, 3, -1, 6, 9], "parts that were there are not computed again"


def test_a_part_that_is_damaged_or_too_short_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    chunks = Chunks(folder=tmp_path, fingerprint="a" * 64, size=4)
    all_parts(chunks, 6, rows_of, what="")
    np.testing.assert_array_equal(all_parts(chunks, 8, rows_of, what="")["x"][:, 0], range(8))
    np.testing.assert_array_equal(all_parts(chunks, 6, rows_of, what="")["x"][:, 0], range(6))
    chunks.file(4).write_bytes(chunks.file(4).read_bytes()[:-30])
    np.testing.assert_array_equal(all_parts(chunks, 8, rows_of, what="")["x"][:, 0], range(8))
    assert "is damaged and is computed again" in caplog.text
    other = Chunks(folder=tmp_path, fingerprint="b" * 64, size=4)
    assert other.load(0, 4) is None


def test_processes_share_the_parts_and_miss_those_of_others(tmp_path: Path):
    chunks = Chunks(folder=tmp_path, fingerprint="a" * 64, size=2)
    with pytest.raises(UserError, match=r"00000002\.npz of another process is not there; name a folder that all proc"):
        all_parts(chunks, 7, rows_of, what="", process_index=0, process_count=2)
    found = all_parts(chunks, 7, rows_of, what="", process_index=1, process_count=2)
    np.testing.assert_array_equal(found["x"][:, 0], range(7))


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 3), (2, 5), (4, 5), (5, 7), (6, 7)])
def test_rows_come_from_the_parts_that_hold_them(tmp_path: Path, start: int, stop: int):
    chunks, done = Chunks(folder=tmp_path, fingerprint="a" * 64, size=3), []

    def compute(first: int, last: int) -> dict[str, np.ndarray]:
        done.append((first, last))
        return {"square": np.arange(first, last) ** 2}

    for _ in range(2):
        np.testing.assert_array_equal(chunks.rows(start, stop, 7, compute)["square"], np.arange(start, stop) ** 2)
    assert done == [part for part in [(0, 3), (3, 6), (6, 7)] if part[0] < stop and part[1] > start]
