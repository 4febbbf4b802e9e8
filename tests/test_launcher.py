"""Several processes on this machine: started, told apart, restarted when it helps, stopped when asked."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ldm_jax.errors import UserError
from ldm_jax.training import launcher
from ldm_jax.training.launcher import LaunchCommand, Launcher, launch, split_arguments, status_of

PROGRAM = """
import json, os, pathlib, signal, sys, time
folder, plan = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
process = os.environ["JAX_PROCESS_ID"]
attempt = len(list(folder.glob(f"started_{process}_*")))
(folder / f"started_{process}_{attempt}").write_text(os.environ["JAX_COORDINATOR_ADDRESS"])
print(f"line of {process}", flush=True)
act = plan.get(process, [])[attempt:][:1] or [0]
if act[0] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / f"waiting_{process}").touch()
    time.sleep(60)
if act[0] == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"waiting_{process}").touch()
    time.sleep(60)
if act[0] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(act[0])
"""


def launched(folder: Path, plan: dict[str, list[object]], **options: object) -> int:
    """Exit status of two processes, each of which acts in every attempt as its plan says."""
    config = LaunchCommand(**{"processes": 2, "restarts": 0, "pause": 0.1, "grace": 1.0} | options)
    return Launcher(config, [str(folder), json.dumps(plan)], (sys.executable, "-c", PROGRAM)).run()


def attempts(folder: Path) -> list[int]:
    return [len(list(folder.glob(f"started_{i}_*"))) for i in range(2)]


def test_all_run_once_with_one_coordinator(tmp_path: Path):
    assert launched(tmp_path, {}) == 0
    assert attempts(tmp_path) == [1, 1]
    addresses = {path.read_text() for path in tmp_path.glob("started_*")}
    assert len(addresses) == 1 and addresses.pop().startswith("127.0.0.1:")


def test_what_others_say_has_their_number(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    launched(tmp_path, {})
    said = capfd.readouterr()
    assert said.out == "line of 0\n"
    assert said.err == "[1] line of 1\n"


def test_what_others_say_may_go_to_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    launched(tmp_path, {}, logs=str(tmp_path / "logs"))
    assert capfd.readouterr().err == ""
    assert (tmp_path / "logs" / "process_1.log").read_text() == "line of 1\n"


def test_a_failure_restarts_all(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert launched(tmp_path, {"0": [76], "1": ["kill"]}, restarts=3) == 0
    assert attempts(tmp_path) == [2, 2]
    assert (
        "process 0 ended with status 76; process 1 ended with signal 9; restart in 0 s, 2 more after it" in caplog.text
    )


def test_restarts_are_bounded(tmp_path: Path):
    assert launched(tmp_path, {"1": [1, 1, 1, 1]}, restarts=2) == 1
    assert attempts(tmp_path) == [3, 3]


@pytest.mark.parametrize(("long", "pauses"), [(60.0, [0.1, 0.2, 0.4]), (0.01, [0.1, 0.1, 0.1])])
def test_pauses_grow_until_an_attempt_has_lived_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: float, pauses: list[float]
):
    paused: list[float] = []
    monkeypatch.setattr(launcher, "_LONGEST_PAUSE", long)
    monkeypatch.setattr(Launcher, "_sleep", lambda self, seconds: paused.append(seconds))
    assert launched(tmp_path, {"1": [1, 1, 1]}, restarts=3) == 0
    assert paused == pauses


@pytest.mark.parametrize("status", [2, 3])
def test_what_would_come_again_is_not_tried_again(tmp_path: Path, status: int):
    assert launched(tmp_path, {"0": [76], "1": [status]}, restarts=5) == status
    assert attempts(tmp_path) == [1, 1]


def test_who_hangs_after_a_failure_is_killed(tmp_path: Path):
    began = time.monotonic()
    assert launched(tmp_path, {"0": ["ignore"], "1": [1]}) == 1
    assert time.monotonic() - began < 30.0


def test_a_stop_request_is_passed_on_and_nothing_restarts(tmp_path: Path):
    def ask() -> None:
        while len(list(tmp_path.glob("waiting_*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    threading.Thread(target=ask).start()
    assert launched(tmp_path, {"0": ["wait", 0], "1": ["wait", 0]}, restarts=5) == 75
    assert attempts(tmp_path) == [1, 1]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_one_process_that_was_asked_to_stop_is_restarted_with_all(tmp_path: Path):
    assert launched(tmp_path, {"0": [75], "1": [75]}, restarts=1) == 0
    assert attempts(tmp_path) == [2, 2]


@pytest.mark.parametrize(
    ("codes", "status"),
    [([0, 0], 0), ([76, -9], 76), ([76, 2], 2), ([-9, 76, 1], 1), ([75, 75], 75), ([-6, 3], 3), ([-9, -9], -9)],
)
def test_one_status_for_all(codes: list[int], status: int):
    assert status_of(codes) == status


def test_the_command_comes_behind_two_dashes():
    assert split_arguments(["--processes", "2", "--", "train", "smoke", "--", "x"]) == (
        ["--processes", "2"],
        ["train", "smoke", "--", "x"],
    )
    for arguments in (["--processes", "2"], ["--processes", "2", "--", "parity", "x"]):
        with pytest.raises(UserError, match=r"ldm launch --processes 4 -- train NAME --flags"):
            launch(arguments)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"processes": 0}, "processes=0"),
        ({"restarts": -1}, "restarts=-1"),
        ({"processes": 10**5}, "--processes=100000 are more than a machine"),
    ],
)
def test_numbers_are_checked(flags: dict[str, int], message: str):
    with pytest.raises(UserError, match=message):
        LaunchCommand(**{"processes": 2} | flags)


def test_the_command_is_known_to_ldm():
    program = [sys.executable, "-c", "from ldm_jax.cli import main; main()", "launch", "--help"]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert "--restarts" in ended.stdout
