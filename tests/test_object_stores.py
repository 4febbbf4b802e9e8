"""A whole training in an object store: the real Orbax, tensorstore and gcsfs, and a fake of the store on this machine.

It needs two packages that are no dependency, and is skipped without them: `pip install gcsfs gcp-storage-emulator`.
Orbax writes nothing to S3, which is refused (`test_places.py`).
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ldm_jax.training.launcher import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SMALL = str(ROOT / "tests" / "small_run.py")
# The fake answers one connection at a time, where gcsfs and tensorstore keep several.
SERVE = """
import sys
from http import server
server.HTTPServer = server.ThreadingHTTPServer
from gcp_storage_emulator.__main__ import main
main(["start", "--host", "127.0.0.1", "--port", sys.argv[1], "--in-memory", "--default-bucket", "bucket"])
"""


@pytest.fixture
def store() -> Iterator[dict[str, str]]:
    """A fake store with a bucket: the variables with which everything goes there."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    variables = {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "FSSPEC_GCS_TOKEN": "anon"}
    try:
        until = time.monotonic() + 60.0
        while not _is_answered(address):
            assert server.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        yield variables | {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}
    finally:
        server.kill()
        server.wait()


def _is_answered(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def ldm(store: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """`ldm` where the store can be reached; what it writes to stdout."""

    def call(*arguments: str, status: int = 0, processes: int = 1) -> str:
        launch = ["launch", "--processes", str(processes), "--"] if processes > 1 else []
        program = [sys.executable, "-c", "from ldm_jax.cli import main; main()", *launch, *arguments]
        own = {"PYTHONPATH": str(ROOT), "LDM_JAX_CACHE": str(tmp_path / "cache"), "SMALL_STEPS": "12"}
        own |= {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu", **store}
        environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | own
        ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=400)
        assert ended.returncode == status, ended.stderr
        return ended.stdout

    return call


def test_a_run_in_a_store_is_the_run_of_a_folder(
    store: dict[str, str], ldm: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from etils import epath

    for name, value in store.items():
        monkeypatch.setenv(name, value)
    folder, remote = str(tmp_path / "run"), "gs://bucket/run"
    ldm("train", SMALL, "--run-dir", folder)
    ldm("train", SMALL, "--run-dir", remote, processes=2)
    digest = ldm("checkpoints", "digest", folder)
    assert ldm("checkpoints", "digest", remote) == digest
    newest = epath.Path(remote) / "checkpoints" / "diffusion" / "00000012"
    ldm("checkpoints", "verify", remote)
    chunk = max((path for path in newest.glob("**/*") if path.is_file()), key=lambda path: path.stat().length)
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    assert "diffusion 12: " in ldm("checkpoints", "verify", remote, status=1)
    ldm("train", SMALL, "--run-dir", remote, processes=2)  # from the checkpoint before, which it finds whole
    assert ldm("checkpoints", "digest", remote) == digest
    drawn = json.loads(ldm("sample", remote, "--num-samples", "2", "--prompt", "x", "--json"))["files"]
    assert len(drawn) == 3 and all(epath.Path(file).exists() for file in drawn)
