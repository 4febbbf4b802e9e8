"""Requests drawn: every way of guidance, pictures that do not know their neighbours, drawing again, refusals."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from drawing import CONFIG, ORIGINS, easel_for, request_for
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_session import make_session
from tiny import CLASSES

from ldm_jax.config import ClassConditioning, SamplingConfig, Unconditional, to_dict
from ldm_jax.errors import UserError
from ldm_jax.model import hash_params
from ldm_jax.pictures import read_picture, save_picture
from ldm_jax.sampling import command
from ldm_jax.sampling.asked import Asked, ask
from ldm_jax.sampling.description import read_description
from ldm_jax.sampling.draw import BatchRow, Easel
from ldm_jax.sampling.files import draw_to_files
from ldm_jax.sampling.flags import GridCommand, devices_of, parse_grid, parse_sample
from ldm_jax.sampling.model_hash import model_hash
from ldm_jax.sampling.prompt_files import PromptLine
from ldm_jax.sampling.request import DrawRequest, PictureRequest
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_device")

LONG = "a red circle a blue square a green star"


@pytest.fixture(scope="module")
def text(data_cache: Path) -> Session:
    """A model of text with parameters so large that its prompts show in 8 bits."""
    session = make_session(data_cache)
    large = {name: _scaled(session.params[name], 5.0) for name in ("denoiser", "conditioner")}
    return dataclasses.replace(session, params={**session.params, **large})


@pytest.fixture(scope="module")
def classes(data_cache: Path) -> Session:
    return make_session(data_cache, CLASSES)


@pytest.fixture(scope="module")
def plain(data_cache: Path) -> Session:
    return make_session(data_cache, Unconditional())


def images(easel: Easel, batch_size: int = 4) -> dict[int, np.ndarray]:
    return {drawn.position: drawn.image.astype(int) for drawn in easel.draw(batch_size)}


def _scaled(params: Any, factor: float = 0.5) -> Any:
    return jax.tree.map(lambda x: factor * x, params)


def apart(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one) - np.asarray(other)).max())


# --- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_call_and_two_draw_the_same(text: Session):
    asked: dict[str, Any] = {"prompts": ("a red circle",), "negative_prompts": ("a blue square",), "num_samples": 2}
    one = images(easel_for(text, **asked))
    two = images(easel_for(text, dataclasses.replace(CONFIG, guidance_calls="two"), **asked))
    assert max(apart(one[i], two[i]) for i in one) <= 1
    other = images(easel_for(text, **{**asked, "negative_prompts": ()}))
    assert max(apart(one[i], other[i]) for i in one) > 1, "the negative prompt matters"


def test_a_picture_does_not_know_what_is_drawn_with_it(text: Session):
    """Scales, chunks and seeds of its own, drawn with others of other kinds, and alone."""
    pictures = (
        PictureRequest(seed=1, index=0, prompt="a red circle", guidance_scale=3.0),
        PictureRequest(seed=1, index=1, prompt=LONG, guidance_scale=3.0),
        PictureRequest(seed=2, index=0, prompt="a blue (square:1.3)", guidance_scale=1.5),
        PictureRequest(seed=2, index=7, prompt="a red circle", guidance_scale=1.0),
    )
    together = images(Easel(text, DrawRequest(pictures=pictures, config=CONFIG)), batch_size=2)
    assert sorted(together) == [0, 1, 2, 3]
    for i, picture in enumerate(pictures):
        (alone,) = images(Easel(text, DrawRequest(pictures=(picture,), config=CONFIG))).values()
        assert apart(alone, together[i]) <= 1


def test_the_interval_and_the_rescaling_reach_the_pictures(text: Session):
    asked: dict[str, Any] = {"prompts": ("a red circle",), "num_samples": 1, "guidance_scales": (8.0,)}
    base = images(easel_for(text, **asked))[0]
    never = dataclasses.replace(CONFIG, guidance_interval=(1e6, 1e7))
    unguided = images(easel_for(text, **{**asked, "guidance_scales": (1.0,)}))[0]
    assert apart(images(easel_for(text, never, **asked))[0], unguided) <= 1
    assert apart(base, unguided) > 1
    assert apart(images(easel_for(text, dataclasses.replace(CONFIG, guidance_rescale=1.0), **asked))[0], base) > 1


@pytest.mark.slow
def test_a_weaker_model_is_led_away_from(text: Session, plain: Session):
    def with_weaker(session: Session, weaker: Session, scale: float, **asked: Any) -> np.ndarray:
        pictures = ask(Asked(num_samples=1, **asked), session, scale, has_weaker=True)
        return images(Easel(session, DrawRequest(pictures=pictures, config=CONFIG), weaker))[0]

    same = with_weaker(text, text, 5.0, prompts=("a red circle",))
    unguided = images(easel_for(text, prompts=("a red circle",), num_samples=1, guidance_scales=(1.0,)))[0]
    assert apart(same, unguided) <= 1, "leading away from oneself leads nowhere"
    weak = dataclasses.replace(text, params={**text.params, "denoiser": _scaled(text.params["denoiser"])})
    assert apart(with_weaker(text, weak, 5.0, prompts=("a red circle",)), unguided) > 1
    assert with_weaker(plain, plain, 5.0).shape == plain.model.image_shape, "without any condition too"


def test_an_interpolation_ends_where_it_leads(text: Session):
    strip = images(
        easel_for(text, prompts=("a red circle",), prompts_to=("a blue square",), num_frames=3, num_samples=1)
    )
    ends = [images(easel_for(text, prompts=(p,), num_samples=1))[0] for p in ("a red circle", "a blue square")]
    assert (apart(strip[0], ends[0]), apart(strip[2], ends[1])) <= (1, 1)
    assert apart(strip[1], strip[0]) > 0 and apart(strip[1], strip[2]) > 0


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_each_prompt_has_its_own_scale_and_negative_prompt(text: Session):
    asked = Asked(prompts=("a", "b"), guidance_scales=(2.0, 3.0), negative_prompts=("c",), num_samples=2, seed=4)
    pictures = ask(asked, text, 5.0)
    assert [(p.prompt, p.guidance_scale, p.negative, p.seed, p.index) for p in pictures] == [
        ("a", 2.0, "c", 4, 0),
        ("a", 2.0, "c", 4, 1),
        ("b", 3.0, "c", 4, 2),
        ("b", 3.0, "c", 4, 3),
    ]


def test_a_line_of_a_file_may_have_a_seed_of_its_own(text: Session):
    lines = (PromptLine(prompt="a"), PromptLine(prompt="b", seed=9, guidance=2.0, negative="n"))
    pictures = ask(Asked(lines=lines, num_samples=2), text, 5.0)
    assert [(p.prompt, p.seed, p.index) for p in pictures] == [("a", 0, 0), ("a", 0, 1), ("b", 9, 0), ("b", 9, 1)]
    assert [(p.guidance_scale, p.negative) for p in pictures[1:3]] == [(5.0, None), (2.0, "n")]


def test_models_that_cannot_be_guided_are_not_unless_someone_asks(plain: Session, classes: Session):
    experiment = dataclasses.replace(
        classes.experiment,
        conditioning=ClassConditioning(num_classes=4, context_dim=8, null_class=False),
        diffusion=dataclasses.replace(classes.experiment.diffusion, cond_drop_prob=0.0),
    )
    without_null = dataclasses.replace(classes, experiment=experiment)
    for session in (plain, without_null):
        assert {p.guidance_scale for p in ask(Asked(), session, 5.0)} == {1.0}
        with pytest.raises(
            UserError, match=r"guidance_scale=3\.0 needs a model that was trained without its condition"
        ):
            easel_for(session, guidance_scales=(3.0,))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "both": ("text", {"prompts": ("a",), "class_labels": ("0",)}, "give --prompt or --class-label, not both"),
    "scales": (
        "text",
        {"prompts": ("a", "b", "c"), "guidance_scales": (1.0, 2.0)},
        "2 --guidance-scale for 3 prompts or classes; give one for all, or one for each",
    ),
    "negative of a class": (
        "classes",
        {"class_labels": ("0",), "negative_prompts": ("x",)},
        "a negative prompt goes with a prompt, and this picture of ClassConditioning has none",
    ),
    "negative without guidance": (
        "text",
        {"prompts": ("a",), "negative_prompts": ("x",), "guidance_scales": (1.0,)},
        "a negative prompt does nothing at guidance_scale=1.0",
    ),
    "from nothing": ("text", {"prompts_to": ("x",)}, "give --prompt beside --prompt-to"),
    "one frame": ("text", {"prompts": ("a",), "prompts_to": ("x",), "num_frames": 1}, "--frames=1 must be at least 2"),
    "too many": (
        "text",
        {"prompts": ("a", "b"), "num_samples": 60_000},
        "120000 pictures are too many for one call; draw at most 100000",
    ),
    "negative guidance": ("text", {"prompts": ("a",), "guidance_scales": (-1.0,)}, "guidance_scale=-1.0 must be a"),
    "guidance that is no number": ("text", {"prompts": ("a",), "guidance_scales": (np.nan,)}, "guidance_scale=nan"),
    "seed": ("text", {"prompts": ("a",), "seed": -1}, "seed=-1 must lie between 0 and 2147483647"),
    "prompt of a class": ("classes", {"prompts": ("a",)}, "takes no prompt; use --class-label N"),
    "weight": ("text", {"prompts": ("a",), "negative_prompts": ("(b",)}, "wrong weight at position 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_before_anything_compiles(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("something is compiled"))
    kind, asked, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)):
        easel_for(request.getfixturevalue(kind), **asked)


def test_numbers_of_a_request_out_of_range():
    with pytest.raises(UserError, match="the list of prompts or classes is empty; give at least one"):
        DrawRequest(pictures=())
    with pytest.raises(UserError, match=r"fraction=1\.5 must lie between 0 and 1"):
        PictureRequest(fraction=1.5)
    for interval in ((2.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(UserError, match="must be two noise levels, the lower one first"):
            SamplingConfig(guidance_interval=interval)
    with pytest.raises(UserError, match=r"guidance_rescale=1\.5 must lie between 0 and 1"):
        SamplingConfig(guidance_rescale=1.5)


def test_a_weaker_model_of_other_latents_or_with_a_negative_prompt(text: Session, classes: Session):
    request = request_for(text, prompts=("a",), num_samples=1)
    other = dataclasses.replace(text, params={**text.params, "latent": _scaled(text.params["latent"])})
    with pytest.raises(UserError, match=r"other latents or conditions than smoke:\n  parameters of the latent differ"):
        Easel(text, request, other)
    with pytest.raises(UserError, match="conditioning: TextConditioning"):
        Easel(text, request, classes)
    negative = request_for(text, prompts=("a",), negative_prompts=("b",), num_samples=1)
    with pytest.raises(UserError, match="--negative-prompt and --weaker both say what guidance leads away from"):
        Easel(text, negative, text)
    unguided = request_for(text, prompts=("a",), guidance_scales=(1.0,), num_samples=1)
    with pytest.raises(UserError, match=r"a weaker model does nothing at guidance_scale=1.0; use --guidance-scale 2"):
        Easel(text, unguided, text)


# --- again -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(text: Session, tmp_path: Path) -> Path:
    folder = RunFolder(tmp_path / "run")
    folder.open(text.experiment)
    folder.write_manifest(text.experiment, {"class_names": [], "credit": "by somebody"})
    folder.save_tokenizers(text.tokenizers)
    save(folder, 5, text.params)
    return folder.path


def save(run: RunFolder, step: int, params: Any) -> None:
    checkpoints = run.checkpoints("diffusion")
    checkpoints.save(step, {"model": params, "training": {"step": jax.numpy.asarray(step)}})
    checkpoints.wait()


def open_run(path: Path, *, config: Path | None, tokenizer: Path | None, ema_sigma_rel: float | None) -> Session:
    assert config is None and tokenizer is None and ema_sigma_rel is None
    return load_session(path)


def test_a_picture_is_drawn_again_to_the_bit(run: Path, tmp_path: Path):
    flags = [str(run), "--prompt", "a (red:1.2) circle", "--prompt", LONG, "--negative-prompt", "a blue square"]
    flags += ["--num-samples", "3", "--seed", "5", "--batch-size", "2", "--sampler", "euler_ancestral"]
    flags += ["--guidance-scale", "3", "--guidance-scale", "2", "--guidance-rescale", "0.5"]
    files = command.draw(parse_sample(flags), open_run)
    assert files[0].parent == run / "samples" / "a-red-1-2-circle_seed5"
    for file in (files[1], files[5]):
        assert devices_of(file) == 1
        again = parse_sample(["--again", str(file), "--out", str(tmp_path / "again")])
        (drawn,) = command.draw_again(again, open_run)
        (one, said), (other, says) = read_picture(file), read_picture(drawn)
        np.testing.assert_array_equal(one, other)
        assert said == says
        assert said["model"] == hash_params(load_session(run).params)
        assert (said["negative"], said["seed"], said["credit"]) == ("a blue square", "5", "by somebody")
        with pytest.raises(UserError, match="is there already and is not overwritten"):
            command.draw_again(again, open_run)
    save(RunFolder(run), 6, _scaled(load_session(run).params))
    with pytest.raises(
        UserError, match=r"was drawn with a model of checksum .*, and that of .*run is now .*trained on"
    ):
        command.draw_again(parse_sample(["--again", str(files[0]), "--out", str(tmp_path)]), open_run)


@pytest.mark.slow
def test_an_earlier_checkpoint_is_a_weaker_model_and_is_found_again(run: Path, tmp_path: Path, text: Session):
    stronger = jax.tree.map(lambda x: 1.1 * x, text.params["denoiser"])
    save(RunFolder(run), 6, {**text.params, "denoiser": stronger})
    flags = [str(run), "--weaker", str(run), "--weaker-step", "5", "--num-samples", "1", "-p", "a red circle"]
    file, _ = command.draw(parse_sample(flags), open_run)
    described = read_description(file)
    assert described.origins.weaker is not None
    assert (described.origins.weaker.step, described.origins.weaker.path) == (5, str(run))
    (drawn,) = command.draw_again(parse_sample(["--again", str(file), "--out", str(tmp_path)]), open_run)
    np.testing.assert_array_equal(read_picture(file)[0], read_picture(drawn)[0])
    with pytest.raises(UserError, match=r"has no checkpoint of step 4; there are: 5, 6"):
        load_session(run, step=4)
    moved = run.rename(tmp_path / "moved")
    told = ["--again", str(file), "--out", str(tmp_path / "b")]
    file = moved / "samples" / file.parent.name / file.name
    told[1] = str(file)
    with pytest.raises(UserError, match=r"there is no run|does not exist|no such"):
        command.draw_again(parse_sample([str(moved), *told]), open_run)
    (drawn,) = command.draw_again(parse_sample([str(moved), *told, "--weaker", str(moved)]), open_run)
    np.testing.assert_array_equal(read_picture(file)[0], read_picture(drawn)[0])
    told[-1] = str(tmp_path / "c")
    with pytest.raises(UserError, match=r"was drawn without a classifier; leave --classifier .*moved out"):
        command.draw_again(parse_sample([str(moved), *told, "--classifier", str(moved)]), open_run)


def test_a_picture_of_another_number_of_devices(text: Session):
    easel = easel_for(text, prompts=("a",), num_samples=1)
    with pytest.raises(UserError, match=r"was drawn on 8 devices, and there are 1; on a CPU set JAX_NUM_CPU_DEVICES=8"):
        easel.draw_at(0, BatchRow(8, 0, 8))


_WORDS = {
    "request": {"pictures": [{}], "config": to_dict(SamplingConfig())},
    "place": {"batch_size": 2, "row": 0, "devices": 1},
    "model": {"path": "run"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "it holds a NoneType where an object belongs"),
        ([], "it holds a list where an object belongs"),
        ({"request": {"pictures": [{"seed": "x"}], "config": to_dict(SamplingConfig())}}, ""),
        ({"request": {"pictures": [{"prompt": 5}], "config": to_dict(SamplingConfig())}}, ""),
        (
            {"request": {"pictures": [[1]], "config": to_dict(SamplingConfig())}},
            "",
        ),  # told otherwise with types checked
        ({"request": {"pictures": [{}], "config": None}}, ""),
        ({"place": {"batch_size": 2, "row": 2, "devices": 1}}, "it has row=2 of batch_size=2"),
        ({"place": {"batch_size": "2", "row": 0, "devices": 1}}, "BatchRow.batch_size='2' must be int"),
        ({"model": {"path": 3}}, ""),
    ],
)
def test_a_description_that_is_none(tmp_path: Path, change: Any, message: str):
    words = {**_WORDS, **change} if isinstance(change, dict) else change
    save_picture(np.zeros((4, 4, 3), np.uint8), tmp_path / "x.png", {"ldm": json.dumps(words)})
    with pytest.raises(UserError, match=rf"x\.png: its description cannot be read by this version \(.*{message}"):
        read_description(tmp_path / "x.png")


@pytest.mark.parametrize("devices", ["x", 0, -3, [1]])
def test_devices_that_are_no_number(tmp_path: Path, devices: Any):
    words = {"place": {"devices": devices}}
    save_picture(np.zeros((4, 4, 3), np.uint8), tmp_path / "x.png", {"ldm": json.dumps(words)})
    assert devices_of(tmp_path / "x.png") is None


def test_files_that_say_nothing_or_something_else(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png does not say how it was drawn"):
        read_description(tmp_path / "x.png")
    assert devices_of(tmp_path / "x.png") is None
    (tmp_path / "y.png").write_text("no picture")
    for read in (read_description, devices_of):
        with pytest.raises(UserError, match=r"y\.png cannot be read as a PNG"):
            read(tmp_path / "y.png")
    bomb = PngInfo()
    bomb.add_text("ldm", "x" * 10**7, zip=True)  # more than Pillow unpacks
    Image.new("RGB", (4, 4)).save(tmp_path / "z.png", pnginfo=bomb)
    with pytest.raises(UserError, match=r"z\.png cannot be read as a PNG \(Decompressed data too large"):
        read_description(tmp_path / "z.png")
    with pytest.raises(UserError, match="--seed does not go with --again, which draws what the file says"):
        parse_sample(["--again", "x.png", "--seed", "3"])
    with pytest.raises(UserError, match="--weaker-step=3 goes with --weaker RUN"):
        parse_sample(["run", "--weaker-step", "3"])


def test_the_checksum_is_computed_once_for_a_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch, text: Session):
    session = load_session(run)
    found = model_hash(session)
    assert found == hash_params(text.params)
    assert found != hash_params(_scaled(text.params))
    renamed = {**text.params, "latents": text.params["latent"]}
    assert hash_params(renamed) != found
    monkeypatch.setattr("ldm_jax.sampling.model_hash.hash_params", lambda _: "computed")
    assert model_hash(load_session(run)) == found
    save(RunFolder(run), 6, text.params)
    assert model_hash(load_session(run)) == "computed", "another seal, another checkpoint"
    assert model_hash(text) == "computed", "no seal, nothing is kept"


# --- the grid --------------------------------------------------------------------------------------------------------


def test_a_grid_is_prompts_by_scales_by_seeds(run: Path, tmp_path: Path):
    flags = [str(run), "--prompt", "a red circle", "-p", "a blue square", "--guidance-scale", "1", "3", "7"]
    out = tmp_path / "new" / "grid.png"
    asked = parse_grid([*flags, "--seed", "0", "4", "--negative-prompt", "x", "--out", str(out)])
    pictures, rows = command.grid_pictures(asked, asked.guidance_scale)
    assert rows[:2] == ["a red circle, scale 1", "a red circle, scale 3"]
    assert len(pictures) == 12
    assert {picture.index for picture in pictures} == {0}
    assert [(p.seed, p.guidance_scale, p.negative) for p in pictures[:3]] == [(0, 1, None), (4, 1, None), (0, 3, "x")]
    assert command.draw_grid_of(asked, open_run) == out
    assert Image.open(out).size[1] > 6 * 96
    with pytest.raises(UserError, match="is there already and is not overwritten; choose another file"):
        parse_grid([*flags, "--out", str(out)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "x.jpg"], r"--out x\.jpg must be a \.png"),
        (["--seed", "-1"], "--seed=-1 must not be negative"),
        (["--batch-size", "0"], "--batch-size=0 must be at least 1"),
    ],
)
def test_a_grid_refuses(flags: list[str], message: str):
    with pytest.raises(UserError, match=message):
        parse_grid(["run", *flags])


@pytest.mark.slow
def test_a_grid_leads_away_from_a_weaker_model(run: Path, tmp_path: Path, text: Session):
    save(RunFolder(run), 6, {**text.params, "denoiser": jax.tree.map(lambda x: 1.1 * x, text.params["denoiser"])})
    flags = [str(run), "-p", "a red circle", "--guidance-scale", "3", "--seed", "0", "--batch-size", "1"]
    weaker = ["--weaker", str(run), "--weaker-step", "5"]
    asked = [parse_grid([*flags, *more, "--out", str(tmp_path / f"{len(more)}.png")]) for more in ([], weaker)]
    plain, led = (np.asarray(Image.open(command.draw_grid_of(one, open_run)), np.int32) for one in asked)
    assert np.abs(plain - led).max() > 1
    with pytest.raises(UserError, match="--weaker-step=3 goes with --weaker RUN"):
        parse_grid(["run", "--weaker-step", "3"])
    both = parse_grid([*flags, *weaker, "--negative-prompt", "x", "--out", str(tmp_path / "both.png")])
    with pytest.raises(UserError, match="--negative-prompt and --weaker both say what guidance leads away from"):
        command.draw_grid_of(both, open_run)


@pytest.mark.slow
def test_a_picture_is_the_same_when_it_is_decoded_in_strips(run: Path, tmp_path: Path):
    flags = [str(run), "-p", "a red circle", "--num-samples", "1"]
    whole, strips = (
        command.draw(parse_sample([*flags, *more, "--out", str(tmp_path / f"{len(more)}")]), open_run)[0]
        for more in ([], ["--strip-rows", "3"])
    )
    one, other = (read_picture(file)[0].astype(int) for file in (whole, strips))
    assert np.abs(one - other).max() <= 1
    with pytest.raises(UserError, match="--strip-rows=0 must be at least 1"):
        parse_sample([*flags, "--strip-rows", "0"])


def test_a_grid_of_both_prompts_and_classes():
    with pytest.raises(UserError, match="give --prompt or --class-label, not both"):
        command.grid_pictures(GridCommand(run="r", prompt=("a",), class_label=("0",)), (1.0,))


def test_a_request_survives_its_json(text: Session):
    request = request_for(text, prompts=("a", "b"), prompts_to=("c",), num_frames=3, num_samples=2)
    assert DrawRequest.from_json(request.to_json()).pictures == request.pictures
    assert DrawRequest.from_json(request.to_json()).summary() == request.summary()


def test_files_of_an_interpolation_are_strips(text: Session, tmp_path: Path):
    easel = easel_for(text, prompts=("a red circle",), prompts_to=("a blue square",), num_frames=3, num_samples=2)
    files = draw_to_files(easel, ORIGINS, out=tmp_path, batch_size=6)
    assert len(files) == 7
    assert Image.open(files[-1]).size[1] < 3 * 110, "two rows of three"
