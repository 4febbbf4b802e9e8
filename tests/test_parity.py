"""Parity cases: every golden one passes, a changed one does not, and what is no case is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm_jax import cli
from ldm_jax.errors import UserError
from ldm_jax.interop.cases.parity import run_case

GOLDEN = Path(__file__).parent / "golden"
FORWARD = ["unet_sd1", "unet_sd2", "unet_ldm_uncond", "autoencoder_kl", "autoencoder_vq", "clip_text", "clip_vision"]

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    """A golden case to damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(GOLDEN / name, tmp_path / name))

    return copy


def change_arrays(case: Path, **changes: Any) -> None:
    """Other arrays in a case; None takes one away."""
    with np.load(case / "io.npz") as file:
        arrays = {**file, **changes}
    np.savez(case / "io.npz", **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize("name", FORWARD)
def test_golden_forward_passes(name: str):
    rows = run_case(GOLDEN / name)
    assert rows and all(row.passed and row.relative <= 1e-5 for row in rows), rows


def test_a_golden_pipeline():
    rows = {row.name: row for row in run_case(GOLDEN / "pipeline_sd1")}
    assert set(rows) == {"image", "input_ids"}
    assert all(row.passed for row in rows.values()) and rows["image"].relative < 1e-4


def test_golden_training():
    rows = {row.name: row for row in run_case(GOLDEN / "training" / "adamw_epsilon")}
    assert set(rows) == {"losses", "grad_norms", "final_params"}
    assert all(row.passed for row in rows.values())


def test_a_sampler():
    assert all(row.passed for row in run_case(GOLDEN / "samplers" / "ddim_20.npz"))


def test_the_tolerance_decides():
    rows = run_case(GOLDEN / "clip_text", tolerance=1e-12)
    assert not any(row.passed for row in rows)


def test_another_reference_differs(copy: Any):
    case = copy("clip_text")
    with np.load(case / "io.npz") as file:
        wrong = file["pooler_output"] + 0.01
    change_arrays(case, pooler_output=wrong)
    assert [row.name for row in run_case(case) if not row.passed] == ["pooler_output"]


def test_what_is_no_case_is_refused(copy: Any, tmp_path: Path):
    with pytest.raises(UserError, match=r"is no parity case: a folder with io\.npz, a training recipe, or an"):
        run_case(tmp_path)
    case = copy("clip_text")
    config = json.loads((case / "config.json").read_text())
    (case / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2Model"]}))
    with pytest.raises(UserError, match="'GPT2Model' is no model known here; known: UNet2DModel, "):
        run_case(case)


def test_arrays_that_are_missing_or_of_another_kind_are_named(copy: Any):
    case = copy("clip_text")
    change_arrays(case, surprise=np.zeros(2))
    with pytest.raises(
        UserError, match=r"io.npz holds surprise, which this kind of case does not have; inputs: input_ids"
    ):
        run_case(case)
    change_arrays(case, surprise=None, input_ids=None)
    with pytest.raises(UserError, match="the case has no array 'input_ids'; it has last_hidden_state"):
        run_case(case)
    (case / "io.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(UserError, match=r"io.npz cannot be read as arrays \(.*; restore it from a copy"):
        run_case(case)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "recipe.json: surprise is not supported; known: initial_params, schedule"),
        ({"optimizer": "lion"}, "optimizer='lion' is not supported; use one of adamw, adam"),
        ({"prediction_type": "score"}, "prediction_type='score' is not supported; use one of epsilon, v_prediction"),
        ({"final_params": "ema"}, "final_params=ema needs an ema_decay"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "weight_decay=0.1 of adam is not supported; use adamw, or 0"),
        ({"steps": None}, "steps is missing"),
        ({"steps": 3}, "z0 holds 10 batches for 3 steps"),
        ({"initial_params": "elsewhere"}, "initial_params=elsewhere of .* is not there; looked at"),
        ({"schedule": {"beta_schedule": "laplace"}}, "schedule: beta_schedule='laplace' is not supported; use one of"),
        ({"schedule": {"surprise": 1}}, "schedule: surprise is not supported; known: beta_end"),
    ],
)
def test_a_recipe_is_followed_or_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str):
    case = Path(shutil.copytree(GOLDEN / "training" / "adamw_epsilon", tmp_path / "training" / "case"))
    shutil.copytree(GOLDEN / "unet_sd1", tmp_path / "unet_sd1")
    recipe = json.loads((case / "recipe.json").read_text())
    (case / "recipe.json").write_text(json.dumps({**recipe, **change}))
    with pytest.raises(UserError, match=message):
        run_case(case)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "io.json: surprise is not supported; known: eta"),
        ({"steps": 0}, "num_sample_steps=0 must be greater than 0"),
        ({"prompts": ["a cat"]}, "has 1 prompts for 2 latents"),
        ({"negative_prompts": ["a cat"]}, "has 1 negative_prompts for 2 latents"),
    ],
)
def test_what_a_pipeline_case_asks_for_is_done_or_refused(copy: Any, change: dict[str, Any], message: str):
    case = copy("pipeline_sd1")
    asked = json.loads((case / "io.json").read_text())
    (case / "io.json").write_text(json.dumps({**asked, **change}))
    with pytest.raises(UserError, match=message):
        run_case(case)


def test_the_command_prints_a_table_and_its_verdict(capsys: pytest.CaptureFixture[str]):
    case = str(GOLDEN / "clip_text")
    assert cli.run(cli.parity, [case]) == 0
    assert "pooler_output" in capsys.readouterr().out
    assert cli.run(cli.parity, [case, "--tolerance", "1e-12", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
    assert cli.run(cli.parity, [case, "--tolerance", "-1"]) == 2
