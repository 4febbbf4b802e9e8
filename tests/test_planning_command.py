"""`ldm plan` without a compiler: what it refuses and how quickly, and what it makes of the facts."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ldm_jax.config import Experiment, MeshConfig, load_experiment
from ldm_jax.errors import UserError
from ldm_jax.planning import cache, command, facts, request, search
from ldm_jax.planning.collectives import Collective
from ldm_jax.planning.command import run_plan
from ldm_jax.planning.compiled import CompiledStep, Memory, restore_compiled
from ldm_jax.planning.facts import Facts
from ldm_jax.planning.request import Request
from ldm_jax.planning.search import candidates
from ldm_jax.planning.topology import parse_topology

GIB = 2**30
REDUCTION = Collective(
    kind="all-reduce",
    axes=("data",),
    group_size=8,
    across_nodes=False,
    asynchronous=False,
    count=3,
    num_bytes=10**9,
)


def compiled(memory: Memory) -> CompiledStep:
    return CompiledStep(
        memory=memory,
        bytes_accessed=10**11,
        bytes_source="a test",
        collectives=(REDUCTION,),
        date="2026-01-01",
        lower_seconds=1.0,
        compile_seconds=2.0,
        compile_cpu_seconds=3.0,
    )


def memory(temporaries: int, available: int = 80 * GIB) -> Memory:
    """That of a step, or of a compiler that gave up for want of it."""
    if temporaries > available:
        return Memory(arguments=2 * GIB, needed=2 * GIB + temporaries, available=available)
    return Memory(arguments=2 * GIB, temporaries=temporaries, outputs=2 * GIB, aliased=2 * GIB)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Request]:
    """What was compiled, instead of compiling it: a step with a GiB of temporaries for each picture of a chip."""
    requests: list[Request] = []

    def compile_nothing(request: Request, described: dict[str, Any]) -> Facts:
        requests.append(request)
        per_chip = request.experiment.training.batch_size // request.topology.num_chips
        available = request.topology.chip.memory - 2 * GIB
        values = dataclasses.asdict(compiled(memory(per_chip * GIB, available)))
        return Facts(num_parameters=10**6, flops=4e15, model_flops=3e15, compiled=values)

    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(facts, "_compile", compile_nothing)
    monkeypatch.setattr(command, "require_compiler", lambda topology: None)
    monkeypatch.setattr(command, "prepare_environment", lambda topology: None)
    return requests


def test_a_report_tells_what_was_compiled_and_what_is_predicted(asked: list[Request], capsys: Any):
    run_plan(["smoke", "--topology", "v5e-16", "--mesh", "data=8,fsdp=2", "--batch-per-chip", "4", "--price", "2"])
    told = capsys.readouterr().out
    assert asked[0].mesh == MeshConfig(data=8, fsdp=2)
    assert asked[0].experiment.training.batch_size == 64
    for line in (
        "# Plan: smoke on v5e-16 (4x4)",
        "mesh data=8,fsdp=2; batch 64 (4 a chip)",
        "Memory of a chip: fits, 10.00 GiB to spare",
        "computed again: 33.3% of that",
        "## Predicted, not measured",
        "not calibrated on hardware",
    ):
        assert line in told
    assert re.search(r"\| all-reduce \| data +\| 8 +\| 3 +\| 1000.0 \|", told)
    assert re.search(r"\| cost ", told)


def test_too_little_memory_is_a_result(asked: list[Request], capsys: Any):
    run_plan(["smoke", "--topology", "h100-8", "--batch-per-chip", "72"])
    told = capsys.readouterr().out
    assert "does not fit: 6.94 GiB too little" in told  # 74 GiB of 90 % of 80 GB
    assert "Nothing: it does not fit." in told


def test_json_can_be_read_and_says_that_nothing_was_measured(asked: list[Request], capsys: Any, tmp_path: Path):
    run_plan(["smoke", "--topology", "v5e-16", "--batch-per-chip", "1", "--json", "--out", str(tmp_path / "plan.json")])
    plan = json.loads(capsys.readouterr().out)
    assert plan == json.loads((tmp_path / "plan.json").read_text())
    assert plan["is_measured"] is False and plan["fits"] is True
    assert plan["topology"]["chips"] == 16
    assert plan["compiled"]["memory"]["peak"] == 3 * GIB
    assert plan["prediction"]["step_seconds"] > 0


def test_a_plan_made_twice_is_compiled_once(asked: list[Request], capsys: Any):
    for price in ("1", "2"):
        run_plan(["smoke", "--topology", "v5e-16", "--batch-per-chip", "1", "--price", price])
    assert len(asked) == 1
    run_plan(["smoke", "--topology", "v5e-16", "--batch-per-chip", "2"])
    assert len(asked) == 2


def test_the_search_ranks_and_names_the_best_that_fits(asked: list[Request], capsys: Any):
    run_plan(["smoke", "--topology", "v5e-16", "--search", "--batches-per-chip", "4,8,32", "--limit", "6"])
    told = capsys.readouterr().out
    assert len(asked) == 6
    rows = [line.split("|") for line in told.splitlines() if line.startswith("| 16")]
    assert [row[6].strip() for row in rows] == sorted((row[6].strip() for row in rows), reverse=True)  # yes before no
    assert "Best that fits: --mesh data=" in told and "with 8 pictures a chip" in told


def test_a_search_in_which_nothing_fits_says_so(asked: list[Request], capsys: Any):
    run_plan(["smoke", "--topology", "v5e-16", "--search", "--batches-per-chip", "32", "--limit", "2"])
    assert "Nothing that was tried fits." in capsys.readouterr().out


def test_scaling_keeps_the_batch_of_a_chip_and_draws(asked: list[Request], capsys: Any, tmp_path: Path):
    out = tmp_path / "scaling.md"
    flags = ["--topology", "v5e-16", "--batch-per-chip", "2", "--mesh", "fsdp=8"]
    run_plan(["smoke", *flags, "--scale", "4,16,64", "--out", str(out)])
    assert [each.experiment.training.batch_size for each in asked] == [8, 32, 128]
    assert [(each.mesh.data, each.mesh.fsdp) for each in asked] == [(1, 4), (2, 8), (8, 8)]
    assert out.read_text().count("| data=") == 3
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_candidates_are_different_and_can_be_split():
    experiment = load_experiment("smoke")
    first = Request(
        experiment=experiment, stage="diffusion", topology=parse_topology("v5e-16"), mesh=MeshConfig(data=16)
    )
    found = list(candidates(first, [1, 2]))
    assert len(found) == len({(each.experiment, each.mesh) for each in found})
    assert {each.experiment.training.batch_size for each in found} == {16, 32}
    assert {each.mesh.tensor for each in found} == {1, 2, 4}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the experiment's name comes first: ldm plan NAME --topology v5p-64"),
        (["smoke"], "ldm plan smoke needs --topology, such as --topology v5p-64 or --topology h100-8"),
        (["smoke", "--topology", "v5e-5"], "there is no v5e group of 5 chips; nearest: v5e-1, v5e-4, v5e-8, v5e-16"),
        (["smoke", "--topology", "v5e-16", "--mesh", "fsdp=3"], "the mesh data=-1,fsdp=3 does not multiply to 16"),
        (
            ["smoke", "--topology", "v5e-16", "--training.batch-size", "24"],
            "a batch of 24 pictures cannot be split over --mesh data=16; nearest that can: 16 and 32 "
            "(--batch-per-chip, or training.batch_size)",
        ),
        (["smoke", "--topology", "v5e-16", "--scale", "4,5"], "there is no v5e group of 5 chips"),
        (["smoke", "--topology", "v5e-16", "--scale", "4,x"], "--scale 4,x: give whole numbers with commas"),
        (["smoke", "--topology", "v5e-16", "--scale", "4", "--search"], "--search and --scale are two questions"),
        (["smoke", "--topology", "v5e-16", "--out", "a.txt"], "--out a.txt: reports are written as .md or .json"),
        (["smoke", "--topology", "v5e-16", "--plot", "a.png"], "--plot goes with --scale"),
        (["smoke", "--topology", "v5e-16", "--batches-per-chip", "4"], "--batches-per-chip goes with --search"),
        (["smoke", "--topology", "v5e-16", "--price", "-1"], "--price=-1.0 must be greater than 0"),
        (["smoke", "--topology", "v5e-16", "--effort", "2"], "--effort=2 must lie between -1 and 1"),
        (["smoke", "--topology", "h100-8", "--effort", "-1"], "--effort=-1 is understood by the TPU compiler alone"),
    ],
)
def test_what_cannot_be_is_refused(asked: list[Request], flags: list[str], message: str):
    with pytest.raises(UserError) as error:
        run_plan(flags)
    assert message in str(error.value)
    assert asked == []


@pytest.mark.parametrize(("topology", "extra"), [("v5e-16", "ldm_jax[tpu]"), ("h100-8", "ldm_jax[cuda12]")])
def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, topology: str, extra: str):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape(f"pip install '{extra}'")):
        run_plan(["smoke", "--topology", topology])


def test_a_refusal_does_not_wait_for_jax():
    script = (
        "import sys; from ldm_jax.cli import run, COMMANDS\n"
        "status = run(COMMANDS['plan'], ['smoke', '--topology', 'v5e-5'])\n"
        "sys.exit(10 * ('jax' in sys.modules) + status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: there is no v5e group of 5 chips")


def test_a_result_is_kept_and_a_damaged_one_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path))
    values = dataclasses.asdict(compiled(memory(GIB)))
    assert cache.read("key") is None
    cache.write("key", values)
    kept = cache.read("key")
    assert kept is not None and restore_compiled(kept) == compiled(memory(GIB))
    (tmp_path / "plans" / "key.json").write_text("{")
    assert cache.read("key") is None


def test_keys_tell_what_differs():
    assert cache.key_of(a=1, b=[2]) == cache.key_of(b=[2], a=1) != cache.key_of(a=1, b=[3])
    assert "jax" in cache.versions()


def test_a_digest_tells_whether_the_source_of_a_folder_has_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(cache.ldm_jax, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "planning").mkdir()

    def digests(**sources: str) -> tuple[str, str]:
        for name, text in sources.items():
            (tmp_path / f"{name.replace('_', '/')}.py").write_text(text)
        return cache.source_digest(), cache.source_digest("planning")

    first, second, third = digests(model="1", planning_hlo="1"), digests(model="2"), digests(planning_hlo="2")
    assert len({first[0], second[0], third[0]}) == 3
    assert first[1] == second[1] != third[1]


def test_choices_that_there_are_not_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    experiment = Experiment()
    choices = {"training.nothing_like_it": "none", "compute_dtype": "bfloat16"}
    monkeypatch.setattr(request, "choices_of", lambda stage: choices)
    assert request.values_of(experiment, "training.nothing_like_it") == ()
    assert request.values_of(experiment, "compute_dtype") == ("float32", "bfloat16")
    assert request.plain(experiment, "diffusion").compute_dtype == "bfloat16"


def test_each_stage_has_its_own_rematerialisation():
    assert "training.remat" in request.choices_of("diffusion")
    assert "first_stage.training.remat" in request.choices_of("autoencoder")
    assert list(request.choices_of("sampling")) == ["attention_kernel"]


def test_the_search_tries_what_choices_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "choices_of", lambda stage: {"compute_dtype": "float32"})
    first = Request(
        experiment=load_experiment("smoke"),
        stage="diffusion",
        topology=parse_topology("v5e-16"),
        mesh=MeshConfig(data=16),
    )
    found = [each.experiment.compute_dtype for each in candidates(first, [1])]
    assert found.count("float32") == found.count("bfloat16") > 1
