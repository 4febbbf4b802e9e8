"""What a training starts from: a model of another system and CLIP's folders, taken over whole, and needed only once."""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from drawing import ORIGINS, easel_for
from golden_weights import GOLDEN
from tiny import tiny_experiment

from ldm_jax.config import (
    ClipTextConditioning,
    DataConfig,
    DiscriminatorConfig,
    Experiment,
    SamplingConfig,
    SdxlConditioning,
    Shapes,
    TrainingConfig,
)
from ldm_jax.errors import UserError
from ldm_jax.experiment import train_experiment
from ldm_jax.interop.model_files import open_model
from ldm_jax.interop.starting_point import find_starting_point
from ldm_jax.sampling.files import draw_to_files
from ldm_jax.sampling.session import load_session
from ldm_jax.training.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

PIPELINE = GOLDEN / "pipeline_sd1"
FROZEN = ("autoencoder", "latent", "conditioner")


@pytest.fixture(scope="module", autouse=True)
def first_device() -> Any:
    """One device for the runs that tests share, too."""
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: first)
        yield


def fine_tuning(data_cache: Path, start: Path, **conditioning: Any) -> Experiment:
    """Two steps on captioned shapes from a small Stable Diffusion."""
    experiment = open_model(PIPELINE).experiment
    training = TrainingConfig(batch_size=8, num_steps=2, log_every=1, checkpoint_every=1)
    return dataclasses.replace(
        experiment,
        name="fine",
        start=str(start),
        first_stage=dataclasses.replace(experiment.first_stage, training=training),
        conditioning=dataclasses.replace(experiment.conditioning, **conditioning),
        data=DataConfig(source=Shapes(num_examples=20), image_size=8, cache_dir=str(data_cache), num_threads=0),
        training=training,
        sampling=SamplingConfig(num_sample_steps=2, prompts=("a red circle",), samples_per_prompt=1),
    )


def with_folder(data_cache: Path, folder: Path, **changes: Any) -> Experiment:
    """An experiment that trains all but the text transformer in `folder`."""
    text = dataclasses.replace(open_model(PIPELINE).experiment.conditioning, folder=str(folder), **changes)
    return dataclasses.replace(tiny_experiment(data_cache), conditioning=text)


def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline in a place from which it can be removed."""
    return Path(shutil.copytree(PIPELINE, tmp_path_factory.mktemp("models") / "pipeline"))


@pytest.fixture(scope="module")
def tuned(data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """A finished run that started from the pipeline, which is gone now."""
    pipeline, path = copied(tmp_path_factory), tmp_path_factory.mktemp("runs") / "fine"
    experiment = fine_tuning(data_cache, pipeline)
    train_experiment(experiment, path)
    shutil.rmtree(pipeline)
    return experiment, path


@pytest.fixture(scope="module")
def beside(data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """A finished run with the text transformer of the pipeline, which is gone now."""
    pipeline, path = copied(tmp_path_factory), tmp_path_factory.mktemp("runs") / "beside"
    experiment = with_folder(data_cache, pipeline / "text_encoder")
    train_experiment(experiment, path)
    shutil.rmtree(pipeline)
    return experiment, path


def assert_same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def is_same(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other)))


def before_the_last_step(run: Path, copy: Path) -> Path:
    """The run as a kill during its last step would have left it."""
    shutil.copytree(run, copy)
    last = max(copy.glob("checkpoints/diffusion/*.json"))
    last.unlink()
    shutil.rmtree(last.with_suffix(""))
    shutil.rmtree(copy / "samples")
    return copy


def test_training_from_a_model_moves_its_denoiser_alone(tuned: tuple[Experiment, Path]):
    model, trained = open_model(PIPELINE), load_session(tuned[1])
    for part in FROZEN:
        assert_same(model.params[part], trained.params[part])
    assert not is_same(model.params["denoiser"], trained.params["denoiser"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), model.params["denoiser"], trained.params["denoiser"])
    assert max(jax.tree.leaves(moved)) < 1e-3  # two steps of 1e-4 from there, not from anywhere
    assert (tuned[1] / "tokenizer.json").exists()
    assert not (tuned[1] / "checkpoints" / "autoencoder").exists()


def test_it_draws_prompts_with_the_models_own_tokenizer(tuned: tuple[Experiment, Path], tmp_path: Path):
    session, prompts = load_session(tuned[1]), ["a red cat on the mat", ""]
    ours, theirs = (s.prompt_inputs(prompts)["tokens"] for s in (session, open_model(PIPELINE)))
    np.testing.assert_array_equal(ours, theirs)
    easel = easel_for(session, session.experiment.sampling, prompts=tuple(prompts[:1]), num_samples=1)
    files = draw_to_files(easel, ORIGINS, out=tmp_path, batch_size=1)
    assert [file.exists() for file in files] == [True, True]


@pytest.mark.parametrize("kind", ["tuned", "beside"])
def test_going_on_needs_neither_model_nor_folder_and_ends_with_the_same_bits(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
):
    experiment, finished = request.getfixturevalue(kind)
    run = before_the_last_step(finished, tmp_path / "run")
    train_experiment(experiment, run)
    assert_same(load_session(run).params, load_session(finished).params)


def test_going_on_may_leave_the_model_out_of_the_command(tuned: tuple[Experiment, Path], tmp_path: Path):
    run = before_the_last_step(tuned[1], tmp_path / "run")
    train_experiment(dataclasses.replace(tuned[0], start=None), run)
    assert_same(load_session(run).params, load_session(tuned[1]).params)
    assert not (run / "checkpoints" / "autoencoder").exists()


def test_a_finished_run_does_not_look_for_its_model(tuned: tuple[Experiment, Path], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        train_experiment(*tuned)
    assert f"{tuned[1]} is finished: trained for 2 steps" in caplog.text


def test_a_text_transformer_from_a_folder_is_kept_as_it_is(beside: tuple[Experiment, Path]):
    trained = load_session(beside[1])
    assert_same(open_model(PIPELINE).params["conditioner"], trained.params["conditioner"])
    assert (beside[1] / "checkpoints" / "autoencoder").exists()


def test_the_next_run_can_take_its_first_stage_from_one_that_started_elsewhere(
    tuned: tuple[Experiment, Path], tmp_path: Path
):
    first = dataclasses.replace(tuned[0].first_stage, run=str(tuned[1]))
    point = find_starting_point(
        dataclasses.replace(tuned[0], first_stage=first, start=None), RunFolder(tmp_path / "next")
    )
    assert set(point.params) == {"autoencoder"}
    assert_same(point.params["autoencoder"], load_session(tuned[1]).params["autoencoder"])


def test_a_first_stage_leaves_what_it_was_trained_against_behind(data_cache: Path, tmp_path: Path):
    judge = DiscriminatorConfig(base_channels=4, num_layers=1, norm="none", start_step=0, lecam_weight=0.1)
    tiny = tiny_experiment(data_cache)
    first = dataclasses.replace(tiny.first_stage, discriminator=judge, learn_output_logvar=True)
    train_experiment(dataclasses.replace(tiny, first_stage=first), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "diffusion")
    next_first = dataclasses.replace(tiny.first_stage, run=str(tmp_path / "run"))
    point = find_starting_point(dataclasses.replace(tiny, first_stage=next_first), RunFolder(tmp_path / "next"))
    assert set(point.params) == {"autoencoder"}
    assert set(load_session(tmp_path / "run", "autoencoder").params) == {"autoencoder"}


def test_a_text_transformer_that_is_trained_starts_from_the_folder(data_cache: Path, tmp_path: Path):
    experiment = with_folder(data_cache, PIPELINE / "text_encoder", trainable=True)
    point = find_starting_point(experiment, RunFolder(tmp_path / "run"))
    assert_same(point.params, {"conditioner": open_model(PIPELINE).params["conditioner"]})
    assert set(point.tokenizers) == {"tokens"}


def refused(experiment: Experiment, run: Path, message: str) -> None:
    """It is refused with this message, and nothing is written."""
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=message):
        train_experiment(experiment, run)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_another_model_is_refused_with_what_differs(data_cache: Path, tmp_path: Path):
    experiment = fine_tuning(data_cache, PIPELINE, num_layers=3)
    message = rf"start={re.escape(str(PIPELINE))} is another model:\n  conditioning\.num_layers: 2 -> 3\ngive this"
    refused(experiment, tmp_path / "run", message)


def test_a_model_that_is_not_there_is_refused(data_cache: Path, tmp_path: Path):
    refused(fine_tuning(data_cache, tmp_path / "none"), tmp_path / "run", r"none does not exist")


def test_a_run_that_has_no_checkpoint_yet_goes_on_from_the_same_model(data_cache: Path, tmp_path: Path):
    experiment = fine_tuning(data_cache, PIPELINE)
    RunFolder(tmp_path).open(experiment)
    message = r"was begun from something else \(start: '\S*pipeline_sd1' -> None\), and its second stage has no"
    refused(dataclasses.replace(experiment, start=None), tmp_path, message)


def test_a_run_that_has_no_checkpoint_yet_goes_on_from_the_same_folder(data_cache: Path, tmp_path: Path):
    experiment = with_folder(data_cache, PIPELINE / "text_encoder")
    RunFolder(tmp_path).open(experiment)
    message = r"\(conditioning\.folder: '\S*text_encoder' -> 'other'\)"
    refused(with_folder(data_cache, Path("other")), tmp_path, message)


def sdxl(data_cache: Path, first: Path | None, second: Path | None) -> Experiment:
    """An experiment with two small text transformers."""
    text = open_model(PIPELINE).experiment.conditioning
    assert isinstance(text, ClipTextConditioning)
    given = {"context_layer": "penultimate", "context_norm": False}
    conditioning = SdxlConditioning(
        first=dataclasses.replace(text, **given, folder=first and str(first)),
        second=dataclasses.replace(text, **given, folder=second and str(second), projection_dim=8),
        size_dim=4,
    )
    experiment = tiny_experiment(data_cache)
    denoiser = dataclasses.replace(experiment.denoiser, vector_dim=conditioning.vector_dim)
    return dataclasses.replace(experiment, conditioning=conditioning, denoiser=denoiser)


@pytest.fixture
def projected(tmp_path: Path) -> Path:
    """The folder of a text transformer with a projection, as `text_encoder_2` of a pipeline with its tokenizer."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "pipeline" / "text_encoder_2"
    shutil.copytree(PIPELINE / "text_encoder", folder)
    shutil.copytree(PIPELINE / "tokenizer", tmp_path / "pipeline" / "tokenizer_2")
    options = json.loads((folder / "config.json").read_text())
    options |= {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 8}
    (folder / "config.json").write_text(json.dumps(options))
    tensors = load_file(folder / "model.safetensors")
    projection = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    save_file({**tensors, "text_projection.weight": projection}, folder / "model.safetensors")
    return folder


def test_two_text_transformers_have_a_folder_each(data_cache: Path, tmp_path: Path, projected: Path):
    experiment = sdxl(data_cache, PIPELINE / "text_encoder", projected)
    point = find_starting_point(experiment, RunFolder(tmp_path / "run"))
    clip = open_model(PIPELINE).params["conditioner"]
    both = point.params["conditioner"]
    assert_same(both["first"], clip)
    assert_same({name: value for name, value in both["second"].items() if name != "projection"}, clip)
    assert both["second"]["projection"]["kernel"].shape == (32, 8)
    assert set(point.tokenizers) == {"tokens", "tokens_2"}


def test_one_folder_of_two_is_refused(data_cache: Path, tmp_path: Path, projected: Path):
    experiment = sdxl(data_cache, PIPELINE / "text_encoder", None)
    refused(experiment, tmp_path / "run", r"conditioning\.second\.folder is missing beside conditioning\.first\.folder")
