"""Watching the processes of a run: one that is dead or stuck ends all the others, and they say which one it was.

Every process tells process 0, over a connection of its own, that it lives and how far it has come. Process 0 judges,
its verdict ends everyone, and when it is process 0 itself that is silent, everyone ends by themselves. jax watches too,
but what it does differs from version to version, from an exception over an abort to waiting for ever.

(1) dead      the connection has ended without a farewell, or nothing came over it for `heartbeat` seconds
(2) stuck     others are further, or go on at the same task, and it has not moved since for `heartbeat` seconds in a
              step, `busy` seconds in a task that may take long on one process alone, such as compiling, `longest`
              seconds in preparing data for all
(3) all stuck nobody has moved for `busy` seconds where all are at a step, or anywhere else for `longest` seconds

To move is to begin another task, or to get on with a long one: tasks are counted, and who has begun more is further.
How far one has come within a task is not compared, for the shares of a task need not be equal.
"""

import contextlib
import json
import logging
import math
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

logger = logging.getLogger(__name__)

PEER_LOST = 76
"""Exit status of a process that was ended because another one is dead or stuck."""

Patience: TypeAlias = Literal["step", "busy", "longest"]
"""How long a task may take while others wait for it."""

_LONGEST_LINE = 65536
_FAREWELL_SECONDS = 10.0
_LAST_WORDS_SECONDS = 2.0


@dataclass(frozen=True)
class Limits:
    """Seconds after which silence is a fault; see the equations above."""

    heartbeat: float
    busy: float
    longest: float

    @property
    def interval(self) -> float:
        """Seconds between two signs of life."""
        return min(self.heartbeat / 20, 2.0)

    @property
    def soon(self) -> float:
        """Seconds after which silence is judged, so that all have ended within the heartbeat time."""
        return self.heartbeat - 2 * self.interval

    def of(self, patience: Patience) -> float:
        """Seconds that a task may take while others wait."""
        return {"step": self.soon, "busy": self.busy, "longest": self.longest}[patience]


@dataclass
class Progress:
    """What is known of one process, with times on the clock of process 0."""

    name: str
    heard: float
    moved: float
    count: int = 0
    task: str = "starting"
    patience: Patience = "busy"
    advances: int = 0
    advanced: float = -math.inf
    """When it has last got on with its task, after it had begun that."""
    behind: float | None = None
    """Since when others are further, or go on, and this one has not moved."""
    ended: bool = False
    """Whether it has said that it ends."""

    def hear(self, beat: dict[str, Any], now: float) -> None:
        """Take note of a sign of life."""
        self.heard = now
        if beat["count"] != self.count:
            self.count, self.task, self.patience = beat["count"], beat["task"], beat["patience"]
            self.advanced = -math.inf
        elif beat["advances"] != self.advances:
            self.advanced = now
        else:
            return
        self.advances, self.moved, self.behind = beat["advances"], now, None


def judge(processes: list[Progress], now: float, limits: Limits) -> str | None:
    """What is wrong, if anything is: (1), (2), (3). Notes which processes have fallen behind."""
    watched = [process for process in processes if not process.ended]
    furthest = max((process.count for process in processes), default=0)
    advanced: dict[int, float] = {}
    for process in processes:
        advanced[process.count] = max(process.advanced, advanced.get(process.count, -math.inf))
    for process in watched:
        if now - process.heard >= limits.soon:
            return f"{process.name} is dead or stopped: no sign of life for {now - process.heard:.0f} s"
        if process.count == furthest and advanced[furthest] <= process.moved:
            process.behind = None
        elif process.behind is None:
            process.behind = now
        elif now - process.behind >= limits.of(process.patience):
            others = "others are further" if process.count < furthest else "others go on with it"
            return f"{process.name} is stuck: {process.task} for {now - process.moved:.0f} s while {others}"
    idle = now - max((process.moved for process in watched), default=now)
    together = limits.busy if all(process.patience == "step" for process in watched) else limits.longest
    if watched and idle >= together:
        return f"no process has begun another step for {idle:.0f} s; all are at: {watched[0].task}"
    return None


@dataclass
class Watch:
    """The watch of this process over the others; `start` begins it."""

    process_id: int
    num_processes: int
    limits: Limits
    count: int = 0
    task: str = "starting"
    patience: Patience = "busy"
    advances: int = 0
    finished: threading.Event = field(default_factory=threading.Event)
    farewell: dict[str, Any] | None = None
    told: threading.Event = field(default_factory=threading.Event)
    """Set when the farewell is on its way."""

    def note(self, task: str, patience: Patience) -> None:
        """The main thread begins a task; all processes begin the same ones in the same order."""
        self.task, self.patience = task, patience
        self.count += 1

    def advance(self) -> None:
        """The main thread gets on with its task, however often the others do with theirs."""
        self.advances += 1

    def finish(self) -> None:
        """Stop watching and being watched; all processes have to be at their end."""
        self.finished.set()

    def fail(self, reason: str, code: int) -> None:
        """This process fails by itself: tell the others why, and be gone within seconds, whatever hangs."""
        self.farewell = {"reason": reason, "code": code}
        self.told.wait(2 * self.limits.interval)
        timer = threading.Timer(_FAREWELL_SECONDS, os._exit, [code])
        timer.daemon = True
        timer.start()

    def serve(self, server: socket.socket, token: str) -> None:
        """Watch as process 0, in a thread of its own."""
        threading.Thread(target=_Server(self, server, token).run, name="watch", daemon=True).start()

    def follow(self, connection: socket.socket, token: str) -> None:
        """Watch as another process, in a thread of its own."""
        threading.Thread(target=_Client(self, connection, token).run, name="watch", daemon=True).start()


@dataclass
class _Connection:
    """JSON objects over a socket, a line each."""

    socket: socket.socket
    received: bytes = b""

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # whoever is gone is noticed when nothing more comes from there
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that have come; None when there will be no more."""
        try:
            chunk = self.socket.recv(_LONGEST_LINE)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self.received = (self.received + chunk).split(b"\n")
        try:
            messages = [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError):  # not one of us
            return None
        return messages if chunk and len(self.received) < _LONGEST_LINE else messages or None


class _Server:
    """Process 0: hears all, judges, and tells its verdict."""

    def __init__(self, watch: Watch, server: socket.socket, token: str) -> None:
        now = time.monotonic()
        self.watch, self.server, self.token = watch, server, token
        self.processes = [Progress(_name(i, watch.num_processes), now, now) for i in range(watch.num_processes)]
        self.processes[0].name = _name(0, watch.num_processes, _whereabouts())
        self.peers: dict[int, _Connection] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(server, selectors.EVENT_READ, None)

    def run(self) -> None:
        interval, before, beaten = self.watch.limits.interval, time.monotonic(), 0.0
        while not self.watch.finished.is_set():
            for key, _ in self.selector.select(interval):
                self._accept() if key.data is None else self._hear(key.data)
            now = time.monotonic()
            if now - before > 5 * interval:  # this process was stopped itself: what the others did is not known
                self._forgive(now)
            before = now
            self.processes[0].hear(_beat(self.watch), now)
            if self.watch.farewell is not None:
                reason = f"{self.processes[0].name} failed: {self.watch.farewell['reason']}"
                self._tell({"verdict": reason, "code": self.watch.farewell["code"]})
                return self.watch.told.set()
            if verdict := judge(self.processes, now, self.watch.limits):
                self._end(verdict)
            if now - beaten >= interval:
                beaten = now
                self._tell({"alive": True})
        self._tell({"finished": True})

    def _accept(self) -> None:
        peer, _ = self.server.accept()
        peer.settimeout(1.0)
        self.selector.register(peer, selectors.EVENT_READ, _Connection(peer))

    def _hear(self, connection: _Connection) -> None:
        known = next((i for i, peer in self.peers.items() if peer is connection), None)
        messages = connection.receive()
        if messages is None:
            self.selector.unregister(connection.socket)
            connection.socket.close()
            if known is not None and not self.processes[known].ended:
                self._end(f"{self.processes[known].name} has ended without a word")
            return
        for message in messages:
            if known is None:
                known = self._introduce(message, connection)
            if known is not None:
                self._take(self.processes[known], message)

    def _introduce(self, message: dict[str, Any], connection: _Connection) -> int | None:
        """Number of the process that a first message comes from; None for a stranger."""
        if not secrets.compare_digest(str(message.get("token")), self.token):
            return None
        self.peers[message["process"]] = connection
        self.processes[message["process"]].name = _name(
            message["process"], self.watch.num_processes, message["whereabouts"]
        )
        return message["process"]

    def _take(self, process: Progress, message: dict[str, Any]) -> None:
        if "reason" in message:
            self._tell({"verdict": f"{process.name} failed: {message['reason']}", "code": message["code"]})
            time.sleep(_LAST_WORDS_SECONDS)  # jax aborts it once we are gone
            self._end(f"{process.name} failed: {message['reason']}", message["code"])
        if "finished" in message:
            process.ended = True
        if "count" in message:
            process.hear(message, time.monotonic())

    def _forgive(self, now: float) -> None:
        for process in self.processes:
            process.heard = process.moved = now
            process.behind = None

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self.peers.values():
            peer.send(message)

    def _end(self, verdict: str, code: int = PEER_LOST) -> None:
        self._tell({"verdict": verdict, "code": code})
        end_process(verdict, code)


class _Client:
    """Another process: tells process 0 how it is, and ends when process 0 says so, or says nothing any more."""

    def __init__(self, watch: Watch, connection: socket.socket, token: str) -> None:
        self.watch, self.connection, self.token = watch, _Connection(connection), token
        connection.settimeout(watch.limits.interval)

    def run(self) -> None:
        limits, first = self.watch.limits, _name(0, self.watch.num_processes)
        hello = {"token": self.token, "process": self.watch.process_id, "whereabouts": _whereabouts()}
        self.connection.send({**hello, **_beat(self.watch)})
        heard = before = sent = time.monotonic()
        while not self.watch.finished.is_set():
            messages = self.connection.receive()
            if messages is None:
                end_process(f"{first} has ended without a word", PEER_LOST)
                return
            now = time.monotonic()
            heard = now if messages or now - before > 5 * limits.interval else heard
            before = now
            for message in messages:
                if "verdict" in message and self.watch.farewell is None:
                    end_process(message["verdict"], message["code"])
                if "finished" in message:
                    return
            if now - heard >= limits.soon:
                end_process(f"{first} is dead or stopped: no sign of life for {now - heard:.0f} s", PEER_LOST)
            if self.watch.farewell is not None:
                self.connection.send(self.watch.farewell)
                return self.watch.told.set()
            if now - sent >= limits.interval:
                sent = now
                self.connection.send(_beat(self.watch))
        self.connection.send({"finished": True})


def _beat(watch: Watch) -> dict[str, Any]:
    return {"count": watch.count, "task": watch.task, "patience": watch.patience, "advances": watch.advances}


def _whereabouts() -> str:
    return f" ({socket.gethostname()}, pid {os.getpid()})"


def _name(process_id: int, num_processes: int, whereabouts: str = "") -> str:
    return f"process {process_id} of {num_processes}{whereabouts}"


def end_process(verdict: str, code: int) -> None:
    """End this process from whatever thread: no exception would get out of a collective that waits for ever."""
    further = "; this process ends, and the same command goes on from the last checkpoint" if code == PEER_LOST else ""
    sys.stderr.write("\n")  # a progress bar may be on the line
    logger.error("error: %s%s", verdict, further)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
