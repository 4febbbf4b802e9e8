"""Runs of several processes: the same numbers however they are divided, one end for all, and none that hangs.

The processes are `toy_process.py`, joined over loopback. Run with another Python, these tests try its version of jax.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
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
HEARTBEAT = 8.0  # of the toy
LOADED = 20.0
"""Seconds that a machine with other work may add to any time."""
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


def free_port_number(low: int) -> int:
    """A port from `low` on that nobody listens on: clusters choose theirs among the highest, by the number of a job."""
    for port in range(low, 65536):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def variables(cluster: str, count: int) -> list[dict[str, str]]:
    """What each process finds in its environment: by it it knows the others."""
    if count == 1 and not cluster:
        return [{}]
    if cluster == "slurm":
        job = free_port_number(62000) - 61440
        both = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
        return [both | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]
    if cluster == "ompi":
        job = (free_port_number(63000) - 61440) * 4096
        both = {"OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": str(count)}
        return [both | {"OMPI_COMM_WORLD_RANK": str(i), "OMPI_COMM_WORLD_LOCAL_RANK": str(i)} for i in range(count)]
    both = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    return [both | {"JAX_PROCESS_ID": str(i)} for i in range(count)]


class Processes:
    """Toy processes of one run."""

    def __init__(
        self, run: Path, count: int, devices: int = 1, steps: int = 40, fault: str = "", cluster: str = ""
    ) -> None:
        self.run = run
        run.mkdir(parents=True, exist_ok=True)
        own = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": str(devices)}
        environment = {**os.environ, **own, **({"TOY_FAULT": fault} if fault else {})}
        self.logs = [run.parent / f"{run.name}_{i}.log" for i in range(count)]
        self.processes: list[subprocess.Popen[bytes]] = []
        for log, given in zip(self.logs, variables(cluster, count), strict=True):
            command = [sys.executable, TOY, str(run), str(steps)]
            with log.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(command, env=environment | given, stdout=file, stderr=subprocess.STDOUT)
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

    def rows(self) -> dict[int, list[list[int]]]:
        """The rows of the batch of each step that each process has read, where all have."""
        count = len(self.processes)
        files = [self.run / f"rows_{i}_of_{count}.jsonl" for i in range(count)]
        read = [dict(json.loads(line) for line in file.read_text().splitlines()) for file in files]
        return {step: [own[step] for own in read] for step in read[0] if all(step in own for own in read)}

    def results(self) -> list[dict]:
        codes = [process.wait(120.0) for process in self.processes]
        assert codes == [0] * len(codes), "\n".join(map(self.log, range(len(codes))))
        return [json.loads((self.run / f"result_{i}.json").read_text()) for i in range(len(codes))]


@dataclasses.dataclass(frozen=True)
class Unbroken:
    """What an undisturbed run came to."""

    digest: str
    losses: list[float]
    rows: dict[int, list[list[int]]]


def unbroken(run: Path, count: int) -> Unbroken:
    """A run of 40 steps on four devices, divided by so many processes, which have to agree on its end."""
    with Processes(run, count, devices=4 // count) as several:
        (digest,) = {result["digest"] for result in several.results()}
        assert len(losses(run)) == 40  # each step is written once
        return Unbroken(digest, losses(run), several.rows())


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl")]


def together(rows: dict[int, list[list[int]]]) -> list[list[int]]:
    """The batches of the steps from the first on, as all processes have read them."""
    return [list(itertools.chain(*rows[step])) for step in range(1, len(rows) + 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """One process with four devices."""
    return unbroken(tmp_path_factory.mktemp("alone") / "run", 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """Two processes with two devices each."""
    return unbroken(tmp_path_factory.mktemp("pair") / "run", 2)


@pytest.mark.slow
def test_processes_come_to_the_same_bits_and_each_reads_its_share(alone: Unbroken, pair: Unbroken, tmp_path: Path):
    four = unbroken(tmp_path / "four", 4)
    for several, count in ((pair, 2), (four, 4)):
        np.testing.assert_allclose(several.losses, alone.losses, rtol=1e-5)  # over all rows, and written once
        assert all(len(part) == 8 // count for parts in several.rows.values() for part in parts)
        assert together(several.rows) == together(alone.rows)
    assert pair.digest == four.digest
    assert pair.losses == four.losses


def stopped(several: Processes, signaled: int, number: signal.Signals, step: int = 12) -> int:
    """Ask a process to stop when it has come to a step; the step after which all are saved and have stopped."""
    several.reach(signaled, step)
    several.processes[signaled].send_signal(number)
    codes = [several.ends(i) for i in range(len(several.processes))]
    assert codes == [75] * len(codes), several.log(0)
    message = [line for line in several.log(0).splitlines() if "toy was asked to stop after step" in line]
    assert len(message) == 1 and all(message[0].split("error:")[1] in several.log(i) for i in range(len(codes)))
    saved = int(message[0].split("step ")[-1].split(" ")[0])
    assert RunFolder(several.run).checkpoints("toy").steps()[-1] == saved
    return saved


@pytest.mark.slow
@pytest.mark.parametrize(("signaled", "number"), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_one_that_is_asked_to_stop_stops_all_at_one_step_and_nothing_is_lost(
    signaled: int, number: signal.Signals, pair: Unbroken, tmp_path: Path
):
    with Processes(tmp_path / "run", 2, devices=2) as several:
        stopped(several, signaled, number)
    with Processes(tmp_path / "run", 2, devices=2) as several:
        assert several.results()[0]["digest"] == pair.digest
    assert losses(several.run) == pair.losses


@pytest.mark.slow
def test_one_process_in_a_cluster_stops_as_several_do(tmp_path: Path):
    with Processes(tmp_path / "run", 1, cluster="slurm") as one:
        stopped(one, 0, signal.SIGTERM, 8)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone: Unbroken, tmp_path: Path):
    rows: dict[int, list[list[int]]] = {}
    for count, goal in ((2, 12), (4, 24), (1, None)):
        with Processes(tmp_path / "run", count, devices=4 // count) as several:
            end = 40 if goal is None else stopped(several, count - 1, signal.SIGTERM, goal)
            assert goal is not None or several.results()
            read = several.rows()
            assert min(read) == len(rows) + 1  # where the others have stopped
            rows |= {step: read[step] for step in range(len(rows) + 1, end + 1)}
    assert together(rows) == together(alone.rows)
    np.testing.assert_allclose(losses(several.run), alone.losses, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["slurm", "ompi"])
def test_what_a_cluster_sets_is_enough(cluster: str, pair: Unbroken, tmp_path: Path):
    with Processes(tmp_path / "run", 2, devices=2, steps=4, cluster=cluster) as several:
        results = several.results()
    assert len({result["digest"] for result in results}) == 1
    assert several.rows() == {step: pair.rows[step] for step in range(1, 5)}


FAULTS = {
    "kill": (signal.SIGKILL, "has ended without a word"),
    "stop": (signal.SIGSTOP, "is dead or stopped: no sign of life for "),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "faulty"), list(itertools.product(FAULTS, (0, 1))))
def test_a_dead_or_stopped_process_ends_the_other_in_time_and_by_name(kind: str, faulty: int, tmp_path: Path):
    number, message = FAULTS[kind]
    with Processes(tmp_path / "run", 2, steps=4000) as several:
        several.reach(faulty, 7)
        several.save(5)
        several.processes[faulty].send_signal(number)
        # where process 0 is killed, jax may be quicker with an abort of its own
        allowed = (76,) if (kind, faulty) != ("kill", 0) else (76, -signal.SIGABRT)
        assert several.ends(1 - faulty, HEARTBEAT + LOADED) in allowed, several.log(1 - faulty)
        assert f"error: process {faulty} of 2" in several.log(1 - faulty) and message in several.log(1 - faulty)
        assert RunFolder(several.run).checkpoints("toy").steps()[0] == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("stuck 1 0", 76, "is stuck: starting for "),
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
        assert f"error: process {faulty} of 2" in other and message in other, other


ALONE = """
import sys
from ldm_jax import cli
from ldm_jax.config import DistributedConfig
from ldm_jax.training.processes import joined
def command(arguments):
    of = {"num_processes": int(sys.argv[3]), "process_id": int(sys.argv[2])}
    given = DistributedConfig(coordinator=sys.argv[1], start_seconds=3.0, **of)
    with joined(given):
        pass
sys.exit(cli.run(command, []))
"""
NOBODY = r"cannot join process 0 at 127\.0\.0\.1:\d+ within 3 s \(.*refused\); are all processes"
WAITED = r"error: process 2 of 4 has waited 3 s for the others, and not all have come; are all started, and do they re"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("there", "count", "messages"),
    [
        (
            [0],
            2,
            [r"error: process 1 of 2 has not come within 3 s; are all started, and do they reach .*127\.0\.0\.1:\d"],
        ),
        ([1], 2, [NOBODY]),
        ([0, 2], 4, [r"error: processes 1, 3 of 4 have not come within 3 s; are all", WAITED]),
    ],
)
def test_who_never_comes_is_named_and_not_waited_for_for_ever(there: list[int], count: int, messages: list[str]):
    address = f"127.0.0.1:{free_port()}"
    waiting = [
        subprocess.Popen([sys.executable, "-c", ALONE, address, str(i), str(count)], stderr=subprocess.PIPE, text=True)
        for i in there
    ]
    for process, message in zip(waiting, messages, strict=True):
        _, told = process.communicate(timeout=300)
        # who has come much later than process 0, on a busy machine, is aborted by jax
        assert process.returncode == 76 or (message == WAITED and process.returncode == -signal.SIGABRT), told
        assert re.search(message, told) or process.returncode != 76, told


@pytest.mark.slow
def test_the_launcher_goes_on_after_a_kill_to_the_bits_of_an_unbroken_run(
    pair: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    monkeypatch.setenv("XLA_FLAGS", "")

    run = tmp_path / "run"
    run.mkdir()
    launcher = Launcher(LaunchCommand(processes=2, restarts=2), [str(run), "40"], (sys.executable, TOY))
    killer = subprocess.Popen([sys.executable, "-c", KILLER, str(run), "17", str(os.getpid())])
    try:
        assert launcher.run() == 0
    finally:
        killer.kill()
        killer.wait()
    assert (run / "killed").exists()
    digests = {json.loads((run / f"result_{i}.json").read_text())["digest"] for i in range(2)}
    assert digests == {pair.digest}
    assert losses(run) == pair.losses


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
