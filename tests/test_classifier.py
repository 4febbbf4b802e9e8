"""The classifier of noisy latents: what it is, what trains it, and that its gradient leads to its classes."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import random_params, tiny_experiment

from ldm_jax import rng
from ldm_jax.config import ClassifierConfig, Experiment, Unconditional, UNetConfig, save_experiment
from ldm_jax.denoiser.classifier import log_probability
from ldm_jax.diffusion.guidance import Guidance
from ldm_jax.errors import UserError
from ldm_jax.experiment import train_experiment
from ldm_jax.files.places import to_place
from ldm_jax.model import make_classifier, make_model
from ldm_jax.nn.apply import apply
from ldm_jax.sampling import command
from ldm_jax.sampling.asked import Asked, ask
from ldm_jax.sampling.classifier import Classifier, guided_by, load_classifier
from ldm_jax.sampling.draw import Easel
from ldm_jax.sampling.flags import parse_sample
from ldm_jax.sampling.generate import Method, Request, denoiser_for
from ldm_jax.sampling.request import DrawRequest
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.training.checkpoint_contents import digest_checkpoint
from ldm_jax.training.classifier_stage import make_classifier_loss
from ldm_jax.training.workspace import open_workspace

pytestmark = pytest.mark.usefixtures("one_device")

NETWORK = UNetConfig(
    base_channels=8,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_levels=(),
    attention="self",
    mid_attention=False,
    num_head_channels=4,
    num_groups=4,
)
NAMES = ("circle", "square", "triangle", "star")


def classifying(data_cache: Path, **changes: Any) -> Experiment:
    """An experiment that trains a classifier of the tiny experiment's latents."""
    tiny = tiny_experiment(data_cache)
    training = dataclasses.replace(tiny.training, gradient_accumulation=1)
    changes = {"classifier": ClassifierConfig(num_classes=4, network=NETWORK), "training": training} | changes
    return dataclasses.replace(tiny, name="tiny_classifier", conditioning=Unconditional(), **changes)


@pytest.fixture
def drawing(data_cache: Path) -> Session:
    experiment = tiny_experiment(data_cache)
    model = make_model(experiment)
    return Session(experiment, model, random_params(model))


@pytest.fixture
def classifier(data_cache: Path, drawing: Session) -> Classifier:
    experiment = classifying(data_cache)
    module = make_classifier(experiment)
    zt = jnp.zeros((1, *drawing.model.latent_shape))
    shapes = jax.eval_shape(lambda: module.init(rng.root_key(0), zt, jnp.zeros((1,), jnp.int32))["params"])
    numbers = np.random.default_rng(1)
    own = jax.tree.map(lambda x: jnp.asarray(0.3 * numbers.normal(size=x.shape), jnp.float32), shapes)
    parts = {name: drawing.params[name] for name in ("autoencoder", "latent")}
    return Classifier(experiment, module, parts | {"classifier": own}, NAMES, Path("seal"))


def test_probabilities_of_all_classes_sum_to_one():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    sums = sum(jnp.exp(log_probability(logits, jnp.full((3,), k))) for k in range(4))
    np.testing.assert_allclose(np.asarray(sums), 1.0, rtol=1e-6)


def test_its_loss_is_that_of_guessing_before_it_has_learned(drawing: Session, classifier: Classifier):
    loss_fn = make_classifier_loss(drawing.model, classifier.module)
    blind = jax.tree.map(jnp.zeros_like, classifier.params["classifier"])
    shape = (8, *drawing.model.latent_shape[:-1], 2 * drawing.model.latent_shape[-1])
    batch = {
        "moments": jnp.zeros(shape),
        "class_labels": jnp.arange(8) % 4,
        "sample_index": jnp.arange(8),
    }
    loss, metrics = loss_fn({"classifier": blind}, drawing.params, batch, rng.root_key(0), jnp.asarray(0))
    assert float(loss) == pytest.approx(np.log(4)) and float(metrics["accuracy"]) == 0.25


@pytest.mark.slow
def test_guidance_moves_a_prediction_towards_the_class(drawing: Session, classifier: Classifier):
    session = guided_by(drawing, classifier)
    numbers = np.random.default_rng(0)
    zt = jnp.asarray(numbers.normal(size=(2, *session.model.latent_shape)), jnp.float32)
    t, inputs = jnp.full((2,), 500), session.null_inputs(2)
    request = Request(inputs, {}, Guidance(1.0), wanted=jnp.asarray([1, 3]), push=jnp.full((2,), 0.1))
    predictions = {}
    for push in (0.0, 0.1):
        told = request._replace(push=jnp.full((2,), push))
        method = Method(guided=False, prediction_type="epsilon")
        predictions[push] = denoiser_for(session.model, session.params, told, method)(zt, t)
    plain = denoiser_for(drawing.model, drawing.params, Request(inputs, {}, Guidance(1.0)), Method(guided=False))(zt, t)
    np.testing.assert_array_equal(np.asarray(predictions[0.0]), np.asarray(plain))
    step = plain - predictions[0.1]  # less noise of this kind is more of the class

    def certainty(z: jax.Array) -> np.ndarray:
        logits = apply(classifier.module, classifier.params["classifier"], z, t)
        return np.asarray(log_probability(logits, jnp.asarray([1, 3])))

    assert (certainty(zt + 0.01 * step / jnp.abs(step).max()) > certainty(zt)).all()


# --- what does not go together ---------------------------------------------------------------------------------------


def test_a_classifier_without_a_model_to_guide(data_cache: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"latents of the model that it guides: name it, --first-stage\.run"):
        open_workspace(classifying(data_cache), tmp_path / "run")


def test_a_classifier_of_other_classes(data_cache: Path, tmp_path: Path):
    config = ClassifierConfig(num_classes=7, network=NETWORK)
    first = dataclasses.replace(classifying(data_cache).first_stage, run="elsewhere")
    experiment = classifying(data_cache, classifier=config, first_stage=first)
    message = "classifier.num_classes=7, but the data set shapes has 4 classes; use that number"
    with pytest.raises(UserError, match=message):
        open_workspace(experiment, tmp_path / "run")


def test_a_network_that_looks_at_a_context():
    with pytest.raises(UserError, match=r"classifier\.network\.attention=transformer looks at a context"):
        ClassifierConfig(network=UNetConfig())


def test_a_classifier_of_other_latents(drawing: Session, classifier: Classifier):
    other = dataclasses.replace(drawing, params={**drawing.params, "latent": {"mean": jnp.ones(2), "std": jnp.ones(2)}})
    with pytest.raises(
        UserError, match=r"works on other latents than smoke:\n  parameters of the latent differ\ntrain"
    ):
        guided_by(other, classifier)
    experiment = dataclasses.replace(
        classifier.experiment,
        diffusion=dataclasses.replace(
            drawing.experiment.diffusion,
            schedule=dataclasses.replace(drawing.experiment.diffusion.schedule, kind="cosine"),
        ),
    )
    with pytest.raises(UserError, match=r"diffusion\.schedule\.kind: scaled_linear -> cosine|kind: "):
        guided_by(drawing, dataclasses.replace(classifier, experiment=experiment))


def test_classes_are_told_by_name_or_number(drawing: Session, classifier: Classifier):
    assert classifier.numbers(["Star", "1", "circle"]).tolist() == [3, 1, 0]
    for label, message in {
        "4": "the classifier does not know the class '4'; give --class-label, one of circle, square, triangle, star",
        "cow": "does not know the class 'cow'",
    }.items():
        with pytest.raises(UserError, match=message):
            classifier.numbers([label])
    pictures = ask(Asked(), drawing, 1.0)
    with pytest.raises(UserError, match="--classifier leads towards a class, and none is told; give --class-label"):
        Easel(guided_by(drawing, classifier), DrawRequest(pictures=pictures))
    with pytest.raises(UserError, match=r"classifier_scale=-1\.0 must be a finite number and not negative"):
        DrawRequest(pictures=pictures, classifier_scale=-1.0)


def test_a_classifier_draws_nothing_itself(data_cache: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    save_experiment(classifying(data_cache), tmp_path / "run" / "config.json")
    with pytest.raises(
        UserError, match="is the run of a classifier, which draws nothing itself: ldm sample RUN --clas"
    ):
        load_session(tmp_path / "run")


def test_a_run_that_draws_is_no_classifier(data_cache: Path, tmp_path: Path):
    run = open_workspace(tiny_experiment(data_cache), tmp_path / "run").run.path
    with pytest.raises(UserError, match="is the run of a model that draws; give one of a classifier"):
        load_classifier(run)


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trained_classifier_guides_the_run_it_was_trained_on(data_cache: Path, tmp_path: Path):
    run, other = tmp_path / "run", tmp_path / "classifier"
    train_experiment(tiny_experiment(data_cache), run)
    first = dataclasses.replace(tiny_experiment(data_cache).first_stage, run=str(run))
    experiment = classifying(data_cache, first_stage=first)
    train_experiment(experiment, other)
    train_experiment(experiment, other)  # finished: nothing is left to do
    assert load_classifier(other).class_names == NAMES

    def open_run(path: Path, **_: Any) -> Session:
        return load_session(path)

    flags = [str(run), "--class-label", "star", "--num-samples", "2", "--guidance-scale", "1"]
    plain = command.draw(parse_sample([str(run), "--num-samples", "2", "--guidance-scale", "1"]), open_run)
    guided = command.draw(parse_sample([*flags, "--classifier", str(other), "--classifier-scale", "30"]), open_run)
    assert guided[0].read_bytes() != plain[0].read_bytes()
    (again,) = command.draw_again(parse_sample(["--again", str(guided[1]), "--out", str(tmp_path)]), open_run)
    assert (_pixels(again) == _pixels(guided[1])).all()


@pytest.mark.slow
def test_its_third_step_is_the_same_after_a_restart(data_cache: Path, tmp_path: Path):
    train_experiment(tiny_experiment(data_cache), tmp_path / "run")
    first = dataclasses.replace(tiny_experiment(data_cache).first_stage, run=str(tmp_path / "run"))
    training = dataclasses.replace(classifying(data_cache).training, num_steps=3, checkpoint_every=2)
    experiment = classifying(data_cache, first_stage=first, training=training)
    train_experiment(experiment, tmp_path / "whole")
    # As a kill between step 2 and step 3 would leave it.
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    seal = tmp_path / "broken" / "checkpoints" / "classifier" / "00000003.json"
    seal.unlink()
    train_experiment(experiment, tmp_path / "broken")
    assert seal.exists()
    whole, resumed = (
        digest_checkpoint(to_place(tmp_path / name / "checkpoints" / "classifier" / "00000003"), 3, 0)
        for name in ("whole", "broken")
    )
    assert whole == resumed


def _pixels(path: Any) -> np.ndarray:
    return np.asarray(Image.open(path))
