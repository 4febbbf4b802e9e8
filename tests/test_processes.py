"""Runs of several processes: the same numbers however they are divided, one end for all, and none that hangs.

The processes are `toy_process.py`, joined over loopback. Run with another Python, these tests try its version of jax.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ldm_jax.config import DistributedConfig
from ldm_jax.errors import UserError
from ldm_jax.training.launcher import LaunchCommand, Launcher, free_port
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.processes import with_environment
from ldm_jax.training.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
TOY = str(ROOT / "tests" / "toy_process.py")
HEARTBEAT = 6.0  # of the toy
FULL = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_the_environment_tells_what_flags_leave_open():
    config = with_environment(DistributedConfig(process_id=2, busy_seconds=7.0), FULL)
    assert (config.coordinator, config.num_processes, config.process_id) == ("a:1", 4, 2)
    assert config.busy_seconds == 7.0
    assert with_environment(DistributedConfig(), {}) == DistributedConfig()


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({"num_processes": 2}, {}, r"--distributed\.coordinator \(\$JAX_COORDINATOR_ADDRESS\) and --distributed\.proc"),
        ({}, {"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2"}, r"--distributed\.coordinator .* is missing"),
        ({}, FULL | {"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES='four' must be a whole number"),
        ({}, FULL | {"JAX_PROCESS_ID": "4"}, r"process_id=4 must lie between 0 and num_processes - 1 = 3"),
        ({}, FULL | {"JAX_COORDINATOR_ADDRESS": "a"}, r"coordinator='a' must be host:port, such as 10\.0\.0\.2:8476"),
    ],
)
def test_what_does_not_fit_is_refused(flags: dict[str, int], environment: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        with_environment(DistributedConfig(**flags), environment)


def test_a_heartbeat_has_a_least_length():
    with pytest.raises(UserError, match=r"heartbeat_seconds=1.0 is shorter than a busy machine may be silent; use at"):
        DistributedConfig(heartbeat_seconds=1.0)


class Processes:
    """Toy processes of one run."""

    def __init__(self, run: Path, count: int, devices: int = 1, steps: int = 40, fault: str = "") -> None:
        self.run = run
        run.mkdir(parents=True, exist_ok=True)
        others = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
        own = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": str(devices)}
        environment = {**os.environ, **(others if count > 1 else {}), **own, **({"TOY_FAULT": fault} if fault else {})}
        self.logs = [run.parent / f"{run.name}_{i}.log" for i in range(count)]
        self.processes: list[subprocess.Popen[bytes]] = []
        for i, log in enumerate(self.logs):
            with log.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, TOY, str(run), str(steps)],
                        env=environment | ({"JAX_PROCESS_ID": str(i)} if count > 1 else {}),
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def reach(self, process: int, step: int) -> None:
        """Return when a process reads the batch of a step."""
        file, until = self.run / f"reached_{process}", time.monotonic() + 120.0
        while not (file.exists() and int(file.read_text() or 0) >= step):
            assert self.processes[process].poll() is None and time.monotonic() < until, self.log(process)
            time.sleep(0.05)

    def save(self, step: int) -> None:
        """Return when the checkpoint of a step is complete."""
        until = time.monotonic() + 60.0
        while step not in RunFolder(self.run).checkpoints("toy").steps():
            assert time.monotonic() < until, self.log(0)
            time.sleep(0.02)

    def ends(self, process: int, within: float = 120.0) -> int:
        return self.processes[process].wait(within)

    def log(self, process: int) -> str:
        return self.logs[process].read_text()

    def results(self) -> list[dict]:
        codes = [process.wait(120.0) for process in self.processes]
        assert codes == [0] * len(codes), "\n".join(map(self.log, range(len(codes))))
        return [json.loads((self.run / f"result_{i}.json").read_text()) for i in range(len(codes))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What one process with four devices comes to."""
    with Processes(tmp_path_factory.mktemp("toy") / "run", 1, devices=4) as one:
        return one.results()[0] | {"losses": losses(one.run)}


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl")]


@pytest.mark.slow
def test_processes_come_to_the_same_bits_and_each_reads_its_share(alone: dict, tmp_path: Path):
    digests = set()
    for count in (2, 4):
        with Processes(tmp_path / str(count), count, devices=4 // count) as several:
            results = several.results()
            np.testing.assert_allclose(losses(several.run), alone["losses"], rtol=1e-5)
        assert len({result["digest"] for result in results}) == 1
        digests.add(results[0]["digest"])
        for parts in zip(*(result["rows"] for result in results), strict=True):
            assert all(len(part) == 8 // count for part in parts)
        together = [list(itertools.chain(*parts)) for parts in zip(*(r["rows"] for r in results), strict=True)]
        assert together == alone["rows"]
        assert len(losses(several.run)) == 40  # written once
        assert "loss" in several.log(0) and "loss" not in several.log(1)
    assert len(digests) == 1


def check_stop(several: Processes, signaled: int, number: signal.Signals) -> None:
    several.reach(signaled, 12)
    several.processes[signaled].send_signal(number)
    assert [several.ends(i) for i in range(2)] == [75, 75]
    message = [line for line in several.log(0).splitlines() if "toy was asked to stop after step" in line]
    assert len(message) == 1 and message[0].split("error:")[1] in several.log(1)
    step = int(message[0].split("step ")[-1].split(" ")[0])
    assert RunFolder(several.run).checkpoints("toy").steps()[-1] == step


@pytest.mark.slow
@pytest.mark.parametrize(("signaled", "number"), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_one_that_is_asked_to_stop_stops_all_at_one_step_and_nothing_is_lost(
    signaled: int, number: signal.Signals, alone: dict, tmp_path: Path
):
    with Processes(tmp_path / "run", 2, devices=2) as several:
        check_stop(several, signaled, number)
    with Processes(tmp_path / "run", 2, devices=2) as several:
        results = several.results()
    with Processes(tmp_path / "unbroken", 2, devices=2) as unbroken:
        assert unbroken.results()[0]["digest"] == results[0]["digest"]
    np.testing.assert_allclose(losses(several.run), alone["losses"], rtol=1e-5)


FAULTS = {
    "kill": (signal.SIGKILL, 3.0, "has ended without a word"),
    "stop": (signal.SIGSTOP, HEARTBEAT, "is dead or stopped: no sign of life for "),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "faulty"), list(itertools.product(FAULTS, (0, 1))))
def test_a_dead_or_stopped_process_ends_the_other_in_time_and_by_name(kind: str, faulty: int, tmp_path: Path):
    number, seconds, message = FAULTS[kind]
    with Processes(tmp_path / "run", 2, steps=4000) as several:
        several.reach(faulty, 7)
        several.save(5)
        several.processes[faulty].send_signal(number)
        began = time.monotonic()
        # where process 0 is killed, jax may be quicker with an abort of its own
        assert several.ends(1 - faulty, 30.0) in ((76,) if (kind, faulty) != ("kill", 0) else (76, -signal.SIGABRT))
        assert time.monotonic() - began < seconds + 1.0
        assert f"error: process {faulty} of 2" in several.log(1 - faulty) and message in several.log(1 - faulty)
        assert RunFolder(several.run).checkpoints("toy").steps()[0] == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("stuck 1 9", 76, "is stuck: at step 8 of toy"),
        ("loop 0 9", 76, "is stuck: at step 8 of toy"),
        ("fail 1 9", 2, "failed: UserError: picture 7 is damaged"),
        ("fail 0 9", 2, "failed: UserError: picture 7 is damaged"),
    ],
)
def test_a_stuck_or_failing_process_ends_both_with_one_status(fault: str, status: int, message: str, tmp_path: Path):
    faulty = int(fault.split()[1])
    with Processes(tmp_path / "run", 2, steps=4000, fault=fault) as several:
        assert [several.ends(i) for i in range(2)] == [status, status]
        other = several.log(1 - faulty)
        assert f"error: process {faulty} of 2" in other and message in other


@pytest.mark.slow
def test_who_never_comes_is_not_waited_for_for_ever(tmp_path: Path):
    program = """
import sys
from ldm_jax import cli
from ldm_jax.config import DistributedConfig
from ldm_jax.training.processes import joined
def command(arguments):
    with joined(DistributedConfig(coordinator=sys.argv[1], num_processes=2, process_id=1, start_seconds=3.0)):
        pass
sys.exit(cli.run(command, []))
"""
    command = [sys.executable, "-c", program, f"127.0.0.1:{free_port()}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 76, ended.stderr
    assert re.search(
        r"cannot join process 0 at 127\.0\.0\.1:\d+ within 3 s \(.*refused\); are all processes", ended.stderr
    )


@pytest.mark.slow
def test_the_launcher_goes_on_after_a_kill_to_the_bits_of_an_unbroken_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("XLA_FLAGS", "")

    def launched(run: Path, kill_at: int | None) -> Sequence[str]:
        run.mkdir()
        launcher = Launcher(LaunchCommand(processes=2, restarts=2), [str(run), "40"], (sys.executable, TOY))
        killer = subprocess.Popen([sys.executable, "-c", KILLER, str(run), str(kill_at or 10**6), str(os.getpid())])
        try:
            assert launcher.run() == 0
        finally:
            killer.kill()
            killer.wait()
        return [json.loads((run / f"result_{i}.json").read_text())["digest"] for i in range(2)]

    broken = launched(tmp_path / "broken", 17)
    assert (tmp_path / "broken" / "killed").exists()
    assert len({*broken, *launched(tmp_path / "whole", None)}) == 1


KILLER = """
import os, pathlib, signal, subprocess, sys, time
run, step, parent = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
while not ((run / "reached_1").exists() and int((run / "reached_1").read_text() or 0) >= step):
    time.sleep(0.02)
for status in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
        stat = (status.parent / "stat").read_text().rsplit(")", 1)[1].split()
        if stat[1] == parent and b"JAX_PROCESS_ID=1" in status.read_bytes():
            os.kill(int(status.parent.name), signal.SIGKILL)
            (run / "killed").touch()
    except OSError:
        pass
"""
