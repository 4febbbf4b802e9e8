"""From the words of a command to a task: which picture, how far, and the checksum of its files."""

import dataclasses
from dataclasses import dataclass
from itertools import chain

from ldm_jax.config import MaskedPicture, Neighbours
from ldm_jax.errors import UserError
from ldm_jax.sampling.session import Session
from ldm_jax.sampling.sizes import check_size
from ldm_jax.sampling.tasks.denoising import estimate_noise
from ldm_jax.sampling.tasks.pictures import absolute, canvas_size, read_pictures
from ldm_jax.sampling.tasks.task import SIDES, Fit, PictureTask

STRENGTH, VARIATION_STRENGTH = 0.6, 0.8


@dataclass(frozen=True, kw_only=True)
class AskedTask:
    """What a command says of pictures to start from; of the first four at most one."""

    image: str | None = None
    denoise: str | None = None
    invert: str | None = None
    variations: str | None = None
    image_to: str | None = None
    mask: str | None = None
    outpaint: tuple[tuple[str, ...], ...] = ()
    """Margins, as SIDE=PIXELS."""
    strength: float | None = None
    noise_level: float | None = None
    source_prompt: str | None = None
    fit: Fit = "exact"
    paste: bool = True
    height: int | None = None
    width: int | None = None


def likeness(asked: AskedTask, session: Session) -> str | None:
    """The picture of which a model of neighbours makes variations: it is given pictures like it, and no latent."""
    is_given = isinstance(session.experiment.given, Neighbours) and asked.strength is None
    return asked.variations if is_given else None


def tells_hole(session: Session, task: PictureTask) -> bool:
    """Whether a task tells a model of pictures with holes all that it is given."""
    return isinstance(session.experiment.given, MaskedPicture) and task.has_hole


def task_of(asked: AskedTask, session: Session) -> tuple[PictureTask | None, tuple[int, int]]:
    """The task, if one is asked for, and the height and width of what is drawn.

    Raises:
        UserError: a file is not what it has to be, or a number is out of range.
    """
    tall, wide, channels = session.model.image_shape
    size = asked.height or tall, asked.width or wide
    task = None if likeness(asked, session) else _task(asked)
    if task is None:
        return None, size
    size = canvas_size(task) or size
    check_size(session, size)  # before pictures are made as large
    pictures = read_pictures(task, size, channels)
    if task.kind == "denoise" and task.noise_level is None:
        task = dataclasses.replace(task, noise_level=estimate_noise(pictures.image))
    return dataclasses.replace(task, sha256=pictures.checksum()), size


def _task(asked: AskedTask) -> PictureTask | None:
    to = None if asked.image_to is None else absolute(asked.image_to)
    if asked.denoise is not None:
        return PictureTask(kind="denoise", image=absolute(asked.denoise), noise_level=asked.noise_level, fit=asked.fit)
    if asked.invert is not None:
        strength = 1.0 if asked.strength is None else asked.strength
        words = asked.source_prompt
        return PictureTask(
            kind="invert",
            image=absolute(asked.invert),
            image_to=to,
            strength=strength,
            source_prompt=words,
            fit=asked.fit,
        )
    image = asked.image if asked.image is not None else asked.variations
    if image is None:
        return None
    has_hole = asked.mask is not None or bool(asked.outpaint)
    usual = 1.0 if has_hole else STRENGTH if asked.variations is None else VARIATION_STRENGTH
    return PictureTask(
        kind="image",
        image=absolute(image),
        image_to=to,
        strength=usual if asked.strength is None else asked.strength,
        mask=None if asked.mask is None else absolute(asked.mask),
        outpaint=_margins(asked.outpaint) if asked.outpaint else None,
        paste=asked.paste,
        fit=asked.fit,
    )


def _margins(words: tuple[tuple[str, ...], ...]) -> tuple[int, int, int, int]:
    """Pixels on the left, right, above and below."""
    found = dict[str, int]()
    for word in chain(*words):
        side, equals, number = word.partition("=")
        if not equals or side not in SIDES or not number.isdecimal():
            raise UserError(f"--outpaint {word} is no SIDE=PIXELS; write --outpaint left=16 right=16 top=0 bottom=0")
        if side in found:
            raise UserError(f"--outpaint {word} comes after {side}={found[side]}; name each side once")
        found[side] = int(number)
    left, right, top, bottom = (found.get(side, 0) for side in SIDES)
    return left, right, top, bottom
