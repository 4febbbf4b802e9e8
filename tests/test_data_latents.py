"""Sets of latents hold what encoding each picture gives, survive interruptions, and notice what is wrong with them."""

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fakes import PictureSource
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_jax.config import AutoencoderKLConfig, ClipTextConditioning, DataConfig, ImageFolder, Shapes
from ldm_jax.data import latent_source, patience
from ldm_jax.data.latent_manifest import (
    MANIFEST,
    UNFINISHED,
    DamagedLatents,
    Recipe,
    data_of,
    faults,
    read_manifest,
    write_unfinished,
)
from ldm_jax.data.latent_records import ArrayField, Layout
from ldm_jax.data.latent_shards import Share, clear_others, write_latents
from ldm_jax.data.latent_source import LatentSource, load_latents, open_latents
from ldm_jax.data.latent_statistics import LatentSums, sum_latents
from ldm_jax.data.pipeline import batches
from ldm_jax.data.selection import Selection
from ldm_jax.data.transforms import TRANSFORM, evaluation_transforms, training_transforms, transform_in_words
from ldm_jax.errors import UserError
from ldm_jax.files import folders
from ldm_jax.files.whole_files import write_sealed

CONFIG = DataConfig(image_size=4, horizontal_flip=True, num_threads=0)
LAYOUT = Layout(arrays={"moments": ArrayField(dtype="float32", shape=(2, 2, 2, 6))}, is_point=False)
SIZE = 10


def encode_pictures(images: np.ndarray) -> np.ndarray:
    """Halves the resolution."""
    return np.concatenate([images[..., ::2, ::2, :], images[..., 1::2, 1::2, :]], axis=-1)


class Encoder:
    """Gives examples with both mirrorings, remembers which, and fails at the one that it is told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.source, self.fail_at = PictureSource(SIZE), fail_at
        self.seen: list[int] = []

    def __call__(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        chosen = Selection(self.source, indices)
        for i, index in enumerate(indices):
            if index == self.fail_at:
                raise KeyboardInterrupt
            self.seen.append(index)
            example = chosen[i]
            for transform in evaluation_transforms(CONFIG):
                example = transform(example, i)
            image = example["image"]
            yield {"moments": encode_pictures(np.stack([image, image[:, ::-1]])), **chosen.annotation(i)}


RECIPE = Recipe(
    info=PictureSource(SIZE).info,
    num_pictures=SIZE,
    data=data_of(CONFIG),
    transform=TRANSFORM,
    autoencoder="a",
    autoencoder_config=AutoencoderKLConfig(),
    compute_dtype="float32",
    shard_size=4,
)


def write(folder: Path, encode: Encoder | None = None, recipe: Recipe = RECIPE, share: Share | None = None) -> Encoder:
    encode = encode or Encoder()
    write_latents(folder, recipe, LAYOUT, encode, share)
    return encode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "latents" / "train")
    return tmp_path / "latents" / "train"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_WAITS", (0.0,))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


# --- what is in a set ------------------------------------------------------------------------------------------------


def test_latent_batches_equal_encoded_picture_batches(folder: Path):
    source, latents = PictureSource(SIZE), open_latents(folder)
    assert latents.info == source.info
    options: dict[str, Any] = {"transforms": training_transforms(CONFIG, source.info, 3), "batch_size": 5, "seed": 1}
    options["encode_caption"] = lambda caption: {"tokens": np.full(3, len(caption), np.int32)}
    pictures, moments = (itertools.islice(batches(s, **options), 6) for s in (source, latents))
    for a, b in zip(pictures, moments, strict=True):
        np.testing.assert_array_equal(encode_pictures(a.pop("image")), b.pop("moments"))
        assert a.keys() == b.keys() == {"sample_index", "class_labels", "tokens"}
        assert all((a[key] == b[key]).all() for key in a)


def test_annotations_are_those_of_the_pictures(folder: Path):
    source, latents = PictureSource(SIZE), open_latents(folder)
    assert [latents.annotation(i) for i in range(SIZE)] == [source.annotation(i) for i in range(SIZE)]


def test_a_finished_set_is_its_shards_and_a_manifest(folder: Path):
    names = {path.name for path in folder.iterdir()}
    assert names == {"00000.array_record", "00001.array_record", "00002.array_record", MANIFEST}
    manifest = read_manifest(folder)
    assert manifest.recipe == RECIPE and manifest.layout == LAYOUT
    assert [shard.records for shard in manifest.shards] == [4, 4, 2]
    assert not list(faults(folder, manifest, contents=True))


def test_its_statistics_are_those_of_all_that_is_in_it(folder: Path):
    latents = open_latents(folder)
    whole = LatentSums.of(np.stack([latents[i]["moments"] for i in range(SIZE)]))
    for one, other in zip(latents.manifest.sums.per_channel(), whole.per_channel(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    told = json.loads((folder / MANIFEST).read_text())["statistics"]
    np.testing.assert_allclose(told["per_channel"]["std"], whole.per_channel()[1])
    np.testing.assert_allclose([told["global"]["mean"], told["global"]["std"]], whole.overall())


@settings(max_examples=20)
@given(st.integers(1, 40))
def test_statistics_do_not_depend_on_how_a_set_is_cut(cut: int):
    moments = np.random.default_rng(0).normal(size=(40, 2, 2, 4))
    parts = [moments[begin : begin + cut] for begin in range(0, 40, cut)]
    np.testing.assert_allclose(sum_latents(parts).overall(), LatentSums.of(moments).overall(), rtol=1e-12)


ANNOTATION = {"caption": "é\n", "tags": ("a", "b"), "label": -1, "id": "x/1.png"}


def test_a_record_comes_back_as_it_was():
    arrays = {
        "moments": ArrayField(dtype="float32", shape=(1, 2, 3, 4)),
        "sizes": ArrayField(dtype="int32", shape=(6,)),
        "context": ArrayField(dtype="bfloat16", shape=(3, 5)),
    }
    numbers = np.random.default_rng(0)
    example = {name: (9 * numbers.normal(size=a.shape)).astype(a.dtype) for name, a in arrays.items()} | ANNOTATION
    layout = Layout(arrays=arrays, is_point=False)
    back = layout.unpack(layout.pack(example))
    assert back.keys() == example.keys()
    for name in arrays:
        assert back[name].dtype == example[name].dtype
        np.testing.assert_array_equal(back[name], example[name])
    assert {name: back[name] for name in ANNOTATION} == ANNOTATION == layout.annotation(layout.pack(example))


def test_a_posterior_without_spread_takes_half_the_room():
    mean = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
    moments = np.concatenate([mean, np.full_like(mean, -np.inf)], axis=-1)
    layout = Layout(arrays={"moments": ArrayField(dtype="float32", shape=mean.shape)}, is_point=True)
    record = layout.pack({"moments": moments, **ANNOTATION})
    assert len(record) < moments.nbytes
    np.testing.assert_array_equal(layout.unpack(record)["moments"], moments)


def test_what_is_left_out_is_not_in_the_examples(folder: Path):
    latents = dataclasses.replace(open_latents(folder), left_out=frozenset({"moments"}))
    assert "moments" not in latents[0]


# --- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail_at", [0, 3, 4, 9])
def test_an_interrupted_set_goes_on_behind_its_whole_shards(folder: Path, tmp_path: Path, fail_at: int):
    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        write(again, Encoder(fail_at))
    with pytest.raises(UserError, match=r"again are not finished; the same `ldm latents encode` goes on with them"):
        open_latents(again)
    assert write(again).seen == list(range(fail_at // 4 * 4, SIZE))
    assert contents(again) == contents(folder)


def test_a_shard_without_a_seal_does_not_count(folder: Path, tmp_path: Path):
    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        write(again, Encoder(9))
    (again / "00000.json").unlink()
    (again / "00001.array_record").write_bytes(b"half")
    assert write(again).seen == list(range(SIZE))
    assert contents(again) == contents(folder)


def test_killed_before_anything_was_written(folder: Path, tmp_path: Path):
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / f"{UNFINISHED}.tmp").write_text("{")
    write(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)


def test_killed_when_the_manifest_was_written(folder: Path):
    before = contents(folder)
    (folder / UNFINISHED).write_text("{}")
    (folder / "00001.json").write_text("{}")
    assert write(folder).seen == []
    assert contents(folder) == before


def write_together(folder: Path, count: int) -> tuple[list[Encoder], list[list[str]]]:
    """Write a set by several processes; what each has encoded, and in order what each has said."""
    barrier, encoders = threading.Barrier(count, timeout=30), [Encoder() for _ in range(count)]
    said: list[list[str]] = [[] for _ in range(count)]

    def work(index: int) -> None:
        def meet(task: str) -> None:
            barrier.wait()
            said[index].append(task)

        share = Share(index=index, count=count, meet=meet, advance=lambda: said[index].append("advance"))
        write(folder, encoders[index], share=share)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return encoders, said


@pytest.mark.parametrize("count", [2, 5])
def test_several_processes_write_what_one_does(folder: Path, tmp_path: Path, count: int):
    encoders, _ = write_together(tmp_path / "again", count)
    assert sorted(itertools.chain(*(encoder.seen for encoder in encoders))) == list(range(SIZE))
    assert contents(tmp_path / "again") == contents(folder)


def test_processes_begin_the_same_tasks_and_say_that_they_get_on_with_their_unequal_shares(tmp_path: Path):
    encoders, said = write_together(tmp_path / "again", 4)
    tasks = [
        "encoding fake/train into latents",
        "writing the manifest of the latents",
        "opening the latents that all have written",
    ]
    assert [[word for word in words if word != "advance"] for words in said] == [tasks] * 4
    during = [words.index(tasks[1]) - words.index(tasks[0]) - 1 for words in said]
    assert during == [len(encoder.seen) for encoder in encoders] == [4, 4, 2, 0]


def test_who_verifies_for_all_says_that_it_gets_on(folder: Path):
    said: list[str] = []
    write(folder, share=Share(count=2, meet=said.append, advance=lambda: said.append("advance")))
    assert said[:4] == ["advance", "advance", "advance", "encoding fake/train into latents"]


@pytest.mark.parametrize("beforehand", [True, False])
def test_processes_that_do_not_see_one_folder_are_told(
    tmp_path: Path, beforehand: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(folders, "_WAITS", (0.0,))
    if beforehand:
        index, message = 1, r"process 0 has begun the latents in \S+train, and they are not there for this process; "
    else:
        index, message = 0, r"process 1 has written \S+00001.array_record, and it is not there for process 0; "
    with pytest.raises(UserError, match=message + "it has to be one folder that all processes see: choose another"):
        write(tmp_path / "latents" / "train", share=Share(index=index, count=2))


def test_two_writers_do_not_get_into_each_others_way(tmp_path: Path):
    def encode_while_another_comes(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        with pytest.raises(UserError, match=r"another process is writing latents to .*set; wait for it, or end it"):
            write(tmp_path / "set")
        yield from Encoder()(indices)

    write_latents(tmp_path / "set", RECIPE, LAYOUT, encode_while_another_comes)
    assert len(open_latents(tmp_path / "set")) == SIZE


# --- what is wrong with a set ----------------------------------------------------------------------------------------


def missing(folder: Path) -> None:
    (folder / "00001.array_record").unlink()


def truncated(folder: Path) -> None:
    path = folder / "00001.array_record"
    path.write_bytes(path.read_bytes()[:-1])


def changed(folder: Path) -> None:
    flip_a_bit(folder / "00001.array_record", 8 * 200)


def extra(folder: Path) -> None:
    (folder / "00003.array_record").write_bytes(b"")


def no_json(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def no_object(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


def edited(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"num_pictures": 10', '"num_pictures": 11'))


def of_the_future(folder: Path) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    del values["crc32"]
    write_sealed(folder / MANIFEST, {**values, "version": 3})


def of_nothing_known(folder: Path) -> None:
    write_sealed(folder / MANIFEST, {"version": 2})


MEND = "; the same `ldm latents encode` writes it again"
AGAIN = r"; remove \S+ and encode again"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"00001.array_record is missing" + MEND),
        (truncated, r"00001.array_record has \d+ bytes where \d+ were written" + MEND),
        (extra, r"00003.array_record does not belong to this set; move it away"),
        (no_json, r"the manifest \S+manifest.json cannot be used: Expecting property name.*" + AGAIN),
        (no_object, r"cannot be used: it holds a list where an object belongs" + AGAIN),
        (edited, r"cannot be used: it has changed since it was written" + AGAIN),
        (of_the_future, r"cannot be used: it is of version 3, and this program reads version 2" + AGAIN),
        (of_nothing_known, r"cannot be used: 'layout'" + AGAIN),
    ],
)
def test_damage_is_noticed_when_a_set_is_opened(folder: Path, spoil: Callable[[Path], None], message: str):
    spoil(folder)
    with pytest.raises(DamagedLatents, match=message):
        open_latents(folder)


def test_a_set_that_is_not_there_is_missed(tmp_path: Path):
    with pytest.raises(UserError, match=r"none does not exist; `ldm latents encode` writes such a folder"):
        open_latents(tmp_path / "none" / "train")
    message = r"\S+ holds no latents of the test split; write them with `ldm latents encode`"
    with pytest.raises(UserError, match=message):
        open_latents(tmp_path / "test")


@pytest.mark.parametrize("spoil", [missing, truncated, changed])
def test_encoding_again_mends_a_damaged_shard(folder: Path, spoil: Callable[[Path], None]):
    before = contents(folder)
    spoil(folder)
    assert write(folder).seen == [4, 5, 6, 7]
    assert contents(folder) == before


def test_a_seal_of_before_does_not_stand_for_a_damaged_shard(folder: Path):
    before = contents(folder)
    write_sealed(folder / "00001.json", dataclasses.asdict(read_manifest(folder).shards[1]))  # killed while it tidied
    changed(folder)
    assert write(folder).seen == [4, 5, 6, 7]
    assert contents(folder) == before


def test_encoding_again_leaves_alone_what_it_does_not_know(folder: Path):
    extra(folder)
    with pytest.raises(UserError, match="does not belong to this set; move it away"):
        write(folder)
    assert (folder / "00003.array_record").exists() and (folder / MANIFEST).exists()


def test_wherever_a_bit_flips_it_is_noticed(folder: Path):
    """By its checksum when a set is verified, and when it is read unless that gives what was written all the same."""
    path, whole = folder / "00002.array_record", open_latents(folder)
    expected, content = [whole[i]["moments"] for i in (8, 9)], path.read_bytes()
    for place in range(0, 8 * len(content), 8 * len(content) // 60):
        path.write_bytes(content)
        flip_a_bit(path, place)
        found = dict(faults(folder, whole.manifest, contents=True))
        assert found == {path: "has changed since it was written" + MEND}
        latents = open_latents(folder)
        for i, moments in zip((8, 9), expected, strict=True):
            try:
                np.testing.assert_array_equal(latents[i]["moments"], moments)
            except DamagedLatents as error:
                assert f"of {path} cannot be read after 2 tries" in str(error)


def test_latents_made_in_another_way_are_not_mixed(folder: Path):
    before = contents(folder)
    other = dataclasses.replace(RECIPE, autoencoder="b", data=dataclasses.replace(RECIPE.data, image_size=8))
    message = (
        r"train holds other latents:\n  data.image_size: 4 -> 8\n  autoencoder: 'a' -> 'b'\nnothing was changed; "
        "choose another folder"
    )
    with pytest.raises(UserError, match=message):
        write(folder, recipe=other)
    assert contents(folder) == before


def test_an_autoencoder_that_does_something_else_with_the_same_parameters_is_another_one(folder: Path):
    other = dataclasses.replace(RECIPE, autoencoder_config=AutoencoderKLConfig(num_groups=2))
    with pytest.raises(UserError, match=r"other latents:\n  first_stage.autoencoder.num_groups: 32 -> 2\nnothing"):
        write(folder, recipe=other)


def test_a_recipe_comes_back_as_it_was():
    texts = {"texts": "t", "conditioning": ClipTextConditioning(context_layer="penultimate")}
    for recipe in (RECIPE, dataclasses.replace(RECIPE, **texts)):
        assert Recipe.from_json(json.loads(json.dumps(recipe.as_json()))) == recipe


def test_an_unfinished_set_of_another_version_is_not_gone_on_with(tmp_path: Path):
    write_sealed(tmp_path / UNFINISHED, RECIPE.as_json())
    with pytest.raises(UserError, match=r"cannot be used \(it is of version None, .*\); remove \S+ and encode again"):
        write(tmp_path)


def in_folder(directory: str) -> Recipe:
    """A recipe of pictures in a folder."""
    data = dataclasses.replace(RECIPE.data, source=ImageFolder(directory=directory))
    info = dataclasses.replace(RECIPE.info, name=Path(directory).name)
    return dataclasses.replace(RECIPE, data=data, info=info)


def test_pictures_that_have_been_moved_are_the_same(tmp_path: Path):
    write(tmp_path / "train", recipe=in_folder("/a/old"))
    assert write(tmp_path / "train", recipe=in_folder("/b/new")).seen == []
    clear_others(tmp_path / "train", in_folder("/b/new"))
    assert (tmp_path / "train").exists()


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"\S+ is not empty and holds no latents; choose another folder"):
        write(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write latents to \S+train \(.*\); choose another folder"):
        write(tmp_path / "file" / "train")


def test_a_shard_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "set" / "00001.array_record").mkdir(parents=True)
    write_unfinished(tmp_path / "set", RECIPE)
    message = r"cannot write latents to \S+00001.array_record \(.*\); free space or permit writing"
    with pytest.raises(UserError, match=message):
        write(tmp_path / "set")


def test_a_beginning_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / UNFINISHED).write_text("{")
    with pytest.raises(UserError, match=r"unfinished.json cannot be used \(.*\); remove \S+ and encode again"):
        write(tmp_path)


# --- caches, and what fits an experiment -----------------------------------------------------------------------------


def test_a_cache_keeps_what_fits_and_clears_what_does_not(folder: Path, caplog: pytest.LogCaptureFixture):
    clear_others(folder, RECIPE)
    assert read_manifest(folder).recipe == RECIPE
    clear_others(folder, dataclasses.replace(RECIPE, autoencoder="b"))
    assert not folder.exists()
    clear_others(folder, RECIPE)
    write(folder)
    no_json(folder)
    clear_others(folder, RECIPE)
    assert not folder.exists() and "manifest.json cannot be used" in caplog.text


def with_latents(folder: Path, **changes: Any) -> DataConfig:
    return dataclasses.replace(CONFIG, latents=str(folder.parent), **changes)


def test_latents_that_fit_are_loaded(folder: Path):
    kept_elsewhere = with_latents(folder, cache_dir="/elsewhere", num_threads=5, cache_latents=False)
    assert isinstance(load_latents(kept_elsewhere, "train"), LatentSource)
    assert load_latents(with_latents(folder, horizontal_flip=False), "train"), "mirror images need not be used"


def test_latents_that_do_not_fit_are_refused_with_all_that_differs(folder: Path):
    config = with_latents(folder, image_size=8, image_channels=1, source=Shapes(num_examples=5))
    message = (
        r"the latents in \S+train do not fit this experiment:\n  data.source.num_examples: 600 -> 5\n"
        r"  data.image_size: 4 -> 8\n  data.image_channels: 3 -> 1\nencode them for it with `ldm latents encode`, "
        "or change the experiment"
    )
    with pytest.raises(UserError, match=message):
        load_latents(config, "train")


def test_latents_without_mirror_images_do_not_fit_an_experiment_with_them(tmp_path: Path):
    write(
        tmp_path / "train",
        recipe=dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, horizontal_flip=False)),
    )
    with pytest.raises(UserError, match=r"data.horizontal_flip: False -> True"):
        load_latents(with_latents(tmp_path / "train"), "train")


def test_pictures_that_lie_elsewhere_are_compared_if_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    write(tmp_path / "train", recipe=in_folder("/a"))
    moved = with_latents(tmp_path / "train", source=ImageFolder(directory="/b"))
    with caplog.at_level("INFO"):
        assert load_latents(moved, "train")
    assert "are taken for those of pictures that are not here: the image folder /b does not exist" in caplog.text
    monkeypatch.setattr(latent_source, "load_source", lambda config, split: PictureSource(SIZE))
    assert load_latents(moved, "train")
    info = dataclasses.replace(RECIPE.info, fingerprint="other")
    monkeypatch.setattr(latent_source, "load_source", lambda config, split: PictureSource(SIZE, info=info))
    with pytest.raises(
        UserError, match=r"do not fit this experiment:\n  fingerprint of the pictures: '\w+' -> 'other'"
    ):
        load_latents(moved, "train")
    assert load_latents(with_latents(tmp_path / "train", source=ImageFolder(directory="/a")), "train")


def test_latents_of_squares_cut_at_random_do_not_fit_an_experiment_that_cuts_the_centre(tmp_path: Path):
    data = dataclasses.replace(RECIPE.data, resize=8, crop="random")
    recipe = dataclasses.replace(RECIPE, data=data, transform=transform_in_words(data), crop_seed=3)
    write(tmp_path / "train", recipe=recipe)
    message = r"data\.resize: 8 -> None\n  data\.crop: 'random' -> 'center'\n  transform: 'shorter side to 8 by"
    with pytest.raises(UserError, match=message):
        load_latents(with_latents(tmp_path / "train"), "train")
    fitting = with_latents(tmp_path / "train", resize=8, crop="random")
    assert load_latents(fitting, "train").manifest.recipe.crop_seed == 3


def test_latents_of_another_transform_do_not_fit(tmp_path: Path):
    write(tmp_path / "train", recipe=dataclasses.replace(RECIPE, transform="stretched"))
    with pytest.raises(UserError, match=r"transform: 'stretched' -> 'shorter side"):
        load_latents(with_latents(tmp_path / "train"), "train")
