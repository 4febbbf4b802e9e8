"""Sides asked in turn, with programs that only pretend: what is timed, when nothing is, and what failures say."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ldm_jax.benchmark.comparison import Outcome, Side, measure
from ldm_jax.benchmark.service import forget_peak, peak_memory, serve
from ldm_jax.benchmark.worker import WorkerFailed, start_worker

PROGRAM = """
import json, sys, numpy, os
name, result, seconds, log, platform = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5]
for line in sys.stdin:
    values = json.loads(line)
    ask = values.pop("ask")
    with open(log, "a") as file:
        file.write(json.dumps([name, ask, values.get("repeats")]) + "\\n")
    if name == "dies" and ask == "check":
        sys.exit("no more memory")
    if name == "refuses" and ask == "prepare":
        print(json.dumps({"error": "ValueError: not this one"}), flush=True)
        continue
    if ask == "check":
        numpy.savez(values["path"], loss=numpy.array([1.0, result]))
    facts = {"platform": platform, "device": "cpu", "flops": 1e9, "compile_seconds": 3.0, "versions": {name: "1"}}
    answers = {
        "prepare": facts, "check": {"seconds": 0.5}, "run": {"seconds": seconds}, "memory": {"peak": 7, "anew": False}
    }
    print(json.dumps({"answer": answers[ask]}), flush=True)
"""


class Team:
    """Pretending sides that note what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "asked.jsonl"

    def side(self, name: str, result: float = 2.0, seconds: float = 0.5, platform: str = "cpu", **more: Any) -> Side:
        command = [sys.executable, "-c", PROGRAM, name, str(result), str(seconds), str(self.log), platform]
        return Side(name=name, command=lambda _: command, env={}, **more)

    def measure(self, *sides: Side, rounds: int = 3, warmup: int = 2) -> Outcome:
        return measure(sides, self.folder, tolerance=lambda platform: 1e-3, rounds=rounds, warmup=warmup)

    def asked(self, question: str) -> list[tuple[str, int | None]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [(name, repeats) for name, what, repeats in lines if what == question]


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path)


def test_sides_are_timed_in_turn_and_every_other_round_the_other_way(team: Team):
    outcome = team.measure(team.side("ours"), team.side("theirs"))
    assert outcome.passed
    warm = [("ours", 1)] * 2 + [("theirs", 1)] * 2
    turns = ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    rounds = [(name, 1) for name in turns for _ in ("again warm", "timed")]
    assert team.asked("run") == warm + rounds
    assert [side.seconds for side in outcome.sides] == [(0.5,) * 3] * 2
    assert outcome.facts["versions"] == {"ours": "1", "theirs": "1"}
    assert [side.peak_memory for side in outcome.sides] == [7, 7]


def test_quick_work_is_repeated_within_a_round_as_often_on_both_sides(team: Team):
    outcome = team.measure(team.side("ours", seconds=0.1), team.side("theirs", seconds=0.05))
    assert outcome.repeats == 4
    assert [repeats for _, repeats in team.asked("run")[4:]] == [1, 4] * 6


def test_sides_whose_numbers_differ_are_not_timed(team: Team):
    outcome = team.measure(team.side("ours", result=2.0), team.side("theirs", result=2.01))
    assert not outcome.passed
    (row,) = outcome.numbers
    assert (row.name, row.tolerance) == ("loss, theirs", 1e-3)
    assert row.relative == pytest.approx(0.01 / 2.01)
    assert outcome.sides == ()
    assert team.asked("run") == []


def test_numbers_are_compared_with_every_side(team: Team):
    outcome = team.measure(team.side("ours"), team.side("theirs"), team.side("others", result=3.0))
    assert [row.passed for row in outcome.numbers] == [True, False]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refuses", "refuses has failed at 'prepare': ValueError: not this one"),
        ("dies", "dies has ended at 'check': status 1; no more memory"),
    ],
)
def test_a_side_that_fails_says_why(team: Team, name: str, message: str):
    with pytest.raises(WorkerFailed, match=f"^{message}$"):
        team.measure(team.side("ours"), team.side(name))


def test_without_an_optional_side_the_others_go_on(team: Team):
    outcome = team.measure(team.side("ours"), team.side("theirs"), team.side("refuses", optional=True))
    assert [bool(side.seconds) for side in outcome.sides] == [True, True, False]
    assert outcome.sides[2].note == "refuses has failed at 'prepare': ValueError: not this one"


def test_on_a_tpu_pytorch_is_compared_with_and_not_timed(team: Team):
    outcome = team.measure(team.side("ours", platform="tpu"), team.side("theirs"))
    assert outcome.passed
    assert {name for name, _ in team.asked("run")} == {"ours"}
    assert outcome.sides[1].note == "not run on tpu"


def test_a_program_that_is_killed_is_told(tmp_path: Path):
    command = [sys.executable, "-c", "import os; input(); os.kill(os.getpid(), 9)"]
    worker = start_worker("ours", command, {}, tmp_path / "log")
    with pytest.raises(WorkerFailed, match=r"ours has ended at 'run': status -9 \(killed: was there enough memory\?\)"):
        worker.ask("run")
    worker.stop()


def test_a_program_answers_and_goes_on_after_an_error():
    def half(of: int) -> dict[str, Any]:
        return {"half": of // (of % 2 == 0)}

    answers: list[str] = []
    serve({"half": half}, ['{"ask": "half", "of": 3}\n', '{"ask": "half", "of": 4}\n'], answers.append)
    wrong, right = map(json.loads, answers)
    assert wrong["error"].startswith("ZeroDivisionError: ")
    assert right == {"answer": {"half": 4}}


def test_the_peak_counts_what_is_held_for_a_moment_and_can_be_forgotten():
    before = peak_memory()
    block = bytearray(64 * 2**20)
    block[:: 2**12] = b"x" * (len(block) // 2**12)
    del block
    high = peak_memory()
    assert high >= before
    if forget_peak():
        assert peak_memory() <= high
