"""Manifests: what they tell, how they are read, and what differs between two of them."""

import json
import re
import subprocess
from pathlib import Path

import jax
import pytest

from ldm_jax.errors import UserError
from ldm_jax.manifest import (
    as_text,
    changed_circumstances,
    circumstances,
    git_state,
    known_manifest,
    make_manifest,
    read_manifest,
)

WHOLE = '"version": 1, "kind": "run", "config": {}, "results": {}, "continued": []'
"""What every manifest has, but for devices."""


def written(path: Path, **changes: object) -> Path:
    file = path / "manifest.json"
    file.write_text(as_text(make_manifest("run", config={"a": 1}, seed=3) | changes))
    return file


def test_it_tells_how_something_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "0")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/cache")
    manifest = read_manifest(written(tmp_path))
    assert manifest["packages"]["jax"] == jax.__version__
    assert len(manifest["devices"]) == jax.device_count()
    assert "--xla_force_host_platform_device_count" in manifest["flags"]["XLA_FLAGS"]
    assert manifest["flags"]["JAX_ENABLE_X64"] == "0"
    assert "JAX_COMPILATION_CACHE_DIR" not in manifest["flags"], "a cache decides no result"
    assert (manifest["seed"], manifest["config"], manifest["results"]) == (3, {"a": 1}, {})
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT.*\+00:00", manifest["started"])
    assert known_manifest(tmp_path / "manifest.json") == manifest


def test_the_git_state_names_commit_and_changes(tmp_path: Path):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b", *words], check=True)

    git("init", "-q")
    file = tmp_path / "file.py"
    file.write_text("1")
    assert git_state(file) is None, "a package inside another repository is none of its files"
    git("add", "file.py")
    git("commit", "-qm", "one")
    clean = git_state(file)
    assert clean is not None
    assert (len(clean["commit"] or ""), clean["changes"]) == (40, None)
    file.write_text("2")
    second = git_state(file)
    file.write_text("3")
    third = git_state(file)
    assert second is not None and third is not None
    assert second["commit"] == third["commit"] == clean["commit"]
    assert len({clean["changes"], second["changes"], third["changes"]}) == 3


def test_circumstances_that_differ_are_named():
    old = circumstances() | {"git": {"commit": "a", "changes": None}}
    assert changed_circumstances(old, old | {"started": "later", "command": ["x"]}) == []
    new = json.loads(json.dumps(old))
    new["packages"]["jax"], new["devices"], new["git"] = "0.1", ["cpu:cpu"], None
    assert changed_circumstances(old, new) == [
        f"packages.jax: {jax.__version__} -> 0.1",
        "git: {'commit': 'a', 'changes': None} -> None",
        f"devices: {jax.device_count()} x cpu:cpu -> 1 x cpu:cpu",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"manifest\.json is not valid JSON \(.*\); restore it"),
        ("[]", r"manifest\.json tells no version: it is no manifest, or one of another ldm_jax; this one reads .* 1"),
        ('{"version": 7}', r"manifest\.json is of version 7, of another ldm_jax"),
        ('{"version": 1, "kind": "run", "config": 3}', r"is damaged: its config is 3, which is no dict"),
        (f'{{{WHOLE}, "devices": [1]}}', r"is damaged: its devices are \[1\], not names"),
        (f'{{{WHOLE}, "devices": [], "data": [2]}}', r"is damaged: its data are \[2\], not those of splits by name"),
    ],
)
def test_one_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / "manifest.json")


def test_one_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"manifest\.json does not exist; name a manifest\.json, a file of scores, or"):
        read_manifest(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", '{"devices": 1, "continued": [], "data": {}}', '{"devices": [1], "continued": [], "data": {}}',
     '{"devices": [], "continued": {}, "data": {}}', '{"devices": [], "continued": [], "data": {"class_names": 3}}'],
)  # fmt: skip
def test_a_manifest_of_another_form_is_none(tmp_path: Path, content: str):
    (tmp_path / "manifest.json").write_text(content)
    assert known_manifest(tmp_path / "manifest.json") == {}
