"""A session: what it is asked for, what it refuses, and loading one from a run folder."""

import dataclasses
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES, random_params, tiny_experiment

from ldm_jax import sharding
from ldm_jax.conditioning.tokenizer import PromptEncoder, train_tokenizer
from ldm_jax.config import Conditioning, Experiment, MeshConfig, SamplingConfig, Unconditional
from ldm_jax.errors import UserError
from ldm_jax.model import make_model
from ldm_jax.sampling import batches
from ldm_jax.sampling.draw import BatchRow, Easel
from ldm_jax.sampling.request import DrawRequest, PictureRequest
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.training.run_folder import RunFolder

CAPTIONS = ["a red circle", "a blue square", "a green star", "a yellow triangle"]
NAMES = ("circle", "square", "triangle", "star")
CONFIG = SamplingConfig(num_sample_steps=2, guidance_scale=2.0)

pytestmark = pytest.mark.usefixtures("one_device")


def make_session(data_cache: Path, conditioning: Conditioning | None = None) -> Session:
    experiment = tiny_experiment(data_cache)
    if conditioning is not None:
        experiment = dataclasses.replace(experiment, conditioning=conditioning)
    model = make_model(experiment)
    tokenizers = {"tokens": train_tokenizer(CAPTIONS, 300, 8)} if conditioning is None else {}
    encoder = PromptEncoder(tokenizers, warn=True) if tokenizers else None
    return Session(experiment, model, random_params(model), encoder, NAMES, "by nobody")


@pytest.fixture(scope="module")
def text(data_cache: Path) -> Session:
    """A session of a model that takes prompts."""
    return make_session(data_cache)


@pytest.fixture(scope="module")
def classes(data_cache: Path) -> Session:
    """A session of a model that takes classes."""
    return make_session(data_cache, CLASSES)


@pytest.fixture(scope="module")
def plain(data_cache: Path) -> Session:
    """A session of a model that takes nothing."""
    return make_session(data_cache, Unconditional())


def test_prompts_to_a_model_of_classes(classes: Session):
    with pytest.raises(UserError, match="this model has ClassConditioning and takes no prompt; use --class-label N"):
        classes.prompt_inputs(["a red circle"])


def test_prompts_and_classes_to_a_model_of_nothing(plain: Session):
    with pytest.raises(UserError, match="this model has Unconditional and takes no prompt; use --num-samples N alone"):
        plain.prompt_inputs(["a red circle"])
    with pytest.raises(UserError, match="has Unconditional and takes no class label; use --num-samples N alone"):
        plain.class_inputs(["0"])


def test_classes_to_a_model_of_text(text: Session):
    with pytest.raises(UserError, match="this model has TextConditioning and takes no class label; use --prompt TEXT"):
        text.class_inputs(["0"])


@pytest.mark.parametrize("label", ["hexagon", "4", "-1", "²", ""])
def test_an_unknown_class_is_answered_with_those_there_are(classes: Session, label: str):
    message = f"unknown class {label!r}: use a number from 0 to 3; names: circle, square, triangle, star"
    with pytest.raises(UserError, match=re.escape(message)):
        classes.class_inputs([label])


def test_an_unknown_class_of_data_without_names(classes: Session):
    with pytest.raises(UserError, match=r"unknown class 'hexagon': use a number from 0 to 3$"):
        dataclasses.replace(classes, class_names=()).class_inputs(["hexagon"])


def test_classes_by_number_and_by_name(classes: Session):
    inputs = classes.class_inputs(["0", "3", "circle", "Star", "SQUARE"])
    assert inputs["class_labels"].tolist() == [0, 3, 0, 3, 1]


def test_a_name_that_looks_like_a_number_is_a_name(classes: Session):
    digits = dataclasses.replace(classes, class_names=("3", "2", "1", "0"))
    assert digits.class_inputs(["0", "3"])["class_labels"].tolist() == [3, 0]


def test_an_empty_prompt_is_drawn_without_a_condition_and_with_a_warning(
    text: Session, caplog: pytest.LogCaptureFixture
):
    inputs = text.prompt_inputs(["", "a red circle", "  "])
    assert caplog.text.count("an empty prompt draws without a condition") == 1
    null = text.null_inputs(1)["tokens"][0]
    np.testing.assert_array_equal(inputs["tokens"][0], null)
    np.testing.assert_array_equal(inputs["tokens"][2], null)
    assert not np.array_equal(inputs["tokens"][1], null)


def test_a_long_prompt_is_cut_with_one_warning_however_often_it_is_drawn(
    text: Session, caplog: pytest.LogCaptureFixture
):
    inputs = text.prompt_inputs(["a red circle on a very wide green field"] * 3)
    assert re.search(r"the prompt has \d+ tokens and 6 fit; it was cut after: a red", caplog.text)
    assert len(caplog.records) == 1
    assert inputs["tokens"].shape == (3, 8)


@pytest.mark.parametrize("prompt", ["красный круг", "赤い円", "دائرة حمراء", "🔴", "a\tred\n circle"])
def test_a_prompt_in_any_script_is_taken(text: Session, prompt: str):
    tokens = text.prompt_inputs([prompt])["tokens"]
    assert tokens.shape == (1, 8)
    assert not np.array_equal(tokens, text.null_inputs(1)["tokens"])


def test_pictures_are_bytes_and_the_same_in_every_batch_size(text: Session):
    inputs = text.prompt_inputs(["a red circle", "a blue square", "a green star"])
    whole = np.stack(list(text.draw(inputs, 3, CONFIG, seed=4, batch_size=16)))
    assert whole.dtype == np.uint8
    assert whole.shape == (3, *text.model.image_shape)
    parts = np.stack(list(text.draw(inputs, 3, CONFIG, seed=4, batch_size=2)))
    assert np.abs(whole.astype(int) - parts.astype(int)).max() <= 1  # 1e-5 before rounding
    other = np.stack(list(text.draw(inputs, 3, CONFIG, seed=5, batch_size=2)))
    assert np.abs(whole.astype(int) - other.astype(int)).max() > 1


def test_one_picture_alone_is_that_of_many(text: Session):
    inputs = text.prompt_inputs(["a red circle", "a blue square"])
    (alone,) = text.draw(jax.tree.map(lambda x: x[:1], inputs), 1, CONFIG, seed=0)
    first = next(iter(text.draw(inputs, 2, CONFIG, seed=0)))
    assert np.abs(alone.astype(int) - first.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "mesh", [MeshConfig(), pytest.param(MeshConfig(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow)]
)
def test_eight_devices_draw_what_one_does(text: Session, mesh: MeshConfig, monkeypatch: pytest.MonkeyPatch):
    inputs = text.prompt_inputs(["a red circle", "a blue square", "a green star"])
    one = np.stack(list(text.draw(inputs, 3, CONFIG, seed=4)))
    monkeypatch.undo()  # of the fixture that shows one device
    assert len(jax.devices()) == 8
    eight = np.stack(list(dataclasses.replace(text, mesh=mesh).draw(inputs, 3, CONFIG, seed=4)))
    assert np.abs(one.astype(int) - eight.astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["classes", "plain"])
def test_models_without_text_draw_too(request: pytest.FixtureRequest, name: str):
    session: Session = request.getfixturevalue(name)
    inputs = session.class_inputs(["circle", "3"]) if name == "classes" else session.null_inputs(2)
    assert len(list(session.draw(inputs, 2, CONFIG, seed=0))) == 2


def test_more_steps_than_there_are_timesteps(text: Session):
    config = dataclasses.replace(CONFIG, num_sample_steps=2000)
    message = "num_sample_steps=2000 must lie between 1 and num_train_timesteps=1000"
    with pytest.raises(UserError, match=message):
        list(text.draw(text.null_inputs(1), 1, config, seed=0))


# Loading from a run folder.


@pytest.fixture
def run(text: Session, tmp_path: Path) -> Iterator[RunFolder]:
    """A run folder with a checkpoint of the text model at step 5."""
    run = RunFolder(tmp_path / "run")
    run.open(text.experiment)
    run.write_manifest(text.experiment, {"class_names": list(NAMES), "credit": "by somebody"})
    run.save_tokenizers(text.tokenizers)
    save(run, "diffusion", 5, text.params)
    yield run


def save(run: RunFolder, stage: str, step: int, model: Any) -> None:
    checkpoints = run.checkpoints(stage)
    checkpoints.save(step, {"model": model, "training": {"step": jnp.asarray(step)}})
    checkpoints.wait()


def test_a_run_is_loaded_with_all_that_drawing_takes(run: RunFolder, text: Session, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        session = load_session(run.path)
    assert "checkpoint of step 5" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, session.params, text.params)
    assert session.class_names == NAMES
    assert session.credit == "by somebody"
    tokens = [s.prompt_inputs(["a red circle"])["tokens"] for s in (session, text)]
    np.testing.assert_array_equal(*tokens)


def test_the_autoencoder_can_be_loaded_alone(run: RunFolder, text: Session):
    save(run, "autoencoder", 3, {"autoencoder": text.params["autoencoder"]})
    session = load_session(run.path, stage="autoencoder")
    assert set(session.params) == {"autoencoder"}
    assert session.encode_caption is None


def test_a_folder_that_is_no_run(tmp_path: Path):
    message = f"{tmp_path / 'none' / 'config.json'} does not exist: {tmp_path / 'none'} is not a run folder"
    with pytest.raises(UserError, match=re.escape(message)):
        load_session(tmp_path / "none")


def test_a_run_that_is_not_that_far(text: Session, tmp_path: Path):
    RunFolder(tmp_path / "run").open(text.experiment)
    message = "run has no checkpoint of its diffusion stage yet; train it first with the same command"
    with pytest.raises(UserError, match=message):
        load_session(tmp_path / "run")


def test_a_run_whose_newest_checkpoint_is_damaged(run: RunFolder, text: Session, caplog: pytest.LogCaptureFixture):
    save(run, "diffusion", 6, jax.tree.map(lambda x: x + 1, text.params))
    (run.path / "checkpoints" / "diffusion" / "00000006" / "extra").write_text("")
    session = load_session(run.path)
    jax.tree.map(np.testing.assert_array_equal, session.params, text.params)
    assert "00000006 is damaged: extra does not belong to it; looking for an older one" in caplog.text


def test_a_text_run_without_its_tokenizer(run: RunFolder):
    run.tokenizer_file().unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing: a text-conditional run cannot be used without"):
        load_session(run.path)


def test_a_run_without_its_manifest_still_draws(run: RunFolder, text: Session):
    (run.path / "manifest.json").unlink()
    session = load_session(run.path)
    assert session.class_names == ()
    assert session.credit == ""


def test_a_run_of_another_version_is_refused_by_the_name_of_what_it_does_not_know(run: RunFolder):
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace('"name": "smoke"', '"name": "smoke", "flavour": 1', 1))
    with pytest.raises(UserError, match=r"the saved Experiment has unknown fields \['flavour'\]"):
        load_session(run.path)


def test_an_experiment_is_what_it_was(run: RunFolder, text: Session):
    loaded: Experiment = load_session(run.path).experiment
    assert loaded == text.experiment


def test_pictures_that_are_no_numbers_are_refused(text: Session, monkeypatch: pytest.MonkeyPatch):
    def make_nan(*arguments: Any, **options: Any) -> Any:
        return lambda *given: np.full((len(given[-1]), 8, 8, 3), np.nan)

    monkeypatch.setattr(batches, "make_generate", make_nan)
    message = (
        "sampler=ddim with 2 steps and guidance_scale=2.0 leaves numbers that are not finite; use another sampler, "
        "more steps or less guidance"
    )
    config = dataclasses.replace(CONFIG, sampler="ddim")
    with pytest.raises(UserError, match=re.escape(message)):
        list(text.draw(text.prompt_inputs(["a red circle"]), 1, config, seed=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_dims": 1}, "denoiser.spatial_dims=1 is not for pictures, which are the only data here; use 2"),
        ({"num_codebook_ids": 9}, "denoiser.num_codebook_ids=9 predicts codebook entries and no latents; use None"),
    ],
)
def test_a_denoiser_of_something_else_draws_no_pictures(text: Session, change: dict[str, Any], message: str):
    experiment = text.experiment
    first = experiment.first_stage
    if "spatial_dims" in change:
        first = dataclasses.replace(first, autoencoder=dataclasses.replace(first.autoencoder, **change))
    denoiser = dataclasses.replace(experiment.denoiser, **change)
    other = dataclasses.replace(text, experiment=dataclasses.replace(experiment, denoiser=denoiser, first_stage=first))
    with pytest.raises(UserError, match=re.escape(message)):
        next(other.draw({}, 1, CONFIG, seed=0))


def test_a_tensor_axis_that_splits_nothing_is_refused_before_anything_is_compiled(
    text: Session, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:6])
    message = r"--mesh\.tensor 6 splits no layer of this model \(.*\); sizes that work on 6 devices: 1, 2"
    with pytest.raises(UserError, match=message):
        text.on(MeshConfig(data=1, tensor=6))
    with pytest.raises(
        UserError, match=r"--mesh\.data 4 --mesh\.fsdp 1 --mesh\.tensor 1 needs 4 devices, but there are 6"
    ):
        text.on(MeshConfig(data=4))


def test_on_another_mesh_the_model_is_made_for_it(text: Session):
    other = text.on(MeshConfig(data=1, fsdp=-1))
    assert other.mesh == MeshConfig(data=1, fsdp=-1)
    assert other.model.denoiser.kernel.mesh == sharding.make_mesh(other.mesh)
    assert other.params is text.params and other.experiment is text.experiment


@pytest.mark.slow
def test_a_picture_keeps_the_mesh_that_it_was_drawn_on(text: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices())
    config = SamplingConfig(num_sample_steps=2)
    request = DrawRequest(pictures=(PictureRequest(prompt="a red circle"),), config=config)
    arranged = text.on(MeshConfig(data=2, fsdp=2, tensor=2))
    (drawn,) = Easel(arranged, request).draw(4)
    assert drawn.place == BatchRow(4, 0, 8, fsdp=2, tensor=2)
    again = Easel(text.on(drawn.place.mesh), request).draw_at(0, drawn.place)
    np.testing.assert_array_equal(again.image, drawn.image)
    assert again.place == drawn.place
