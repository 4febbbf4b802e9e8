"""Pipelines of diffusers with random weights: read, drawn from the same noise, written, and loaded there again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tensors import assert_close

from ldm_jax.interop.cases.parity import run_case
from ldm_jax.interop.model_files import open_model, save_model

torch = pytest.importorskip("torch", reason="the parity extra is missing")
diffusers = pytest.importorskip("diffusers", reason="the parity extra is missing")
transformers = pytest.importorskip("transformers", reason="the parity extra is missing")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

TOKENIZER = Path(__file__).parent / "golden" / "pipeline_sd1" / "tokenizer"
PROMPTS = ["a red cat on the mat", "blue thing"]
STEPS = 5


def randomized(module: Any, seed: int) -> Any:
    """Random weights everywhere: layers that start at zero would hide what is before them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            center = 1.0 if parameter.ndim == 1 and float(parameter.mean()) == 1.0 else 0.0
            parameter.copy_(center + spread * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def unet(**options: Any) -> Any:
    defaults = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return randomized(diffusers.UNet2DConditionModel(**{**defaults, **options}), 1)


def vae(**options: Any) -> Any:
    shape = {"block_out_channels": (16, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    shape |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 8, "latent_channels": 4}
    return randomized(diffusers.AutoencoderKL(**shape, sample_size=32, **options), 2)


def vq() -> Any:
    shape = {"block_out_channels": (16, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    shape |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 8, "num_vq_embeddings": 32}
    return randomized(diffusers.VQModel(**shape, latent_channels=3, scaling_factor=1.0), 3)


def clip(projection: bool = False, width: int = 16) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=tokenizer().vocab_size,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=12,
        bos_token_id=tokenizer().bos_token_id,
        eos_token_id=tokenizer().eos_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return randomized(kind(config), 4 + projection)


def tokenizer() -> Any:
    return transformers.CLIPTokenizer.from_pretrained(str(TOKENIZER))


def ddim(**options: Any) -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, **options
    )


def stable_diffusion(**parts: Any) -> Any:
    defaults = {"vae": vae(), "unet": unet(), "scheduler": ddim(), "text_encoder": clip(), "tokenizer": tokenizer()}
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**{**defaults, **parts}, **nothing)


def stable_diffusion_xl() -> Any:
    second = unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        unet=second,
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        add_watermarker=False,
    )


CASES = {
    "sd1": stable_diffusion,
    "sd2_v": lambda: stable_diffusion(
        unet=unet(use_linear_projection=True, attention_head_dim=(2, 4)),
        scheduler=ddim(prediction_type="v_prediction", timestep_spacing="trailing"),
    ),
    "sd_dpm": lambda: stable_diffusion(scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear")),
    "sdxl": stable_diffusion_xl,
}


def draw(pipeline: Any, noise: np.ndarray) -> np.ndarray:
    """What diffusers draws from `noise` [b, c, h, w]."""
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 2 * noise.shape[2], "width": 2 * noise.shape[3]}
    arguments = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "np", **size}
    with torch.no_grad():
        return pipeline(PROMPTS, latents=torch.from_numpy(noise), **arguments).images


@pytest.mark.parametrize("name", CASES)
def test_a_text_pipeline_draws_what_diffusers_draws_and_goes_back(name: str, tmp_path: Path):
    pipeline = CASES[name]()
    noise = np.random.default_rng(0).normal(size=(2, 4, 16, 24)).astype(np.float32)  # not square
    expected = draw(pipeline, noise)
    pipeline.save_pretrained(tmp_path / "theirs")
    case = tmp_path / "theirs"
    np.savez(case / "io.npz", latents=noise, image=expected)
    (case / "io.json").write_text(json.dumps({"prompts": PROMPTS, "steps": STEPS, "guidance_scale": 4.0}))
    assert all(row.passed for row in run_case(case)), run_case(case)

    save_model(open_model(case), tmp_path / "ours", "diffusers")
    loaded = type(pipeline).from_pretrained(tmp_path / "ours", local_files_only=True)
    assert_close(draw(loaded, noise), expected)
    assert_same_params(open_model(tmp_path / "ours").params, open_model(case).params)


def assert_same_params(one: Any, other: Any) -> None:
    import jax

    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unconditional_pipeline(tmp_path: Path):
    options = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 16}
    options |= {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    network = randomized(diffusers.UNet2DModel(**options), 5)
    pipeline = diffusers.LDMPipeline(vqvae=vq(), unet=network, scheduler=ddim())
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).numpy()
    expected = pipeline(batch_size=2, generator=generator, num_inference_steps=STEPS, output_type="np").images
    pipeline.save_pretrained(tmp_path / "theirs")
    np.savez(tmp_path / "theirs" / "io.npz", latents=noise, image=expected)
    (tmp_path / "theirs" / "io.json").write_text(json.dumps({"prompts": None, "steps": STEPS}))
    assert all(row.passed for row in run_case(tmp_path / "theirs"))
    save_model(open_model(tmp_path / "theirs"), tmp_path / "ours", "diffusers")
    loaded = diffusers.LDMPipeline.from_pretrained(tmp_path / "ours", local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    again = loaded(batch_size=2, generator=generator.manual_seed(0), num_inference_steps=STEPS, output_type="np").images
    assert_close(again, expected)


def test_half_precision_and_shards_are_read(tmp_path: Path):
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path / "full")
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="100KB")
    assert list((tmp_path / "half" / "unet").glob("*.index.fp16.json")), "the weights are in shards"
    full, half = open_model(tmp_path / "full").params, open_model(tmp_path / "half").params
    import jax

    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float16), np.asarray(b, np.float16))
