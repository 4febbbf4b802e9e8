"""The script that compares losses of a first stage: its table, its curves, and the flags that switch losses off."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from ldm_jax.config import load_experiment
from ldm_jax.manifest import as_text, make_manifest


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parent.parent / "launch" / "first_stage_table.py"
    spec = importlib.util.spec_from_file_location("first_stage_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_is_the_mean_and_the_spread_over_the_seeds(script: ModuleType):
    scores = {"l1": [{"psnr": 20.0, "ssim": 0.5}, {"psnr": 22.0, "ssim": 0.5}], "more": [{"psnr": 1.0, "ssim": 2.0}]}
    assert list(script.table(scores)) == [
        "| trained by | psnr | ssim |",
        "|---|---|---|",
        "| l1 | 21 ± 1.4 | 0.5 ± 0 |",
        "| more | 1 | 2 |",
    ]


def test_curves_are_those_of_the_first_stage(script: ModuleType, tmp_path: Path):
    lines = [{"stage": "autoencoder", "step": i, "reconstruction": 1 / i, "kl": 2.0} for i in (1, 2, 3)]
    lines.append({"stage": "diffusion", "step": 1, "loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    script.draw_curves(tmp_path, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.height > image.width, "two panels, one above the other"


def test_what_is_finished_is_not_done_again(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = tmp_path / "l1_3" / "evaluation" / "reconstruction.json"
    record.parent.mkdir(parents=True)
    scores = [{"name": "psnr", "value": "inf"}]
    record.write_text(as_text({**make_manifest("scores", config={}), "results": {"scores": scores}}))
    monkeypatch.setattr(script, "_ldm", None)
    assert script.train("openmoji_kl", "l1", 3, tmp_path, []) == {"psnr": float("inf")}


@pytest.mark.parametrize("name", ["openmoji_kl", "openmoji_vq"])
def test_the_experiments_have_what_the_script_switches_off(name: str):
    config = load_experiment(name).first_stage
    assert config.perceptual.weight > 0 and config.judge is not None
