"""Runs in a bucket, by gcsfs and tensorstore's own driver, which reach an emulator of Google's storage by HTTP.

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
SMALL, TOY = str(ROOT / "tests" / "small_run.py"), str(ROOT / "tests" / "bucket_run.py")
STEPS = 40
HERE = "run/checkpoints/toy/"
TIMES = ("seconds_per_step", "images_per_second", "images_per_second_per_device", "input_wait")


@dataclass(frozen=True)
class Ended:
    """What a program has said that ended well."""

    out: str
    error: str

    @classmethod
    def of(cls, program: "subprocess.Popen[str]") -> "Ended":
        out, error = program.communicate(timeout=900)
        assert program.returncode == 0, error
        return cls(out, error)

    @property
    def found(self) -> dict[str, str]:
        """Of `bucket_run.py`: digest of each checkpoint by its step, or what is wrong with it."""
        return json.loads(self.out.splitlines()[-1])  # Gloo writes to stdout, too


@dataclass(frozen=True)
class Bucket:
    """The objects of the emulator, and programs for which it is Google's storage."""

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

    def start(self, *program: str, devices: int = 2, **variables: str) -> "subprocess.Popen[str]":
        """A program of Python, for which the emulator is Google's storage."""
        address = f"http://127.0.0.1:{self.port}"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = {"PYTHONPATH": path, "LDM_JAX_CACHE": str(self.cache), "JAX_PLATFORMS": "cpu"}
        own |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        own |= {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
        own |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}  # it would ask Google what kind of bucket this is
        environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, *program], env=environment | own | variables, stdout=pipe, stderr=pipe, text=True
        )

    def toy(self, place: str, steps: int = 0) -> Ended:
        """`bucket_run.py`, to its end."""
        return Ended.of(self.start(TOY, place, str(steps)))

    def ldm(self, *arguments: str) -> str:
        """`ldm` with arguments; the last line on stdout."""
        ended = Ended.of(self.start("-c", "from ldm_jax.cli import main; main()", *arguments))
        return "".join(ended.out.splitlines()[-1:])


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
def folder(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A run in a folder, from its start to its end."""
    run = tmp_path_factory.mktemp("folder")
    return run, bucket.toy(str(run), STEPS)


@pytest.fixture(scope="module")
def killed(bucket: Bucket, folder: tuple[Path, Ended]) -> Ended:
    """The same in the bucket, killed behind a checkpoint, and gone on with."""
    training, until = bucket.start(TOY, "gs://bucket/run", str(STEPS)), time.monotonic() + 300.0
    while f"{HERE}00000010.json" not in bucket.names(HERE):
        assert training.poll() is None and time.monotonic() < until, training.communicate()[1]
    training.send_signal(signal.SIGKILL)
    training.communicate()
    return bucket.toy("gs://bucket/run", STEPS)


def metrics(lines: bytes) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines.splitlines()
    ]


def test_a_killed_run_in_a_bucket_comes_to_the_bits_of_one_in_a_folder(
    bucket: Bucket, killed: Ended, folder: tuple[Path, Ended]
):
    assert "going on from the checkpoint of step" in killed.error
    path, ended = folder
    assert killed.found == ended.found and len(killed.found["40"]) == 64
    assert metrics(bucket.read("run/metrics.jsonl")) == metrics((path / "metrics.jsonl").read_bytes())
    seals = [name for name in bucket.names(HERE) if name.endswith(".json")]
    assert seals == [f"{HERE}{step:08d}.json" for step in (30, 35, 40)]
    assert not [name for name in bucket.names(HERE) if "/00000010/" in name]  # what is not kept is deleted whole


def test_a_flipped_bit_is_named_and_an_older_checkpoint_is_used(bucket: Bucket, killed: Ended):
    newest = f"{HERE}00000040/"
    name = max(bucket.names(newest), key=lambda name: len(bucket.read(name)))
    content = bytearray(bucket.read(name))
    content[len(content) // 2] ^= 1
    bucket.put(name, bytes(content))
    damaged = bucket.toy("gs://bucket/run").found
    assert damaged["40"].endswith(f"{name[len(newest) :]} has changed since it was written")
    assert damaged["35"] == killed.found["35"]
    again = bucket.toy("gs://bucket/run", STEPS)
    assert "looking for an older one" in again.error and "going on from the checkpoint of step 35" in again.error
    assert again.found == killed.found


def test_an_object_that_is_missing_is_named(bucket: Bucket, killed: Ended):
    name = max(bucket.names(f"{HERE}00000035/"))
    content = bucket.read(name)
    bucket.remove(name)
    found = bucket.toy("gs://bucket/run").found
    assert found["35"].endswith(f"{name.partition('/00000035/')[2]} is missing")
    bucket.put(name, content)
    assert bucket.toy("gs://bucket/run").found == killed.found


def test_two_processes_in_one_bucket_come_to_the_same(bucket: Bucket, folder: tuple[Path, Ended]):
    address = f"127.0.0.1:{free_port()}"
    both = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        bucket.start(TOY, "gs://bucket/two", str(STEPS), devices=1, **both, JAX_PROCESS_ID=str(i)) for i in range(2)
    ]
    for process in processes:
        Ended.of(process)
    assert bucket.toy("gs://bucket/two").found == folder[1].found


def test_both_stages_and_pictures_in_a_bucket(bucket: Bucket):
    run = "gs://bucket/runs/both"
    bucket.ldm("train", SMALL, "--run-dir", run)
    bucket.ldm("checkpoints", "verify", run)
    found = {name.removeprefix("runs/both/") for name in bucket.names("runs/both/")}
    assert {"config.json", "manifest.json", "metrics.jsonl", "tokenizer.json", "loss.png"} <= found
    flags = ["--prompt", "red circle", "--num-samples", "2", "--json"]
    files = json.loads(bucket.ldm("sample", run, *flags, "--out", "gs://bucket/pictures"))["files"]
    names = [f"red-circle_seed0_{i:04d}.png" for i in range(2)]
    assert files == [f"gs://bucket/pictures/{name}" for name in [*names, "grid.png"]]
    assert {file.removeprefix("gs://bucket/") for file in files} <= set(bucket.names("pictures/"))
