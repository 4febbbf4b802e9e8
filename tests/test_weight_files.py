"""Sharded sets and component folders: all that is listed is there, nothing leads out, and the right file is found."""

import gc
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_files import tensor_of, write_legacy, write_zip

from ldm_jax.errors import UserError
from ldm_jax.files.tensor_file import Tensors
from ldm_jax.files.weight_files import find_weights, open_tensors

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
STEM = "diffusion_pytorch_model"


def write_index(path: Path, weight_map: Any, **more: Any) -> Path:
    path.write_text(json.dumps({"weight_map": weight_map, **more}))
    return path


def sharded(folder: Path, weight_map: Mapping[str, str] | None = None) -> Path:
    """Two shards and their index."""
    save_file({"a": A}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": B}, folder / "model-00002-of-00002.safetensors")
    both = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    return write_index(
        folder / "model.safetensors.index.json", {**both, **(weight_map or {})}, metadata={"total_size": 32}
    )


def message_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_tensors(path)
    return str(caught.value)


def test_a_sharded_set(tmp_path: Path):
    with open_tensors(sharded(tmp_path)) as file:
        assert isinstance(file, Tensors)
        assert file.names() == ("a", "b")
        assert file.metadata == {"total_size": 32}
        assert (file.shape("a"), file.dtype("b")) == ((2, 3), np.float16)
        np.testing.assert_array_equal(file.read("a"), A)
        np.testing.assert_array_equal(file.read("b"), B)
        with pytest.raises(UserError, match=r"index.json holds no tensor c among its 2; names\(\) lists what there is"):
            file.read("c")
    for name in ("a", "b"):
        with pytest.raises(ValueError, match="closed file"):
            file.read(name)


def test_a_sharded_set_of_pickles(tmp_path: Path):
    write_zip(tmp_path / "pytorch_model-00001-of-00002.bin", {"a": tensor_of(A)})
    write_zip(tmp_path / "pytorch_model-00002-of-00002.bin", {"b": tensor_of(B)})
    index = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    with open_tensors(write_index(tmp_path / "pytorch_model.bin.index.json", index)) as file:
        np.testing.assert_array_equal(file.read("b"), B)


def test_a_missing_shard(tmp_path: Path):
    path = sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert message_of(path) == f"{path} names the shard model-00002-of-00002.safetensors, which is missing; get it too"


def test_a_tensor_that_its_shard_lacks(tmp_path: Path):
    path = sharded(tmp_path, {"c": "model-00002-of-00002.safetensors"})
    assert message_of(path) == (
        f"{path} is damaged: tensor c is not in model-00002-of-00002.safetensors, where the index has it; download or "
        "copy it again"
    )


def test_a_tensor_that_the_index_lacks(tmp_path: Path):
    path = sharded(tmp_path)
    save_file({"b": B, "a": A}, tmp_path / "model-00002-of-00002.safetensors")
    assert message_of(path) == (
        f"{path} is damaged: tensor a of model-00002-of-00002.safetensors is not listed there by the index; download "
        "or copy it again"
    )


@pytest.mark.parametrize(
    "shard",
    [
        "/etc/passwd",
        "../secret.safetensors",
        "inner/../../secret.safetensors",
        "..\\secret.safetensors",
        "C:\\secret.safetensors",
        "C:secret.safetensors",
        "\\\\server\\secret.safetensors",
        "..",
        "",
    ],
)
def test_an_index_may_not_lead_out_of_its_folder(tmp_path: Path, shard: str):
    save_file({"a": A}, tmp_path / "secret.safetensors")
    (tmp_path / "model" / "inner").mkdir(parents=True)
    path = sharded(tmp_path / "model", {"a": shard})
    expected = f"{path} names the shard {shard!r}, which leads out of its folder; do not use these files"
    assert message_of(path) == expected


def test_a_link_may_not_lead_out_of_the_folder(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": A}, tmp_path / "secret.safetensors")
    path = sharded(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    (folder / "model-00001-of-00002.safetensors").symlink_to(tmp_path / "secret.safetensors")
    assert message_of(path) == (
        f"{path} names the shard 'model-00001-of-00002.safetensors', a link out of its folder to "
        f"{tmp_path / 'secret.safetensors'}; put the file itself there"
    )


def test_links_into_the_cache_of_hugging_face_are_followed(tmp_path: Path):
    """Its snapshots hold nothing but links to `blobs` beside them."""
    folder = tmp_path / "models--a--b" / "snapshots" / "0123" / "unet"
    blobs = tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    path = sharded(folder)
    for i, name in enumerate(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", path.name]):
        (folder / name).rename(blobs / f"blob{i}")
        (folder / name).symlink_to(Path("../../../blobs") / f"blob{i}")
    with open_tensors(path) as file:
        np.testing.assert_array_equal(file.read("a"), A)


def test_shards_may_lie_in_a_folder_below(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    save_file({"a": A}, tmp_path / "inner" / "a.safetensors")
    path = write_index(tmp_path / "model.safetensors.index.json", {"a": "inner/a.safetensors"})
    np.testing.assert_array_equal(open_tensors(path).read("a"), A)


def test_an_index_is_no_shard(tmp_path: Path):
    """Else it could name itself for ever."""
    path = write_index(tmp_path / "model.safetensors.index.json", {"a": "model.safetensors.index.json"})
    assert "is no file of tensors" in message_of(path)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}])
def test_an_index_without_a_map(tmp_path: Path, weight_map: Any):
    path = write_index(tmp_path / "model.safetensors.index.json", weight_map)
    assert f"{path} is damaged: it has no weight_map from tensors to files; " in message_of(path)


def test_an_index_that_is_no_json(tmp_path: Path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(b"{")
    assert message_of(path).startswith(f"{path} is damaged: it is no JSON (Expecting property name")


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.safetensors.index.json"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str):
    path = tmp_path / name
    expected = f"cannot read {path} (No such file or directory); check that it is there and may be read"
    assert message_of(path) == expected


def test_a_folder_is_no_file(tmp_path: Path):
    assert message_of(tmp_path).startswith(f"cannot read {tmp_path} (Is a directory); ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", " is damaged: it is empty; download or copy it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            " is a pointer of Git LFS, not the file itself; get it with `git lfs pull`",
        ),
        (
            b"<!DOCTYPE html>",
            " is no file of tensors; it has to be safetensors, a checkpoint of torch.save, or the .index.json of a "
            "sharded set",
        ),
        (
            b"\0" * 257 + b"ustar\0" + bytes(300),
            " is a tar archive, as PyTorch 0.1 wrote; load it there and save it as .safetensors",
        ),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: bytes, expected: str):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert message_of(path) == f"{path}{expected}"


def test_the_content_tells_what_a_file_is(tmp_path: Path):
    save_file({"a": A}, tmp_path / "a.ckpt")
    write_zip(tmp_path / "b.safetensors", {"a": tensor_of(A)})
    for name in ("a.ckpt", "b.safetensors"):
        np.testing.assert_array_equal(open_tensors(tmp_path / name).read("a"), A)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "shard"])
def test_a_file_that_is_refused_is_closed(tmp_path: Path, kind: str):
    path = tmp_path / "a.ckpt"
    if kind == "shard":
        path = sharded(tmp_path)
        (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"1234")
    elif kind == "safetensors":
        path.write_bytes((9).to_bytes(8, "little") + b"{")
    else:
        {"zip": write_zip, "legacy": write_legacy}[kind](path, {"x": 1})
    gc.collect()  # what other tests have left open
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        message_of(path)
        gc.collect()
    assert [warning for warning in caught if warning.category is ResourceWarning] == []


PREFERRED = [
    f"{STEM}.safetensors",
    f"{STEM}.safetensors.index.json",
    f"{STEM}.bin",
    f"{STEM}.bin.index.json",
]
VARIANT = [
    f"{STEM}.fp16.safetensors",
    f"{STEM}.safetensors.index.fp16.json",
    f"{STEM}.safetensors.fp16.index.json",
    f"{STEM}.fp16.bin",
    f"{STEM}.bin.index.fp16.json",
    f"{STEM}.bin.fp16.index.json",
]


@pytest.mark.parametrize(("names", "variant"), [(PREFERRED, None), (VARIANT, "fp16")])
def test_the_order_of_preference(tmp_path: Path, names: list[str], variant: str | None):
    for name in (*PREFERRED, *VARIANT):
        (tmp_path / name).touch()
    for name in names:
        assert find_weights(tmp_path, STEM, variant) == tmp_path / name
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ],
)
def test_names_of_transformers(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    assert find_weights(tmp_path, "model") == tmp_path / name


@pytest.mark.parametrize("name", [name for name in VARIANT if not name.endswith("fp16.index.json")])
def test_the_only_variant_is_used_and_said(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    (tmp_path / name).touch()
    (tmp_path / f"{STEM}.fp16-00001-of-00002.safetensors").touch()
    with caplog.at_level(logging.WARNING):
        assert find_weights(tmp_path, STEM) == tmp_path / name
    assert caplog.messages == [f"{tmp_path} holds its weights only as variant fp16, which is used"]


def message_of_finding(folder: Path, stem: str, variant: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        find_weights(folder, stem, variant)
    return str(caught.value)


def test_several_variants(tmp_path: Path):
    for variant in ("non_ema", "fp16"):
        (tmp_path / f"{STEM}.{variant}.safetensors").touch()
    assert message_of_finding(tmp_path, STEM).endswith(
        "; it has the variants fp16, non_ema, of which one can be chosen"
    )


def test_no_weights(tmp_path: Path):
    assert message_of_finding(tmp_path, "model") == (
        f"no weights in {tmp_path}: looked for model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
        "pytorch_model.bin.index.json"
    )
    assert message_of_finding(tmp_path / "not", "model").startswith(f"no weights in {tmp_path / 'not'}: looked for ")


def test_no_weights_of_that_variant(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    assert message_of_finding(tmp_path, "model", "bf16").startswith(
        f"no weights in {tmp_path}: looked for model.bf16.safetensors, model.safetensors.index.bf16.json, "
    )
    assert message_of_finding(tmp_path, "model", "bf16").endswith("; it has weights without a variant")
