"""Hostile pickles: each is refused by name and runs nothing, though Python's own unpickler would run it."""

import contextlib
import copyreg
import io
import os
import pickle
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_jax.errors import UserError
from ldm_jax.files.plain_pickle import Global, Inert, Vocabulary, read_pickle
from ldm_jax.files.torch_pickle import TORCH

PATH = Path("model.ckpt")


def read(data: bytes, vocabulary: Vocabulary = TORCH) -> Any:
    return read_pickle(PATH, io.BytesIO(data), vocabulary)


def message_of(data: bytes, vocabulary: Vocabulary = TORCH) -> str:
    with pytest.raises(UserError) as caught:
        read(data, vocabulary)
    return str(caught.value)


def refusal(what: str) -> str:
    return (
        f"model.ckpt was not read: its pickle asks for {what}, which is neither tensor nor container, and nothing of "
        "it was run; get the weights as .safetensors, or, if you trust their origin, convert them with PyTorch"
    )


class Reduces:
    """An object that pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def reduced(function: Callable[..., Any], make: Callable[[str], Any], protocol: int) -> Callable[[str], bytes]:
    return lambda mark: pickle.dumps(Reduces(function, make(mark)), protocol)


def opcodes(template: bytes) -> Callable[[str], bytes]:
    """Instructions in which MARK is the file that they would make."""
    return lambda mark: template.replace(b"MARK", mark.encode())


EXTENSION = 0x7E
MKDIR = b"cos\nmkdir\n"
PARTIAL = b"cfunctools\npartial\n"
HOSTILE: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "system": ("posix.system", reduced(os.system, lambda mark: f"touch {mark}", 2)),
    "eval": ("builtins.eval", reduced(eval, lambda mark: f"open({mark!r}, 'w').close()", 4)),
    "exec": ("__builtin__.exec", reduced(exec, lambda mark: f"open({mark!r}, 'w').close()", 2)),
    "subprocess": ("subprocess.check_call", reduced(subprocess.check_call, lambda mark: ["touch", mark], 5)),
    "GLOBAL": ("os.mkdir", opcodes(MKDIR + b"(VMARK\ntR.")),
    "INST": ("posix.mkdir", opcodes(b"(VMARK\niposix\nmkdir\n.")),
    "OBJ": ("os.mkdir", opcodes(b"(" + MKDIR + b"VMARK\no.")),
    "STACK_GLOBAL": ("posix.mkdir", opcodes(b"Vposix\nVmkdir\n\x93(VMARK\ntR.")),
    "dotted": ("os.path.os.mkdir", opcodes(b"\x80\4Vos\nVpath.os.mkdir\n\x93(VMARK\ntR.")),
    "dotted, after an allowed name": (
        "collections.OrderedDict.__eq__",
        opcodes(b"\x80\4Vcollections\nVOrderedDict.__eq__\n\x930" + MKDIR + b"(VMARK\ntR."),
    ),
    "getattr": (
        "builtins.getattr",
        opcodes(b"cbuiltins\ngetattr\n(cimportlib\nimport_module\n(Vos\ntRVmkdir\ntR(VMARK\ntR."),
    ),
    "NEWOBJ": ("functools.partial", opcodes(b"\x80\2" + PARTIAL + b"(" + MKDIR + b"VMARK\nt\x81)R.")),
    "NEWOBJ_EX": ("functools.partial", opcodes(b"\x80\4" + PARTIAL + b"(" + MKDIR + b"VMARK\nt}\x92)R.")),
    "BUILD": ("functools.partial", opcodes(PARTIAL + b"(cbuiltins\nprint\ntR(" + MKDIR + b"(VMARK\nt}Ntb)R.")),
    "behind an allowed call": ("os.mkdir", opcodes(b"ccollections\nOrderedDict\n)R0" + MKDIR + b"(VMARK\ntR.")),
    "EXT1": ("the instruction EXT1", opcodes(b"\x80\2\x82\x7e(VMARK\ntR.")),
    "EXT2": ("the instruction EXT2", opcodes(b"\x80\2\x83\x7e\0(VMARK\ntR.")),
    "EXT4": ("the instruction EXT4", opcodes(b"\x80\2\x84\x7e\0\0\0(VMARK\ntR.")),
}


@pytest.fixture
def extension() -> Iterator[None]:
    """A process in which somebody registered `os.mkdir` with `copyreg`."""
    copyreg.add_extension("posix", "mkdir", EXTENSION)
    yield
    copyreg.clear_extension_cache()
    copyreg.remove_extension("posix", "mkdir", EXTENSION)


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.usefixtures("extension")
def test_nothing_of_it_runs(case: str, tmp_path: Path):
    named, make = HOSTILE[case]
    mark = tmp_path / "ran"
    for _ in range(2):  # the second time Python has the name in its caches
        assert message_of(make(str(mark))) == refusal(named)
        assert not mark.exists()
        pickle.loads(make(str(mark)))  # the proof that this could have failed
        assert mark.exists()
        mark.rmdir() if mark.is_dir() else mark.unlink()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"ccollections\nOrderedDict\n)\x81.", "an object of collections.OrderedDict"),
        (b"ccollections\nOrderedDict\n)}\x92.", "the instruction NEWOBJ_EX"),
        (b"(ccollections\nOrderedDict\no.", "the instruction OBJ"),
        (b"(icollections\nOrderedDict\n.", "collections.OrderedDict"),
        (b"ctorch\nFloatStorage\n)R.", "a call of torch.FloatStorage"),
        (b"cnumpy\nndarray\n)R.", "a call of numpy.ndarray"),
        (b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)R.", "a call of pytorch_lightning."),
        (b"Vprint\n)R.", "a call of a str"),
        (b"})R.", "a call of a dict"),
        (b"})\x81.", "an object of a dict"),
        (b"P0\n.", "the instruction PERSID"),
        (b"\x97.", "the instruction NEXT_BUFFER"),
        (b"ctorch\n_utils._rebuild_tensor_v2\n.", "torch._utils._rebuild_tensor_v2"),
        (b"\x80\4Vtorch._utils\nV_rebuild_tensor_v2.__globals__\n\x93.", "torch._utils._rebuild_tensor_v2.__globals"),
        (b"c__builtin__\ngetattr\n.", "__builtin__.getattr"),
    ],
)
def test_allowed_names_do_not_open_other_ways(data: bytes, what: str):
    assert f"its pickle asks for {what}" in message_of(data)


@pytest.mark.parametrize("data", [b"Vx\nQ.", b"}b."])
def test_instructions_that_need_a_caller_are_refused_without_one(data: bytes):
    assert message_of(b"N" + data, Vocabulary()).startswith("model.ckpt was not read: its pickle asks for the instruct")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "pickle exhausted before seeing STOP"),
        (b"]", "pickle exhausted before seeing STOP"),
        (b"\xff.", "at position 0, opcode b'\\xff' unknown"),
        (b".", "pop from empty list"),
        (b"t.", "pop from empty list"),
        (b"g5\n.", "5"),
        (b"Na.", "list index out of range"),
        (b"NNa.", "a NoneType takes no elements"),
        (b"NNNs.", "a NoneType takes no keys"),
        (b"](N\x90.", "a list is no set"),
        (b"}(Nu.", "a key lacks its value"),
        (b"}]Ns.", "a list is no plain key"),
        (b"}}Ns.", "a dict is no plain key"),
        (b"}))t\x85Ns.", "pop from empty list"),
        (b"}(()ttNs.", "a tuple is no plain key"),
        (b"NN\x93.", "a name is no string"),
        (b"X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes in a unicodestring4, but only 4 remain"),
        (b"\x8e" + b"\xff" * 7 + b"\x7fabc.", "expected"),
        (b"I" + b"9" * 5000 + b"\n.", "Exceeds the limit"),
        (b"ccollections\nOrderedDict\nNR.", "a call of collections.OrderedDict has no arguments"),
        (b"Nb.", "list index out of range"),
        (b"NNb.", "a NoneType has no state"),
        (b")" + b"\x85" * 50_000 + b"}h", "not enough data in stream to read uint1"),
    ],
)
def test_a_pickle_that_makes_no_sense(data: bytes, problem: str):
    message = message_of(data)
    assert message.startswith("model.ckpt is damaged: its pickle makes no sense (")
    assert problem in message
    assert message.endswith("); download or copy it again")


def test_a_key_nested_deeply_is_refused_before_it_is_hashed():
    """Hashing it would end the process, not the function."""
    assert "a tuple is no plain key" in message_of(b"})" + b"\x85" * 100_000 + b"Ns.")


def test_a_bomb_of_references_is_not_followed():
    """Lists of lists that would print for ever are read in no time and put into no message."""
    levels = [b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * 10 + b"e" for i in range(1, 60)]
    assert "a list is no plain key" in message_of(b"]q\0" + b"".join(levels) + b"}h\x3bNs.")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.sets(st.integers() | st.text(max_size=2), max_size=3)
        | st.frozensets(st.integers(), max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=12,
)


@given(value=plain, protocol=st.integers(0, 5))
def test_plain_data_is_read_as_python_reads_it(value: Any, protocol: int):
    if protocol < 2 and b"copy_reg" in pickle.dumps(value, protocol):  # protocol 0 has no sets
        return
    data = pickle.dumps(value, protocol)
    stream = io.BytesIO(data + b"rest")
    read_value = read_pickle(PATH, stream, TORCH)
    assert read_value == value
    assert type(read_value) is type(value)
    assert stream.read() == b"rest"


@given(data=st.binary(max_size=60), cut=st.integers(0, 100))
def test_any_bytes_give_plain_data_or_an_error(data: bytes, cut: int):
    valid = pickle.dumps({"a": [1, 2.5, (None, "b")], "c": OrderedDict(x={1})}, 2)
    for attempt in (
        data,
        data + b".",
        valid[:cut] + data,
        valid[: cut % len(valid)] + data + valid[cut % len(valid) :],
    ):
        with contextlib.suppress(UserError):
            assert not callable(read(attempt))


def test_objects_of_lightning_become_inert():
    name = ("pytorch_lightning.utilities.parsing", "AttributeDict")
    data = b"c" + "\n".join(name).encode() + b"\n)\x81" + b"(Vlr\nF0.1\nu" + b"(Ne" + b"}b."
    made = read(data)
    assert isinstance(made, Inert)
    assert (made.of, str(made)) == (Global(*name), ".".join(name))
    assert not vars(made).keys() - {"of"}
