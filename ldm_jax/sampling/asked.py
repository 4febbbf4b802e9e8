"""From what a command says to requests of pictures: which prompt, noise and strength of guidance each has."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from ldm_jax.data.given.shelf import Spec, inputs_checksum
from ldm_jax.errors import UserError
from ldm_jax.model import require_diffusion_of_pictures
from ldm_jax.sampling.draw import can_guide
from ldm_jax.sampling.picture_inputs import as_source
from ldm_jax.sampling.prompt_files import PromptLine
from ldm_jax.sampling.request import PictureRequest, share_out
from ldm_jax.sampling.session import Session
from ldm_jax.sampling.sizes import own_size
from ldm_jax.sampling.tasks.asked import AskedTask, likeness, task_of, tells_hole

_HELDOUT_EXAMPLES = 4
"""From which pictures are drawn where neither prompts nor what is given are told."""
MAX_PICTURES = 100_000
"""Pictures of one folder."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for, in the words of a command; tuples hold one for each prompt, one for all, or none."""

    prompts: tuple[str, ...] = ()
    class_labels: tuple[str, ...] = ()
    lines: tuple[PromptLine, ...] = ()
    """Prompts of a file, behind the others."""
    negative_prompts: tuple[str, ...] = ()
    prompts_to: tuple[str, ...] = ()
    """Where the prompts lead to in `num_frames` steps."""
    num_frames: int = 8
    given: tuple[str, ...] = ()
    """What pictures are given beside prompt and class, as [NAME=]FILE."""
    heldout: tuple[int, ...] = ()
    """The same from held-out examples."""
    guidance_scales: tuple[float, ...] = ()
    num_samples: int = 4
    """Pictures (or strips of frames) of each prompt or class."""
    seed: int = 0
    seed_to: int | None = None
    """Where the noise leads to in `num_frames` steps."""
    pictures: AskedTask = field(default_factory=AskedTask)
    """The picture to start from, and the size of what is drawn."""

    def __post_init__(self) -> None:
        if (self.prompts or self.lines) and self.class_labels:
            raise UserError("give --prompt or --class-label, not both")
        if self.is_way and self.num_frames < 2:
            raise UserError(f"--frames={self.num_frames} must be at least 2: both ends are frames")
        self.check_count(len(self.labels))

    @property
    def is_way(self) -> bool:
        """Whether frames lead from something to something else."""
        return bool(self.prompts_to) or self.seed_to is not None or self.pictures.image_to is not None

    def check_count(self, rows: int) -> None:
        """Refuse more pictures than a folder should hold, for so many prompts, classes or given things."""
        count = self.num_samples * rows * (self.num_frames if self.is_way else 1)
        if count > MAX_PICTURES:
            raise UserError(
                f"{count} pictures are too many for one call; draw at most {MAX_PICTURES}, with several --seed"
            )

    @property
    def labels(self) -> tuple[PromptLine, ...]:
        """Every prompt, class, or nothing in particular."""
        given = tuple(PromptLine(prompt=text) for text in self.prompts or self.class_labels) + self.lines
        return given or (PromptLine(prompt=""),)


def ask(
    asked: Asked,
    session: Session,
    default_scale: float,
    *,
    has_weaker: bool = False,
    draws_noise: bool = False,
) -> tuple[PictureRequest, ...]:
    """The pictures that are asked for, all of one prompt behind each other.

    Picture i has index i of the seed; those of a line with a seed of its own count from 0, wherever it stands.

    Args:
        asked: the command's words.
        session: the model, which decides what guidance there is where nothing is said of it.
        default_scale: strength of guidance where nothing is said of it and the model can be guided.
        has_weaker: whether there is a weaker model to lead away from.
        draws_noise: whether denoising a picture takes fresh noise, by which each number is another picture.

    Raises:
        UserError: what is given does not go together.
    """
    require_diffusion_of_pictures(session.experiment)
    like = likeness(asked.pictures, session)
    if like is not None and (asked.given or asked.heldout):
        raise UserError(
            "--variations is what this model of neighbours is given; leave --given and --heldout out, or tell a "
            "--strength to start from the picture's latent"
        )
    task, size = task_of(asked.pictures, session)
    tells = task is not None and tells_hole(session, task)
    if task is not None and like is None and not session.given.is_empty and not (tells or asked.given or asked.heldout):
        parts = " ".join(f"--given {part.name}=FILE" for part in session.given.given.parts)
        raise UserError(
            f"this model draws from what it is given, and a task tells only where it starts; name that too: {parts}, "
            "or --heldout N"
        )
    height, width = own_size(session, size)
    default = len(asked.labels) if asked.prompts or asked.lines or asked.class_labels else _HELDOUT_EXAMPLES
    files = asked.given if like is None else (like,)
    specs = () if tells and not (files or asked.heldout) else session.given.ask(files, asked.heldout, default, size)
    count = max(len(asked.labels), len(specs))
    asked.check_count(count)
    labels = share_out("prompts or classes", asked.labels, count, PromptLine(prompt=""))
    givens = share_out("--given or --heldout", specs, count, ())
    sums = {spec: inputs_checksum(session.given.read(spec, size)) for spec in dict.fromkeys(specs)}
    is_guided = has_weaker or can_guide(session)
    scales = share_out("--guidance-scale", asked.guidance_scales, count, default_scale if is_guided else 1.0)
    negatives = share_out("--negative-prompt", asked.negative_prompts, count, None)
    targets = share_out("--prompt-to", asked.prompts_to, count, None)
    pictures: list[PictureRequest] = []
    rows = zip(labels, scales, negatives, targets, givens, strict=True)
    for i, (label, scale, negative, target, spec) in enumerate(rows):
        given = PictureRequest(
            prompt=label.prompt if asked.prompts or asked.lines else _own_prompt(session, spec),
            class_label=label.prompt if asked.class_labels else None,
            negative=negative if label.negative is None else label.negative,
            guidance_scale=scale if label.guidance is None else label.guidance,
            prompt_to=target,
            given=spec,
            given_sha256=sums.get(spec, ""),
            task=task,
            height=height,
            width=width,
        )
        start = i * asked.num_samples
        seed, first = (asked.seed, start) if label.seed is None else (label.seed, 0)
        pictures += _numbered(given, asked, seed, first)
    if task is None or task.kind == "image" or (task.kind == "denoise" and draws_noise):
        return tuple(pictures)
    # no noise is drawn for these, so that every number of a prompt would be the same picture
    firsts = tuple(picture for picture in pictures if picture.index % asked.num_samples == 0)
    if task.kind == "denoise":
        return firsts
    is_told = bool(asked.prompts or asked.lines or asked.class_labels)
    back = tuple(as_source(session, dataclasses.replace(picture, guidance_scale=1.0)) for picture in firsts)
    if task.image_to is not None:
        return firsts if is_told else back
    return (back[0], *(firsts if is_told else ()))


def _own_prompt(session: Session, spec: Spec) -> str | None:
    """The caption of a held-out example whose picture a model of prompts is given something of."""
    return session.given.caption(spec) if spec and session.encode_caption is not None else None


def _numbered(picture: PictureRequest, asked: Asked, seed: int, first: int) -> Iterator[PictureRequest]:
    """The pictures of one prompt: noise after noise, and the frames of each."""
    picture = dataclasses.replace(picture, seed_to=asked.seed_to)
    frames = asked.num_frames if picture.is_on_a_way else 1
    for index, frame in product(range(first, first + asked.num_samples), range(frames)):
        fraction = frame / (frames - 1) if frames > 1 else 0.0
        yield dataclasses.replace(picture, seed=seed, index=index, fraction=fraction)
