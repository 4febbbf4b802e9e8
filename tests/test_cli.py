"""The command line: what it understands, what it answers to what it does not, and how quickly it can help."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import ldm_jax.experiment
import ldm_jax.interop.layers
import ldm_jax.sampling.command
from ldm_jax import cli
from ldm_jax.config import (
    DistributedConfig,
    Experiment,
    MeshConfig,
    SamplingConfig,
    experiment_names,
    load_experiment,
    save_experiment,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.cases.comparison import Comparison
from ldm_jax.interop.layers import Section
from ldm_jax.sampling.flags import SampleCommand, sampling_config
from ldm_jax.training.loop import TrainingDiverged
from ldm_jax.training.stopping import Interrupted

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`cli.run` sets the level of the package's logger, and `cli.main` begins the program again: not in the tests."""
    level = logging.getLogger("ldm_jax").level
    monkeypatch.setattr(cli, "tune_allocator", lambda: None)
    yield
    logging.getLogger("ldm_jax").setLevel(level)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, Path]]:
    """What `train` was asked to train, instead of training it."""
    asked: list[tuple[Experiment, Path]] = []
    monkeypatch.setattr(ldm_jax.experiment, "train_experiment", lambda e, run_dir: asked.append((e, run_dir)))
    return asked


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[SampleCommand]:
    """What `sample` was asked to draw, instead of drawing it."""
    asked: list[SampleCommand] = []

    def draw(command: SampleCommand, open_model: Any) -> list[Path]:
        asked.append(command)
        return [Path("a.png"), Path("grid.png")]

    monkeypatch.setattr(ldm_jax.sampling.command, "draw", draw)
    return asked


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    save_experiment(load_experiment("smoke"), tmp_path / "config.json")
    return tmp_path


def test_a_profile_is_of_both_stages_and_of_the_steps_that_were_named(trained: list[tuple[Experiment, Path]]):
    assert cli.run(cli.train, ["smoke", "--profile"]) == 0
    assert cli.run(cli.train, ["smoke", "--profile", "--training.profile-steps", "3", "4"]) == 0
    assert cli.run(cli.train, ["smoke"]) == 0
    steps = [(e.first_stage.training.profile_steps, e.training.profile_steps) for e, _ in trained]
    assert steps == [((10, 12), (10, 12)), ((3, 4), (3, 4)), (None, None)]


def refused(command: Callable[[list[str]], None], arguments: list[str], capsys: Any, caplog: Any) -> str:
    """What is said about wrong arguments, which end with status 2; boxes and line breaks taken out."""
    try:
        status = cli.run(command, arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return re.sub(r"[\s│|]+", " ", captured.err + caplog.text)


def test_training_without_a_name_is_the_demo(trained: list[Any]):
    assert cli.run(cli.train, []) == 0
    assert trained == [(load_experiment("openmoji"), Path("runs/openmoji"))]


def test_training_takes_a_name_a_folder_and_flags(trained: list[Any]):
    flags = ["--run-dir", "/x", "--seed", "7", "--optimizer.learning-rate", "0.5", "--training.num-steps", "9"]
    assert cli.run(cli.train, ["smoke", *flags]) == 0
    ((experiment, folder),) = trained
    assert folder == Path("/x")
    assert (experiment.seed, experiment.optimizer.learning_rate, experiment.training.num_steps) == (7, 0.5, 9)
    assert experiment.first_stage == load_experiment("smoke").first_stage


def changed(experiment: Experiment, seed: int, loss: Literal["huber"]) -> Experiment:
    diffusion = dataclasses.replace(experiment.diffusion, loss=loss)
    return dataclasses.replace(experiment, seed=seed, diffusion=diffusion)


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_takes_flags(trained: list[Any], name: str):
    assert cli.run(cli.train, [name, "--seed", "1", "--diffusion.loss", "huber"]) == 0
    assert trained[0][0] == changed(load_experiment(name), seed=1, loss="huber")
    assert trained[0][1] == Path("runs") / name


def test_flags_of_a_choice_are_those_of_the_chosen_class(trained: list[Any]):
    flags = ["--data.source.num-examples", "50", "--conditioning.num-layers", "2", "--sampling.prompts", "a", "b"]
    assert cli.run(cli.train, ["smoke", *flags]) == 0
    experiment = trained[0][0]
    assert (experiment.data.source.num_examples, experiment.conditioning.num_layers) == (50, 2)
    assert experiment.sampling.prompts == ("a", "b")


def test_an_experiment_can_be_a_file(trained: list[Any], tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text("from ldm_jax.config import *\ndef get_config():\n    return Experiment(name='mine', seed=3)\n")
    assert cli.run(cli.train, [str(path)]) == 0
    assert trained == [(Experiment(name="mine", seed=3), Path("runs/mine"))]


def test_help_tells_of_the_experiment(trained: list[Any], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.run(cli.train, ["zoo/celebahq256", "--help"])
    assert end.value.code == 0
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "FID 5.11" in said
    assert "python train.py zoo/celebahq256 --data.source.directory PICTURES" in said


TRAIN_REFUSED = {
    "a family without its member": (["zoo"], "error: unknown experiment 'zoo': did you mean zoo/"),
    "unknown member": (["zoo/kl-8"], "error: unknown experiment 'zoo/kl-8': did you mean zoo/kl-f8 or"),
    "member without its family": (["sdxl"], "error: unknown experiment 'sdxl': did you mean zoo/sdxl"),
    "unknown experiment": (["smokk"], "error: unknown experiment 'smokk': did you mean smoke?"),
    "unknown flag": (["smoke", "--sede", "3"], "Unrecognized options: --sede, 3 .*Perhaps you meant: --seed INT"),
    "unknown nested flag": (["smoke", "--optimizer.lr", "1"], "Unrecognized options: --optimizer.lr, 1 "),
    "wrong type": (["smoke", "--seed", "abc"], "Error parsing --seed: invalid literal for int.* 'abc'"),
    "wrong choice": (
        ["smoke", "--compute-dtype", "float16"],
        r"invalid choice 'float16' for argument '--compute-dtype'. Expected one of \('float32', 'bfloat16'\)",
    ),
    "out of range": (["smoke", "--training.batch-size", "0"], "TrainingConfig.batch_size=0 must be greater than 0"),
    "fields that do not fit": (
        ["smoke", "--data.image-size", "33"],
        r"error: data.image_size=33 is not divisible by 8 .*; nearest usable: 32 and 40",
    ),
    "heads": (
        ["smoke", "--denoiser.num-head-channels", "7"],
        "UNetConfig.num_head_channels=7 does not divide the 32 channels of level 1; nearest that does: 8",
    ),
}


@pytest.mark.parametrize("name", TRAIN_REFUSED)
def test_training_refuses(name: str, trained: list[Any], capsys: Any, caplog: Any):
    arguments, message = TRAIN_REFUSED[name]
    assert re.search(message, refused(cli.train, arguments, capsys, caplog))
    assert trained == []


def test_sampling_takes_what_the_run_has_where_nothing_is_said(drawn: list[SampleCommand], run_dir: Path):
    assert cli.run(cli.sample, [str(run_dir)]) == 0
    (asked,) = drawn
    default = load_experiment("smoke").sampling
    assert sampling_config(asked, default) == default
    assert (asked.prompt, asked.class_label, asked.num_samples, asked.seed, asked.out) == ((), (), 4, 0, None)


def test_sampling_takes_flags(drawn: list[SampleCommand], run_dir: Path, tmp_path: Path):
    flags = ["--prompt", "red apple", "-p", "angry cat", "--num-samples", "1", "--seed", "5", "--out", "/y"]
    solver = ["--sampler", "ddpm", "--num-sample-steps", "7", "--guidance-scale", "1.5", "--batch-size", "2"]
    assert cli.run(cli.sample, [str(run_dir), *flags, *solver]) == 0
    (asked,) = drawn
    assert asked.prompt == ("red apple", "angry cat")
    assert (asked.num_samples, asked.seed, asked.out, asked.batch_size) == (1, 5, "/y", 2)
    config = sampling_config(asked, load_experiment("smoke").sampling)
    assert (config.sampler, config.num_sample_steps, asked.guidance_scale) == ("ddpm", 7, (1.5,))
    assert config.prompts == load_experiment("smoke").sampling.prompts


def test_sampling_takes_the_solvers_options(drawn: list[SampleCommand], run_dir: Path):
    solver = ["--sampler", "heun", "--spacing", "linspace", "--sigmas", "karras", "--churn", "3"]
    clipping = ["--clipping", "dynamic", "--clip-range", "2", "--clip-percentile", "0.9"]
    assert cli.run(cli.sample, [str(run_dir), *solver, *clipping]) == 0
    config = sampling_config(drawn[0], SamplingConfig())
    assert (config.sampler, config.spacing, config.sigmas) == ("heun", "linspace", "karras")
    assert config.churn == 3.0
    assert (config.clipping, config.clip_range, config.clip_percentile) == ("dynamic", 2.0, 0.9)


def test_classes_may_be_repeated(drawn: list[SampleCommand], run_dir: Path):
    assert cli.run(cli.sample, [str(run_dir), "--class-label", "3", "--class-label", "star"]) == 0
    assert drawn[0].class_label == ("3", "star")


def test_json_goes_to_stdout_alone(drawn: list[SampleCommand], run_dir: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(cli.sample, [str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": ["a.png", "grid.png"]}
    assert cli.run(cli.sample, [str(run_dir)]) == 0
    assert capsys.readouterr().out == ""


SAMPLE_REFUSED = {
    "no pictures": (["--num-samples", "0"], "error: --num-samples=0 must be at least 1"),
    "no batch": (["--batch-size", "0"], "error: --batch-size=0 must be at least 1"),
    "negative seed": (["--seed", "-1"], "error: --seed=-1 must not be negative"),
    "negative guidance": (["--guidance-scale", "-1"], "error: SamplingConfig.guidance_scale=-1.0 must not be negative"),
    "no steps": (["--num-sample-steps", "0"], "error: SamplingConfig.num_sample_steps=0 must be greater than 0"),
    "unknown sampler": (  # tyro tells the choices in any order
        ["--sampler", "leapfrog"],
        r"invalid choice 'leapfrog' for argument '--sampler'\. Expected one of (?=.*'ddim')(?=.*'ddpm')",
    ),
    "noise that the solver has not": (
        ["--eta", "0.5", "--sampler", "euler"],
        "error: --eta 0.5 does nothing with --sampler euler; it is of ddim and imported",
    ),
    "churn of another": (["--churn", "3"], "--churn 3.0 does nothing with --sampler ddim; it is of heun"),
    "tolerance of another": (
        ["--tolerance", "1"],
        "--tolerance 1.0 does nothing with --sampler ddim; it is of adaptive",
    ),
    "levels for who chooses them": (
        ["--sampler", "adaptive", "--sigmas", "karras"],
        "--sigmas karras does nothing with --sampler adaptive, which chooses its noise levels itself",
    ),
    "a bound without clipping": (
        ["--clip-range", "2"],
        "--clip-range 2.0 does nothing with --clipping none; it is of static and dynamic",
    ),
    "a percentile of a bound": (
        ["--clipping", "static", "--clip-percentile", "0.9"],
        "--clip-percentile 0.9 does nothing with --clipping static; it is of dynamic",
    ),
    "a grid of an imported scheduler": (
        ["--sampler", "imported", "--spacing", "leading"],
        "--spacing leading does nothing with the scheduler that came with the model; choose one with",
    ),
    "unknown flag": (["--promt", "x"], "Unrecognized options: --promt, x .*Perhaps you meant: -p, --prompt STR"),
}


@pytest.mark.parametrize("name", SAMPLE_REFUSED)
def test_sampling_refuses(name: str, run_dir: Path, drawn: list[SampleCommand], capsys: Any, caplog: Any):
    arguments, message = SAMPLE_REFUSED[name]
    assert re.search(message, refused(cli.sample, [str(run_dir), *arguments], capsys, caplog))
    assert drawn == []


def test_sampling_refuses_what_is_no_run(tmp_path: Path, drawn: list[SampleCommand], capsys: Any, caplog: Any):
    message = refused(cli.sample, [str(tmp_path / "none")], capsys, caplog)
    assert f"error: {tmp_path}/none/config.json does not exist: {tmp_path}/none is not a run folder" in message
    for given in ([], [str(tmp_path), "--model", str(tmp_path)]):
        assert "give the folder of a run, or --model MODEL" in refused(cli.sample, given, capsys, caplog)


PARITY_REFUSED = {
    "nothing": ([], "error: give a case, or --layers FOLDER"),
    "a case and layers": (["x", "--layers", "y"], "error: give a case, or --layers FOLDER"),
    "flags of layers without them": (
        ["x", "--dtype", "float32", "--no-gradient", "--size", "0"],
        "error: --dtype, --no-gradient, --size goes with --layers FOLDER",
    ),
    "unknown type": (["--layers", "x", "--dtype", "float16"], "invalid choice 'float16' for argument '--dtype'"),
    "no folder": (["--layers", "/none"], "error: /none/config.json cannot be read"),
    "no tolerance": (["x", "--tolerance", "0"], "error: --tolerance=0.0 must be greater than 0"),
    "tolerance that is no number": (["x", "--tolerance", "nan"], "error: --tolerance=nan must be a finite number"),
    "negative tolerance": (["x", "--tolerance", "-1"], "error: --tolerance=-1.0 must be greater than 0"),
}


@pytest.mark.parametrize("name", PARITY_REFUSED)
def test_parity_refuses(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any):
    monkeypatch.setattr(ldm_jax.interop.layers, "require_parity_extra", lambda: None)
    arguments, message = PARITY_REFUSED[name]
    assert message in refused(cli.parity, arguments, capsys, caplog)


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], {"dtypes": ("float32", "bfloat16"), "gradient": True, "size": None, "tolerance": None}),
        (
            ["--dtype", "bfloat16", "--no-gradient", "--size", "16", "--tolerance", "0.1"],
            {"dtypes": ("bfloat16",), "gradient": False, "size": 16, "tolerance": 0.1},
        ),
    ],
)
@pytest.mark.parametrize("passed", [True, False])
def test_parity_by_layers(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, flags: list[str], asked: dict[str, Any], passed: bool
):
    row = Comparison("conv_in", 0.5, 0.5, 1.0 if passed else 0.1)

    def run_layers(folder: Path, **options: Any) -> list[Section]:
        assert (folder, options) == (Path("x"), asked)
        return [Section("x", "float32", "forward", [row])]

    monkeypatch.setattr(ldm_jax.interop.layers, "run_layers", run_layers)
    assert cli.run(cli.parity, ["--layers", "x", *flags]) == (0 if passed else 1)
    verdict = "no layer differs" if passed else "first layer beyond tolerance: conv_in (relative 5.0e-01)"
    assert capsys.readouterr().out.endswith(f"\n{verdict}\n")
    cli.run(cli.parity, ["--layers", "x", *flags, "--json"])
    assert json.loads(capsys.readouterr().out)["passed"] is passed


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("x"), 2),
        (TrainingDiverged("x"), 3),
        (Interrupted("x"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_how_a_command_ends_is_told_by_its_status(error: BaseException, status: int, caplog: pytest.LogCaptureFixture):
    def command(arguments: Any) -> None:
        raise error

    assert cli.run(command, []) == status
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("error: ")
    assert "Traceback" not in caplog.text


def test_a_bug_is_not_taken_for_a_users_error():
    def command(arguments: Any) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.run(command, [])


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "commands: train, sample"),
        (["--help"], 0, "commands: train, sample"),
        (["sampel"], 2, "error: unknown command 'sampel': did you mean sample? known commands: train, sample"),
        (["zzz"], 2, "error: unknown command 'zzz': known commands: train, sample"),
    ],
)
def test_the_command_of_commands(monkeypatch, capsys, arguments: list[str], status: int, said: str):
    monkeypatch.setattr(sys, "argv", ["ldm", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    assert end.value.code == status
    assert said in captured.out + captured.err


def test_a_command_of_commands_hands_its_arguments_on(monkeypatch: pytest.MonkeyPatch, trained: list[Any]):
    monkeypatch.setattr(sys, "argv", ["ldm", "train", "smoke", "--seed", "4"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert trained[0][0].seed == 4


HELP = """
import runpy, sys
for script in ("train.py", "sample.py"):
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print("status", end.code)
print("heavy", sorted({"jax", "flax", "orbax", "grain", "tensorflow_datasets", "matplotlib"} & set(sys.modules)))
"""


def test_help_comes_without_heavy_imports():
    ended = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""
    assert ended.stdout.count("status 0") == 2
    assert "heavy []" in ended.stdout
    for flag in ("--run-dir", "--seed", "--optimizer.learning-rate", "--prompt", "--guidance-scale", "--json"):
        assert flag in ended.stdout
    assert ", ".join(experiment_names()) in re.sub(r"\s+", " ", ended.stdout)


START = """
import sys
from ldm_jax.cli import start_jax
start_jax(3)
assert "jax" not in sys.modules
import jax
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs, jax.device_count())
"""


def test_jax_is_set_up_unless_the_user_has_done_so(tmp_path: Path):
    base = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "LDM_", "XDG_", "XLA_"))}
    base["JAX_PLATFORMS"] = "cpu"
    for extra, expected in (
        ({"XDG_CACHE_HOME": str(tmp_path)}, f"{tmp_path}/ldm_jax/xla 0.0 3"),
        (
            {"JAX_COMPILATION_CACHE_DIR": "/elsewhere", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            "/elsewhere 0.0 2",
        ),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", START], cwd=ROOT, env=base | extra, capture_output=True, text=True, timeout=60
        )
        assert ended.stdout.strip() == expected, ended.stderr


@pytest.mark.parametrize(
    ("mesh", "batch_sizes", "cores", "expected"),
    [
        (MeshConfig(), [32, 64], 8, 8),
        (MeshConfig(), [32, 12], 8, 4),
        (MeshConfig(), [7, 9], 8, 1),
        (MeshConfig(fsdp=2), [32], 7, 4),
        (MeshConfig(data=2, fsdp=2), [32], 1, 4),
        (MeshConfig(tensor=4), [32], 2, 4),
    ],
)
def test_a_cpu_has_as_many_devices_as_cores_and_batches_allow(
    monkeypatch: pytest.MonkeyPatch, mesh: MeshConfig, batch_sizes: list[int], cores: int, expected: int
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert cli.cpu_devices_for(mesh, batch_sizes) == expected


@pytest.mark.parametrize(
    ("mesh", "batch_sizes", "cores", "processes", "expected"),
    [
        (MeshConfig(), [32], 8, 2, 4),
        (MeshConfig(), [32], 2, 4, 1),
        (MeshConfig(), [24], 8, 4, 2),
        (MeshConfig(data=2, fsdp=4), [32], 2, 4, 2),
        (MeshConfig(fsdp=2), [32], 8, 2, 4),
    ],
)
def test_processes_share_the_devices_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
    mesh: MeshConfig,
    batch_sizes: list[int],
    cores: int,
    processes: int,
    expected: int,
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert cli.cpu_devices_for(mesh, batch_sizes, processes) == expected


def test_how_many_share_is_told_by_flags_or_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    assert cli.num_processes_of(DistributedConfig()) == 1
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    assert cli.num_processes_of(DistributedConfig()) == 4
    assert cli.num_processes_of(DistributedConfig(num_processes=2)) == 2


def test_the_name_comes_first():
    with pytest.raises(UserError, match=r"the experiment's name comes first: train\.py smoke 3 \.\.\."):
        cli.train(["--seed", "3", "smoke"])


def test_a_run_of_cpus_goes_on_with_as_many(tmp_path: Path):
    (tmp_path / "manifest.json").write_text(json.dumps({"devices": ["cpu:cpu"] * 3, "continued": [], "data": {}}))
    assert cli._cpu_devices_of(tmp_path / "manifest.json") == 3
    assert cli._cpu_devices_of(tmp_path / "manifest.json", 3) == 1
    assert cli._cpu_devices_of(tmp_path / "manifest.json", 2) is None
    (tmp_path / "manifest.json").write_text(json.dumps({"devices": ["gpu:H100"] * 3, "continued": [], "data": {}}))
    assert cli._cpu_devices_of(tmp_path / "manifest.json") is None
    assert cli._cpu_devices_of(tmp_path / "new" / "manifest.json") is None


@pytest.mark.parametrize("name", ["seed", "num_samples", "batch_size"])
def test_numbers_are_counted_in_32_bits(name: str):
    flag = name.replace("_", "-")
    with pytest.raises(UserError, match=f"--{flag}=2147483648 must be at most 2147483647"):
        sampling_config(dataclasses.replace(SampleCommand(run="x"), **{name: 2**31}), SamplingConfig())


def test_a_mesh_of_a_million_starts_no_million_devices():
    assert cli.cpu_devices_for(MeshConfig(data=10**6), [32]) == cli.MAX_CPU_DEVICES


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (MemoryError("no 9 GiB"), "error: out of memory (no 9 GiB); use a smaller batch, picture or model"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nand much more"),
            "error: out of memory (RESOURCE_EXHAUSTED: 9 GiB); use a smaller batch, picture or model",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_line(error: Exception, said: str, caplog: pytest.LogCaptureFixture):
    def command(arguments: Any) -> None:
        raise error

    assert cli.run(command, []) == 2
    assert [record.getMessage() for record in caplog.records] == [said]


def test_another_runtime_error_is_a_bug():
    def command(arguments: Any) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(command, [])


def test_checkpoints_are_looked_at_without_an_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert cli.run(cli.checkpoints, ["list", str(tmp_path)]) == 2
    assert f"error: {tmp_path} has no checkpoints; is it a run folder?" in caplog.text
    assert os.environ["JAX_PLATFORMS"] == "cpu"
