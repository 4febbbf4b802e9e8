"""The door to whole models: what is told from what, first stages alone in every format, and what each flag is for."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml
from drawing import easel_for
from golden_weights import golden_autoencoder
from test_original_checkpoint import CASES, same
from test_original_files import GOLDEN
from test_original_yaml import PLAIN

from ldm_jax.config import SamplingConfig
from ldm_jax.errors import UserError
from ldm_jax.files.weight_files import open_tensors
from ldm_jax.files.write_safetensors import write_safetensors
from ldm_jax.interop.cases.parity import run_case
from ldm_jax.interop.model_files import open_model, save_model
from ldm_jax.interop.original.checkpoint import FIRST_STAGE
from ldm_jax.interop.original.files import read_original
from ldm_jax.interop.starting_point import find_starting_point
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.training.run_folder import RunFolder

FLAGS = {"config": Path("c.yaml"), "weights": "raw", "tokenizer": Path("t"), "variant": "fp16"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage in a file of its own, as latent-diffusion's zoo has them."""
    folder = tmp_path_factory.mktemp("vq")
    with open_tensors(GOLDEN / CASES[0] / "model.safetensors") as tensors:
        names = [name for name in tensors.names() if name.startswith(FIRST_STAGE)]
        stage = {name.removeprefix(FIRST_STAGE): tensors.read(name) for name in names}
    write_safetensors(folder / "model.safetensors", {**stage, "loss.discriminator.main.0.bias": np.ones(3, np.float16)})
    model = {"model": PLAIN["model"]["params"]["first_stage_config"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(model))
    return folder


@pytest.fixture(scope="module")
def stage(original: Path) -> Session:
    return open_model(original)


def test_a_first_stage_of_the_original_code(stage: Session) -> None:
    whole = read_original(GOLDEN / CASES[0])
    assert stage.is_first_stage and not whole.is_first_stage
    assert (
        set(stage.params) == {"autoencoder", "latent"} and stage.experiment.first_stage == whole.experiment.first_stage
    )
    assert same(stage.params["autoencoder"], whole.params["autoencoder"])
    assert stage.experiment.data.image_size == 32


@pytest.mark.parametrize("case", ["autoencoder_kl", "autoencoder_vq"])
def test_a_first_stage_of_diffusers(case: str, tmp_path: Path) -> None:
    session = open_model(GOLDEN / case)
    record, params = golden_autoencoder(case)
    assert session.experiment.first_stage.autoencoder == record.config
    assert same(session.params["autoencoder"], params)
    assert np.asarray(session.params["latent"]["std"]) == pytest.approx(1 / 0.18215)
    save_model(session, tmp_path / "back", "diffusers")
    back = open_model(tmp_path / "back")
    assert same(back.params, session.params)
    assert dataclasses.replace(back.experiment, name="x") == dataclasses.replace(session.experiment, name="x")
    with pytest.raises(UserError, match="back is not empty; choose another folder"):
        save_model(session, tmp_path / "back", "diffusers")


@pytest.mark.parametrize("form", ["run", "diffusers", "original"])
def test_a_first_stage_comes_back_from_every_format(form, stage: Session, tmp_path: Path) -> None:
    save_model(stage, tmp_path / "new", form)
    back = open_model(tmp_path / "new")
    assert back.is_first_stage and same(back.params, stage.params)
    assert back.experiment.first_stage == stage.experiment.first_stage


def test_the_spread_of_latents_is_kept_by_a_run_and_left_out_by_the_original(
    stage: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spread = dataclasses.replace(stage, params=stage.params | {"latent": {"mean": np.zeros(3), "std": np.full(3, 0.7)}})
    save_model(spread, tmp_path / "run", "run")
    np.testing.assert_array_equal(open_model(tmp_path / "run").params["latent"]["std"], np.full(3, 0.7, np.float32))
    save_model(spread, tmp_path / "original", "original")
    (message,) = [message for message in caplog.messages if "spread of" in message]
    assert message.endswith("which is left out: mean [0.0, 0.0, 0.0], std [0.7, 0.7, 0.7]")
    np.testing.assert_array_equal(open_model(tmp_path / "original").params["latent"]["std"], np.ones(3))


def test_a_run_of_a_first_stage_is_one_to_train_on(stage: Session, tmp_path: Path) -> None:
    save_model(stage, tmp_path / "run", "run")
    assert same(load_session(tmp_path / "run", "autoencoder").params["autoencoder"], stage.params["autoencoder"])
    new = RunFolder(tmp_path / "new")
    first = dataclasses.replace(stage.experiment.first_stage, run=str(tmp_path / "run"))
    start = find_starting_point(dataclasses.replace(stage.experiment, first_stage=first), new)
    assert set(start.params) == {"autoencoder"} and same(start.params["autoencoder"], stage.params["autoencoder"])
    with pytest.raises(UserError, match=r"is a first stage alone: .*--first-stage\.run RUN"):
        find_starting_point(dataclasses.replace(stage.experiment, start=str(tmp_path / "run")), new)


def test_a_first_stage_draws_nothing(stage: Session) -> None:
    message = (
        rf"^{stage.experiment.name} is a first stage alone: it encodes and decodes pictures, and draws none; train"
    )
    config = SamplingConfig(num_sample_steps=2)
    with pytest.raises(UserError, match=message):
        next(stage.draw({}, 1, config, 0))
    with pytest.raises(UserError, match=message):
        easel_for(stage, config, prompts=("a",), num_samples=1)


@pytest.mark.parametrize(
    ("kind", "unused"),
    [
        ("a run", ("config", "weights", "tokenizer", "variant")),
        ("a model of diffusers", ("config", "weights", "tokenizer")),
        ("a checkpoint of the original repositories", ("variant",)),
    ],
)
def test_a_flag_that_means_nothing_is_refused(
    kind: str, unused, stage: Session, original: Path, tmp_path: Path
) -> None:
    paths = {"a run": tmp_path / "run", "a model of diffusers": GOLDEN / "autoencoder_kl"}
    if kind == "a run":
        save_model(stage, paths[kind], "run")
    for name in unused:
        with pytest.raises(UserError, match=rf"is {kind}, for which --{name} means nothing; leave it out"):
            open_model(paths.get(kind, original), **{name: FLAGS[name]})


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none does not exist"):
        open_model(tmp_path / "none")
    with pytest.raises(
        UserError, match=r"is no model known here: neither a run .*, nor a pipeline or an autoencoder of"
    ):
        open_model(tmp_path)


# --- parity cases of the original format -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_golden_cases_of_the_original_code_pass(case: str) -> None:
    rows = run_case(GOLDEN / case)
    assert [row.name for row in rows if row.passed] == ["latents", "indices", "quantized", "reconstruction", "unet_out"]


def test_a_pipeline_whose_class_is_no_name(tmp_path: Path):
    (tmp_path / "model_index.json").write_text('{"_class_name": ["x"]}')
    with pytest.raises(UserError, match=r"_class_name=\['x'\] is no pipeline known here; known: "):
        open_model(tmp_path)
