"""A whole training in an object store: the real Orbax, tensorstore and fsspec, and a fake of the store on this machine.

Each needs two packages that are no dependency, and is skipped without them: `pip install s3fs 'moto[server]'`,
`pip install gcsfs gcp-storage-emulator`.
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
PACKAGES = {"s3": ("s3fs", "moto"), "gs": ("gcsfs", "gcp_storage_emulator")}


def serve_s3(port: int) -> tuple[list[str], dict[str, str]]:
    """Command of a fake S3, and the variables with which everything goes there."""
    address = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    return ["moto.server", "-H", "127.0.0.1", "-p", str(port)], keys | {"AWS_ENDPOINT_URL": address}


def serve_gs(port: int) -> tuple[list[str], dict[str, str]]:
    """The same for Google's."""
    address = f"http://127.0.0.1:{port}"
    command = ["gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    variables = {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "FSSPEC_GCS_TOKEN": "anon"}
    return [*command, "--default-bucket", "bucket"], variables | {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}


@pytest.fixture(params=sorted(PACKAGES))
def store(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    """A bucket of a fake store: its address, and the variables that lead there."""
    for package in PACKAGES[request.param]:
        pytest.importorskip(package)
    port = free_port()
    command, variables = {"s3": serve_s3, "gs": serve_gs}[request.param](port)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", *command], **quiet)
    try:
        put = urllib.request.Request(
            f"http://127.0.0.1:{port}/bucket", method="PUT" if request.param == "s3" else "GET"
        )
        until = time.monotonic() + 60.0
        while not _is_answered(put):
            assert server.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        yield f"{request.param}://bucket", variables
    finally:
        server.kill()
        server.wait()


def _is_answered(request: urllib.request.Request) -> bool:
    try:
        urllib.request.urlopen(request, timeout=5)
    except urllib.error.HTTPError:
        return request.method == "GET"
    except OSError:
        return False
    return True


@pytest.fixture
def ldm(store: tuple[str, dict[str, str]], tmp_path: Path) -> Callable[..., str]:
    """`ldm` where the store can be reached; what it writes to stdout."""

    def call(*arguments: str, status: int = 0, processes: int = 1) -> str:
        launch = ["launch", "--processes", str(processes), "--"] if processes > 1 else []
        program = [sys.executable, "-c", "from ldm_jax.cli import main; main()", *launch, *arguments]
        own = {"PYTHONPATH": str(ROOT), "LDM_JAX_CACHE": str(tmp_path / "cache"), "SMALL_STEPS": "12"}
        own |= {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu", **store[1]}
        environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | own
        ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=400)
        assert ended.returncode == status, ended.stderr
        return ended.stdout

    return call


def test_a_run_in_a_store_is_the_run_of_a_folder(
    store: tuple[str, dict[str, str]], ldm: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from etils import epath

    for name, value in store[1].items():
        monkeypatch.setenv(name, value)
    folder, remote = str(tmp_path / "run"), f"{store[0]}/run"
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
