"""The models of latent-diffusion's zoo (`models/ldm/*`, `configs/*`), one row of a table each.

    python train.py zoo/celebahq256 --data.source.directory PICTURES [--first-stage.run runs/zoo/vq-f4]

Rows follow the configuration files of CompVis/latent-diffusion; what these leave open is that of the paper (LDM,
arXiv:2112.10752, Tables 12 and 15). As in the original: 1000 steps with betas linear in their square root, AdamW (0.9,
0.999) with weight decay 0.01 and without clipping, moving average 0.9999, float32. The learning rate is the effective
one: the original multiplies that of the file by the batch of a GPU, the GPUs and the accumulation, and each row says
what this gave. What differs: latents are brought to unit spread by measuring them, as the original does for churches
only (its VQ latents stay as they are; 0.18215 and 0.2277 of KL models are such measurements); pictures are cut in the
middle. `attention_resolutions` of the files are downsampling factors, here they are indices of levels. Not measured.
"""

from dataclasses import dataclass, field, replace

from ldm_jax.config import (
    ClassConditioning,
    Conditioning,
    DataConfig,
    DiffusionConfig,
    EmbeddingConditioning,
    Experiment,
    Given,
    ImageFolder,
    LabelMap,
    Layout,
    LowResolution,
    MaskedPicture,
    MeshConfig,
    OptimizerConfig,
    PreparedTfds,
    SamplingConfig,
    ScheduleConfig,
    Source,
    SpatialConditioning,
    TextConditioning,
    TrainingConfig,
    Unconditional,
    UNetConfig,
    load_experiment,
)

A100 = "one A100 (Tables 12 and 15)"
PROMPTS = ("a painting of a fox", "a red bicycle", "a bowl of fruit", "a street at night")
OPEN_IMAGES = PreparedTfds(name="open_images_v4", test_split="validation")
IMAGENET = PreparedTfds(name="imagenet2012", test_split="validation")
UNCONDITIONAL = UNetConfig(base_channels=224, channel_mult=(1, 2, 3, 4), attention_levels=(1, 2, 3), attention="self")
SEMANTIC = UNetConfig(
    base_channels=128,
    channel_mult=(1, 4, 8),
    attention_levels=(),
    attention="self",
    num_heads=8,
    num_head_channels=None,
    concat_channels=3,
)
LABEL_MAP = SpatialConditioning(in_channels=182, num_stages=2, out_channels=3)
"""COCO-Stuff's 182 classes, one-hot, halved twice."""


def _bert(width: int) -> TextConditioning:
    """LDM's BERTEmbedder: the vocabulary and the marks of bert-base-uncased, 32 layers of 8 heads of 64 channels."""
    return TextConditioning(
        vocab_size=30_522,
        context_length=77,
        context_dim=width,
        num_layers=32,
        num_heads=8,
        num_head_channels=64,
        begin_token=101,
        end_token=102,
        pad_token=0,
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of the table."""

    what: str
    published: str
    rate: str
    """How the learning rate came about."""
    hardware: str = A100
    source: Source
    size: int = 256
    flip: bool = False
    first_stage: str = "vq-f4"
    betas: tuple[float, float] = (0.0015, 0.0195)
    unet: UNetConfig
    conditioning: Conditioning = field(default_factory=Unconditional)
    given: Given | None = None
    drop: float = 0.0
    l1: bool = False
    training: tuple[int, int, float]
    """Batch, optimizer steps and effective learning rate."""
    warmup: int = 0
    cosine: bool = False
    ema: float = 0.9999
    sampling: tuple[int, float, float] = (200, 0.0, 1.0)
    """DDIM steps, eta and guidance of the published result."""


TABLE = {
    "celebahq256": Model(
        what="Faces of CelebA-HQ, unconditional",
        published="FID 5.11, IS 3.29, precision 0.72, recall 0.49 with 200 DDIM steps, eta 0 (README)",
        rate="2e-6 x 48 x 1 GPU",
        source=ImageFolder(directory="celebahq"),
        unet=UNCONDITIONAL,
        training=(48, 410_000, 9.6e-5),
    ),
    "ffhq256": Model(
        what="Faces of FFHQ, unconditional",
        published="FID 4.98, IS 4.50, precision 0.73, recall 0.50 with 200 DDIM steps, eta 1 (README)",
        rate="2e-6 x 42 x 1 GPU",
        source=ImageFolder(directory="ffhq"),
        unet=UNCONDITIONAL,
        training=(42, 635_000, 8.4e-5),
        sampling=(200, 1.0, 1.0),
    ),
    "lsun_bedrooms256": Model(
        what="Bedrooms of LSUN, unconditional",
        published="FID 2.95, IS 2.22, precision 0.66, recall 0.48 with 200 DDIM steps, eta 1 (README)",
        rate="2e-6 x 48 x 1 GPU",
        source=PreparedTfds(name="lsun/bedroom", test_split="validation"),
        flip=True,
        unet=UNCONDITIONAL,
        training=(48, 1_900_000, 9.6e-5),
        sampling=(200, 1.0, 1.0),
    ),
    "lsun_churches256": Model(
        what="Churches of LSUN, unconditional",
        published="FID 4.02, IS 2.72, precision 0.64, recall 0.52 with `400` DDIM steps, which the original's rounding "
        "makes 500, eta 0 (README)",
        rate="5e-5 as it is (--scale_lr False)",
        source=PreparedTfds(name="lsun/church_outdoor", test_split="validation"),
        flip=True,
        first_stage="kl-f8",
        betas=(0.0015, 0.0155),
        unet=UNetConfig(
            base_channels=192,
            channel_mult=(1, 2, 2, 4, 4),
            attention_levels=(0, 1, 2, 3),
            attention="self",
            num_heads=8,
            num_head_channels=None,
            scale_shift_norm=True,
            resample_with_res_blocks=True,
        ),
        l1=True,
        training=(96, 500_000, 5e-5),
        warmup=10_000,
        sampling=(500, 0.0, 1.0),
    ),
    "cin256": Model(
        what="Classes of ImageNet",
        published="FID 15.82, IS 78.82, precision 0.65, recall 0.63 without guidance; FID 7.77, IS 201.56, precision "
        "0.84, recall 0.35 with a classifier's of scale 10; 200 DDIM steps, eta 1 (README)",
        rate="1e-6 x 64 x 1 GPU (Table 15 has a batch of 48)",
        source=IMAGENET,
        first_stage="vq-f8",
        unet=UNetConfig(base_channels=256, channel_mult=(1, 2, 4), attention_levels=(0, 1, 2)),
        conditioning=ClassConditioning(num_classes=1000, null_class=False, context_dim=512),
        training=(64, 170_000, 6.4e-5),
        sampling=(200, 1.0, 1.0),
    ),
    "cin256-v2": Model(
        what="Classes of ImageNet with classifier-free guidance: the model of the authors' notebook",
        published="FID 3.6 with guidance (README); 3.60, IS 247.67 with 250 DDIM steps and scale 1.5 (Table 3). Of the "
        "trained classes 10 % are dropped here, by the custom of the field; the share, and eta, are not published",
        rate="1e-4, that of Table 15 and of the file",
        source=IMAGENET,
        unet=UNetConfig(
            base_channels=192,
            channel_mult=(1, 2, 3, 5),
            attention_levels=(1, 2, 3),
            num_heads=1,
            num_head_channels=None,
        ),
        conditioning=ClassConditioning(num_classes=1000, context_dim=512),
        drop=0.1,
        training=(1200, 178_000, 1e-4),
        ema=0.0,
        sampling=(250, 0.0, 1.5),
    ),
    "text2img256": Model(
        what="Captions of Conceptual Captions (fine-tuned from LAION in the original)",
        published="FID 16.79, IS 13.89 with 100 DDIM steps, eta 0 (README)",
        rate="2e-6 x 28; the number of GPUs is not published and 1 is taken, as are 390,000 steps of Table 15",
        hardware="not published",
        source=ImageFolder(directory="conceptual_captions"),
        unet=UNetConfig(base_channels=192, channel_mult=(1, 2, 3, 5), attention_levels=(1, 2, 3)),
        conditioning=_bert(640),
        training=(28, 390_000, 5.6e-5),
        sampling=(100, 0.0, 1.0),
    ),
    "txt2img-1p4B": Model(
        what="Captions of LAION-400M, the model of 1.45 B parameters",
        published="none for these weights (README: 50 DDIM steps, scale 5); the paper's model of this size has FID "
        "23.31, and 12.63 with guidance 1.5, on MS-COCO with 250 DDIM steps (Table 2). Of the captions 10 % are "
        "dropped here; the share is not published",
        rate="1e-4, that of Table 15 (the file, for inference alone, has 5e-5)",
        source=ImageFolder(directory="laion400m"),
        first_stage="kl-f8",
        betas=(0.00085, 0.012),
        unet=UNetConfig(
            base_channels=320,
            channel_mult=(1, 2, 4, 4),
            attention_levels=(0, 1, 2),
            num_heads=8,
            num_head_channels=None,
        ),
        conditioning=_bert(1280),
        drop=0.1,
        training=(680, 390_000, 1e-4),
        sampling=(50, 0.0, 5.0),
    ),
    "bsr_sr": Model(
        what="OpenImages four times larger: the small picture, degraded as by BSRGAN, is concatenated",
        published="none (README: N/A)",
        rate="1e-6 x 64 x 1 GPU",
        source=OPEN_IMAGES,
        betas=(0.0015, 0.0155),
        unet=UNetConfig(
            base_channels=160, channel_mult=(1, 2, 2, 4), attention_levels=(3,), attention="self", concat_channels=3
        ),
        conditioning=SpatialConditioning(in_channels=3),
        given=LowResolution(),
        training=(64, 860_000, 6.4e-5),
        sampling=(100, 1.0, 1.0),
    ),
    "inpainting_big": Model(
        what="Holes of Places filled in: latents of the masked picture (3) and the mask (1) are concatenated",
        published="none for these weights (README); the paper's `big, w/ ft`: FID 9.39, LPIPS 0.246 where 40 to 50 % "
        "are masked, 1.50 and 0.137 over all masks (Table 7)",
        rate="1e-6 (Table 15); warm-up and cosine as in the file, there until step 50,000 and with a peak of 0.1",
        hardware="eight V100 (Table 15)",
        source=PreparedTfds(name="places365_small", test_split="validation"),
        first_stage="vq-f4-noattn",
        betas=(0.0015, 0.0205),
        unet=UNetConfig(
            base_channels=256,
            channel_mult=(1, 2, 3, 4),
            attention_levels=(1, 2, 3),
            attention="self",
            num_heads=8,
            num_head_channels=None,
            resample_with_res_blocks=True,
            concat_channels=4,
        ),
        given=MaskedPicture(),
        l1=True,
        training=(128, 360_000, 1e-6),
        warmup=1000,
        cosine=True,
        sampling=(50, 0.0, 1.0),
    ),
    "layout2img": Model(
        what="OpenImages from the boxes of its objects, as tokens of a text transformer without tokenizer",
        published="FID 32.02, IS 15.92 with 200 DDIM steps, eta 0 (README)",
        rate="2e-6 x 24 x 1 GPU",
        source=replace(OPEN_IMAGES, objects_key="bobjects"),
        betas=(0.0015, 0.0205),
        unet=UNetConfig(base_channels=128, channel_mult=(1, 2, 3, 4), attention_levels=(1, 2, 3), transformer_depth=3),
        conditioning=TextConditioning(
            tokens="boxes",
            vocab_size=8192,
            context_length=92,
            context_dim=512,
            num_layers=16,
            num_heads=8,
            num_head_channels=64,
        ),
        given=Layout(),
        l1=True,
        training=(24, 4_400_000, 4.8e-5),
    ),
    "semantic_synthesis256": Model(
        what="Landscapes from label maps",
        published="none (README: N/A)",
        rate="1e-6 x 48 (the batch of Table 15) x 1 GPU",
        source=ImageFolder(directory="landscapes"),
        betas=(0.0015, 0.0205),
        unet=SEMANTIC,
        conditioning=LABEL_MAP,
        given=LabelMap(),
        l1=True,
        training=(48, 360_000, 4.8e-5),
    ),
    "semantic_synthesis512": Model(
        what="Landscapes of 512 pixels from label maps (fine-tuned from 256 in the original)",
        published="none (README: N/A)",
        rate="1e-6 x 8; the numbers of GPUs and steps are not published: 1, and the 360,000 of 256 pixels, are taken",
        hardware="not published",
        source=ImageFolder(directory="landscapes"),
        size=512,
        betas=(0.0015, 0.0205),
        unet=SEMANTIC,
        conditioning=LABEL_MAP,
        given=LabelMap(),
        l1=True,
        training=(8, 360_000, 8e-6),
    ),
    "rdm768": Model(
        what="Pictures of 768 pixels from the CLIP embeddings of up to 20 neighbours (arXiv:2204.11824)",
        published="none for these weights (README: 50 DDIM steps, scale 5)",
        rate="1e-4 of the file, for inference alone; batch, steps and GPUs are not published: 64 and 400,000 are "
        "taken, and 10 % of the neighbours dropped",
        hardware="not published",
        source=ImageFolder(directory="openimages"),
        size=768,
        first_stage="kl-f16",
        betas=(0.0015, 0.015),
        unet=UNetConfig(base_channels=448, channel_mult=(1, 2, 3, 4), attention_levels=(0, 1, 2)),
        conditioning=EmbeddingConditioning(context_dim=768, context_length=20),
        drop=0.1,
        training=(64, 400_000, 1e-4),
        sampling=(50, 0.0, 5.0),
    ),
}


def _describe(name: str, row: Model) -> str:
    folder = "TFDS_DIR" if isinstance(row.source, PreparedTfds) else "PICTURES"
    return f"""{row.what}; {row.size} pixels, in the latents of zoo/{row.first_stage}.

        python train.py zoo/{name} --data.source.directory {folder} [--first-stage.run runs/zoo/{row.first_stage}]

    Published: {row.published}.
    Learning rate: {row.rate}.
    Hardware: {row.hardware}. Time and result here: not measured."""


VARIANTS = {name: _describe(name, row) for name, row in TABLE.items()}


def get_config(variant: str) -> Experiment:
    """The model of this name."""
    row = TABLE[variant]
    beta_start, beta_end = row.betas
    batch_size, num_steps, learning_rate = row.training
    num_sample_steps, eta, guidance_scale = row.sampling
    captions = isinstance(row.conditioning, TextConditioning) and row.conditioning.tokens == "captions"
    return Experiment(
        name=f"zoo/{variant}",
        data=DataConfig(source=row.source, image_size=row.size, horizontal_flip=row.flip, cache_latents=False),
        first_stage=load_experiment(f"zoo/{row.first_stage}").first_stage,
        conditioning=row.conditioning,
        given=row.given,
        denoiser=row.unet,
        diffusion=DiffusionConfig(
            schedule=ScheduleConfig(beta_start=beta_start, beta_end=beta_end),
            loss="l1" if row.l1 else "l2",
            cond_drop_prob=row.drop,
        ),
        training=TrainingConfig(
            batch_size=batch_size,
            num_steps=num_steps,
            ema_decay=row.ema,
            log_every=100,
            eval_every=5000,
            sample_every=10_000,
            checkpoint_every=5000,
        ),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            warmup_steps=row.warmup,
            decay="cosine" if row.cosine else "constant",
            max_grad_norm=None,
        ),
        sampling=SamplingConfig(
            num_sample_steps=num_sample_steps,
            eta=eta,
            guidance_scale=guidance_scale,
            prompts=PROMPTS if captions else (),
        ),
        mesh=MeshConfig(data=1, fsdp=-1) if row.unet.base_channels >= 320 else MeshConfig(),
    )
