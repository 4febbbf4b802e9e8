"""Sizes of pictures other than those of training: which can be drawn, and their latents."""

from ldm_jax.errors import UserError
from ldm_jax.sampling.request import PictureRequest
from ldm_jax.sampling.session import Session

LARGEST_SIDE = 8192
"""Pixels along a side of a picture."""


def picture_size(session: Session, picture: PictureRequest) -> tuple[int, int]:
    """Height and width of a picture in pixels."""
    height, width = session.model.image_shape[:2]
    return picture.height or height, picture.width or width


def own_size(session: Session, size: tuple[int, int]) -> tuple[int | None, int | None]:
    """Height and width as a request says them: None where they are those of training."""
    height, width = (
        None if side == usual else side for side, usual in zip(size, session.model.image_shape, strict=False)
    )
    return height, width


def latent_shape(session: Session, size: tuple[int, int]) -> tuple[int, ...] | None:
    """Shape of the latent of a picture of another height and width than those of training; None for these."""
    if size == session.model.image_shape[:2]:
        return None
    factor = session.experiment.first_stage.autoencoder.downsample_factor
    return size[0] // factor, size[1] // factor, session.model.latent_shape[-1]


def check_size(session: Session, size: tuple[int, int]) -> None:
    """Refuse a size that the model's convolutions cannot halve as often as they do.

    Raises:
        UserError: naming the nearest sizes; or the model takes maps, and nothing is known of how they are made.
    """
    experiment = session.experiment
    if size == session.model.image_shape[:2]:
        return
    if session.given.is_empty and experiment.denoiser.concat_channels:
        tall, wide = session.model.image_shape[:2]
        raise UserError(
            f"{size[1]} x {size[0]} pixels: the maps that this model takes are of its own size; leave it at "
            f"{wide} x {tall}"
        )
    unit = experiment.first_stage.autoencoder.downsample_factor * 2 ** (len(experiment.denoiser.channel_mult) - 1)
    for name, side in zip(("height", "width"), size, strict=True):
        if side % unit or side < unit:
            below = max(side // unit, 1) * unit
            raise UserError(
                f"{name}={side} is not divisible by {unit}, the autoencoder's factor times 2 for each further level of "
                f"the denoiser; nearest usable: {below} and {below + unit}"
            )
        if side > LARGEST_SIDE:
            raise UserError(f"{name}={side} must be at most {LARGEST_SIDE}")
