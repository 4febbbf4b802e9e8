"""Runs in a bucket: `ldm` with gcsfs and tensorstore's own driver, which reach an emulator of Google's storage by HTTP.

Needs `pip install -e '.[emulator]'`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ldm_jax.training.launcher import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SMALL = str(ROOT / "tests" / "small_run.py")
TIMES = ("seconds_per_step", "images_per_second", "images_per_second_per_device", "input_wait")


@dataclass(frozen=True)
class Bucket:
    """The objects of the emulator, and `ldm` in an environment in which it stands for Google's storage."""

    port: int
    cache: Path

    def _ask(self, path: str, method: str = "GET", data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method, data=data)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def names(self, prefix: str) -> list[str]:
        found = json.loads(self._ask(f"/storage/v1/b/bucket/o?prefix={urllib.parse.quote(prefix, safe='')}"))
        return sorted(item["name"] for item in found.get("items", []))

    def read(self, name: str) -> bytes:
        return self._ask(f"/storage/v1/b/bucket/o/{urllib.parse.quote(name, safe='')}?alt=media")

    def put(self, name: str, content: bytes) -> None:
        quoted = urllib.parse.quote(name, safe="")
        self._ask(f"/upload/storage/v1/b/bucket/o?uploadType=media&name={quoted}", "POST", content)

    def remove(self, name: str) -> None:
        self._ask(f"/storage/v1/b/bucket/o/{urllib.parse.quote(name, safe='')}", "DELETE")

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        address = f"http://127.0.0.1:{self.port}"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = {"PYTHONPATH": path, "LDM_JAX_CACHE": str(self.cache), "JAX_PLATFORMS": "cpu"}
        own |= {"JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
        own |= {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
        own |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}  # it would ask Google what kind of bucket this is
        command = [sys.executable, "-c", "from ldm_jax.cli import main; main()", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=os.environ | own, stdout=pipe, stderr=pipe, text=True)

    def ldm(self, *arguments: str, status: int = 0) -> str:
        """`ldm` with arguments; the last line on stdout, or what went to stderr where it is to fail."""
        ended = self.start(*arguments)
        out, error = ended.communicate(timeout=900)
        assert ended.returncode == status, error
        return error if status else "".join(out.splitlines()[-1:])

    def digest(self, run: str) -> str:
        found = json.loads(self.ldm("checkpoints", "digest", run, "--stage", "diffusion", "--json"))
        return json.dumps(found).replace(run, "RUN")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    pytest.importorskip("gcp_storage_emulator")
    pytest.importorskip("gcsfs")
    port = free_port()
    emulator = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "object_store.py"), str(port)],
        **{"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL},
    )
    bucket = Bucket(port, tmp_path_factory.mktemp("cache"))
    try:
        until = time.monotonic() + 60.0
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                assert bucket.names("") == []
                break
            time.sleep(0.1)
        yield bucket
    finally:
        emulator.kill()
        emulator.wait()


@pytest.fixture(scope="module")
def folder(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder, from its start to its end."""
    run = tmp_path_factory.mktemp("folder") / "run"
    bucket.ldm("train", SMALL, "--run-dir", str(run))
    return run


@pytest.fixture(scope="module")
def remote(bucket: Bucket) -> str:
    """The same in the bucket, killed behind a checkpoint of each stage and gone on with."""
    run = "gs://bucket/runs/one"
    for seal in ("autoencoder/00000010.json", "diffusion/00000010.json"):
        training, until = bucket.start("train", SMALL, "--run-dir", run), time.monotonic() + 300.0
        while f"runs/one/checkpoints/{seal}" not in bucket.names("runs/one/checkpoints/"):
            assert training.poll() is None and time.monotonic() < until, training.communicate()[1]
            time.sleep(0.02)
        training.send_signal(signal.SIGKILL)
        training.communicate()
    bucket.ldm("train", SMALL, "--run-dir", run)
    return run


def metrics(lines: bytes) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines.splitlines()
    ]


def test_a_killed_run_in_a_bucket_comes_to_the_bits_of_one_in_a_folder(bucket: Bucket, remote: str, folder: Path):
    assert bucket.digest(remote) == bucket.digest(str(folder))
    assert metrics(bucket.read("runs/one/metrics.jsonl")) == metrics((folder / "metrics.jsonl").read_bytes())
    below = len("runs/one/")
    found = {name[below:] for name in bucket.names("runs/one/")}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    whole = ("config.json", "manifest.json", "metrics.jsonl", "tokenizer.json", "loss.png", "samples/", "checkpoints/")
    kept = {name for name in there if name.startswith(whole) and not name.startswith("checkpoints/")}
    assert kept - found == set() and len(kept) > 6
    seals = sorted(name for name in there if name.startswith("checkpoints/") and name.endswith("0.json"))
    assert [name for name in seals if name not in found] == [] and seals != []


def test_pictures_drawn_from_a_bucket(bucket: Bucket, remote: str, folder: Path, tmp_path: Path):
    flags = ["--prompt", "red circle", "--num-samples", "2", "--json"]
    drawn = [
        [Path(file).read_bytes() for file in json.loads(bucket.ldm("sample", run, *flags, "--out", str(out)))["files"]]
        for run, out in ((remote, tmp_path / "remote"), (str(folder), tmp_path / "folder"))
    ]
    assert len(drawn[0]) == 2 and [len(picture) for picture in drawn[0]] != [0, 0]
    out = json.loads(bucket.ldm("sample", remote, *flags, "--out", "gs://bucket/pictures"))["files"]
    assert sorted(name for name in bucket.names("pictures/") if name.endswith(".png")) != []
    assert len(out) == 2


def test_what_is_damaged_is_named_and_an_older_checkpoint_is_used(bucket: Bucket, remote: str):
    assert "00000020" in bucket.ldm("checkpoints", "list", remote, "--stage", "diffusion", "--json")
    bucket.ldm("checkpoints", "verify", remote)
    newest = "runs/one/checkpoints/diffusion/00000020/"
    name = max(bucket.names(newest), key=lambda name: len(bucket.read(name)))
    content = bytearray(bucket.read(name))
    content[len(content) // 2] ^= 1
    before = bucket.digest(remote)
    bucket.put(name, bytes(content))
    told = bucket.start("checkpoints", "verify", remote)
    out, error = told.communicate(timeout=300)
    assert told.returncode == 1 and f"{name[len(newest) :]} has changed since it was written" in out + error
    ended = bucket.start("train", SMALL, "--run-dir", remote)
    _, error = ended.communicate(timeout=600)
    assert ended.returncode == 0, error
    assert "looking for an older one" in error and "going on from the checkpoint of step 15" in error
    bucket.ldm("checkpoints", "verify", remote)
    assert bucket.digest(remote) == before


def test_an_object_that_is_missing_is_named(bucket: Bucket, remote: str):
    folder = "runs/one/checkpoints/diffusion/00000020/"
    name = max(bucket.names(folder))
    content = bucket.read(name)
    bucket.remove(name)
    told = bucket.start("checkpoints", "verify", remote)
    out, error = told.communicate(timeout=300)
    assert told.returncode == 1 and f"{name[len(folder) :]} is missing" in out + error
    bucket.put(name, content)
