"""Safetensors of others: every type is read as it is stored, and a header that does not add up is refused."""

import contextlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save, save_file

from ldm_jax.errors import UserError
from ldm_jax.files.safetensors_header import DTYPES
from ldm_jax.files.weight_files import open_tensors

GOLDEN = Path(__file__).parent / "golden"


def with_header(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def message_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged: ")
    assert message.endswith("; download or copy it again")
    return message.removeprefix(f"{path} is damaged: ").removesuffix("; download or copy it again")


@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "?"]).flatmap(
            lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4))
        ),
        max_size=4,
    )
)
def test_what_the_package_writes_is_read(tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    path.write_bytes(save(tensors, {"format": "pt"}))
    with open_tensors(path) as file:
        assert set(file.names()) == set(tensors)
        assert file.metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            read = file.read(name)
            assert (file.shape(name), file.dtype(name)) == (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
            np.testing.assert_array_equal(read, tensor)


@pytest.mark.parametrize("name", DTYPES)
def test_every_type(tmp_path: Path, name: str):
    dtype = DTYPES[name]
    expected = np.arange(6).reshape(2, 3).astype(dtype)
    header = {"x": entry(name, [2, 3], 0, 6 * dtype.itemsize)}
    with open_tensors(with_header(tmp_path / "a.safetensors", header, expected.tobytes())) as file:
        assert file.dtype("x") == dtype
        np.testing.assert_array_equal(file.read("x"), expected)


def test_bfloat16_comes_as_bfloat16(tmp_path: Path):
    path = with_header(tmp_path / "a.safetensors", {"x": entry("BF16", [2], 0, 4)}, b"\x80\x3f\x00\xc0")
    read = open_tensors(path).read("x")
    assert read.dtype == ml_dtypes.bfloat16
    assert read.tolist() == [1.0, -2.0]


def test_weights_of_diffusers():
    from safetensors.numpy import load_file

    path = GOLDEN / "unet_sd1" / "diffusion_pytorch_model.safetensors"
    expected = load_file(path)
    with open_tensors(path) as file:
        assert set(file.names()) == set(expected)
        for name, tensor in expected.items():
            np.testing.assert_array_equal(file.read(name), tensor)


def test_an_array_belongs_to_the_caller(tmp_path: Path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    with open_tensors(tmp_path / "a.safetensors") as file:
        first = file.read("x")
        first += 1
        assert file.read("x").tolist() == [0, 0, 0]
    assert first.tolist() == [1, 1, 1]


def test_a_closed_file_is_closed(tmp_path: Path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    with open_tensors(tmp_path / "a.safetensors") as file:
        pass
    with pytest.raises(ValueError, match="closed file"):
        file.read("x")


def test_no_such_tensor(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path)
    with open_tensors(path) as file:
        for ask in (file.read, file.shape, file.dtype):
            with pytest.raises(UserError) as caught:
                ask("y")
            assert str(caught.value) == f"{path} holds no tensor y among its 1; names() lists what there is"


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"x": np.zeros(9000, np.float32)}, path)
    with open_tensors(path) as file:
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(
            UserError, match="is damaged: tensor x takes 36000 bytes, of which 35996 are left; download or"
        ):
            file.read("x")


ONE = {"x": entry("F32", [1], 0, 4)}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"\1\2", "it has 2 bytes, and a safetensors file begins with 8 bytes of header length"),
        ((100).to_bytes(8, "little") + b"{}", "the header claims 100 bytes, and 2 follow"),
        (b"\xff" * 8 + b"{}", f"the header claims {2**64 - 1} bytes, and the format allows 100000000"),
    ],
)
def test_a_file_without_header(tmp_path: Path, content: bytes, problem: str):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert message_of(path) == problem


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        (b"{nonsense}", b"", "the header is no JSON (Expecting property name"),
        (b'{"\xff": 1}', b"", "the header is no JSON ('utf-8' codec"),
        (b"[" * 100_000, b"", "the header is no JSON (maximum recursion"),
        (b"[1]", b"", "the header is no JSON object"),
        (b'{"x": 1, "x": 2}', b"", "the header is no JSON (x is there twice)"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ is no table of strings"),
        ({"__metadata__": 3}, b"", "__metadata__ is no table of strings"),
        ({"x": 1}, b"", "the entry of tensor x has to hold dtype, shape and data_offsets"),
        ({"x": {**ONE["x"], "more": 1}}, b"", "the entry of tensor x has to hold dtype, shape and data_offsets"),
        ({"x": entry("F32", [-1], 0, 4)}, b"", "tensor x has the shape [-1]"),
        ({"x": entry("F32", [True], 0, 4)}, b"", "tensor x has the shape [True]"),
        ({"x": entry("F32", [2**63], 0, 4)}, b"", f"tensor x has the shape [{2**63}]"),
        ({"x": entry("F32", [1] * 33, 0, 4)}, b"", "tensor x has the shape [1, 1, 1"),
        ({"x": entry("F32", [1], 0, 4, 8)}, b"", "tensor x has the data_offsets [0, 4, 8]"),
        ({"x": entry("F32", [1], "0", 4)}, b"", "tensor x has the data_offsets ['0', 4]"),
        ({"x": entry("F4", [1], 0, 4)}, b"", "tensor x has the unknown dtype 'F4'"),
        ({"x": entry([], [1], 0, 4)}, b"", "tensor x has the unknown dtype []"),
        ({"x": entry("F32", [3], 0, 4)}, b"", "tensor x needs 12 bytes, and its data_offsets give 4"),
        ({"x": entry("F32", [1], 4, 0)}, b"", "tensor x needs 4 bytes, and its data_offsets give -4"),
        ({"x": entry("F32", [2**62, 4], 0, 0)}, b"", f"tensor x needs {2**66} bytes, and its data_offsets give 0"),
        ({**ONE, "y": entry("F32", [1], 2, 6)}, bytes(6), "tensors x and y overlap"),
        ({**ONE, "y": entry("F32", [1], 6, 10)}, bytes(10), "2 bytes before tensor y belong to no tensor"),
        (ONE, b"123", "tensor x ends 1 bytes beyond the end of the file"),
        (ONE, b"12345", "1 bytes at the end belong to no tensor"),
    ],
)
def test_a_header_that_does_not_add_up(tmp_path: Path, header: Any, data: bytes, problem: str):
    assert message_of(with_header(tmp_path / "a.safetensors", header, data)).startswith(problem)


@given(cut=st.integers(0, 10**6), flip=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_damage_is_an_error_or_other_values(
    cut: int, flip: int, bit: int, tmp_path_factory: pytest.TempPathFactory
):
    """Whatever is cut off or flipped, the answer is a `UserError` or tensors, and a cut is always noticed."""
    whole = save({"x": np.arange(5, dtype=np.float32), "y": np.ones((2, 2), np.int64)})
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(UserError):
        open_tensors(path)
    flipped = bytearray(whole)
    flipped[flip % len(whole)] ^= 1 << bit
    path.write_bytes(flipped)
    with contextlib.suppress(UserError), open_tensors(path) as file:
        assert len([file.read(name) for name in file.names()]) == 2
