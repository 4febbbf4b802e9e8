"""Where a run lies: folders as they are, and an object store, for which one in memory stands in.

Orbax writes and reads its arrays there with tensorstore, which knows no fake: it is replaced by one that puts files.
All else (configuration, manifest, metrics, pictures, seals, verification, deletion) goes through the real code.
"""

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from ldm_jax.config import Experiment
from ldm_jax.errors import UserError
from ldm_jax.files.places import is_local, require_checkpoints, to_place
from ldm_jax.pictures import draw_grid, save_picture
from ldm_jax.training import checkpoints as checkpoints_module
from ldm_jax.training.checkpoints_command import CheckpointsCommand, run_checkpoints
from ldm_jax.training.keep_policy import KeepPolicy
from ldm_jax.training.logging import MetricsLog, draw_losses, read_metrics
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.seals import DamagedCheckpoint


class Bucket(MemoryFileSystem):
    """Objects of gs:// in memory."""

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return MemoryFileSystem._strip_protocol(f"memory://{str(path).partition('://')[2] or path}")


@pytest.fixture
def remote() -> Iterator[RunFolder]:
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    Bucket.store.clear()
    yield RunFolder(to_place("gs://bucket/run"))
    Bucket.store.clear()


@pytest.fixture
def puts_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax that puts each item as one object."""

    def save(path: str, items: dict[str, Any], *, overwrite: bool) -> Any:
        assert overwrite
        for name, value in items.items():
            (epath.Path(path) / name / "data").write_bytes(json.dumps(value).encode())
        return types.SimpleNamespace(result=lambda: None)

    def load(path: str, abstract: dict[str, Any]) -> dict[str, Any]:
        return {name: json.loads((epath.Path(path) / name / "data").read_bytes()) for name in abstract}

    monkeypatch.setattr(checkpoints_module.ocp, "save_checkpointables_async", save)
    monkeypatch.setattr(checkpoints_module.ocp, "load_checkpointables", load)


def test_a_folder_is_a_path(tmp_path: Path):
    assert to_place(str(tmp_path)) == tmp_path
    assert isinstance(to_place("runs/x"), Path)
    assert is_local(to_place("runs/x"))


def test_a_scheme_that_is_not_known():
    with pytest.raises(UserError, match=r"http://x/y: http:// is no place known here; use a folder, or gs:// and s3:/"):
        to_place("http://x/y")


def test_a_store_without_a_bucket():
    with pytest.raises(UserError, match=r"gs:// names no bucket; use gs://BUCKET/FOLDER"):
        to_place("gs://")


def test_an_empty_name():
    with pytest.raises(UserError, match="an empty name is no place; name a folder or a file"):
        to_place("")


def test_a_package_that_is_missing_is_named():
    with pytest.raises(UserError, match="s3://bucket/run needs the package s3fs: pip install s3fs"):
        to_place("s3://bucket/run")


def test_a_store_without_checkpoints_is_refused_for_training():
    with pytest.raises(
        UserError, match=r"s3://bucket/run: Orbax writes no checkpoints to s3://; train into a folder, or"
    ):
        require_checkpoints(epath.Path("s3://bucket/run"))
    require_checkpoints(Path("runs/x"))
    require_checkpoints(epath.Path("gs://bucket/run"))


def test_a_run_in_an_object_store_is_opened_and_goes_on(remote: RunFolder):
    assert not is_local(remote.path)
    remote.check(Experiment())
    remote.open(Experiment())
    remote.write_manifest(Experiment(), {})
    remote.write_manifest(Experiment(), {})
    remote.check(Experiment())
    assert remote.load_config() == Experiment()
    assert len(remote.read_manifest()["continued"]) == 1
    with pytest.raises(UserError, match=r"gs://bucket/run holds a run with another configuration"):
        remote.check(Experiment(seed=3))
    assert "://" not in str(remote.latents)


def test_metrics_are_there_when_a_checkpoint_may_count_on_them(remote: RunFolder):
    log = MetricsLog(remote, "diffusion", 0)
    log.write(1, {"loss": 2.0})
    log.write(2, {"loss": 1.0})
    assert read_metrics(remote.metrics_file) == []
    log.flush()
    assert [line["step"] for line in read_metrics(remote.metrics_file)] == [1, 2]
    log.write(3, {"loss": 0.5})
    log.close()
    assert [line["step"] for line in read_metrics(remote.metrics_file)] == [1, 2, 3]
    MetricsLog(remote, "diffusion", 2).close()
    assert [line["step"] for line in read_metrics(remote.metrics_file)] == [1, 2]
    draw_losses(remote)
    with (remote.path / "loss.png").open("rb") as file:
        Image.open(file).verify()


def test_pictures_are_put(remote: RunFolder):
    picture = np.zeros((8, 8, 3), np.uint8)
    save_picture(picture, remote.samples / "a.png", {"prompt": "x"})
    draw_grid([[picture]], [""], remote.samples / "grid.png")
    with (remote.samples / "a.png").open("rb") as file:
        assert Image.open(file).info["prompt"] == "x"
    assert sorted(path.name for path in remote.samples.iterdir()) == ["a.png", "grid.png"]


def test_checkpoints_are_sealed_verified_and_deleted(remote: RunFolder, puts_files: None, capsys: Any):
    found = remote.checkpoints("diffusion", KeepPolicy(newest=2))
    for step in (1, 2, 3):
        found.save(step, {"model": [step]}, {"heldout_loss": 1.0 / step})
    found.wait()
    assert found.steps() == [2, 3]
    assert found.unsealed() == []
    assert found.seal(3).metrics == {"heldout_loss": 1.0 / 3}
    assert found.restore_newest({"model": None}) == (3, {"model": [3]})
    assert run_checkpoints(CheckpointsCommand(action="verify", run="gs://bucket/run")) == 0
    assert capsys.readouterr().out == "diffusion 2: whole\ndiffusion 3: whole\n"
    (found.folder(3) / "model" / "data").write_bytes(b"[4]")
    with pytest.raises(DamagedCheckpoint, match=r"gs://bucket/run/checkpoints/diffusion/00000003 is damaged: model/da"):
        found.verify(3)
    assert found.restore_newest({"model": None}) == (2, {"model": [2]})


def test_what_was_interrupted_is_removed(remote: RunFolder, puts_files: None):
    found = remote.checkpoints("diffusion")
    found.save(1, {"model": [1]})
    found.wait()
    (found.folder(2) / "model" / "data").write_bytes(b"half")
    assert (found.steps(), found.unsealed()) == ([1], [2])
    found.remove_unfinished()
    assert (found.steps(), found.unsealed()) == ([1], [])
