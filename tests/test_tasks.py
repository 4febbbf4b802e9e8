"""Tasks on pictures: each property that a picture made from a picture must have, and each error in words."""

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import CONFIG, request_for
from PIL import Image
from test_draw import open_run, run, save, text  # noqa: F401 (fixtures)
from test_session import make_session
from tiny import CLASSES

from ldm_jax.config import SamplingConfig, Unconditional
from ldm_jax.data.given.files import to_float
from ldm_jax.errors import UserError
from ldm_jax.pictures import read_picture, save_picture, to_uint8
from ldm_jax.sampling import command
from ldm_jax.sampling.asked import Asked, ask
from ldm_jax.sampling.draw import Easel
from ldm_jax.sampling.files import animate, picture_names
from ldm_jax.sampling.flags import parse_sample, sampling_config
from ldm_jax.sampling.request import DrawRequest, PictureRequest
from ldm_jax.sampling.session import Session
from ldm_jax.sampling.tasks.asked import AskedTask
from ldm_jax.sampling.tasks.denoising import (
    denoising_draws_noise,
    estimate_noise,
    latent_noise,
    num_steps_from,
    timestep_of,
)
from ldm_jax.sampling.tasks.image_to_image import num_skipped
from ldm_jax.sampling.tasks.inpainting import latent_hole
from ldm_jax.sampling.tasks.task import PictureTask

pytestmark = pytest.mark.usefixtures("one_device")

SIDE = 8


@pytest.fixture(scope="module")
def plain(data_cache: Path) -> Session:
    """A model in whose latents of unit spread pictures differ, as they do in those of a trained one."""
    session = make_session(data_cache, Unconditional())
    params = {**session.params, "autoencoder": scaled(session.params["autoencoder"], 2.5)}
    pictures = np.random.default_rng(0).uniform(-1, 1, (8, SIDE, SIDE, 3)).astype(np.float32)
    z = session.model.encode(params, jnp.asarray(pictures)).mode()
    params["latent"] = {"mean": z.mean((0, 1, 2)), "std": z.std((0, 1, 2))}
    return dataclasses.replace(session, params=params)


@pytest.fixture(scope="module")
def classes(data_cache: Path) -> Session:
    return make_session(data_cache, CLASSES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pictures of 8 x 8 pixels, masks, and what is none."""
    folder = tmp_path_factory.mktemp("files")
    numbers = np.random.default_rng(0)
    arrays = {name: numbers.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8) for name in ("a", "b")}
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:3, :4] = 255
    y, x = np.mgrid[:64, :64]
    smooth = 127 + 60 * np.sin(x / 11)[..., None] * np.cos(y / 13)[..., None] * np.ones(3)
    noisy = smooth + numbers.normal(size=smooth.shape) * 20
    arrays |= {
        "mask": mask,
        "empty": np.zeros_like(mask),
        "small_mask": mask[:4],
        "clear": np.zeros((SIDE, SIDE, 4), np.uint8),
        "wide": numbers.integers(256, size=(SIDE, 2 * SIDE, 3), dtype=np.uint8),
        "noisy": np.clip(noisy, 0, 255).astype(np.uint8),
        "even": np.full((SIDE, SIDE, 3), 90, np.uint8),
        "inner": numbers.integers(256, size=(4, 4, 3), dtype=np.uint8),
    }
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"{name}.png")
    (folder / "text.png").write_text("no picture")
    return {name: str(folder / f"{name}.png") for name in (*arrays, "text", "none")}


def scaled(params: Any, factor: float) -> Any:
    return jax.tree.map(lambda x: factor * x, params)


def easel(session: Session, config: SamplingConfig = CONFIG, **asked: Any) -> Easel:
    names = {field.name for field in dataclasses.fields(AskedTask)}
    task = AskedTask(**{name: value for name, value in asked.items() if name in names})
    rest = {name: value for name, value in asked.items() if name not in names}
    return Easel(session, request_for(session, config, pictures=task, **rest))


def images(session: Session, config: SamplingConfig = CONFIG, batch_size: int = 4, **asked: Any) -> dict[int, Any]:
    drawn = easel(session, config, **asked).draw(batch_size)
    return {one.position: one.image.astype(int) for one in drawn}


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def reconstruction(session: Session, path: str) -> np.ndarray:
    """A picture through the autoencoder alone."""
    x = jnp.asarray(to_float(pixels(path)))[None]
    z0 = session.model.normalize(session.params, session.model.encode(session.params, x).mode())
    return to_uint8(np.asarray(session.model.decode(session.params, z0)))[0].astype(int)


def apart(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


# --- image-to-image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "steps", "left"), [(0.6, 50, 30), (1.0, 7, 7), (0.29, 100, 28), (0.02, 50, 1)])
def test_the_strength_is_a_share_of_the_steps(strength: float, steps: int, left: int):
    assert steps - num_skipped(strength, steps) == left


@pytest.mark.parametrize("steps", [7, 9, 28, 30, 1000])
def test_the_least_strength_that_is_named_makes_a_step(steps: int):
    with pytest.raises(UserError, match="makes none of them; use at least") as refused:
        num_skipped(0.5 / steps, steps)
    found = re.search(r"at least ([\d.]+),", str(refused.value))
    assert found is not None and num_skipped(float(found.group(1)), steps) == steps - 1


@pytest.mark.slow
def test_little_strength_gives_what_the_autoencoder_makes_of_it_and_much_does_not(plain: Session, files: Any):
    config = SamplingConfig(num_sample_steps=1000, sampler="ddim")
    wanted = reconstruction(plain, files["a"])
    faint = images(plain, config, image=files["a"], strength=0.001, num_samples=2)
    much = images(plain, SamplingConfig(num_sample_steps=5), image=files["a"], strength=1.0, num_samples=2)
    errors = [[np.abs(found[i] - wanted).mean() for i in (0, 1)] for found in (faint, much)]
    assert max(errors[0]) < 0.25 * min(errors[1]), errors
    assert apart(much[0], much[1]) > 5, "each has a noise of its own"


def test_all_steps_start_from_noise_with_the_little_signal_that_the_schedule_leaves(plain: Session, files: Any):
    one = easel(plain, image=files["a"], strength=1.0)
    task = one.request.pictures[0].task
    assert task is not None
    start, schedule = one._tasks.samplers(task, plain.params).sampler.start, plain.model.schedule
    np.testing.assert_allclose([start.alpha, start.sigma], [schedule.alpha[-1], schedule.sigma[-1]], rtol=1e-6)
    assert float(start.alpha) < 0.1


def test_a_picture_is_the_same_in_any_batch(plain: Session, files: Any):
    asked = {"image": files["a"], "strength": 0.5, "num_samples": 3, "seed": 3}
    one, other = (images(plain, batch_size=size, **asked) for size in (1, 3))
    assert max(apart(one[i], other[i]) for i in range(3)) <= 1


@pytest.mark.slow
def test_it_is_guided_and_conditioned_as_any_picture(text: Session, classes: Session, files: Any):  # noqa: F811
    asked: dict[str, Any] = {"image": files["a"], "strength": 1.0, "num_samples": 1}
    red, blue = (images(text, prompts=(prompt,), **asked)[0] for prompt in ("a red circle", "a blue square"))
    assert apart(red, blue) > 0
    weak = images(text, prompts=("a red circle",), guidance_scales=(1.0,), **asked)[0]
    assert apart(red, weak) > 0
    assert images(classes, class_labels=("1",), **asked)[0].shape == (SIDE, SIDE, 3)


def test_variations_are_several_noises_of_one_picture(plain: Session, files: Any):
    request = easel(plain, variations=files["a"], num_samples=3).request
    assert [p.index for p in request.pictures] == [0, 1, 2]
    assert {p.task and (p.task.kind, p.task.strength) for p in request.pictures} == {("image", 0.8)}


# --- inpainting ------------------------------------------------------------------------------------------------------


def test_cells_with_any_pixel_to_paint_are_made_up():
    hole = np.zeros((8, 4), bool)
    hole[2, 1] = True
    cells = latent_hole(hole, (4, 2))[..., 0]
    np.testing.assert_array_equal(np.argwhere(cells), [[1, 0]])


@pytest.mark.parametrize(
    "sampler", ["ddim", *(pytest.param(n, marks=pytest.mark.slow) for n in ("unipc", "euler_ancestral"))]
)
def test_unpainted_pixels_are_the_pictures_own(plain: Session, files: Any, sampler: Any):
    config = SamplingConfig(sampler=sampler, num_sample_steps=4)
    found = images(plain, config, image=files["a"], mask=files["mask"], num_samples=2)
    hole = pixels(files["mask"]) > 0
    for i in (0, 1):
        np.testing.assert_array_equal(found[i][~hole], pixels(files["a"])[~hole])
    assert apart(found[0][hole], found[1][hole]) > 5
    assert apart(found[0][hole], pixels(files["a"])[hole]) > 5


def test_without_pasting_the_rest_is_what_the_autoencoder_makes(plain: Session, files: Any):
    """The known latent comes out as it is: what is far enough from the hole for the decoder is the reconstruction."""
    found = images(plain, image=files["a"], mask=files["mask"], paste=False, num_samples=1)[0]
    wanted = reconstruction(plain, files["a"])
    assert apart(found, pixels(files["a"])) > 5
    masked = images(plain, image=files["a"], mask=files["mask"], num_samples=1)[0]
    hole = pixels(files["mask"]) > 0
    np.testing.assert_array_equal(found[hole], masked[hole])
    assert np.abs(found - wanted)[-2:].mean() < np.abs(found - wanted)[hole].mean()


def test_what_is_in_the_hole_is_not_known_at_full_strength(plain: Session, files: Any, tmp_path: Path):
    """Its own latent is hidden; what the encoder saw of it next to the hole is not."""
    config = SamplingConfig(num_sample_steps=3)
    task = {"image": files["a"], "mask": files["mask"], "num_samples": 1}
    full, half = (images(plain, config, strength=s, **task)[0] for s in (1.0, 0.7))
    assert apart(full, half) > 0
    arrays = easel(plain, config, **task)
    (picture,) = arrays.request.pictures
    for strength, seen in ((1.0, 0.0), (0.7, 1.0)):
        one = easel(plain, config, strength=strength, **task)
        found = one._tasks.arrays(one.request.pictures, None).seen
        assert found is not None and float(found[0]) == seen
    assert picture.task is not None and picture.task.has_hole


def test_outpainting_makes_a_larger_picture_around_the_picture(plain: Session, files: Any):
    sides = (("left=4", "right=4"),)
    found = images(plain, image=files["a"], outpaint=sides, num_samples=1)[0]
    assert found.shape == (SIDE, 2 * SIDE, 3)
    np.testing.assert_array_equal(found[:, 4:12], pixels(files["a"]))
    inner = images(plain, image=files["inner"], outpaint=(("left=2", "right=2", "top=4"),), num_samples=1)[0]
    assert inner.shape == (SIDE, SIDE, 3), "or one of the model's own size around a smaller one"
    np.testing.assert_array_equal(inner[4:, 2:6], pixels(files["inner"]))
    assert apart(found[:, :4], np.broadcast_to(pixels(files["a"])[:, :1], (SIDE, 4, 3))) > 5


# --- denoising -------------------------------------------------------------------------------------------------------


def test_noise_is_estimated(files: Any):
    assert estimate_noise(pixels(files["noisy"])) == pytest.approx(20.0, rel=0.05)
    with pytest.raises(UserError, match="no noise is seen in the picture: most of it is even"):
        estimate_noise(pixels(files["even"]))


def test_more_noise_is_a_later_timestep(plain: Session, files: Any):
    schedule = plain.model.schedule
    for t in (0, 10, 500, 998):
        assert timestep_of(schedule, float(schedule.sigma[t] / schedule.alpha[t])) == t
    assert [num_steps_from(t, schedule, 50) for t in (0, 19, 20, 999)] == [1, 1, 2, 50]
    image = to_float(pixels(files["a"]))
    few, many = (latent_noise(plain.model, plain.params, image, level) for level in (2.0, 20.0))
    assert many == pytest.approx(10 * few, rel=0.5)


@pytest.mark.slow
def test_a_noisy_picture_is_sampled_from_the_level_of_its_noise(plain: Session, files: Any):
    config = SamplingConfig(num_sample_steps=50)
    one = easel(plain, config, denoise=files["a"], noise_level=3.0, num_samples=4)
    assert len(one.request.pictures) == 1, "no noise is drawn for it"
    (drawn,) = one.draw(4)
    said = re.search(r"noise of 3\.0 of 255 is (\S+) in the latent: (\d+) steps from timestep (\d+)", drawn.note)
    assert said is not None
    ratio = plain.model.schedule.sigma / plain.model.schedule.alpha
    assert float(said[1]) == pytest.approx(float(ratio[int(said[3])]), rel=0.1)
    (more,) = easel(plain, config, denoise=files["a"], noise_level=60.0).draw(4)
    assert apart(more.image, drawn.image) > 3
    estimated = easel(plain, denoise=files["noisy"], height=64, width=64).request.pictures[0].task
    assert estimated is not None and estimated.noise_level == pytest.approx(20.0, rel=0.05)


def test_a_sampler_with_noise_of_its_own_cleans_a_picture_in_several_ways(plain: Session, files: Any):
    assert not denoising_draws_noise(plain, CONFIG)
    config = dataclasses.replace(CONFIG, sampler="euler_ancestral", num_sample_steps=20)
    assert denoising_draws_noise(plain, config)
    task = AskedTask(denoise=files["a"], noise_level=200.0)
    pictures = ask(Asked(num_samples=2, pictures=task), plain, 1.0, draws_noise=True)
    assert [picture.index for picture in pictures] == [0, 1]
    one, other = Easel(plain, DrawRequest(pictures=pictures, config=config)).draw(2)
    assert apart(one.image, other.image) > 0


def test_an_inversion_draws_with_ddim_whatever_the_run_draws_with():
    command = parse_sample(["--model", "somewhere", "--invert", "a.png", "--spacing", "leading", "--sigmas", "karras"])
    config = sampling_config(command, SamplingConfig(sampler="imported", eta=0.3, clipping="static"))
    assert (config.sampler, config.spacing, config.sigmas, config.eta, config.clipping) == (
        *("ddim", "leading", "karras"),
        *(0.0, "none"),
    )


# --- inversion -------------------------------------------------------------------------------------------------------


def test_inverted_and_drawn_it_comes_back_and_is_reported(text: Session, files: Any):  # noqa: F811
    small = dataclasses.replace(text, params={**text.params, "denoiser": scaled(text.params["denoiser"], 0.1)})
    errors = []
    for steps in (10, 100):
        one = easel(small, SamplingConfig(num_sample_steps=steps), invert=files["a"], source_prompt="a red circle")
        (drawn,) = one.draw(1)
        said = re.fullmatch(
            r"PSNR (\S+) dB of latents, (\S+) dB of pixels; (\S+) dB through the autoencoder alone", drawn.note
        )
        assert said is not None
        errors.append([float(number) for number in said.groups()])
        x = reconstruction(small, files["a"]) - pixels(files["a"]).astype(int)
        assert errors[-1][2] == pytest.approx(10 * np.log10(255**2 / np.mean(np.square(x))), abs=0.05)
    assert errors[1][0] > errors[0][0] + 10, "a solver of first order gains 20 dB with ten times the steps"
    assert errors[1][0] > 30
    assert apart(drawn.image, reconstruction(small, files["a"])) <= 8


@pytest.mark.slow
def test_a_prompt_edits_what_was_inverted(text: Session, files: Any):  # noqa: F811
    asked: dict[str, Any] = {"invert": files["a"], "source_prompt": "a red circle"}
    one = easel(text, prompts=("a blue square",), **asked)
    back, edit = one.request.pictures
    assert (back.prompt, back.guidance_scale, edit.prompt, edit.guidance_scale) == (
        *("a red circle", 1.0),
        *("a blue square", 2.0),
    )
    found = {drawn.position: drawn.image for drawn in one.draw(2)}
    assert apart(found[0], found[1]) > 0


@pytest.mark.slow
def test_inversion_of_a_model_of_classes_takes_a_class(classes: Session, files: Any):
    back, edit = easel(classes, invert=files["a"], source_prompt="1", class_labels=("2",)).request.pictures
    assert (back.class_label, edit.class_label, back.prompt) == ("1", "2", None)
    one, other = (images(classes, invert=files["a"], source_prompt=s)[0] for s in ("1", None))
    assert one.shape == other.shape == (SIDE, SIDE, 3)


# --- interpolation ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_between_noises_the_ends_are_the_plain_draws(plain: Session):
    way = images(plain, seed=1, seed_to=2, num_frames=3, num_samples=2, batch_size=6)
    ends = [images(plain, seed=seed, num_samples=2, batch_size=6) for seed in (1, 2)]
    for i in (0, 1):
        np.testing.assert_array_equal(way[3 * i], ends[0][i])
        np.testing.assert_array_equal(way[3 * i + 2], ends[1][i])
        assert apart(way[3 * i + 1], way[3 * i]) > 0


@pytest.mark.slow
def test_between_pictures_the_ends_are_image_to_image(plain: Session, files: Any):
    asked: dict[str, Any] = {"strength": 0.5, "num_samples": 1}
    way = images(plain, image=files["a"], image_to=files["b"], num_frames=3, **asked)
    ends = [images(plain, image=files[name], **asked)[0] for name in ("a", "b")]
    assert apart(way[0], ends[0]) <= 1 and apart(way[2], ends[1]) <= 1
    assert apart(way[1], way[0]) > 3 and apart(way[1], way[2]) > 3
    inverted = images(plain, invert=files["a"], image_to=files["b"], num_frames=3, num_samples=1)
    back = [images(plain, invert=files[name])[0] for name in ("a", "b")]
    assert apart(inverted[0], back[0]) <= 1 and apart(inverted[2], back[1]) <= 1


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_pictures_of_another_size_are_drawn(plain: Session):
    found = images(plain, height=12, width=20, num_samples=2)
    assert found[0].shape == (12, 20, 3)
    assert apart(found[0], found[1]) > 5


# --- refusals --------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "strength": ({"image": "a", "strength": 1.5}, "--strength=1.5 must be above 0"),
    "no strength": ({"image": "a", "strength": 0.0}, "--strength=0.0 must be above 0"),
    "strength that is no number": ({"image": "a", "strength": np.nan}, "--strength=nan must be above 0"),
    "no step": ({"image": "a", "strength": 0.4}, "--strength=0.4 of 2 steps makes none of them; use at least 0.5"),
    "another size": (
        {"image": "wide"},
        "wide.png has 16 x 8 pixels, and the picture has to have 8 x 8; use --fit crop",
    ),
    "alpha": ({"image": "clear"}, "clear.png has an alpha channel (mode RGBA), and the picture has to be opaque"),
    "alpha of a mask": ({"image": "a", "mask": "clear"}, "clear.png has an alpha channel (mode RGBA), and the mask"),
    "no file": ({"image": "none"}, "none.png cannot be read (No such file or directory); give the picture"),
    "no picture": ({"image": "text"}, "text.png cannot be read as a picture: it is no picture of a known format"),
    "mask of another size": ({"image": "a", "mask": "small_mask"}, "small_mask.png has 8 x 4 pixels, and the mask"),
    "empty mask": ({"image": "a", "mask": "empty"}, "empty.png has no white pixel: there is nothing to paint"),
    "no margin": ({"image": "a", "outpaint": (("left=0",),)}, "must name a side with pixels to paint"),
    "margin": ({"image": "a", "outpaint": (("up=3",),)}, "--outpaint up=3 is no SIDE=PIXELS; write --outpaint left=16"),
    "a margin twice": (
        {"image": "a", "outpaint": (("left=2",), ("left=4",))},
        "--outpaint left=4 comes after left=2; name each side once",
    ),
    "canvas": ({"image": "a", "outpaint": (("left=3",),)}, "width=11 is not divisible by"),
    "height": ({"height": 9}, "height=9 is not divisible by"),
    "large": ({"height": 80000}, "height=80000 must be at most 8192"),
    "large crop": ({"image": "wide", "fit": "crop", "height": 80000}, "height=80000 must be at most 8192"),
    "large canvas": ({"image": "a", "outpaint": (("left=80000000",),)}, "width=80000008 must be at most 8192"),
    "noise": ({"denoise": "a", "noise_level": -1.0}, "--noise-level=-1.0 must lie between 0 and 255"),
    "no noise": ({"denoise": "even"}, "no noise is seen in the picture"),
    "one frame": ({"seed_to": 3, "num_frames": 1}, "--frames=1 must be at least 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_said_before_anything_compiles(
    name: str, plain: Session, files: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("something is compiled"))
    asked, message = REFUSED[name]
    asked = {key: files.get(value, value) if isinstance(value, str) else value for key, value in asked.items()}
    with pytest.raises(UserError, match=re.escape(message)):
        easel(plain, **asked)


def test_pndm_needs_steps(plain: Session, files: Any):
    config = SamplingConfig(sampler="pndm", spacing="leading", num_sample_steps=8)
    with pytest.raises(UserError, match="sampler=pndm needs at least 4 steps"):
        easel(plain, config, image=files["a"], strength=0.3)
    with pytest.raises(UserError, match="sampler=pndm needs at least 4 steps, which a noisy picture may not have"):
        easel(plain, config, denoise=files["a"])


def test_a_picture_is_cropped_where_that_is_asked_for(plain: Session, files: Any):
    one = easel(plain, image=files["wide"], fit="crop", num_samples=1)
    assert one.shown(0)[0].shape == (SIDE, SIDE, 3)


EXCLUDED = [
    (["--image", "a", "--invert", "b"], "give one of --image and --invert: each starts from a picture of its own"),
    (["--strength", "0.5"], "--strength goes with --image or --invert or --variations"),
    (["--mask", "m"], "--mask goes with --image"),
    (["--noise-level", "3"], "--noise-level goes with --denoise"),
    (["--source-prompt", "x"], "--source-prompt goes with --invert"),
    (["--image-to", "x"], "--image-to goes with --image or --invert"),
    (["--animate"], "--animate goes with --prompt-to or --seed-to or --image-to"),
    (["--image", "a", "--mask", "m", "--outpaint", "left=3"], "--mask and --outpaint exclude each other"),
    (["--image", "a", "--image-to", "b", "--mask", "m"], "--image-to and --mask exclude each other"),
    (["--denoise", "a", "--seed-to", "3"], "--seed-to and --denoise exclude each other"),
    (["--image", "a", "--outpaint", "left=3", "--height", "8"], "--outpaint and --height exclude each other"),
    (["--frames", "3"], "--frames goes with --prompt-to or --seed-to or --image-to"),
    (["--interpolation", "lerp"], "--interpolation goes with --prompt-to"),
    (["--classifier-scale", "2"], "--classifier-scale goes with --classifier"),
    (["--fit", "crop"], "--fit goes with --image or --denoise or --invert or --variations"),
    (["--no-paste"], "--no-paste goes with --mask or --outpaint"),
    (["--height", "0"], "--height=0 must be at least 1"),
    (["--seed-to", "-1"], "--seed-to=-1 must not be negative"),
    (["--image", "a", "--outpaint", "left=4", "--fit", "crop"], "--fit and --outpaint exclude each other"),
    (["--strength", "0"], "--strength goes with --image or --invert or --variations"),
    (["--invert", "a", "--seed-to", "0"], "--seed-to and --invert exclude each other"),
    (["--invert", "a", "--classifier", "c"], "--classifier and --invert exclude each other"),
    (["--invert", "a", "--sampler", "unipc"], "--sampler and --invert exclude each other"),
    (["--invert", "a", "--num-samples", "2"], "--num-samples and --invert exclude each other"),
    (["--invert", "a", "--guidance-scale", "2"], "--guidance-scale goes with a --prompt: what is inverted comes back"),
    (
        ["--invert", "a", "--negative-prompt", "b"],
        "--negative-prompt goes with a --prompt: what is inverted comes back",
    ),
    (["--invert", "a", "--clip-range", "2"], "--clip-range and --invert exclude each other"),
    (["--denoise", "a", "--sigmas", "karras"], "--sigmas and --denoise exclude each other"),
]


@pytest.mark.parametrize(("flags", "message"), EXCLUDED)
def test_flags_that_do_not_go_together(flags: list[str], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_sample(["--model", "somewhere", *flags])


def test_a_way_to_seed_0_is_a_way():
    assert parse_sample(["--model", "somewhere", "--seed-to", "0", "--animate"]).seed_to == 0


def test_maps_have_one_size(data_cache: Path, plain: Session):
    denoiser = dataclasses.replace(plain.experiment.denoiser, concat_channels=3)
    session = dataclasses.replace(plain, experiment=dataclasses.replace(plain.experiment, denoiser=denoiser))
    with pytest.raises(
        UserError, match="16 x 16 pixels: the maps that this model takes are of its own size; leave it at 8 x 8"
    ):
        easel(session, height=16, width=16)


# --- requests and the command ----------------------------------------------------------------------------------------


def test_a_task_survives_its_json():
    task = PictureTask(kind="image", image="/a.png", outpaint=(1, 0, 0, 2), strength=0.5, sha256="x", paste=False)
    pictures = (PictureRequest(task=task, seed_to=3, fraction=0.5, height=16), PictureRequest())
    request = DrawRequest(pictures=pictures)
    assert DrawRequest.from_json(json.loads(json.dumps(request.to_json()))).pictures == pictures


ENDS_TO_END: dict[str, list[str]] = {
    "image": ["--image", "{a}", "--strength", "0.5", "--prompt", "a red circle"],
    "mask": ["--image", "{a}", "--mask", "{mask}", "--sampler", "unipc", "--num-sample-steps", "4"],
    "outpaint": ["--image", "{a}", "--outpaint", "left=4", "right=4", "--prompt", "a red circle"],
    "denoise": ["--denoise", "{a}", "--noise-level", "9"],
    "invert": ["--invert", "{a}", "--source-prompt", "a red circle", "--prompt", "a blue square"],
    "between": ["--image", "{a}", "--image-to", "{b}", "--frames", "3", "--animate", "--strength", "0.5"],
    "strips": ["--prompt", "a red circle", "--strip-rows", "3"],
    "noises": ["--seed-to", "7", "--frames", "3", "--animate", "--width", "12", "--prompt", "a red circle"],
}


@pytest.mark.parametrize(
    "name", [n if n in ("image", "mask") else pytest.param(n, marks=pytest.mark.slow) for n in ENDS_TO_END]
)
def test_from_the_command_to_files_and_again(name: str, run: Path, files: Any, tmp_path: Path, caplog: Any):  # noqa: F811
    flags = [flag.format(**files) for flag in ENDS_TO_END[name]]
    count = [] if name in ("denoise", "invert") else ["--num-samples", "2"]
    arguments = [str(run), *flags, *count, "--batch-size", "2", "--out", str(tmp_path / "out")]
    with caplog.at_level(logging.INFO):
        drawn = command.draw(parse_sample(arguments), open_run)
    animated = [Path(path) for path in drawn if path.suffix != ".png"]
    pictures = [path for path in drawn if re.search(r"_\d{4}\.png$", path.name)]
    assert len(animated) == (4 if "--animate" in flags else 0)
    for path in animated:
        with Image.open(path) as animation:
            assert getattr(animation, "n_frames", 1) == 4, "three frames there, and one back"
    again = parse_sample(["--again", str(pictures[-1]), "--out", str(tmp_path / "again")])
    (made,) = command.draw_again(again, open_run)
    (one, said), (other, says) = read_picture(pictures[-1]), read_picture(made)
    np.testing.assert_array_equal(one, other)
    assert said == says
    steps = {"image": "1 steps", "between": "1 steps", "mask": "4 steps"}.get(name, "2 steps")
    solver = "unipc" if name == "mask" else "ddim"
    assert said["sampler"].startswith(solver if name == "denoise" else f"{solver}, {steps}, guidance scale ")
    if name in ("denoise", "invert"):
        note = read_picture(pictures[0])[1]["note"]
        assert note in caplog.text
    before = {path: path.read_bytes() for path in pictures}
    pictures[0].unlink()
    command.draw(parse_sample(arguments), open_run)
    assert {path: path.read_bytes() for path in pictures} == before, "what is missing is drawn as it was"


def test_an_animation_has_the_frames_of_one_strip(tmp_path: Path):
    """Of two prompts that are the same, but for the seed that each names, there are two."""
    pictures = [
        PictureRequest(prompt="a", seed=seed, seed_to=7, fraction=f) for seed in (1, 2) for f in (0.0, 0.5, 1.0)
    ]
    request = DrawRequest(pictures=tuple(pictures))
    for i, name in enumerate(picture_names(request)):
        save_picture(np.full((SIDE, SIDE, 3), 40 * i, np.uint8), tmp_path / name, {})
    found = animate(request, tmp_path)
    assert [path.name for path in found] == [
        f"a_seed{seed}.{kind}" for seed in ("1_0000", "2_0003") for kind in ("gif", "webp")
    ]
    for path in found:
        with Image.open(Path(path)) as animation:
            assert getattr(animation, "n_frames", 1) == 4


def test_a_changed_file_is_refused(run: Path, files: Any, tmp_path: Path):  # noqa: F811
    picture = tmp_path / "a.png"
    picture.write_bytes(Path(files["a"]).read_bytes())
    flags = [str(run), "--image", str(picture), "--strength", "0.5", "--num-samples", "1", "--out", str(tmp_path / "o")]
    (file, _) = command.draw(parse_sample(flags), open_run)
    picture.write_bytes(Path(files["b"]).read_bytes())
    with pytest.raises(UserError, match=r"from a\.png, strength 0\.5: a file of it has changed since the picture was"):
        command.draw_again(parse_sample(["--again", str(file), "--out", str(tmp_path / "again")]), open_run)
