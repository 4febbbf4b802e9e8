"""Progress is a bar on a terminal and a line from time to time elsewhere."""

import io
import re

import pytest

import ldm_jax.progress
from ldm_jax.progress import progress


class Stderr(io.StringIO):
    """Stands for stderr, with a terminal behind it or without."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def redirected(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> Stderr:
    """What stands for stderr in this test; a fixture would come before pytest's own."""
    monkeypatch.setattr("sys.stderr", stderr := Stderr(terminal))
    return stderr


def work(steps: int, **options: bool | int) -> None:
    with progress("training", 5000, "step", **options) as bar:
        for number in range(steps):
            if number == 1000:
                bar.set_postfix_str("loss 0.25", refresh=False)
            bar.update()


def test_short_work_says_nothing_without_a_terminal(monkeypatch: pytest.MonkeyPatch):
    stderr = redirected(monkeypatch, terminal=False)
    work(5000)
    assert stderr.getvalue() == ""


def test_a_line_from_time_to_time_without_a_terminal(monkeypatch: pytest.MonkeyPatch):
    stderr = redirected(monkeypatch, terminal=False)
    clock = iter(range(10**6))  # a second a look
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(clock)))
    work(3000, done=1000)
    lines = stderr.getvalue().splitlines()
    assert 5 < len(lines) < 50
    line = r"training: \d+ of 5000 steps, [\d:]+ gone, [\d:]+ left, *[\d.]+(step/s|s/step)"
    assert all(re.fullmatch(line + "(, loss 0.25)?", text) for text in lines), lines[0]
    assert lines[-1].endswith(", loss 0.25") and "\r" not in stderr.getvalue()


def test_a_terminal_shows_a_bar_in_one_line(monkeypatch: pytest.MonkeyPatch):
    stderr = redirected(monkeypatch, terminal=True)
    work(5000)
    assert "100%" in stderr.getvalue() and stderr.getvalue().count("\n") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_who_is_silent_says_nothing(monkeypatch: pytest.MonkeyPatch, terminal: bool):
    stderr = redirected(monkeypatch, terminal=terminal)
    monkeypatch.setattr(ldm_jax.progress, "SECONDS_BETWEEN_LINES", 0.0)
    work(10, silent=True)
    assert stderr.getvalue() == ""
