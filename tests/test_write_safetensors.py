"""Writing safetensors: what is written is what was given, rounded once, complete or not there."""

import json
import stat
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file

from ldm_jax.errors import UserError
from ldm_jax.files import write_safetensors as module
from ldm_jax.files.safetensors_header import DTYPES
from ldm_jax.files.weight_files import find_weights, open_tensors
from ldm_jax.files.write_safetensors import LazyTensor, save_weights, write_safetensors

STEM = "diffusion_pytorch_model"
THREE = {name: np.full((2, 5), i, np.float32) for i, name in enumerate("abc")}


def message_of(path: Path, tensors: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        write_safetensors(path, tensors, **options)
    assert [other.name for other in path.parent.iterdir()] in ([], [path.name]), "nothing half-written is left"
    return str(caught.value)


@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.sampled_from([*"fde?bBhHiIlL", ">f4", ">i2"]).flatmap(
            lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4))
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_package_reads_what_is_written(tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    write_safetensors(path, {name: tensor.T for name, tensor in tensors.items()})
    read = load_file(path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read[name], tensor.T)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_type(tmp_path: Path, dtype: np.dtype[Any]):
    tensor = np.arange(6).reshape(2, 3).astype(dtype)
    write_safetensors(tmp_path / "a.safetensors", {"x": tensor})
    with open_tensors(tmp_path / "a.safetensors") as file:
        assert file.dtype("x") == dtype
        np.testing.assert_array_equal(file.read("x"), tensor)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_only_floats_are_rounded(tmp_path: Path, dtype: Any):
    tensors = {
        "double": np.array([1 / 3, np.inf, np.nan]),
        "bf16": np.array([1.5], ml_dtypes.bfloat16),
        "half": np.array(1.5, np.float16),
        "integer": np.arange(3),
        "truth": np.array([True]),
    }
    write_safetensors(tmp_path / "a.safetensors", tensors, dtype=dtype)
    with open_tensors(tmp_path / "a.safetensors") as file:
        for name, tensor in tensors.items():
            stored = tensor.dtype if name in ("integer", "truth") else np.dtype(dtype)
            assert file.dtype(name) == stored
            np.testing.assert_array_equal(file.read(name).astype(float), tensor.astype(stored).astype(float))


def test_the_header(tmp_path: Path):
    """Metadata for transformers, aligned data, larger types first."""
    tensors = {"a": np.zeros(3, np.uint8), "b": np.zeros(2, np.float64), "c": np.zeros(1, np.float32)}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    content = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert length % 8 == 0
    assert {name: entry["data_offsets"] for name, entry in header.items()} == {
        "b": [0, 16],
        "c": [16, 20],
        "a": [20, 23],
    }
    write_safetensors(tmp_path / "b.safetensors", tensors, metadata={"of": "me"})
    assert open_tensors(tmp_path / "b.safetensors").metadata == {"of": "me"}


def test_tensors_are_made_one_at_a_time(tmp_path: Path):
    """When a tensor is asked for, the bytes of those before it are on their way to the disk."""
    sizes: list[int] = []

    def make() -> np.ndarray:
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
        return np.ones(100_000, np.float32)

    lazy = LazyTensor(shape=(100_000,), dtype=np.dtype(np.float32), read=make)
    write_safetensors(tmp_path / "a.safetensors", {"a": lazy, "b": lazy, "c": lazy}, dtype="float16")
    assert [size // 100_000 for size in sizes] == [0, 2, 4]
    assert all(value.sum() == 100_000 for value in map(np.float32, load_file(tmp_path / "a.safetensors").values()))


def test_no_file_is_overwritten_unless_told(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"mine")
    expected = f"{path} is already there; choose another place, or say that it may be overwritten"
    assert message_of(path, THREE) == expected
    assert path.read_bytes() == b"mine"
    write_safetensors(path, THREE, overwrite=True)
    assert set(load_file(path)) == set(THREE)


def test_a_failure_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"mine")
    large = {**THREE, "large": np.array([7e4], np.float32)}
    assert message_of(path, large, dtype="float16", overwrite=True) == (
        "tensor large has values that float16 cannot hold; choose a wider type"
    )
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.float64(1e300), "float32"), (ml_dtypes.bfloat16(1e30), "float16"), (1e39, "bfloat16")]
)
def test_values_beyond_a_type(tmp_path: Path, value: Any, dtype: str):
    message = message_of(tmp_path / "a.safetensors", {"x": np.array([value])}, dtype=dtype)
    assert message == f"tensor x has values that {dtype} cannot hold; choose a wider type"


def test_a_lazy_tensor_that_is_not_as_announced(tmp_path: Path):
    lazy = LazyTensor(shape=(2,), dtype=np.dtype(np.float32), read=lambda: np.zeros(3))
    message = message_of(tmp_path / "a.safetensors", {"x": lazy})
    assert message == "tensor x was announced as float32[2] and came as float64[3]"


@pytest.mark.parametrize(
    ("name", "tensor", "type_name"),
    [
        ("x", np.array(["a"]), "<U1"),
        ("x", np.zeros(2, np.complex128), "complex128"),
        ("__metadata__", THREE["a"], "float32"),
    ],
)
def test_what_the_format_lacks(tmp_path: Path, name: str, tensor: np.ndarray, type_name: str):
    message = message_of(tmp_path / "a.safetensors", {name: tensor})
    assert message == f"safetensors cannot hold a tensor {name} of {type_name}; convert or rename it"


def test_nothing_to_write(tmp_path: Path):
    assert message_of(tmp_path / "a.safetensors", {}) == "there are no tensors to write"


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.safetensors"
    with pytest.raises(UserError) as caught:
        write_safetensors(path, THREE)
    assert str(caught.value) == f"cannot write {path} (File exists); free space or choose another place"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    path = tmp_path / "a.safetensors"
    expected = f"cannot write {path} (No space left on device); free space or choose another place"
    assert message_of(path, THREE) == expected


def test_others_may_read_the_file_as_usual(tmp_path: Path):
    (tmp_path / "usual").touch()
    write_safetensors(tmp_path / "new" / "a.safetensors", THREE)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "usual", tmp_path / "new" / "a.safetensors")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(("variant", "dot"), [(None, ""), ("fp16", ".fp16")])
def test_names_of_shards_and_index(tmp_path: Path, variant: str | None, dot: str):
    index = save_weights(tmp_path, STEM, THREE, variant=variant, max_shard_bytes=80)
    first, second = (f"{STEM}{dot}-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert index == tmp_path / f"{STEM}.safetensors.index{dot}.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first, second, index.name])
    assert json.loads(index.read_text()) == {
        "metadata": {"total_size": 120},
        "weight_map": {"a": first, "b": first, "c": second},
    }
    assert find_weights(tmp_path, STEM, variant) == index
    with open_tensors(index) as file:
        assert [file.read(name)[0, 0] for name in "abc"] == [0, 1, 2]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_fits_is_one_file(tmp_path: Path, variant: str | None):
    path = save_weights(tmp_path, "model", THREE, dtype="float16", variant=variant, max_shard_bytes=60)
    assert [path] == list(tmp_path.iterdir()) == [find_weights(tmp_path, "model", variant)]


def test_a_tensor_larger_than_a_shard_has_its_own(tmp_path: Path):
    save_weights(tmp_path, STEM, {"big": np.zeros(50), **THREE}, max_shard_bytes=80)
    assert [len(load_file(path)) for path in sorted(tmp_path.glob("*.safetensors"))] == [1, 2, 1]


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=9), limit=st.integers(1, 40))
def test_shards_are_full_and_lose_nothing(sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("files")
    tensors = {f"t{i}": np.full(size, i, np.uint8) for i, size in enumerate(sizes)}
    path = save_weights(folder, STEM, tensors, max_shard_bytes=limit)
    with open_tensors(path) as file:
        assert set(file.names()) == set(tensors)
        assert all(np.array_equal(file.read(name), tensor) for name, tensor in tensors.items())
    totals = [sum(t.nbytes for t in load_file(shard).values()) for shard in sorted(folder.glob("*.safetensors"))]
    assert all(total <= max(limit, *sizes) for total in totals)


def test_weights_are_not_overwritten_unless_told(tmp_path: Path):
    save_weights(tmp_path, STEM, THREE, max_shard_bytes=80)
    with pytest.raises(UserError) as caught:
        save_weights(tmp_path, STEM, THREE)
    first = tmp_path / f"{STEM}-00001-of-00002.safetensors"
    assert str(caught.value) == f"{first} is already there; choose another place, or say that it may be overwritten"


@pytest.mark.parametrize(("before", "after"), [(80, 10**9), (10**9, 80), (80, 40), (80, 80)])
def test_overwriting_leaves_no_old_shard(tmp_path: Path, before: int, after: int):
    """What is found afterwards is the new, and variants stay."""
    other = save_weights(tmp_path, STEM, THREE, variant="fp16")
    save_weights(tmp_path, STEM, {"old": np.zeros(5), **THREE}, max_shard_bytes=before)
    new = {name: value + 10 for name, value in THREE.items()}
    path = save_weights(tmp_path, STEM, new, max_shard_bytes=after, overwrite=True)
    assert find_weights(tmp_path, STEM) == path
    with open_tensors(path) as file:
        assert [file.read(name)[0, 0] for name in "abc"] == [10, 11, 12]
    count = {10**9: 1, 80: 2 + 1, 40: 3 + 1}[after]
    assert len(list(tmp_path.iterdir())) == count + 1
    assert other.exists()


def test_a_failure_leaves_the_old_weights(tmp_path: Path):
    path = save_weights(tmp_path, STEM, THREE, max_shard_bytes=80)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    bad = {**THREE, "z": np.array([7e4], np.float32)}
    with pytest.raises(UserError, match="tensor z has values that float16 cannot hold"):
        save_weights(tmp_path, STEM, bad, dtype="float16", max_shard_bytes=40, overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert find_weights(tmp_path, STEM) == path
