"""What is written of a benchmark: every figure by hand, and no figure where the numbers differ."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm_jax.benchmark.comparison import Measured, Outcome
from ldm_jax.benchmark.report import Entry, as_json, as_markdown, draw_times, figures_of
from ldm_jax.benchmark.task import Task
from ldm_jax.interop.cases.comparison import Comparison

GIB = 2**30
TASK = Task(name="train", folder="f", torch_class="UNet2DConditionModel", inputs="i.npz", batch_size=16)
EQUAL = Comparison("loss, PyTorch eager", 1e-6, 2e-6, 5e-4)
KNOWN = {"machine": "a quiet one", "command": "ldm benchmark"}


def entry(device: str = "cpu", numbers: Comparison = EQUAL, **of_theirs: Any) -> Entry:
    facts = {"platform": "cpu", "device": device, "cpu_devices": 2, "flops": 4e12, "compile_seconds": 67.0}
    facts |= {"num_parameters": 18_150_000}
    ours = Measured(
        name="ldm_jax", seconds=(1.0, 2.0, 3.0), first_seconds=9.0, peak_memory=3 * GIB, running_memory=2 * GIB
    )
    theirs = Measured(**{"name": "PyTorch eager", "seconds": (2.0, 4.0, 6.0), "first_seconds": 5.0, **of_theirs})
    sides = (ours, theirs) if numbers.passed else ()
    return Entry(TASK, "16x16x4 latents, batch 16", Outcome(facts=facts, numbers=(numbers,), sides=sides, repeats=2))


def row_of(name: str, text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_figure_of_a_task():
    text = as_markdown([entry()], KNOWN)
    ours = ["ldm_jax", "2 (1.5 to 2.5)", "", "8", "2", "no peak known", "3.00, 2.00", "67.00"]
    theirs = ["PyTorch eager", "4 (3 to 5)", "0.5 (0.5 to 0.5)", "4", "1", "no peak known", "-, -", "-"]
    assert row_of("ldm_jax", text) == ours
    assert row_of("PyTorch eager", text) == theirs
    assert "## train: 16x16x4 latents, batch 16, float32" in text
    assert "18.15 M parameters, 4000.0 GFLOP, on cpu" in text
    assert "Equal in 1 results; largest relative difference 2.0e-06 (loss, PyTorch eager), tolerance 5e-04." in text
    assert "- machine: a quiet one" in text


def test_utilisation_is_told_where_the_peak_is_known():
    ours, theirs = figures_of(entry(device="TPU v5p"))
    assert ours.mfu == pytest.approx(2e12 / 459e12)
    assert theirs.mfu == pytest.approx(1e12 / 459e12)
    assert row_of("ldm_jax", as_markdown([entry(device="TPU v5p")], KNOWN))[5] == "0.4 %"


def test_a_side_that_compiles_in_its_first_call_tells_that_time():
    assert figures_of(entry(name="torch.compile"))[1].compile_seconds == 5.0


def test_numbers_that_differ_leave_no_figure():
    wrong = Comparison("loss, PyTorch eager", 0.1, 0.1, 5e-4)
    told = as_markdown([entry(numbers=wrong)], KNOWN)
    assert "NOT equal in 1 results; largest relative difference 1.0e-01 (loss, PyTorch eager), tolerance 5e-04." in told
    assert "The numbers differ: nothing was timed." in told
    assert "images/s" not in told
    parsed = json.loads(as_json([entry(numbers=wrong)], KNOWN))
    assert parsed["passed"] is False
    assert parsed["tasks"][0]["sides"] == []


def test_what_was_not_run_is_marked():
    told = as_markdown([entry(seconds=(), note="not run on tpu")], KNOWN)
    assert "- PyTorch eager: not run on tpu" in told
    assert "| PyTorch eager |" not in told
    assert row_of("ldm_jax", told)[1] == "2 (1.5 to 2.5)"


def test_programs_are_told_every_round():
    parsed = json.loads(as_json([entry()], KNOWN))
    assert parsed["passed"] is True
    assert parsed["circumstances"] == KNOWN
    ours, theirs = parsed["tasks"][0]["sides"]
    assert ours["seconds"] == [1.0, 2.0, 3.0]
    assert theirs["figures"]["ratio"] == [0.5, 0.5, 0.5]
    assert parsed["tasks"][0]["numbers"][0]["passed"] is True


def test_a_plot_grows_with_its_tasks(tmp_path: Path):
    for count in (1, 3):
        draw_times([entry()] * count, tmp_path / f"{count}.png")
    one, three = (Image.open(tmp_path / f"{count}.png").size for count in (1, 3))
    assert one[0] == three[0]
    assert one[1] < three[1]
