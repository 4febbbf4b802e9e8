"""The stream of batches is a function of seed and step, whatever the processes, threads and interruptions."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from data_fakes import PictureSource
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_jax.config import DataConfig
from ldm_jax.data.pipeline import batches, epoch
from ldm_jax.data.source import SourceInfo
from ldm_jax.data.transforms import evaluation_transforms, training_transforms
from ldm_jax.errors import UserError

CONFIG = DataConfig(image_size=4, horizontal_flip=True)


def encode(caption: str) -> dict[str, np.ndarray]:
    return {"tokens": np.frombuffer(caption.ljust(40).encode(), np.uint8).astype(np.int32)}


def take(source, count, **options):
    options = {"batch_size": 6, "seed": 1, "encode_caption": encode} | options
    transforms = training_transforms(CONFIG, source.info, 9)
    return list(itertools.islice(batches(source, transforms=transforms, **options), count))


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def join(parts):
    """The global batches of the batches of all processes."""
    return [{key: np.concatenate([b[key] for b in group]) for key in group[0]} for group in zip(*parts, strict=True)]


def share(batch_size, process, processes):
    """The rows of one process of several, which lie together."""
    rows = batch_size // processes
    return range(process * rows, (process + 1) * rows)


def order(source, count, **options):
    source.reads.clear()
    take(source, count, **options)
    return list(source.reads)


def test_keys_shapes_and_types():
    batch = take(PictureSource(10), 1)[0]
    kinds = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert kinds == {
        "image": ((6, 4, 4, 3), "float32"),
        "tokens": ((6, 40), "int32"),
        "class_labels": ((6,), "int32"),
        "sample_index": ((6,), "int32"),
    }


def test_without_encoder_and_classes_there_are_no_conditions():
    source = PictureSource(10, info=SourceInfo(name="fake", split="train", fingerprint="f"))
    assert set(take(source, 1, encode_caption=None)[0]) == {"image", "sample_index"}


def test_the_same_seed_gives_the_same_batches_and_another_does_not():
    assert_same(take(PictureSource(20), 8), take(PictureSource(20), 8))
    assert order(PictureSource(20), 3) != order(PictureSource(20), 3, seed=2)


@given(size=st.integers(1, 60), batch=st.integers(1, 60), seed=st.integers(0, 2**63))
@settings(max_examples=15)
def test_every_epoch_is_a_permutation(size, batch, seed):
    batch = min(batch, size)
    seen = order(PictureSource(size), -(-3 * size // batch), batch_size=batch, seed=seed)
    epochs = [seen[k * size : (k + 1) * size] for k in range(3)]
    assert all(sorted(indices) == list(range(size)) for indices in epochs)
    if size > 20:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        assert epochs[0] != list(range(size))


def test_sample_index_counts_positions():
    positions = np.concatenate([b["sample_index"] for b in take(PictureSource(10), 5)])
    assert positions.tolist() == list(range(30))


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_the_same_global_batches_and_decode_only_their_own(processes):
    whole = take(PictureSource(20), 7)
    sources = [PictureSource(20) for _ in range(processes)]
    parts = [take(s, 7, rows=share(6, p, processes)) for p, s in enumerate(sources)]
    assert_same(join(parts), whole)
    assert all(len(source.reads) == 7 * 6 // processes for source in sources)


@pytest.mark.parametrize("start", [1, 5, 1000])
def test_a_run_goes_on_where_it_stopped_with_another_number_of_processes(start):
    source = PictureSource(20)
    if start < 10:
        assert_same(take(source, start + 3)[start:], take(source, 3, start_step=start))
    parts = [take(source, 3, start_step=start, rows=share(6, p, 2)) for p in range(2)]
    assert_same(join(parts), take(source, 3, start_step=start))


def test_a_start_far_away_is_found_at_once():
    batch = take(PictureSource(20), 1, start_step=10**9)[0]
    assert batch["sample_index"][0] == 6 * 10**9 % 2**31


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_nothing(threads):
    assert_same(take(PictureSource(20), 12), take(PictureSource(20), 12, num_threads=threads))


def test_samples_do_not_depend_on_the_batch_size():
    small, large = take(PictureSource(24), 9, batch_size=4), take(PictureSource(24), 3, batch_size=12)
    for key in small[0]:
        np.testing.assert_array_equal(np.concatenate([b[key] for b in small]), np.concatenate([b[key] for b in large]))


def test_flips_and_captions_change_between_epochs():
    source = PictureSource(6, shape=(4, 4, 1))
    first, second = take(source, 2, shuffle=False)
    assert (first["tokens"] != second["tokens"]).any()
    assert (first["image"] != second["image"]).any()
    np.testing.assert_array_equal(first["class_labels"], second["class_labels"])


RANDOM_CROP = DataConfig(image_size=4, resize=(5, 8), crop="random", horizontal_flip=True)


def take_cuts(count, **options):
    """Batches of squares cut at random out of oblong pictures, with where they were cut."""
    source = PictureSource(20, shape=(8, 11, 3))
    transforms = training_transforms(RANDOM_CROP, source.info, 9, tell_sizes=True)
    defaults: dict[str, Any] = {"batch_size": 6, "seed": 1}
    return list(itertools.islice(batches(source, transforms=transforms, **{**defaults, **options}), count))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 4, 1000])
def test_squares_are_cut_alike_by_any_number_of_processes_and_after_an_interruption(processes, start):
    whole = take_cuts(3, start_step=start)
    assert whole[0]["image"].shape == (6, 4, 4, 3) and whole[0]["sizes"].shape == (6, 6)
    parts = [take_cuts(3, start_step=start, rows=share(6, p, processes), num_threads=p) for p in range(processes)]
    assert_same(join(parts), whole)
    if start == 4:
        assert_same(take_cuts(7)[4:], whole)


def test_squares_are_cut_anew_in_each_epoch():
    told = np.concatenate([batch["sizes"] for batch in take_cuts(10, shuffle=False)]).reshape(3, 20, 6)
    assert (told[0] != told[1]).any() and (told[1] != told[2]).any()


def test_unshuffled_keeps_the_order():
    assert order(PictureSource(4), 3, batch_size=3, shuffle=False) == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(
        UserError, match=r"training.batch_size=6 is larger than .* fake/train has 5 pictures; use at most 5"
    ):
        take(PictureSource(5), 1)


def test_rows_of_a_process_need_not_lie_together():
    whole, source = take(PictureSource(20), 4), PictureSource(20)
    for part, batch in zip(take(source, 4, rows=[0, 1, 4]), whole, strict=True):
        for name, rows in part.items():
            np.testing.assert_array_equal(rows, batch[name][[0, 1, 4]])
    assert len(source.reads) == 4 * 3


def test_captions_that_are_not_there_are_refused():
    source = PictureSource(20)
    source = replace(source, info=replace(source.info, has_captions=False))
    with pytest.raises(UserError, match="fake has no captions, which text conditioning needs; use class conditioning"):
        take(source, 1)


def test_errors_of_reading_reach_the_loop_through_threads():
    class Broken(PictureSource):
        def __getitem__(self, index):
            raise UserError(f"picture {index} is damaged")

    for threads in (0, 2):
        with pytest.raises(UserError, match=r"picture \d+ is damaged"):
            take(Broken(8), 1, num_threads=threads)


@pytest.mark.parametrize("size, batch", [(10, 4), (8, 4), (3, 4)])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_is_one_pass_filled_up_and_marked(size, batch, processes):
    transforms = evaluation_transforms(CONFIG)
    parts = [
        list(epoch(PictureSource(size), transforms=transforms, batch_size=batch, rows=share(batch, p, processes)))
        for p in range(processes)
    ]
    whole = join(parts)
    assert len(whole) == -(-size // batch)
    assert all(len(b["image"]) == batch for b in whole)
    valid = np.concatenate([b["valid"] for b in whole])
    index = np.concatenate([b["sample_index"] for b in whole])
    assert valid.dtype == bool
    assert index[valid].tolist() == list(range(size))
    assert (index[~valid] == size - 1).all()
