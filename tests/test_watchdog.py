"""The watch of processes over each other: what is judged a fault, and who hears of it."""

import dataclasses
import secrets
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from ldm_jax.training import watchdog
from ldm_jax.training.watchdog import PEER_LOST, Limits, Progress, Watch, judge

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

LIMITS = Limits(heartbeat=10.0, busy=100.0, longest=1000.0)
SOON = 9.0  # so that all have ended within ten seconds


def process(number: int, **known: object) -> Progress:
    return dataclasses.replace(Progress(f"process {number}", heard=0.0, moved=0.0, patience="step"), **known)


def test_who_lives_and_keeps_up_is_left_alone():
    processes = [process(0, heard=8.0, count=5), process(1, heard=8.5, count=5)]
    assert judge(processes, SOON, LIMITS) is None


def test_silence_is_death():
    processes = [process(0, heard=SOON), process(1, heard=0.0)]
    assert judge(processes, SOON - 0.1, LIMITS) is None
    assert judge(processes, SOON, LIMITS) == "process 1 is dead or stopped: no sign of life for 9 s"


def test_who_has_ended_may_be_silent():
    assert judge([process(0, heard=50.0), process(1, ended=True)], 50.0, LIMITS) is None


def judged_for(seconds: int, processes: list[Progress]) -> tuple[int, str] | None:
    """When which verdict comes, if all give signs of life and none moves."""
    for now in range(seconds):
        for one in processes:
            one.heard = float(now)
        if verdict := judge(processes, float(now), LIMITS):
            return now, verdict
    return None


def test_who_falls_behind_is_stuck():
    processes = [process(0, count=6), process(1, count=5, task="at step 5 of toy")]
    assert judged_for(50, processes) == (9, "process 1 is stuck: at step 5 of toy for 9 s while others are further")


def test_time_counts_from_when_the_others_are_further():
    processes = [process(0, count=5), process(1, count=5)]
    assert judged_for(50, processes) is None  # one long step of all
    processes[0].hear({"count": 6, "task": "at step 6", "patience": "step", "advances": 0}, 50.0)
    assert judge(processes, 51.0, LIMITS) is None
    processes[1].hear({"count": 6, "task": "at step 6", "patience": "step", "advances": 0}, 52.0)
    assert judge(processes, 52.0, LIMITS) is None and processes[1].behind is None


def test_a_task_that_may_take_long_has_longer():
    processes = [process(0, count=6), process(1, count=5, patience="busy", task="evaluating")]
    assert judged_for(300, processes) == (100, "process 1 is stuck: evaluating for 100 s while others are further")


def test_all_may_be_stuck_together():
    processes = [process(i, count=5, task="at step 5 of toy") for i in range(3)]
    assert judged_for(300, processes) == (
        100,
        "no process has begun another step for 100 s; all are at: at step 5 of toy",
    )


def test_who_prepares_for_all_has_longest():
    processes = [process(0, count=2, patience="longest", task="preparing data"), process(1, count=3, patience="busy")]
    verdict = "process 0 is stuck: preparing data for 1000 s while others are further"
    assert judged_for(3000, processes) == (1000, verdict)


def test_all_may_be_stuck_together_at_what_takes_long():
    processes = [process(i, count=1, patience="busy", task="evaluating") for i in range(3)]
    assert judged_for(3000, processes) == (
        1000,
        "no process has begun another step for 1000 s; all are at: evaluating",
    )


# --- work in unequal shares, such as the shards of a set of latents ---------------------------------------------------

ENCODING, ENDING = "encoding shapes/train into latents", "waiting to begin writing the manifest of the latents"


def judged_at_work(last: list[int], hangs: dict[int, int] | None = None) -> tuple[int, str] | None:
    """When which verdict comes on processes that get on with a task every 50 s, each up to its last picture, and then
    wait for the others; unless one hangs."""
    watches = [Watch(i, len(last), LIMITS) for i in range(len(last))]
    processes = [process(i) for i in range(len(last))]
    for watch in watches:
        watch.note(ENCODING, "busy")
    for now in range(0, max(last) + 2000, 10):
        for i, watch in enumerate(watches):
            if now % 50 == 0 and now < min(last[i], (hangs or {}).get(i, now + 1)):
                watch.advance()
            if now == last[i] and i not in (hangs or {}):
                watch.note(ENDING, "busy")
            processes[i].hear(watchdog._beat(watch), float(now))
        if verdict := judge(processes, float(now), LIMITS):
            return now, verdict
        if len({watch.count for watch in watches}) == 1 and processes[0].task == ENDING:
            return None
    raise AssertionError("nobody has said anything")


@pytest.mark.parametrize("last", [[9000, 9000], [600, 9000], [9000, 600], [0, 300, 9000]])
def test_who_gets_on_with_a_long_task_is_left_alone(last: list[int]):
    assert max(last) > LIMITS.longest > LIMITS.busy
    assert judged_at_work(last) is None


def test_who_hangs_in_it_is_found_when_the_others_have_ended():
    verdict = f"process 1 is stuck: {ENCODING} for 150 s while others are further"
    assert judged_at_work([80, 9000], hangs={1: 1}) == (150, verdict)  # the other has moved at 50


def test_who_hangs_in_it_is_found_while_the_others_go_on():
    at, verdict = judged_at_work([9000, 9000, 9000], hangs={1: 4010}) or (0, "")
    assert 4000 + LIMITS.busy <= at <= 4000 + LIMITS.busy + 51
    assert verdict == f"process 1 is stuck: {ENCODING} for {at - 4000} s while others go on with it"


def test_all_may_hang_in_it():
    verdict = f"no process has begun another step for 1000 s; all are at: {ENCODING}"
    assert judged_at_work([9000, 9000], hangs={0: 4001, 1: 4001}) == (5000, verdict)


def test_who_waits_for_one_that_goes_on_does_not_fall_behind():
    waiting, working = process(0, count=2, patience="busy"), process(1, count=1, patience="busy")
    for now in range(0, 5000, 10):
        waiting.hear({"count": 2, "task": ENDING, "patience": "busy", "advances": 0}, float(now))
        working.hear({"count": 1, "task": ENCODING, "patience": "busy", "advances": now}, float(now))
        assert judge([waiting, working], float(now), LIMITS) is None
    assert waiting.behind is None


QUICK = Limits(heartbeat=4.0, busy=100.0, longest=1000.0)


@dataclasses.dataclass
class Party:
    """Watches of three processes in this one, and the verdicts that would have ended it."""

    verdicts: list[tuple[str, int]]
    watches: list[Watch]
    sockets: list[socket.socket]

    def wait_for(self, count: int) -> list[tuple[str, int]]:
        until = time.monotonic() + 20.0
        while len(self.verdicts) < count and time.monotonic() < until:
            time.sleep(0.02)
        return self.verdicts


@pytest.fixture
def party(monkeypatch: pytest.MonkeyPatch) -> Iterator[Party]:
    verdicts: list[tuple[str, int]] = []

    def end(verdict: str, code: int) -> None:
        verdicts.append((verdict, code))
        raise SystemExit  # ends the thread, quietly

    monkeypatch.setattr(watchdog, "end_process", end)
    monkeypatch.setattr(watchdog, "_LAST_WORDS_SECONDS", 0.0)
    token, server = secrets.token_hex(8), socket.create_server(("127.0.0.1", 0))
    watches = [Watch(i, 3, QUICK) for i in range(3)]
    watches[0].serve(server, token)
    sockets = [socket.create_connection(server.getsockname()) for _ in range(2)]
    for watch, connection in zip(watches[1:], sockets, strict=True):
        watch.follow(connection, token)
    time.sleep(0.5)
    yield Party(verdicts, watches, sockets)
    for watch in watches:
        watch.finish()


def test_a_connection_that_ends_ends_all(party: Party):
    party.sockets[0].shutdown(socket.SHUT_RDWR)
    verdicts = party.wait_for(3)
    assert {code for _, code in verdicts} == {PEER_LOST}
    told = [verdict for verdict, _ in verdicts if "process 1 of 3 (" in verdict]
    assert len(told) == 2 and all(verdict.endswith("has ended without a word") for verdict in told)


def test_a_farewell_comes_to_all_with_its_status(party: Party):
    party.watches[2].fail("UserError: picture 7 is damaged", 2)
    verdicts = party.wait_for(2)
    assert len(verdicts) == 2  # not to the one that says it: it ends by itself
    for verdict, code in verdicts:
        assert verdict.startswith("process 2 of 3 (") and verdict.endswith("failed: UserError: picture 7 is damaged")
        assert code == 2


@pytest.fixture(autouse=True)
def no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A farewell ends the process for certain, after a while; not this one."""

    class Timer:
        daemon = False

        def __init__(self, seconds: float, act: Callable[..., None], arguments: list[int]) -> None:
            pass

        def start(self) -> None:
            pass

    monkeypatch.setattr(watchdog.threading, "Timer", Timer)


def test_process_0_says_farewell_too(party: Party):
    party.watches[0].fail("RuntimeError: boom", 1)
    assert [(v.split(" (")[0], c) for v, c in party.wait_for(2)] == [("process 0 of 3", 1)] * 2


def test_steps_are_counted_and_told(party: Party):
    for _ in range(3):
        for watch in party.watches:
            watch.note("at step", "step")
    party.watches[0].note("at step 4", "step")  # process 1 and 2 never come to it
    verdict, code = party.wait_for(3)[0]
    assert "is stuck: at step for" in verdict and code == PEER_LOST


def test_at_the_end_nobody_is_missed(party: Party):
    for watch in party.watches:
        watch.finish()
    time.sleep(1.0)
    for connection in party.sockets:
        connection.close()
    assert party.wait_for(0) == []


def test_a_stranger_is_not_listened_to(party: Party):
    stranger = socket.create_connection(party.sockets[0].getpeername())
    stranger.sendall(b'{"token": "guess", "process": 1, "reason": "me", "code": 0}\n[1]\nnonsense\n')
    stranger.close()
    time.sleep(0.6)
    assert party.verdicts == []
