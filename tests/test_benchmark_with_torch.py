"""The comparison with PyTorch itself, tiny: every task computes the same and is timed, and none with another weight."""

import json
from pathlib import Path

import pytest
from PIL import Image
from quick_compilation import QUICK
from safetensors.numpy import load_file, save_file

from ldm_jax import cli
from ldm_jax.benchmark import measure
from ldm_jax.benchmark.comparison import Side
from ldm_jax.benchmark.subjects import write_network
from tests.test_benchmark_subjects import AUTOENCODER, UNET

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
pytest.importorskip("diffusers")

FLAGS = ["--rounds", "2", "--warmup", "1", "--batch-size", "2", "--num-sample-steps", "4", "--cpu-devices", "1"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    write_network(UNET, path / "unet")
    write_network(AUTOENCODER, path / "vae")
    return path


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs inherit the flags of the tests, whose eight devices no tiny batch can be split over."""
    monkeypatch.setenv("XLA_FLAGS", QUICK)


def test_every_task_computes_the_same_and_is_timed(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(cli.benchmark, ["--model", str(pipeline), *FLAGS, "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [task["task"] for task in told["tasks"]] == ["train", "sample", "train_autoencoder", "encode", "decode"]
    for task in told["tasks"]:
        assert task["passed"]
        assert task["facts"]["flops"] > 0
        assert [len(side["seconds"]) for side in task["sides"]] == [2, 2]
        assert all(side["peak_memory"] > 0 for side in task["sides"])
    assert "torch" in told["circumstances"]["versions"]
    assert json.loads((tmp_path / "benchmark.json").read_text()) == told
    assert (tmp_path / "benchmark.md").read_text().count("PyTorch eager |") == 5
    Image.open(tmp_path / "benchmark.png").verify()


def test_in_bfloat16_both_round_within_the_tolerance(pipeline: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--model", str(pipeline), "--only", "train", "decode", *FLAGS, "--dtype", "bfloat16", "--json"]
    assert cli.run(cli.benchmark, flags) == 0
    told = json.loads(capsys.readouterr().out)
    errors = [row["relative"] for task in told["tasks"] for row in task["numbers"]]
    assert all(1e-5 < error < 0.1 for error in errors), "they do not round alike"


@pytest.mark.parametrize(("task", "part"), [("train", "unet"), ("decode", "vae")])
def test_where_a_weight_differs_no_figure_is_printed(
    pipeline: Path,
    tmp_path: Path,
    task: str,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    write_network(UNET if part == "unet" else AUTOENCODER, tmp_path / part)
    file = tmp_path / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("conv_out.weight") and "encoder" not in name)
    save_file({**tensors, name: 1.1 * tensors[name]}, file, metadata={"format": "pt"})
    sides_of = measure.sides_of

    def spoilt(command: object, its_task: object, path: Path) -> list[Side]:
        """PyTorch reads the other weights."""
        ours, eager = sides_of(command, its_task, path)  # pyright: ignore[reportArgumentType]
        other = path.with_name("other.json")
        values = json.loads(path.read_text())
        other.write_text(json.dumps({**values, "folder": str(tmp_path / part)}))
        command_line = [str(other) if word == str(path) else word for word in eager.command("cpu")]
        return [ours, Side(name=eager.name, command=lambda _: command_line, env=eager.env)]

    monkeypatch.setattr(measure, "sides_of", spoilt)
    assert cli.run(cli.benchmark, ["--model", str(pipeline), "--only", task, *FLAGS]) == 1
    out = capsys.readouterr().out
    assert "The numbers differ: nothing was timed." in out
    assert "images/s" not in out
