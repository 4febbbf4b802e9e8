"""`ldm latents`: from a run to a set of latents, what is told of one, and what is refused."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from encoded_run import SIZE, encodable_run
from quick_compilation import QUICK
from tiny import tiny_experiment

from ldm_jax import cli
from ldm_jax.config import save_experiment
from ldm_jax.data.latent_manifest import MANIFEST, read_manifest, write_unfinished
from ldm_jax.data.latent_source import open_latents
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.experiment import train_experiment
from ldm_jax.training.latent_factory import identify_autoencoder
from ldm_jax.training.launcher import free_port
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.watchdog import PEER_LOST

TESTS = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def first_device() -> Iterator[None]:
    """One device, also for what tests share: programs for it compile in half the time."""
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: first)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> Path:
    """A run with a first stage."""
    path = tmp_path_factory.mktemp("runs") / "first"
    encodable_run(path, data_cache)
    return path


@pytest.fixture(scope="module")
def encoded(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its latents, with everything that can be kept without a text encoder."""
    folder = tmp_path_factory.mktemp("latents")
    flags = ["--out", str(folder), "--shard-size", "16", "--sizes", "--data.horizontal-flip"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "start_jax", lambda devices: None)
        assert cli.run(cli.latents, ["encode", str(run), *flags]) == 0
    return folder


def said(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    """What a command writes to stdout."""
    capsys.readouterr()
    assert cli.run(cli.latents, arguments) == status
    return capsys.readouterr().out


def test_a_run_is_encoded_with_its_own_autoencoder(run: Path, encoded: Path):
    experiment = RunFolder(run).load_config()
    latents = open_latents(encoded / "train")
    source = load_source(experiment.data, "train")
    assert latents.info == source.info and len(latents) == len(source) == SIZE
    assert latents.annotation(7) == source.annotation(7)
    assert [shard.records for shard in latents.manifest.shards] == [16, 16, 8]
    assert latents[0]["moments"].shape[0] == 2
    assert latents.manifest.recipe.autoencoder == identify_autoencoder(experiment, _params(run))["autoencoder"]
    assert len(open_latents(encoded / "test")) == SIZE // 10


def _params(run: Path) -> dict[str, object]:
    from ldm_jax.sampling.session import load_session

    return load_session(run, "autoencoder").params


def test_show_tells_from_what_a_set_was_made(encoded: Path, capsys: pytest.CaptureFixture[str]):
    text = said(["show", str(encoded)], capsys)
    manifest = read_manifest(encoded / "train")
    assert f"{encoded}/train: 40 pictures in 3 shards, " in text
    assert f"autoencoder  {manifest.recipe.autoencoder}, in float32" in text
    assert "8 pixels, 3 channels, with mirror images; shorter side to the size by Lanczos" in text
    assert f"shapes/train, fingerprint {manifest.recipe.info.fingerprint}" in text
    assert "sizes int32 [2, 6]; the posterior is Gaussian" in text
    rows = json.loads(said(["show", str(encoded / "train"), "--json"], capsys))["latents"]
    assert [row["pictures"] for row in rows] == [40]
    np.testing.assert_allclose(rows[0]["statistics"]["global"]["std"], manifest.sums.overall()[1])


def test_verify_names_what_is_damaged(encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert f"{encoded}/train: 3 shards of 40 pictures are whole\n" in said(["verify", str(encoded)], capsys)
    subprocess.run(["cp", "-r", str(encoded), str(tmp_path / "copy")], check=True)
    shard = tmp_path / "copy" / "train" / "00001.array_record"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (tmp_path / "copy" / "test" / MANIFEST).write_text("{")
    text = said(["verify", str(tmp_path / "copy")], capsys, status=1)
    assert f"train: damaged\n  {shard} has changed since it was written; the same `ldm latents encode`" in text
    assert f"test: damaged\n  the manifest {tmp_path}/copy/test/manifest.json cannot be used" in text
    rows = json.loads(said(["verify", str(tmp_path / "copy"), "--json"], capsys, status=1))["latents"]
    assert [len(row["damage"]) for row in rows] == [1, 1]


def test_an_unfinished_set_is_no_whole_one(encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_unfinished(tmp_path, read_manifest(encoded / "train").recipe)
    text = said(["verify", str(tmp_path)], capsys, status=1)
    assert "are not finished (0 of 3 shards are written); the same `ldm latents encode` goes on with them" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "x"], "ldm latents make is not known: use encode, show or verify"),
        (["show", "{tmp}/none"], "none does not exist"),
        (["show", "{tmp}/file"], "file is no folder"),
        (["verify", "{tmp}/empty"], "empty holds no latents: neither it nor train/ or test/ in it has a manifest.json"),
        (["encode"], "the experiment or run comes first: ldm latents encode CONFIG_OR_RUN [flags]"),
        (["encode", "nothing"], "unknown experiment 'nothing'"),
        (["encode", "smoke", "--shard-size", "0"], "--shard-size=0 must be from 1 to 2147483647"),
        (["encode", "smoke", "--batch-size", "-1"], "--batch-size=-1 must be from 1 to 2147483647"),
        (["encode", "smoke", "--split"], "--split names none; use train, test or both"),
        (
            ["encode", "smoke", "--out", "gs://b/x"],
            "--out=gs://b/x is in an object store; latents are written to a disk",
        ),
        (
            ["encode", "smoke", "--mesh.fsdp", "2"],
            "--mesh.* divides a model that is trained, and encoding has the whole autoencoder on every device; leave "
            "it out (mesh.fsdp: 1 -> 2)",
        ),
        (["encode", "smoke"], "smoke names no trained autoencoder: encode for a run that has one"),
        (["encode", "{tmp}/begun"], "begun names no trained autoencoder"),
        (["encode", "smoke", "--texts"], "--texts embeds captions by a text encoder of CLIP"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], message: str, tmp_path: Path, data_cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch
):
    monkeypatch.setattr(cli, "start_jax", lambda devices: None)
    monkeypatch.setenv("LDM_JAX_CACHE", str(data_cache))
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    begun = dataclasses.replace(tiny_experiment(data_cache), name="begun")
    save_experiment(begun, tmp_path / "begun" / "config.json")
    assert cli.run(cli.latents, [argument.format(tmp=tmp_path) for argument in arguments]) == 2
    assert message in caplog.text


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--first-stage.autoencoder.num-groups", "2"], "first_stage.autoencoder.num_groups: {groups} -> 2"),
        (["--first-stage.run", "other"], "first_stage.run: None -> 'other'"),
        (["--start", "other"], "start: None -> 'other'"),
        (["--conditioning.mlp-dim", "24"], "conditioning.mlp_dim: {mlp} -> 24"),
    ],
)
def test_a_run_is_not_encoded_by_other_networks_than_its_own(
    run: Path, tmp_path: Path, flags: list[str], line: str, caplog: pytest.LogCaptureFixture, monkeypatch
):
    monkeypatch.setattr(cli, "start_jax", lambda devices: None)
    assert cli.run(cli.latents, ["encode", str(run), "--out", str(tmp_path / "out"), *flags]) == 2
    own = RunFolder(run).load_config()
    line = line.format(groups=own.first_stage.autoencoder.num_groups, mlp=4 * own.conditioning.context_dim)
    assert (
        f"{run} encodes with the networks that it has:\n  {line}\nleave these flags out, or encode for" in caplog.text
    )
    assert not (tmp_path / "out").exists()


def test_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]):
    assert "ldm latents encode CONFIG_OR_RUN [flags]" in said(["--help"], capsys)
    assert "ldm latents verify DIR" in said([], capsys, status=2)


# --- at length -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_reads_latents_in_place_of_pictures(run: Path, data_cache: Path, tmp_path: Path, monkeypatch):
    experiment = RunFolder(run).load_config()
    monkeypatch.setattr(cli, "start_jax", lambda devices: None)
    assert cli.run(cli.latents, ["encode", str(run), "--out", str(tmp_path / "latents")]) == 0
    first = dataclasses.replace(experiment.first_stage, run=str(run))
    losses = {}
    for latents in (None, str(tmp_path / "latents")):
        data = dataclasses.replace(experiment.data, latents=latents)
        path = tmp_path / f"run_{latents is None}"
        train_experiment(dataclasses.replace(experiment, first_stage=first, data=data), path)
        losses[latents] = [m["loss"] for m in read_metrics(path / "metrics.jsonl") if m["stage"] == "diffusion"]
        assert (path / "samples" / "heldout.png").exists()
        assert (path / "latents").exists() == (latents is None)
    one, other = losses.values()
    np.testing.assert_allclose(one, other, rtol=1e-5)


NUM_KILLS = int(os.environ.get("LDM_JAX_KILLS", "6"))


BATCH = 3
"""Pictures at once on the one device of each process: then the bits are the same, whatever their number."""


def command(run: Path, out: Path, data_cache: Path, *launch: str, processes: int = 1) -> dict[str, Any]:
    """How a run is encoded, for subprocess; by `processes` that divide the pictures among them."""
    flags = {
        "XLA_FLAGS": QUICK,
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu",
        "LDM_JAX_CACHE": str(data_cache),
    }
    program = ["-c", "from ldm_jax.cli import main; main()", *launch, "latents", "encode", str(run)]
    small = ["--shard-size", "4", "--batch-size", str(BATCH * processes)]
    arguments = [sys.executable, *program, "--out", str(out), *small, "--split", "train"]
    return {"args": arguments, "env": os.environ | flags | {"PYTHONPATH": str(TESTS.parent)}}


@pytest.mark.slow
def test_a_killed_encoder_goes_on_without_a_shard_lost_or_repeated(tmp_path: Path, data_cache: Path):
    encodable_run(tmp_path / "run", data_cache, size=2000)
    subprocess.run(**command(tmp_path / "run", tmp_path / "whole", data_cache), check=True)
    out = tmp_path / "killed" / "train"
    kept: dict[str, int] = {}
    for kill in range(1, NUM_KILLS + 1):
        process = subprocess.Popen(**command(tmp_path / "run", tmp_path / "killed", data_cache))
        while len(list(out.glob("*.array_record"))) < 500 * kill // (NUM_KILLS + 1) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(Exception, match="are not finished"):
            open_latents(out)
        written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
        sealed = {path.with_suffix(".array_record").name for path in out.glob("0*.json")}
        assert len(written.keys() - sealed) <= 1, "at most the last shard is without a seal"
        assert all(written[name] == time_ns for name, time_ns in kept.items()), "no shard is written twice"
        kept = {name: written[name] for name in sealed}
    subprocess.run(**command(tmp_path / "run", tmp_path / "killed", data_cache), check=True)
    assert contents(tmp_path / "whole" / "train") == contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def started(run: Path, out: Path, data_cache: Path, count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that encode a run together, as a cluster starts them: nobody starts them again."""
    how = command(run, out, data_cache, processes=count)
    shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    given = [how["env"] | shared | {"JAX_PROCESS_ID": str(i)} for i in range(count)]
    group = [subprocess.Popen(how["args"], env=each, stdout=subprocess.DEVNULL) for each in given]
    try:
        yield group
    finally:
        for process in group:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_when_one_of_several_encoders_is_killed_any_number_goes_on(tmp_path: Path, data_cache: Path):
    encodable_run(tmp_path / "run", data_cache, size=2000)
    subprocess.run(**command(tmp_path / "run", tmp_path / "whole", data_cache), check=True)
    out, numbers = tmp_path / "killed" / "train", np.random.default_rng()
    kept: dict[str, int] = {}
    loose: set[str] = set()
    kills = -(-NUM_KILLS // 2)
    for count in itertools.islice(itertools.cycle((2, 3)), kills):
        target = len(kept) + int(numbers.integers(500 // (kills + 1)))
        with started(tmp_path / "run", tmp_path / "killed", data_cache, count) as group:
            while len(list(out.glob("*.array_record"))) <= target and all(p.poll() is None for p in group):
                time.sleep(0.001)
            victim = group[int(numbers.integers(count))]
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL
            assert {p.wait(60) for p in group if p is not victim} <= {PEER_LOST, -signal.SIGABRT}
        with pytest.raises(UserError, match="are not finished"):
            open_latents(out)
        written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
        sealed = {path.with_suffix(".array_record").name for path in out.glob("0*.json")}
        assert len(written.keys() - sealed - loose) <= count, "at most the last shard of each is without a seal"
        assert all(written[name] == time_ns for name, time_ns in kept.items()), "no shard is written twice"
        kept, loose = {name: written[name] for name in sealed}, written.keys() - sealed
    for count in (1, 2):  # what one has finished, two find whole
        with started(tmp_path / "run", tmp_path / "killed", data_cache, count) as group:
            assert [p.wait(300) for p in group] == [0] * count
        assert contents(tmp_path / "whole" / "train") == contents(out)


@pytest.mark.slow
def test_several_processes_write_what_one_does(run: Path, data_cache: Path, tmp_path: Path):
    subprocess.run(**command(run, tmp_path / "one", data_cache), check=True)
    launch = command(run, tmp_path / "two", data_cache, "launch", "--processes", "2", "--", processes=2)
    told = subprocess.run(**launch, check=True, capture_output=True, text=True)
    assert "encoding 20 of 20 pictures of shapes/train, the share of process 0 of 2" in told.stderr
    assert len(open_latents(tmp_path / "one" / "train").manifest.shards) == 10
    assert contents(tmp_path / "one" / "train") == contents(tmp_path / "two" / "train")
