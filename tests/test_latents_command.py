"""`ldm latents`: from a run to a set of latents, what is told of one, and what is refused."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from encoded_run import SIZE, encodable_run
from quick_compilation import QUICK
from tiny import tiny_experiment

from ldm_jax import cli
from ldm_jax.config import save_experiment
from ldm_jax.data.latent_manifest import MANIFEST, read_manifest
from ldm_jax.data.latent_source import open_latents
from ldm_jax.data.sources import load_source
from ldm_jax.experiment import train_experiment
from ldm_jax.training.latent_factory import autoencoder_fingerprint
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.run_folder import RunFolder

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
    assert latents.manifest.recipe.autoencoder == autoencoder_fingerprint(_params(run))
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
    from ldm_jax.data.latent_manifest import UNFINISHED
    from ldm_jax.files.whole_files import write_sealed

    write_sealed(tmp_path / UNFINISHED, read_manifest(encoded / "train").recipe.as_json())
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


def command(run: Path, out: Path, data_cache: Path, *launch: str) -> dict[str, object]:
    """How a run is encoded, for subprocess."""
    flags = {
        "XLA_FLAGS": QUICK,
        "JAX_PLATFORMS": "cpu",
        "LDM_JAX_CACHE": str(data_cache),
    }
    program = ["-c", "from ldm_jax.cli import main; main()", *launch, "latents", "encode", str(run)]
    arguments = [sys.executable, *program, "--out", str(out), "--shard-size", "4", "--split", "train"]
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
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "train").iterdir()} for name in ("whole", "killed")
    )
    assert one == other


@pytest.mark.slow
def test_several_processes_write_what_one_does(run: Path, data_cache: Path, tmp_path: Path):
    subprocess.run(**command(run, tmp_path / "one", data_cache), check=True)
    subprocess.run(**command(run, tmp_path / "two", data_cache, "launch", "--processes", "2", "--"), check=True)
    one, two = (open_latents(tmp_path / name / "train") for name in ("one", "two"))
    assert one.manifest.recipe == two.manifest.recipe and len(one.manifest.shards) == 10
    for i in range(len(one)):
        np.testing.assert_allclose(one[i]["moments"], two[i]["moments"], rtol=1e-5, atol=1e-6)
