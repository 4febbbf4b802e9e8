"""What is asked for: each picture with all that it depends on beside the model, and how all of them are drawn."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from ldm_jax.config import LARGEST, SamplingConfig, from_dict, to_dict
from ldm_jax.errors import UserError
from ldm_jax.sampling.tasks.task import PictureTask, task_from_json, task_to_json

Syntax: TypeAlias = Literal["weights", "plain"]
LongPrompts: TypeAlias = Literal["chunks", "cut"]
Interpolation: TypeAlias = Literal["slerp", "lerp"]

_SHOWN = 20
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """One picture. Two of the same seed and index start from the same noise, whatever else they are."""

    seed: int = 0
    """Root of its noise."""
    index: int = 0
    """Its number among the noises of that seed."""
    prompt: str | None = None
    """What it shows."""
    negative: str | None = None
    """What guidance leads away from; None is the empty condition."""
    class_label: str | None = None
    """Its class, by number or name."""
    guidance_scale: float = 1.0
    """Strength of guidance; 1 is none."""
    prompt_to: str | None = None
    """What the prompt changes to on the way of an interpolation."""
    fraction: float = 0.0
    """How far on that way it is: 0 is the prompt, 1 the other one."""
    given: tuple[str, ...] = ()
    """What it is given beside prompt and class: NAME=FILE for each part, or heldout=INDEX."""
    given_sha256: str = ""
    """Checksum of the inputs made of that."""
    task: PictureTask | None = None
    """The picture that it is made from, where it is not from noise alone."""
    seed_to: int | None = None
    """Root of the noise that its own changes to on the way of an interpolation."""
    height: int | None = None
    """Height in pixels, where it is not that of training."""
    width: int | None = None
    """Width in pixels, where it is not that of training."""

    def __post_init__(self) -> None:
        for name in ("seed", "index") if self.seed_to is None else ("seed", "index", "seed_to"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise UserError(f"{name}={getattr(self, name)} must lie between 0 and {LARGEST}")
        if not 0.0 <= self.guidance_scale < float("inf"):
            raise UserError(f"guidance_scale={self.guidance_scale} must be a finite number and not negative")
        if not 0.0 <= self.fraction <= 1.0:
            raise UserError(f"fraction={self.fraction} must lie between 0 and 1")

    @property
    def is_on_a_way(self) -> bool:
        """Whether it is a frame of an interpolation."""
        return self.prompt_to is not None or self.seed_to is not None or bool(self.task and self.task.image_to)


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """Pictures, and what decides for all of them how they are drawn."""

    pictures: tuple[PictureRequest, ...]
    """In the order in which they are numbered."""
    config: SamplingConfig = field(default_factory=SamplingConfig)
    """Solver and guidance; the strength of guidance is that of each picture."""
    prompt_syntax: Syntax = "weights"
    """Whether brackets in a prompt are weights or text."""
    long_prompts: LongPrompts = "chunks"
    """Whether a prompt longer than the encoder's context is encoded in chunks, or cut."""
    interpolation: Interpolation = "slerp"
    """Way between two conditions."""
    classifier_scale: float = 1.0
    """How strongly a classifier leads to the class of each picture, where there is one."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.classifier_scale < float("inf"):
            raise UserError(f"classifier_scale={self.classifier_scale} must be a finite number and not negative")
        if not self.pictures:
            raise UserError("no picture is asked for: the list of prompts or classes is empty; give at least one")

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; what the configuration says of grids in training is left out."""
        config = dataclasses.replace(self.config, prompts=(), samples_per_prompt=1)
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        pictures = [picture_to_json(picture) for picture in self.pictures]
        return values | {"config": to_dict(config), "pictures": pictures}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DrawRequest":
        """Inverse of `to_json`; raises UserError or TypeError for what it did not write."""
        pictures = tuple(picture_from_json(picture) for picture in values["pictures"])
        return cls(**{**values, "pictures": pictures, "config": from_dict(values["config"])})

    def summary(self) -> dict[str, Any]:
        """What a person wants to know of it, and a checksum of the whole."""
        everything = self.to_json()
        checksum = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
        shown = ("prompt", "negative", "class_label", "prompt_to", "given", "seed", "guidance_scale")
        distinct = {name: _distinct(getattr(picture, name) for picture in self.pictures) for name in shown}
        distinct["task"] = _distinct(picture.task and picture.task.words() for picture in self.pictures)
        rest = {name: value for name, value in everything.items() if name != "pictures"}
        return {"pictures": len(self.pictures), **distinct, **rest, "request": checksum}


def picture_to_json(picture: PictureRequest) -> dict[str, Any]:
    """The fields that are not at their defaults, by which a file of many pictures stays short."""
    values = {f.name: v for f in dataclasses.fields(picture) if (v := getattr(picture, f.name)) != f.default}
    return values if picture.task is None else values | {"task": task_to_json(picture.task)}


def picture_from_json(values: dict[str, Any]) -> PictureRequest:
    """Inverse of `picture_to_json` behind JSON."""
    task = task_from_json(values.get("task"))
    return PictureRequest(**{**values, "given": tuple(values.get("given", ())), "task": task})


def _distinct(values: Iterable[Any]) -> list[Any]:
    return [value for value in dict.fromkeys(values) if value is not None][:_SHOWN]


def share_out(name: str, values: Sequence[_T], count: int, nothing: _T) -> tuple[_T, ...]:
    """One value for each of `count` prompts, from as many, from one for all, or from none.

    Raises:
        UserError: there are another number of them.
    """
    if len(values) not in (0, 1, count):
        raise UserError(f"{len(values)} {name} for {count} prompts or classes; give one for all, or one for each")
    return (nothing,) * count if not values else tuple(values) * (count if len(values) == 1 else 1)
