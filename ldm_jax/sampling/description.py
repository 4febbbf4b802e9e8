"""What a PNG says of itself: for people in words, and as JSON all that it takes to draw it again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ldm_jax
from ldm_jax.config import SamplingConfig, check_types
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place
from ldm_jax.pictures import read_picture
from ldm_jax.sampling.draw import BatchRow, Drawn
from ldm_jax.sampling.request import DrawRequest
from ldm_jax.sampling.tasks.image_to_image import num_skipped
from ldm_jax.sampling.tasks.task import PictureTask

_KEY = "ldm"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model was read from."""

    path: str
    """Absolute path of the run, or of a model of another system."""
    config: str | None = None
    """YAML of a single file."""
    tokenizer: str | None = None
    """Folder of the tokenizer of a single file."""
    step: int | None = None
    """Checkpoint, where it is not the newest."""
    ema_sigma_rel: float | None = None
    """Relative width of the average, where it was rebuilt from snapshots."""
    sha256: str = ""
    """Checksum of its parameters."""
    autoencoder: str = ""
    """Checksum of those of its autoencoder."""
    told: str = ""
    """Checksum of its tokenizers and of the scheduler that came with it; empty where nobody has said."""


@dataclass(frozen=True, kw_only=True)
class Origins:
    """The models that draw together."""

    model: Origin
    weaker: Origin | None = None
    classifier: Origin | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        others = {name: getattr(self, name) for name in ("weaker", "classifier")}
        return {"model": vars(self.model)} | {name: None if one is None else vars(one) for name, one in others.items()}

    def checksums(self) -> dict[str, str | None]:
        """What decides the pictures: where a model lies does not."""
        others = {name: getattr(self, name) for name in ("weaker", "classifier")}
        found = {"model": self.model.sha256, "tokenizer or scheduler": self.model.told}
        return found | {name: one and one.sha256 for name, one in others.items()}


class Described(NamedTuple):
    """What a picture says of itself."""

    request: DrawRequest
    """Of this picture alone."""
    place: BatchRow
    origins: Origins


def describe(request: DrawRequest, drawn: Drawn, origins: Origins, credit: str) -> dict[str, str]:
    """The text chunks of a picture."""
    picture, config = request.pictures[drawn.position], request.config
    words = {
        "prompt": picture.prompt,
        "negative": picture.negative,
        "class": picture.class_label,
        "given": ", ".join(picture.given) or None,
        "task": picture.task and picture.task.words(),
        "note": drawn.note or None,
        "seed": picture.seed,
        "index": picture.index,
        "sampler": f"{_solver(config, picture.task)}, guidance scale {picture.guidance_scale}",
        "model": origins.model.sha256,
        "credit": credit,
    }
    alone = DrawRequest.to_json(_only(request, drawn.position))
    everything = {"request": alone, "place": drawn.place._asdict(), **origins.to_json()}
    everything["version"] = ldm_jax.__version__
    said = {name: str(value) for name, value in words.items() if value is not None}
    return {**said, _KEY: json.dumps(everything, sort_keys=True)}


def _solver(config: SamplingConfig, task: PictureTask | None) -> str:
    """Which solver made how many steps; from a noisy picture as many as its note says."""
    if task is not None and task.kind == "denoise":
        return "ddim" if config.sampler == "imported" else config.sampler
    name = "ddim" if task is not None and task.kind == "invert" else config.sampler
    skipped = 0 if task is None else num_skipped(task.strength, config.num_sample_steps)
    return f"{name}, {config.num_sample_steps - skipped} steps"


def read_description(path: Place) -> Described:
    """What `describe` wrote into a PNG.

    Raises:
        UserError: it is no PNG, or one of something else, or of another version.
    """
    texts = read_picture(path)[1]
    if _KEY not in texts:
        raise UserError(f"{path} does not say how it was drawn: it is no picture of `ldm sample`, or of an older one")
    try:
        values = parse_json(texts[_KEY])
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__} where an object belongs")
        origins = origins_of(values)
        request, place = DrawRequest.from_json(values["request"]), BatchRow(**values["place"])
        for part in (request, place, origins):
            check_types(part)
        if not 0 <= place.row < place.batch_size:
            raise ValueError(f"it has row={place.row} of batch_size={place.batch_size}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its description cannot be read by this version ({error})") from None
    return Described(request, place, origins)


def origins_of(values: Mapping[str, Any]) -> Origins:
    """Inverse of `Origins.to_json` for values that hold it; raises KeyError or TypeError where they do not."""
    others = {name: _origin(values.get(name)) for name in ("weaker", "classifier")}
    return Origins(model=Origin(**values["model"]), **others)


def _origin(values: Mapping[str, Any] | None) -> Origin | None:
    return None if values is None else Origin(**values)


def _only(request: DrawRequest, position: int) -> DrawRequest:
    values = {**vars(request), "pictures": (request.pictures[position],)}
    return DrawRequest(**values)
