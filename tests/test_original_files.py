"""Checkpoints of the original code as sessions: which files, text, and there and back through each format."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_original_checkpoint import CASES, same
from tiny import random_params

from ldm_jax import cli
from ldm_jax.conditioning.tokenizer import PromptEncoder
from ldm_jax.config import (
    AutoencoderKLConfig,
    ClipTextConditioning,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    TextConditioning,
    UNetConfig,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers.component import read_config
from ldm_jax.interop.diffusers.export import write_pipeline
from ldm_jax.interop.model_files import open_model, save_model
from ldm_jax.interop.original.files import is_original, read_original, write_original
from ldm_jax.interop.original.tokenizers import read_tokenizers
from ldm_jax.interop.transformers.text import read_clip_text_config
from ldm_jax.model import make_model
from ldm_jax.sampling.session import Session

GOLDEN = Path(__file__).parent / "golden"
TOKENIZER = GOLDEN / "pipeline_sd1" / "tokenizer"
TEXT_ENCODER = GOLDEN / "pipeline_sd1" / "text_encoder"
PROMPTS = ["a red circle", "", "a blue square, and much more than fits into so short a context"]


def clip() -> ClipTextConditioning:
    """The text encoder that the golden tokenizer belongs to."""
    config, _ = read_tokenizers(TOKENIZER, read_clip_text_config(*read_config(TEXT_ENCODER)))
    assert isinstance(config, ClipTextConditioning)
    return config


def session_of(conditioning: Any, **changes: Any) -> Session:
    """A model of prompts as Stable Diffusion 1, of a size that the original code can express."""
    experiment = Experiment(
        name="sd",
        data=DataConfig(image_size=16),
        first_stage=FirstStageConfig(
            autoencoder=AutoencoderKLConfig(base_channels=32, channel_mult=(1, 1), num_res_blocks=1)
        ),
        conditioning=conditioning,
        denoiser=UNetConfig(
            base_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_levels=(0,),
            num_heads=4,
            num_head_channels=None,
        ),
        diffusion=DiffusionConfig(**changes),
    )
    model = make_model(experiment)
    conditioning, tokenizers = read_tokenizers(TOKENIZER, conditioning)
    experiment = dataclasses.replace(experiment, conditioning=conditioning)
    params = random_params(model)
    params["latent"] = {"mean": np.zeros(4, np.float32), "std": np.full(4, 1 / 0.18215, np.float32)}
    return Session(experiment, model, params, PromptEncoder(tokenizers))


@pytest.fixture(scope="module")
def stable() -> Session:
    return session_of(clip())


def assert_same_prompts(one: Session, other: Session) -> None:
    for name, tokens in one.prompt_inputs(PROMPTS).items():
        np.testing.assert_array_equal(tokens, other.prompt_inputs(PROMPTS)[name])


# --- which files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A checkpoint with its project file, in a folder."""
    for name in ("model.safetensors", "project.yaml"):
        shutil.copy(GOLDEN / CASES[0] / name, tmp_path / name)
    return tmp_path


def test_a_checkpoint_and_a_folder_of_one_are_told_from_others(files: Path) -> None:
    assert is_original(files) and is_original(files / "model.safetensors")
    assert not is_original(files / "project.yaml") and not is_original(files / "none.ckpt")
    (files / "project.yaml").unlink()
    assert not is_original(files) and is_original(files / "model.safetensors")
    assert not is_original(GOLDEN / "autoencoder_kl")


def test_the_project_file_is_the_one_that_is_given_or_of_the_same_name_or_alone(files: Path) -> None:
    session = read_original(files)
    assert session.experiment.name == files.name and session.encode_caption is None
    assert session.experiment.sampling.sampler == "ddim" and not session.experiment.data.cache_latents
    (files / "other.yaml").write_text("model: 1")
    given = read_original(files / "model.safetensors", files / "project.yaml")
    assert given.experiment.name == "model" and same(given.params, session.params)
    (files / "project.yaml").rename(files / "model.yaml")
    assert same(read_original(files).params, session.params)


def test_what_is_missing_or_several_is_named(files: Path) -> None:
    (files / "other.yaml").write_text("model: 1")
    with pytest.raises(
        UserError, match=r"model.safetensors needs its project file, and beside it are: other.yaml, pro"
    ):
        read_original(files)
    for path in files.glob("*.yaml"):
        path.unlink()
    with pytest.raises(UserError, match=r"beside it are: none; give the right one, --config FILE.yaml$"):
        read_original(files / "model.safetensors")
    (files / "more.ckpt").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"to hold one checkpoint and holds model.safetensors, more.ckpt; give the file"
    ):
        read_original(files, files / "project.yaml")


def test_moving_averages_are_asked_for_in_vain(files: Path) -> None:
    with pytest.raises(UserError, match=r"model.safetensors has no moving averages"):
        read_original(files, weights="ema")


def test_nothing_is_overwritten(stable: Session, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "note").touch()
    with pytest.raises(UserError, match="x is not empty; choose another folder"):
        write_original(stable, tmp_path / "x")
    (tmp_path / "m.yaml").touch()
    with pytest.raises(UserError, match=r"m\.yaml is already there; choose another place"):
        write_original(stable, tmp_path / "m.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*; .* another place"):
        write_original(stable, tmp_path / "file" / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m.yaml", "x"]


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CASES[0], pytest.param(CASES[1], marks=pytest.mark.slow)])
def test_original_to_run_to_original(case: str, tmp_path: Path) -> None:
    session = read_original(GOLDEN / case)
    assert cli.run(cli.convert, [str(GOLDEN / case), str(tmp_path / "run")]) == 0
    assert cli.run(cli.convert, [str(tmp_path / "run"), str(tmp_path / "back"), "--to", "original"]) == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["model.safetensors", "project.yaml"]
    back = read_original(tmp_path / "back")
    assert same(back.params, session.params)
    assert dataclasses.replace(back.experiment, name="x") == dataclasses.replace(session.experiment, name="x")


def test_a_model_is_not_written_to_a_store(caplog: pytest.LogCaptureFixture) -> None:
    assert cli.run(cli.convert, [str(GOLDEN / CASES[0]), "gs://bucket/model"]) == 2
    assert "gs://bucket/model" in caplog.text


def test_original_to_diffusers(tmp_path: Path) -> None:
    source = GOLDEN / CASES[0]
    assert cli.run(cli.convert, [str(source), str(tmp_path / "pipeline"), "--to", "diffusers"]) == 0
    session, back = read_original(source), open_model(tmp_path / "pipeline")
    assert same(back.params, session.params)
    for part in ("first_stage", "conditioning", "denoiser"):
        assert getattr(back.experiment, part) == getattr(session.experiment, part)
    assert back.experiment.diffusion.schedule == session.experiment.diffusion.schedule


@pytest.mark.slow
def test_diffusers_to_original(stable: Session, tmp_path: Path) -> None:
    write_pipeline(stable, tmp_path / "pipeline")
    assert cli.run(cli.convert, [str(tmp_path / "pipeline"), str(tmp_path / "back"), "--to", "original"]) == 0
    assert sorted(path.name for path in (tmp_path / "back" / "project.text").iterdir()) == [
        *("config.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"),
    ]
    back = read_original(tmp_path / "back")
    assert same(back.params, stable.params)
    assert back.experiment.conditioning == stable.experiment.conditioning
    assert back.experiment.sampling.guidance_scale == 5.0
    assert_same_prompts(back, stable)


def test_half_precision_rounds_and_comes_back(stable: Session, tmp_path: Path) -> None:
    write_original(stable, tmp_path / "half.safetensors", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.safetensors", "half.text", "half.yaml"]
    back = read_original(tmp_path / "half.safetensors")
    kernel = np.asarray(stable.params["denoiser"]["conv_in"]["kernel"])
    np.testing.assert_array_equal(back.params["denoiser"]["conv_in"]["kernel"], kernel.astype(np.float16))
    assert back.params["denoiser"]["conv_in"]["kernel"].dtype == np.float32


def test_a_text_encoder_of_captions_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    entries = clip().vocab_size
    bert = TextConditioning(
        vocab_size=entries, context_length=9, context_dim=8, num_layers=1, num_heads=8, num_head_channels=64
    )
    session = session_of(bert)
    write_original(session, tmp_path / "back")
    back = read_original(tmp_path / "back")
    assert same(back.params, session.params)
    assert back.experiment.conditioning == session.experiment.conditioning
    assert_same_prompts(back, session)


def test_what_only_training_has_is_left_out_with_a_line(
    stable: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    diffusion = DiffusionConfig(loss="huber", weighting="min_snr")
    changed = dataclasses.replace(stable, experiment=dataclasses.replace(stable.experiment, diffusion=diffusion))
    write_original(changed, tmp_path / "x")
    assert caplog.messages == [
        "the original code would train on with loss=l2 and weighting=uniform, not with loss=huber and weighting=min_snr"
    ]
    assert read_original(tmp_path / "x").experiment.diffusion.loss == "l2"


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def without(stable: Session, tmp_path: Path) -> Path:
    """A model of prompts whose tokenizer is not beside it."""
    write_original(dataclasses.replace(stable, encode_caption=None), tmp_path / "model")
    assert [path.name for path in (tmp_path / "model" / "project.text").iterdir()] == ["config.json"]
    return tmp_path / "model"


def test_prompts_need_a_tokenizer(without: Path, stable: Session, tmp_path: Path) -> None:
    session = open_model(without)
    assert "tokens" in session.null_inputs(1)
    with pytest.raises(UserError, match=r"hold no tokenizer, which prompts need; .*: --tokenizer FOLDER$"):
        session.prompt_inputs(["a"])
    for form in ("run", "diffusers"):
        with pytest.raises(
            UserError, match=r"is written with its tokenizer, and this one came without; .* --tokenizer"
        ):
            save_model(session, tmp_path / "new", form)
    assert not (tmp_path / "new").exists()
    assert_same_prompts(open_model(without, tokenizer=TOKENIZER), stable)


def test_a_tokenizer_goes_with_a_run(without: Path, stable: Session, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.run(cli.convert, [str(without), str(run), "--tokenizer", str(TOKENIZER)]) == 0
    session = open_model(run)
    assert same(session.params, stable.params)
    assert_same_prompts(session, stable)
