"""`ldm launch`: several processes of one run on this machine, restarted from the last checkpoint when one fails.

Process 0 has the terminal; what the others say comes with their number before it, or goes to files. Whatever cluster
software starts processes elsewhere (launch/) does the same for many machines.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import tyro

from ldm_jax.config.checks import require, require_positive
from ldm_jax.errors import UserError
from ldm_jax.training.watchdog import PEER_LOST

logger = logging.getLogger(__name__)

FINAL = (2, 3, 130)
"""Exit statuses that another attempt would end with, too: a user's error, a diverged loss, a second Ctrl-C."""

_SHARED = ("train", "sample", "evaluate", "latents")
"""Commands whose work several processes share."""

_LONGEST_PAUSE = 60.0
_LEAST_ALLOWED = 16
"""Processes that any machine may start, however few its cores: of trials."""


@dataclass(frozen=True, kw_only=True)
class LaunchCommand:
    """Run a command in several processes on this machine: `ldm launch --processes 4 -- train NAME --flags`."""

    processes: int
    """Processes; devices are divided among them."""
    restarts: int = 10
    """Restarts at most, of all processes together and from the last checkpoint, when one has failed; an error that
    would come again is not tried again."""
    pause: float = 1.0
    """Seconds before a restart; twice as long after each attempt that failed within a minute, up to a minute."""
    grace: float = 15.0
    """Seconds that the others have to end by themselves after one has failed."""
    logs: str | None = None
    """Folder for what processes 1 and on say, a file each; default: it comes to the terminal with their number."""

    def __post_init__(self) -> None:
        require_positive(self, "processes", "pause", "grace")
        cores = os.cpu_count() or 1
        most = max(_LEAST_ALLOWED, cores)
        require(
            self.processes <= most,
            f"--processes={self.processes} are more than a machine of {cores} cores is for: give at most {most}, and "
            "more machines by launch/",
        )
        require(self.restarts >= 0, f"--restarts={self.restarts} must not be negative")


def launch(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status.

    Raises:
        UserError: there is no command behind `--`.
    """
    flags, command = split_arguments(arguments)
    config = tyro.cli(LaunchCommand, prog="ldm launch", args=flags)
    if not command or command[0] not in _SHARED:
        raise UserError("say what to run behind two dashes: ldm launch --processes 4 -- train NAME --flags")
    return Launcher(config, command).run()


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags before the two dashes, and the command behind them."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at + 1 :])


def status_of(codes: Sequence[int]) -> int:
    """One exit status for all processes: the reason of the first one that failed, not that others were ended by it."""
    failed = [code for code in codes if code != 0]
    final = [code for code in failed if code in FINAL]
    own = [code for code in failed if code not in (PEER_LOST, -signal.SIGKILL)]
    return next(iter([*final, *own, *failed]), 0)


@dataclass
class Launcher:
    """Processes of one run, from the first attempt to the last."""

    config: LaunchCommand
    command: list[str]
    program: Sequence[str] = (sys.executable, "-c", "from ldm_jax.cli import main; main()")
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    asked: int = 0
    """How often this process was asked to stop."""

    def run(self) -> int:
        """Start, watch and restart; the exit status of the last attempt."""
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            status = self._until_done()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return status if status >= 0 else 128 - status

    def _until_done(self) -> int:
        pause, left = self.config.pause, self.config.restarts
        while True:
            began = time.monotonic()
            codes = self._attempt()
            if time.monotonic() - began > _LONGEST_PAUSE:
                pause = self.config.pause
            status = status_of(codes)
            if status == 0 or status in FINAL or self.asked or left == 0:
                return status
            logger.warning("%s; restart in %.0f s, %d more after it", _told(codes), pause, left - 1)
            self._sleep(pause)
            if self.asked:
                return status
            pause, left = min(2 * pause, _LONGEST_PAUSE), left - 1

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.asked:
            time.sleep(0.1)

    def _attempt(self) -> list[int]:
        """Start all, and wait until all have ended; their exit statuses, negative for a signal."""
        port = free_port()
        self.workers = [self._start(i, port) for i in range(self.config.processes)]
        readers = [self._read(i, worker) for i, worker in enumerate(self.workers) if worker.stdout is not None]
        failed: float | None = None
        while any(worker.poll() is None for worker in self.workers):
            if failed is None and any(worker.poll() not in (None, 0) for worker in self.workers):
                failed = time.monotonic()
            if self.asked > 1 or (failed is not None and time.monotonic() - failed > self.config.grace):
                self._kill()
            time.sleep(0.1)
        for reader in readers:
            reader.join()
        return [worker.wait() for worker in self.workers]

    def _start(self, process: int, port: int) -> "subprocess.Popen[bytes]":
        given = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(self.config.processes),
            "JAX_PROCESS_ID": str(process),
        }
        if gpus := sorted(Path("/dev").glob("nvidia[0-9]*")):
            share = len(gpus) // self.config.processes or 1
            given["JAX_LOCAL_DEVICE_IDS"] = ",".join(str(process * share + i) for i in range(share))
        pipe = None if process == 0 else subprocess.PIPE
        return subprocess.Popen(
            [*self.program, *self.command],
            env={**os.environ, **given},
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=None if process == 0 else subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
        )

    def _read(self, process: int, worker: "subprocess.Popen[bytes]") -> threading.Thread:
        """Pass on what a process says, until it ends."""
        assert worker.stdout is not None
        thread = threading.Thread(target=self._pass_on, args=(process, worker.stdout))
        thread.start()
        return thread

    def _pass_on(self, process: int, lines: IO[bytes]) -> None:
        if self.config.logs is None:
            for line in lines:
                sys.stderr.write(f"[{process}] {line.decode(errors='replace')}")
            return
        Path(self.config.logs).mkdir(parents=True, exist_ok=True)
        with (Path(self.config.logs) / f"process_{process}.log").open("ab") as file:
            for line in lines:
                file.write(line)
                file.flush()

    def _stop(self, number: int, frame: object) -> None:
        self.asked += 1
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()


def _told(codes: Sequence[int]) -> str:
    """Which processes failed, and how."""

    def how(code: int) -> str:
        return f"signal {-code}" if code < 0 else f"status {code}"

    return "; ".join(f"process {i} ended with {how(code)}" for i, code in enumerate(codes) if code != 0)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
