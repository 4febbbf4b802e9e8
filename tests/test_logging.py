"""Metrics on disk: lines that go on where a checkpoint stands, and the curve drawn from them."""

import json
from pathlib import Path

from PIL import Image

from ldm_jax.training.logging import MetricsLog, draw_losses, read_metrics
from ldm_jax.training.run_folder import RunFolder


def write_steps(run: RunFolder, stage: str, first: int, last: int, start: int) -> None:
    log = MetricsLog(run, stage, start)
    for step in range(first, last + 1):
        log.write(step, {"loss": 1.0 / step})
    log.close()


def steps(run: RunFolder, stage: str) -> list[int]:
    return [m["step"] for m in read_metrics(run.metrics_file) if m["stage"] == stage]


def test_a_line_tells_stage_step_and_values(tmp_path: Path):
    log = MetricsLog(RunFolder(tmp_path), "autoencoder", 0)
    log.write(3, {"loss": 0.5, "grad_norm": 2.0})
    written = (tmp_path / "metrics.jsonl").read_text()  # before it is closed: who watches a run sees it at once
    log.close()
    assert json.loads(written) == {"stage": "autoencoder", "step": 3, "loss": 0.5, "grad_norm": 2.0}
    assert list((tmp_path / "tensorboard" / "autoencoder").iterdir())


def test_without_a_file_there_are_no_metrics(tmp_path: Path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_it_goes_on_where_the_checkpoint_stands(tmp_path: Path):
    run = RunFolder(tmp_path)
    write_steps(run, "autoencoder", 1, 5, start=0)
    write_steps(run, "diffusion", 1, 7, start=0)
    write_steps(run, "diffusion", 5, 6, start=4)
    assert steps(run, "diffusion") == [1, 2, 3, 4, 5, 6]
    assert steps(run, "autoencoder") == [1, 2, 3, 4, 5]


def test_a_line_cut_by_a_kill_is_left_out_and_the_rest_goes_on(tmp_path: Path):
    run = RunFolder(tmp_path)
    write_steps(run, "diffusion", 1, 3, start=0)
    content = run.metrics_file.read_text()
    run.metrics_file.write_text(content[:-5])
    assert steps(run, "diffusion") == [1, 2]
    write_steps(run, "diffusion", 3, 4, start=2)
    assert steps(run, "diffusion") == [1, 2, 3, 4]
    assert run.metrics_file.read_text().startswith(content)


def test_loss_curves_of_both_stages_are_drawn(tmp_path: Path):
    run = RunFolder(tmp_path)
    write_steps(run, "autoencoder", 1, 3, start=0)
    draw_losses(run)
    one = Image.open(tmp_path / "loss.png").size
    log = MetricsLog(run, "diffusion", 0)
    log.write(1, {"loss": 1.0, "heldout_loss": 1.2})
    log.close()
    draw_losses(run)
    two = Image.open(tmp_path / "loss.png").size
    assert two[0] > one[0]


def test_a_curve_without_metrics_is_no_failure(tmp_path: Path):
    draw_losses(RunFolder(tmp_path))
