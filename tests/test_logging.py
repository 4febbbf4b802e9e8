"""Metrics on disk: lines that go on where a checkpoint stands, and the curve drawn from them."""

import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from ldm_jax.errors import UserError
from ldm_jax.training.board import Board
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


def test_nothing_is_left_of_a_drawing(tmp_path: Path):
    run = RunFolder(tmp_path)
    write_steps(run, "autoencoder", 1, 3, start=0)
    gc.disable()
    try:
        draw_losses(run)
        assert not [thing for thing in gc.get_objects() if isinstance(thing, Figure)]
    finally:
        gc.enable()


def test_a_curve_without_metrics_is_no_failure(tmp_path: Path):
    draw_losses(RunFolder(tmp_path))


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"stage": "diffusion", "step": 2, "lo',
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'{"stage": 3, "step": 2, "loss": 0.5}',
        b'{"stage": "diffusion", "step": "2", "loss": 0.5}',
        b'{"stage": "diffusion", "step": 2, "loss": "low"}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_is_left_out_and_those_behind_it_stay(tmp_path: Path, damaged: bytes):
    run = RunFolder(tmp_path)
    write_steps(run, "diffusion", 1, 3, start=0)
    lines = run.metrics_file.read_bytes().splitlines()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], damaged, lines[2]]) + b"\n")
    assert steps(run, "diffusion") == [1, 3]


def test_a_disk_that_takes_no_more_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = MetricsLog(RunFolder(tmp_path), "diffusion", 0)

    class Full:
        def write(self, line: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "_file", Full())
    message = (
        rf"cannot write {re.escape(str(tmp_path))}/metrics.jsonl \(.*No space left on device\); check the permissions "
        "and the free space, then run the same command again"
    )
    for act in (lambda: log.write(1, {"loss": 1.0}), log.close):
        with pytest.raises(UserError, match=message):
            act()


def test_events_that_cannot_be_written_are_told_once_and_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    board = Board(tmp_path / "events", 0)

    def full(*number: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._events, "write_value", full)
    for step in range(50):
        board.write(step, {"loss": 1.0})
    board.close()
    assert caplog.text.count("events end here ([Errno 28] No space left on device); metrics.jsonl goes on") == 1


def test_events_tell_every_step_and_from_where_they_count(tmp_path: Path):
    """Read by the classes and the checksum of another implementation, a step of three bytes and a long name too."""
    board, step, name = Board(tmp_path, 99_999), 100_000, "evaluation/" + 20 * "x" + "/größe" * 20
    board.write(step, {"loss": 0.5, name: -2.0, "grad_norm": float("inf")})
    board.close()
    (file,) = tmp_path.iterdir()
    events = [event_pb2.Event.FromString(record) for record in records(file.read_bytes())]
    assert events[0].file_version == "brain.Event:2" and all(abs(event.wall_time - time()) < 60 for event in events)
    assert [event.step for event in events] == [0, step, step, step, step]
    started = [event.HasField("session_log") for event in events]
    assert started == [False, True, False, False, False]
    assert events[1].session_log.status == event_pb2.SessionLog.START
    values = {value.tag: value.simple_value for event in events for value in event.summary.value}
    assert values == {"loss": 0.5, name: -2.0, "grad_norm": float("inf")}


def test_a_stage_that_begins_again_within_a_moment_has_a_second_file(tmp_path: Path):
    for start in (0, 1):
        board = Board(tmp_path, start)
        board.write(start + 1, {"loss": 0.5})
        board.close()
    assert len(list(tmp_path.iterdir())) == 2


def records(content: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file: length, checksum, bytes, checksum."""
    while content:
        length = int.from_bytes(content[:8], "little")
        record = content[12 : 12 + length]
        checksums = [masked_crc32c(part).to_bytes(4, "little") for part in (content[:8], record)]
        assert checksums == [content[8:12], content[12 + length : 16 + length]]
        yield record
        content = content[16 + length :]
