"""JSON files of others: what is none is named."""

import re
from pathlib import Path

import pytest

from ldm_jax.errors import UserError
from ldm_jax.files.json_files import read_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON (it is nested too deeply); restore it from a copy"),
        (b"[]", "holds a list where an object of options belongs"),
    ],
)
def test_what_is_no_object_of_options_is_named(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/config.json {message}")):
        read_json(tmp_path / "config.json")


def test_an_options_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\); is the folder a complete model\?"):
        read_json(tmp_path)
