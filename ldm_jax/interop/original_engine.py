"""The options of `DiffusionEngine`, the latent diffusion model of the code of Stable Diffusion XL (sgm)."""

from ldm_jax.config import (
    Conditioning,
    DiffusionConfig,
    PredictionType,
    ScheduleConfig,
    SdxlConditioning,
    Unconditional,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.original_autoencoder_options import autoencoder_from_options
from ldm_jax.interop.original_conditioning import conditioning_from_options, sdxl_from_options
from ldm_jax.interop.original_options import Options
from ldm_jax.interop.original_project import OriginalProject
from ldm_jax.interop.original_unet import OriginalUNet
from ldm_jax.interop.original_unet_options import unet_from_options, with_concatenation

_DIFFUSION = "sgm.modules.diffusionmodules."
UNET = _DIFFUSION + "openaimodel.UNetModel"
DENOISER = _DIFFUSION + "denoiser.DiscreteDenoiser"
DISCRETIZATION = _DIFFUSION + "discretizer.LegacyDDPMDiscretization"
CONDITIONER = "sgm.modules.GeneralConditioner"
SCALINGS: dict[str, PredictionType] = {
    _DIFFUSION + "denoiser_scaling.EpsScaling": "epsilon",
    _DIFFUSION + "denoiser_scaling.VScaling": "v",
}
_SDXL_SIZE = 1024  # its pictures; the file does not say
_IRRELEVANT = (  # how it is trained, sampled and logged
    *("sampler_config", "optimizer_config", "scheduler_config", "loss_fn_config", "ckpt_path", "ema_decay_rate"),
    *("disable_first_stage_autocast", "input_key", "log_keys", "no_cond_log", "compile_model"),
    "en_and_decode_n_samples_a_time",
)


def engine_from_options(options: Options, image_size: int | None = None) -> OriginalProject:
    """The model that the options of `DiffusionEngine` describe.

    Args:
        options: the options.
        image_size: height and width of pictures in pixels; by default 1024 for SDXL, and what the first stage was
            made for otherwise, as the options do not tell.

    Raises:
        UserError: an option is not known, or has a value that is not supported.
    """
    options.ignore(*_IRRELEVANT)
    options.only("network_wrapper", None, "the U-Net is called as it is")
    autoencoder = autoencoder_from_options(*options.table("first_stage_config").target())
    params = _known(options, "network_config", UNET)
    unet = with_concatenation(unet_from_options(params, "sgm"), autoencoder.config.latent_channels, params)
    conditioning = _conditioning(options, unet)
    default_size = _SDXL_SIZE if isinstance(conditioning, SdxlConditioning) else autoencoder.resolution
    project = OriginalProject(
        unet=unet,
        autoencoder=autoencoder,
        conditioning=conditioning,
        diffusion=_diffusion(_known(options, "denoiser_config", DENOISER)),
        scale_factor=options.number("scale_factor", 1.0),
        image_size=image_size or default_size,
        library="sgm",
        use_ema=options.flag("use_ema", False),
    )
    options.finish()
    return project


def _known(options: Options, name: str, known: str) -> Options:
    """The options of a table that must name one class."""
    table = options.table(name)
    target, params = table.target()
    if target != known:
        raise UserError(f"{table.where}: target={target} is not supported; known: {known}")
    return params


def _diffusion(options: Options) -> DiffusionConfig:
    scaling, _ = options.table("scaling_config").target()
    if scaling not in SCALINGS:
        raise UserError(f"{options.where}: scaling_config={scaling} is not supported; known: {', '.join(SCALINGS)}")
    options.ignore("weighting_config")
    for name, value in (("do_append_zero", False), ("quantize_c_noise", True), ("flip", True)):
        options.only(name, value, "times are the schedule's own")
    num_timesteps = options.whole("num_idx")
    steps = _known(options, "discretization_config", DISCRETIZATION)
    steps.only("num_timesteps", num_timesteps, "the denoiser has num_idx, which must be the same")
    schedule = ScheduleConfig(
        num_train_timesteps=num_timesteps,
        beta_start=steps.number("linear_start", 0.00085),
        beta_end=steps.number("linear_end", 0.012),
    )
    steps.finish()
    options.finish()
    return DiffusionConfig(schedule=schedule, prediction_type=SCALINGS[scaling], cond_drop_prob=0.0)


def _conditioning(options: Options, unet: OriginalUNet) -> Conditioning:
    embedders = _embedders(options) if "conditioner_config" in options else []
    if not embedders:
        conditioning = Unconditional()
    elif len(embedders) == 1:
        conditioning = conditioning_from_options(*embedders[0][1:])
    else:
        conditioning = sdxl_from_options(embedders)
    wanted = {"context_dim": unet.context_dim, "vector_dim": unet.config.vector_dim}
    for name, width in wanted.items():
        if getattr(conditioning, name, None) != width:
            given = getattr(conditioning, name, None)
            raise UserError(f"{options.where}.conditioner_config: {name} is {given}, but the U-Net takes {width}")
    return conditioning


def _embedders(options: Options) -> list[tuple[str, str, Options]]:
    """Input key, class and options of each embedder."""
    params = _known(options, "conditioner_config", CONDITIONER)
    models = params.raw("emb_models")
    params.finish()
    embedders = []
    for i, model in enumerate(models if isinstance(models, list) else [models]):
        table = Options(model, f"{params.where}.emb_models[{i}]")
        table.ignore("is_trainable", "ucg_rate", "legacy_ucg_value")
        embedders.append((str(table.raw("input_key")), *table.target()))
    return embedders
