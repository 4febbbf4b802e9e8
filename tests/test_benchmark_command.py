"""`ldm benchmark`: what it refuses, what each side is started with, and the report of a run's input."""

import importlib.util
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_experiment

from ldm_jax import cli
from ldm_jax.benchmark.command import BenchmarkCommand
from ldm_jax.benchmark.input_speed import CORES, HOSTS, hosts_needed, latents_like, report_input
from ldm_jax.benchmark.latents_speed import report_latents
from ldm_jax.benchmark.measure import sides_of
from ldm_jax.benchmark.task import Task
from ldm_jax.config import Shapes, load_experiment
from ldm_jax.data.sources import load_source
from ldm_jax.model import make_model

TASK = Task(name="train", folder="f", torch_class="c", inputs="i", batch_size=6, threads=4)


def said(arguments: list[str], caplog: pytest.LogCaptureFixture) -> str:
    """What is said about arguments that are refused."""
    logging.getLogger("ldm_jax").setLevel(logging.INFO)
    assert cli.run(cli.benchmark, arguments) == 2
    return caplog.messages[-1].removeprefix("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds=0 must be at least 1"),
        (["--latents", "smoke", "--rounds", "0"], "--rounds=0 must be at least 1"),
        (["--warmup", "0"], "--warmup=0 must be at least 1"),
        (["--cpu-devices", "-1"], "--cpu-devices=-1 must be at least 1"),
        (["--num-sample-steps", "49"], "--num-sample-steps=49 does not divide 1000 timesteps; nearest that does: 50"),
        (["--threads", "4096"], "--threads=4096 is more than the {cores} cores that there are"),
        (["--steps-per-second", "1"], "--steps-per-second goes with --input RUN"),
        (["--input", "smoke", "--steps-per-second", "0"], "--steps-per-second=0.0 must be greater than 0, and finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], message: str, caplog: pytest.LogCaptureFixture):
    cores = os.sched_getaffinity(0)
    assert said(arguments, caplog) == message.format(cores=len(cores))
    assert os.sched_getaffinity(0) == cores


def test_without_pytorch_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = "ldm benchmark compares with PyTorch, which needs torch, diffusers: pip install -e '.[parity]'"
    assert said([], caplog) == message


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("ldm_jax.benchmark.command.TORCH_PACKAGES", ())  # whether they are there does not matter
    (tmp_path / "file").write_text("")
    assert said(["--out", str(tmp_path / "file" / "out")], caplog).startswith("[Errno 20] Not a directory")


def test_sides_are_programs_on_the_same_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    ours, eager = sides_of(BenchmarkCommand(), TASK, Path("task.json"))
    assert ours.env["JAX_NUM_CPU_DEVICES"] == "3", "of 4 cores, as many as divide the batch"
    assert ours.env["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert [eager.command(platform)[-1] for platform in ("cpu", "gpu", "tpu")] == ["cpu", "cuda", "cpu"]
    given, _, compiled = sides_of(BenchmarkCommand(cpu_devices=2, torch_compile=True), TASK, Path("task.json"))
    assert given.env["JAX_NUM_CPU_DEVICES"] == "2"
    assert given.env["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false", "PyTorch needs memory of the same GPU"
    assert compiled.optional
    assert compiled.command("gpu")[-2:] == ["cuda", "--compile"]


def test_input_is_told_of_every_part_and_of_the_hosts_that_it_needs():
    told = json.loads(report_input("smoke", 20.0, as_json=True, seconds=0.01))
    parts = ["source, from disk", "source, from memory", "FitPicture", "Mirror", "ChooseCaption"]
    batches = ["batches of pictures", "batches of latents"]
    assert list(told["pictures_per_second"]) == [*parts, "latents, from disk", *batches]
    assert all(0 < p["lower"] <= p["median"] <= p["upper"] for p in told["pictures_per_second"].values())
    need = told["needs"][1]
    rate, batch = told["pictures_per_second"]["batches of latents"]["median"], need["batch_size"]
    assert need["most_steps_per_second"] == pytest.approx(rate * CORES * HOSTS / batch)
    assert need["hosts_needed"] == 1
    lines = report_input("smoke", None, as_json=False, seconds=0.01).splitlines()
    assert lines[0] == "# Input of smoke"
    assert any(line.startswith("| Mirror | ") for line in lines)
    assert "assumed is that as many cores" in "\n".join(lines)
    assert "the expected rate" not in lines[-1]


def test_hosts_are_rounded_up():
    assert hosts_needed(rate=1.0, batch_size=CORES, steps_per_second=1.0) == 1
    assert hosts_needed(rate=1.0, batch_size=CORES, steps_per_second=1.01) == 2


def test_latents_have_the_shape_of_the_models(tmp_path: Path):
    experiment = load_experiment("smoke")
    source = load_source(experiment.data, "train")
    latents, config = latents_like(experiment, source, tmp_path / "latents"), experiment.first_stage.autoencoder
    side = experiment.data.image_size // config.downsample_factor
    flips = 1 + experiment.data.horizontal_flip
    assert len(latents) == len(source)
    assert latents[3]["moments"].shape == (flips, side, side, 2 * config.latent_channels)


@pytest.mark.slow
def test_training_from_latents_is_timed_beside_training_from_pictures(data_cache: Path):
    data = tiny_experiment(data_cache).data
    data = replace(data, source=Shapes(num_examples=400))  # a shard has 128 KiB at least, which are shared out
    experiment = replace(tiny_experiment(data_cache), data=data)
    told = json.loads(report_latents(experiment, rounds=2, steps=2, as_json=True))
    assert told["encode_rate"] > 0 and told["circumstances"]["pictures"] == 400
    size = 4 * int(np.prod(make_model(experiment).latent_shape)) * 2 * (1 + experiment.data.horizontal_flip)
    assert size < told["bytes_per_picture"] < size + 1000
    for name in ("from_pictures", "from_latents", "ratio"):
        assert 0 < told[name]["lower"] <= told[name]["median"] <= told[name]["upper"]
    text = report_latents(experiment, rounds=1, steps=1, as_json=False)
    assert text.startswith(f"# Latents of {experiment.name}") and "| ratio of the two | " in text
