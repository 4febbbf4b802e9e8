"""Image-to-image of diffusers, from the same noise: where it starts, which steps are left, and where it ends."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_jax.config import SamplingConfig
from ldm_jax.diffusion.guidance import Guidance
from ldm_jax.diffusion.samplers import sample_from
from ldm_jax.interop.model_files import open_model
from ldm_jax.pictures import read_picture
from ldm_jax.sampling import command
from ldm_jax.sampling.flags import parse_sample
from ldm_jax.sampling.generate import Method, Request, denoiser_for
from ldm_jax.sampling.tasks.image_to_image import noised, num_skipped

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

PIPELINE = Path(__file__).parent / "golden" / "pipeline_sd1"
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "EulerDiscreteScheduler": {"timestep_spacing": "leading", "steps_offset": 1},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "linspace"},
    "UniPCMultistepScheduler": {"timestep_spacing": "linspace"},
    "DEISMultistepScheduler": {"timestep_spacing": "linspace"},
}
STEPS, STRENGTH, SCALE = 20, 0.6, 3.0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_image_to_image_ends_where_diffusers_does(name: str, tmp_path: Path):
    torch = pytest.importorskip("torch", reason="the parity extra is missing")
    diffusers = pytest.importorskip("diffusers", reason="the parity extra is missing")
    folder = tmp_path / "pipeline"
    shutil.copytree(PIPELINE, folder)
    beta = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    scheduler = getattr(diffusers, name)(**beta, **SCHEDULERS[name])
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    session = open_model(folder)
    height, width, channels = session.model.latent_shape
    z0 = np.random.default_rng(0).normal(size=(1, channels, height, width)).astype(np.float32)
    with torch.no_grad():
        theirs = pipe(
            prompt="a cat",
            image=torch.from_numpy(z0),
            strength=STRENGTH,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            generator=torch.Generator().manual_seed(5),
            output_type="latent",
        ).images.numpy()
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(5)).numpy()
    config = SamplingConfig(sampler="imported", num_sample_steps=STEPS)
    sampler = session.sampler(config, skip=num_skipped(STRENGTH, STEPS))
    inputs = session.prompt_inputs(["a cat"])
    request = Request(inputs, session.prompt_inputs([""]), Guidance(jnp.full(1, SCALE, jnp.float32)))

    @jax.jit
    def draw(params: Any, sampler: Any, z0: Any, noise: Any) -> Any:
        denoise_fn = denoiser_for(session.model, params, request, Method())
        zt = noised(sampler.start, z0, noise)
        return sample_from(sampler, denoise_fn, zt, jax.random.key(0), jnp.arange(1))

    ours = draw(session.params, sampler, *(jnp.asarray(np.moveaxis(x, 1, -1)) for x in (z0, noise)))
    np.testing.assert_allclose(np.moveaxis(np.asarray(ours), -1, 1), theirs, atol=2e-4 * np.abs(theirs).max())


def test_tasks_of_an_imported_pipeline_from_the_command(tmp_path: Path):
    size = open_model(PIPELINE).model.image_shape[:2]
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)).save(picture)
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    model = ["--model", str(PIPELINE), "--prompt", "a cat", "--num-sample-steps", "4"]
    for name, flags in (
        ("image", ["--image", str(picture), "--strength", "0.5"]),
        ("mask", ["--image", str(picture), "--mask", str(tmp_path / "mask.png")]),
        ("invert", ["--invert", str(picture), "--source-prompt", "a dog"]),
        ("denoise", ["--denoise", str(picture), "--noise-level", "20"]),
    ):
        files = command.draw(parse_sample([*model, *flags, "--out", str(tmp_path / name)]), open_model)
        found = read_picture(files[0])[0]
        assert found.shape == (*size, 3)
        if name == "mask":
            np.testing.assert_array_equal(found[mask == 0], np.asarray(Image.open(picture))[mask == 0])
        again = parse_sample(["--again", str(files[0]), "--out", str(tmp_path / f"{name}-again")])
        np.testing.assert_array_equal(read_picture(command.draw_again(again, open_model)[0])[0], found)
