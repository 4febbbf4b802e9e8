"""Stable Diffusion 1, 2 and XL, one row of a table each.

    python train.py zoo/sd1 --data.source.directory PICTURES [--first-stage.run runs/zoo/kl-f8]

Rows follow v1-inference.yaml of CompVis/stable-diffusion, v2-inference.yaml and v2-inference-v.yaml of
Stability-AI/stablediffusion, sd_xl_base.yaml of Stability-AI/generative-models, their model cards, and the paper of
SDXL (arXiv:2307.01952). All: latents of kl-f8, 1000 steps with betas linear in their square root from 0.00085 to 0.012,
AdamW (0.9, 0.999) with weight decay 0.01, learning rate 1e-4 after 10,000 steps of warm-up, no clipping, moving average
0.9999, batch 2048, 10 % of the captions dropped (published for SD 1 alone), float32. The scale of latents is measured
(published: 0.18215, and 0.13025 for SDXL's first stage, which is a kl-f8 trained again). Not measured.

The text transformers are frozen and come with weights and tokenizers: `--start MODEL`, or `--conditioning.folder` with
a transformers folder. That of SD 2 is OpenCLIP ViT-H/14, of whose 24 layers the model sees the last but one, behind the
final norm: here as in diffusers 23 layers, so that no layer is kept for nothing.
"""

from dataclasses import dataclass

from ldm_jax.config import (
    ClipTextConditioning,
    DataConfig,
    DiffusionConfig,
    Experiment,
    ImageFolder,
    MeshConfig,
    OptimizerConfig,
    PredictionType,
    SamplingConfig,
    ScheduleConfig,
    SdxlConditioning,
    TrainingConfig,
    UNetConfig,
    load_experiment,
)

CURVES = "only curves of FID against CLIP score, at 50 steps over guidance 1.5 to 8 on 10,000 captions of COCO"
CARD = "1e-4 (model card, batch 32 x 8 GPUs x 2 x 4)"
CARD_HARDWARE = "32 x 8 A100 (model card)"
OPENCLIP_H = ClipTextConditioning(context_dim=1024, num_layers=23, num_heads=16, activation="gelu", pad_token=0)
SD2 = UNetConfig(
    base_channels=320,
    channel_mult=(1, 2, 4, 4),
    attention_levels=(0, 1, 2),
    num_head_channels=64,
    linear_projection=True,
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of the table."""

    what: str
    published: str
    rate: str = CARD
    hardware: str = CARD_HARDWARE
    size: int = 512
    unet: UNetConfig
    conditioning: ClipTextConditioning | SdxlConditioning
    prediction: PredictionType = "epsilon"
    steps: int
    accumulation: int = 1
    guidance: float


TABLE = {
    "sd1": Model(
        what="Stable Diffusion 1 (steps of 1.4 at 512 pixels: 194,000 and 515,000, then 225,000, in which alone 10 % "
        "of the captions were dropped; 237,000 at 256 pixels before)",
        published=f"{CURVES} (PLMS)",
        unet=UNetConfig(
            base_channels=320,
            channel_mult=(1, 2, 4, 4),
            attention_levels=(0, 1, 2),
            num_heads=8,
            num_head_channels=None,
        ),
        conditioning=ClipTextConditioning(),
        steps=934_000,
        accumulation=2,
        guidance=7.5,
    ),
    "sd2-base": Model(
        what="Stable Diffusion 2.0 base, and 2.1 base with 220,000 steps more (850,000 steps at 512 pixels; 550,000 at "
        "256 before)",
        published=f"{CURVES} (DDIM)",
        unet=SD2,
        conditioning=OPENCLIP_H,
        steps=850_000,
        guidance=9.0,
    ),
    "sd2-v": Model(
        what="Stable Diffusion 2.0 at 768 pixels, predicting v, and 2.1 with 210,000 steps more (140,000 steps at 768 "
        "pixels; 150,000 at 512 before, both from sd2-base)",
        published=f"{CURVES} (DDIM)",
        size=768,
        unet=SD2,
        conditioning=OPENCLIP_H,
        prediction="v",
        steps=140_000,
        guidance=9.0,
    ),
    "sdxl": Model(
        what="SDXL base at 1024 pixels (600,000 steps at 256 and 200,000 at 512 before; then with noise of offset 0.05 "
        "and several aspect ratios, neither of which is in this library)",
        published="preferences of users; FID called unsuited (section 2.5, appendix F)",
        rate="not published, nor the steps at 1024 pixels: 1e-4 of SD 1 and 2, and 200,000, are taken",
        hardware="not published",
        size=1024,
        unet=UNetConfig(
            base_channels=320,
            channel_mult=(1, 2, 4),
            attention_levels=(1, 2),
            transformer_depth=(1, 2, 10),
            num_head_channels=64,
            linear_projection=True,
            vector_dim=2816,
        ),
        conditioning=SdxlConditioning(),
        steps=200_000,
        guidance=5.0,
    ),
}


def _describe(name: str, row: Model) -> str:
    return f"""{row.what}; in the latents of zoo/kl-f8.

        python train.py zoo/{name} --data.source.directory PICTURES [--first-stage.run runs/zoo/kl-f8]

    PICTURES is a folder of images with captions; the original's are of LAION.
    Published: {row.published}.
    Learning rate: {row.rate}.
    Hardware: {row.hardware}. Time and result here: not measured."""


VARIANTS = {name: _describe(name, row) for name, row in TABLE.items()}


def get_config(variant: str) -> Experiment:
    """The model of this name."""
    row = TABLE[variant]
    return Experiment(
        name=f"zoo/{variant}",
        data=DataConfig(source=ImageFolder(directory="laion"), image_size=row.size, cache_latents=False),
        first_stage=load_experiment("zoo/kl-f8").first_stage,
        conditioning=row.conditioning,
        denoiser=row.unet,
        diffusion=DiffusionConfig(
            schedule=ScheduleConfig(beta_start=0.00085, beta_end=0.012),
            prediction_type=row.prediction,
            cond_drop_prob=0.1,
        ),
        training=TrainingConfig(
            batch_size=2048,
            num_steps=row.steps,
            gradient_accumulation=row.accumulation,
            log_every=100,
            eval_every=5000,
            sample_every=10_000,
            checkpoint_every=5000,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000, max_grad_norm=None),
        sampling=SamplingConfig(
            num_sample_steps=50,
            guidance_scale=row.guidance,
            prompts=("a painting of a fox", "a red bicycle", "a bowl of fruit", "a street at night"),
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
