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
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.autoencoder_options import autoencoder_from_options
from ldm_jax.interop.original.conditioning import conditioning_from_options
from ldm_jax.interop.original.project import OriginalProject, Unsaid
from ldm_jax.interop.original.text_options import CONDITIONER, read_text_stage
from ldm_jax.interop.original.unet import OriginalUNet
from ldm_jax.interop.original.unet_options import unet_from_options, with_concatenation

_DIFFUSION = "sgm.modules.diffusionmodules."
UNET = _DIFFUSION + "openaimodel.UNetModel"
DENOISER = _DIFFUSION + "denoiser.DiscreteDenoiser"
DISCRETIZATION = _DIFFUSION + "discretizer.LegacyDDPMDiscretization"
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


def engine_from_options(options: Options, unsaid: Unsaid) -> OriginalProject:
    """The model that the options of `DiffusionEngine` describe.

    As they do not tell the size of pictures, that is by default 1024 for SDXL, and else what the first stage was made
    for.

    Raises:
        UserError: an option is not known, or has a value that is not supported.
    """
    options.ignore(*_IRRELEVANT)
    options.only("network_wrapper", None, because="the U-Net is called as it is")
    autoencoder = autoencoder_from_options(*options.table("first_stage_config").target())
    params = _known(options, "network_config", UNET)
    unet = with_concatenation(unet_from_options(params, "sgm"), autoencoder.config.latent_channels, params)
    conditioning = _conditioning(options, unet, unsaid)
    default_size = _SDXL_SIZE if isinstance(conditioning, SdxlConditioning) else autoencoder.resolution
    project = OriginalProject(
        unet=unet,
        autoencoder=autoencoder,
        conditioning=conditioning,
        diffusion=_diffusion(_known(options, "denoiser_config", DENOISER)),
        scale_factor=options.number("scale_factor", 1.0),
        image_size=unsaid.image_size or default_size,
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
        options.only(name, value, because="times are the schedule's own")
    num_timesteps = options.whole("num_idx")
    steps = _known(options, "discretization_config", DISCRETIZATION)
    steps.only("num_timesteps", num_timesteps, because="the denoiser has num_idx, which must be the same")
    schedule = ScheduleConfig(
        num_train_timesteps=num_timesteps,
        beta_start=steps.number("linear_start", 0.00085),
        beta_end=steps.number("linear_end", 0.012),
    )
    steps.finish()
    options.finish()
    return DiffusionConfig(schedule=schedule, prediction_type=SCALINGS[scaling], cond_drop_prob=0.0)


def _conditioning(options: Options, unet: OriginalUNet, unsaid: Unsaid) -> Conditioning:
    conditioning = Unconditional()
    if "conditioner_config" in options.left:
        conditioning = _conditioner(_known(options, "conditioner_config", CONDITIONER), unsaid)
    wanted = {"context_dim": unet.context_dim, "vector_dim": unet.config.vector_dim}
    for name, width in wanted.items():
        if getattr(conditioning, name, None) != width:
            given = getattr(conditioning, name, None)
            raise UserError(f"{options.where}.conditioner_config: {name} is {given}, but the U-Net takes {width}")
    return conditioning


def _conditioner(options: Options, unsaid: Unsaid) -> Conditioning:
    """What `GeneralConditioner` makes of its embedders: of none, of one, or of SDXL's."""
    models = options.raw("emb_models")
    if not isinstance(models, list) or len(models) > 1:
        return read_text_stage(CONDITIONER, Options({"emb_models": models}, options.where), unsaid.find_model).config
    options.finish()
    if not models:
        return Unconditional()
    table = Options(models[0], f"{options.where}.emb_models[0]")
    table.ignore("is_trainable", "ucg_rate", "legacy_ucg_value", "input_key")
    return conditioning_from_options(*table.target(), unsaid.null_class, unsaid.find_model)
