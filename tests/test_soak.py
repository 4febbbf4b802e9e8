"""The judgement of launch/soak.py, on lives that are made up; the soak itself takes minutes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from soak import STOPPED, Soak, report
from soak_lives import Life, Sample, Windows, as_table, growth, is_flat, workers_of

WINDOWS = Windows(warm_up=90, length=30.0)


def life(seconds: int, memory: float = 0.0, files: float = 0.0, name: str = "process 1") -> Life:
    """A process that takes 100 MiB and 40 files, and more of them by the second; each is a step."""
    found = Life(name, 0.0)
    found.samples += [Sample(t, round(2**20 * (100 + memory * t)), 40 + int(files * t), t) for t in range(seconds + 1)]
    return found


def test_who_lives_and_takes_no_more_is_flat():
    levels = life(300).levels(WINDOWS)
    assert levels is not None and is_flat(levels)
    assert growth(levels) == (0.0, 0)


@pytest.mark.parametrize("taken", [{"memory": 0.02}, {"files": 0.01}])
def test_who_takes_more_and_more_is_not(taken: dict[str, float]):
    levels = life(300, **taken).levels(WINDOWS)
    assert levels is not None and not is_flat(levels)


def test_the_warm_up_does_not_count_nor_what_saving_opens_for_a_moment():
    found = life(300)
    found.samples[:90] = [Sample(t, 2**20 * t, 3, t) for t in range(90)]
    found.samples[290] = Sample(290, 2**30, 400, 290)
    levels = found.levels(WINDOWS)
    assert levels is not None and is_flat(levels)


def test_the_warm_up_is_in_steps_counted_from_where_a_fault_threw_the_run_back():
    found = life(300)
    found.samples = [Sample(t, 2**20, 3, 80 if 10 < t < 100 else 100 + t // 2) for t in range(301)]
    levels = found.levels(WINDOWS)
    assert levels is not None and levels[0].step == 171


def test_a_short_life_tells_nothing():
    assert life(150).levels(WINDOWS) is None
    assert life(151).levels(WINDOWS) is not None


def test_the_table_has_a_line_for_each_life_that_tells():
    table = as_table([life(100), life(300, memory=0.1, files=0.01)], WINDOWS).splitlines()
    assert table[2:] == ["| process 1 | 300 | 111 | 128 | +16.24% | 40 | 42 |"]


def test_this_process_is_measured():
    found = Life("this", time.monotonic())
    found.measure(os.getpid(), 3)
    (sample,) = found.samples
    assert 2**20 < sample.memory < 2**40 and sample.files >= 3 and sample.step == 3


def test_workers_are_found_by_their_parent():
    sleep = [sys.executable, "-c", "input()"]
    with subprocess.Popen(sleep, env=os.environ | {"JAX_PROCESS_ID": "7"}, stdin=subprocess.PIPE) as worker:
        until = time.monotonic() + 20.0
        while (7, worker.pid) not in workers_of(os.getpid()) and time.monotonic() < until:
            time.sleep(0.05)
        assert (7, worker.pid) in workers_of(os.getpid())
        worker.kill()


def soaked(run: Path, steps: list[int], *lives: Life) -> Soak:
    lines = [json.dumps({"stage": "diffusion", "step": step, "loss": 1.0}) for step in steps]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return Soak(run, 60.0, 20.0, 100, lives=dict(enumerate(lives)))


@pytest.mark.parametrize(
    ("steps", "taken", "status", "bad"),
    [
        ([1, 2, 3], {}, STOPPED, set()),
        ([1, 3], {}, STOPPED, {"nothing_lost"}),
        ([1, 2, 2, 3], {}, STOPPED, {"nothing_lost"}),
        ([1, 2, 3], {"memory": 0.1}, STOPPED, {"flat"}),
        ([1, 2, 3], {}, 1, {"stopped_when_asked"}),
        ([], {}, STOPPED, {"nothing_lost"}),
    ],
)
def test_each_verdict(tmp_path: Path, steps: list[int], taken: dict[str, float], status: int, bad: set[str]):
    found = report(soaked(tmp_path, steps, life(300, **taken)), status, WINDOWS)
    assert {name for name, good in found["verdict"].items() if not good} == bad


def test_nothing_measured_is_nothing_shown(tmp_path: Path):
    assert not report(soaked(tmp_path, [1], life(100)), STOPPED, WINDOWS)["verdict"]["flat"]


def test_faults_take_turns_over_signals_and_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    soak = soaked(tmp_path, [1])
    soak.every = 0.0
    soak._break({0: 100, 1: 101})
    assert sent == []  # before its first step there is nothing to lose
    soak._count()
    for _ in range(6):
        soak._break({0: 100, 1: 101})
    numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
    assert sent == [(process, number) for number in numbers for process in (101, 100)]
