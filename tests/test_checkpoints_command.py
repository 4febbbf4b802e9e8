"""`ldm checkpoints`: what it tells of a run, and that it changes nothing."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax import sharding
from ldm_jax.config import Experiment, MeshConfig
from ldm_jax.errors import UserError
from ldm_jax.training import checkpoint_contents
from ldm_jax.training.checkpoint_contents import digest_checkpoint, digest_items, read_contents
from ldm_jax.training.checkpoints import Checkpoints
from ldm_jax.training.checkpoints_command import CheckpointsCommand, run_checkpoints
from ldm_jax.training.keep_policy import KeepPolicy
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.seals import DamagedCheckpoint


def items(value: float = 1.0) -> dict[str, Any]:
    params = {"layer": {"w": jnp.arange(64.0).reshape(8, 8) * value, "b": jnp.ones(8, jnp.bfloat16)}}
    optimizer = (jax.tree.map(jnp.zeros_like, params), {"count": jnp.int32(3)})
    return {"model": params, "training": {"step": jnp.int32(3), "params": params, "opt_state": optimizer}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints of its first stage and one of its second."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    run.open(Experiment())
    first, second = run.checkpoints("autoencoder", KeepPolicy(newest=9)), run.checkpoints("diffusion")
    first.save(10, items(1.0), {"heldout_loss": 0.5})
    first.save(20, items(2.0), {"heldout_loss": 0.25})
    second.save(30, items(3.0))
    first.wait()
    second.wait()
    return Path(run.path)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def ask(run: Path, capsys: pytest.CaptureFixture[str], action: Any, status: int = 0, **flags: Any) -> str:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert run_checkpoints(CheckpointsCommand(action=action, run=str(run), **flags)) == status
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    return capsys.readouterr().out


def rows(run: Path, capsys: pytest.CaptureFixture[str], action: Any, status: int = 0, **flags: Any) -> Any:
    return json.loads(ask(run, capsys, action, status, json=True, **flags))["checkpoints"]


def flip(folder: Path) -> None:
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def test_it_lists_every_step(run: Path, capsys: pytest.CaptureFixture[str]):
    lines = ask(run, capsys, "list").splitlines()
    assert lines[0].split() == ["stage", "step", "size", "age", "metrics", "state"]
    assert re.fullmatch(r"autoencoder +10 +[\d.]+ KiB +\d+ (s|min) +heldout_loss 0\.5 +whole", lines[1])
    assert re.fullmatch(r"diffusion +30 +[\d.]+ KiB +\d+ (s|min) +- +whole", lines[3])
    found = rows(run, capsys, "list", stage="autoencoder", step=20)
    assert [(row["step"], row["metrics"]) for row in found] == [(20, {"heldout_loss": 0.25})]
    folder = run / "checkpoints" / "autoencoder" / "00000020"
    assert found[0]["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(("now", "age"), [(3 * 86400, "3 d"), (7200, "2 h"), (-500, "from the future")])
def test_a_clock_that_was_set_changes_the_age_alone(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, now: float, age: str
):
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + now)
    lines = ask(run, capsys, "list").splitlines()
    assert f"  {age}  " in lines[1]
    assert lines[1].endswith("whole")


def test_what_is_wrong_at_first_sight_is_listed(run: Path, capsys: pytest.CaptureFixture[str]):
    stage = run / "checkpoints" / "autoencoder"
    (stage / "00000010.json").unlink()
    (stage / "00000020" / "_CHECKPOINT_METADATA").unlink()
    (run / "checkpoints" / "diffusion" / "00000030.json").write_text("{}")
    states = [row["state"] for row in rows(run, capsys, "list")]
    assert states[0] == "unsealed"
    assert states[1].startswith("damaged: checkpoint") and "_CHECKPOINT_METADATA is missing" in states[1]
    assert "00000030.json cannot be read" in states[2]
    assert "?" in ask(run, capsys, "list").splitlines()[1]


def test_it_verifies_every_file_and_names_what_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]):
    assert ask(run, capsys, "verify") == "autoencoder 10: whole\nautoencoder 20: whole\ndiffusion 30: whole\n"
    flip(run / "checkpoints" / "autoencoder" / "00000020")
    (run / "checkpoints" / "diffusion" / "00000030.json").unlink()
    lines = ask(run, capsys, "verify", status=1).splitlines()
    assert lines[0] == "autoencoder 10: whole"
    assert re.search(r"^autoencoder 20: checkpoint .* is damaged: .* has changed since it was written$", lines[1])
    assert re.search(r"^diffusion 30: .*00000030 has no seal: saving or deleting it was interrupted or goes", lines[2])
    assert [row["damage"] is None for row in rows(run, capsys, "verify", status=1)] == [True, False, False]
    ask(run, capsys, "verify", status=0, step=10)


def test_it_shows_the_tree_of_the_newest(run: Path, capsys: pytest.CaptureFixture[str]):
    text = ask(run, capsys, "show", stage="autoencoder")
    assert text.startswith("autoencoder 20: 8 arrays, ")
    assert "\n  model/  272 B\n    layer/  272 B\n      b  [8] bfloat16  16 B\n      w  [8, 8] float32  256 B\n" in text
    assert "\n      1/  4 B\n        count  [] int32  4 B\n" in text
    arrays = rows(run, capsys, "show", stage="diffusion")[0]["arrays"]
    assert arrays[0] == {"path": "model/layer/b", "shape": [8], "dtype": "bfloat16", "bytes": 16}


def test_its_digest_is_that_of_the_arrays(run: Path, capsys: pytest.CaptureFixture[str]):
    size = Experiment().first_stage.training.batch_size
    text = ask(run, capsys, "digest")
    assert text.splitlines()[0] == f"autoencoder 20 {digest_items(items(2.0), 20, 20 * size)}"
    assert len(text.splitlines()) == 2
    assert rows(run, capsys, "digest", step=10)[0]["sha256"] == digest_items(items(1.0), 10, 10 * size)


def test_nothing_damaged_is_digested(run: Path):
    flip(run / "checkpoints" / "diffusion" / "00000030")
    with pytest.raises(DamagedCheckpoint, match="has changed since it was written"):
        run_checkpoints(CheckpointsCommand(action="digest", run=str(run)))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such run": ({"run": "/nowhere"}, "/nowhere has no checkpoints; is it a run folder?"),
    "no such step": ({"step": 7}, "no stage has a checkpoint of step 7; `ldm checkpoints list` tells what there is"),
    "no such step of a stage": (
        {"step": 7, "stage": "autoencoder"},
        "the autoencoder stage has no checkpoint of step 7 in ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(made: Path, name: str):
    flags, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)):
        run_checkpoints(CheckpointsCommand(**{"action": "list", "run": str(made), **flags}))


def test_a_stage_without_checkpoints(run: Path):
    shutil.rmtree(run / "checkpoints" / "diffusion")
    with pytest.raises(UserError, match="has no checkpoints of its diffusion stage; is it a run folder"):
        run_checkpoints(CheckpointsCommand(action="list", run=str(run), stage="diffusion"))


@pytest.mark.parametrize("layout", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_the_digest_is_the_same_on_any_layout(tmp_path: Path, layout: dict[str, int], monkeypatch: pytest.MonkeyPatch):
    mesh = sharding.make_mesh(MeshConfig(**layout))
    spread = jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, P("fsdp", "tensor") if x.ndim == 2 else P())), items()
    )
    checkpoints = Checkpoints(tmp_path, KeepPolicy())
    checkpoints.save(5, spread)
    checkpoints.wait()
    expected = digest_items(items(), 5, 40)
    assert digest_items(spread, 5, 40) == expected
    assert digest_checkpoint(checkpoints.folder(5), 5, 40) == expected
    monkeypatch.setattr(checkpoint_contents, "_AT_ONCE", 1)  # every array by itself
    assert digest_checkpoint(checkpoints.folder(5), 5, 40) == expected


def test_the_digest_tells_any_difference(tmp_path: Path):
    expected = digest_items(items(), 5, 40)
    other = items()
    other["training"]["opt_state"][1]["count"] += 1
    negative = items()
    negative["model"]["layer"]["w"] = negative["model"]["layer"]["w"].at[0, 0].set(-0.0)
    renamed = items()
    renamed["model"]["layer"]["c"] = renamed["model"]["layer"].pop("b")
    reshaped = items()
    reshaped["model"]["layer"]["w"] = reshaped["model"]["layer"]["w"].reshape(4, 16)
    digests = {digest_items(tree, 5, 40) for tree in (other, negative, renamed, reshaped)}
    digests |= {digest_items(items(), 6, 40), digest_items(items(), 5, 41), expected}
    assert len(digests) == 7


def test_arrays_are_read_a_few_at_a_time_onto_the_host(run: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    load = checkpoint_contents.ocp.load_checkpointables

    def count(path: Any, part: Any) -> Any:
        wanted = [leaf for leaf in jax.tree.leaves(part) if leaf is not ...]
        assert all(isinstance(leaf, np.ndarray) for leaf in wanted)  # not an array of a device
        asked.append(sum(leaf.nbytes for leaf in wanted))
        return load(path, part)

    monkeypatch.setattr(checkpoint_contents.ocp, "load_checkpointables", count)
    monkeypatch.setattr(checkpoint_contents, "_AT_ONCE", 300)
    folder = run / "checkpoints" / "diffusion" / "00000030"
    digest_checkpoint(folder, 30, 1)
    assert max(asked) <= 300
    assert sum(asked) == sum(info.nbytes for info in read_contents(folder))


def test_contents_of_something_else_are_named(tmp_path: Path):
    with pytest.raises(DamagedCheckpoint, match=f"checkpoint {tmp_path} cannot be read"):
        read_contents(tmp_path)
