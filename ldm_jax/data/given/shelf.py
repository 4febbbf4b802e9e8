"""What pictures are given beside prompt and class, from files or from held-out examples; each is read once.

A request says what was given in words, `picture=/a/cat.png mask=/a/hole.png` or `heldout=17`, and by a checksum.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8

from ldm_jax.config import Experiment
from ldm_jax.data.given.given import Arrays, Given, Part
from ldm_jax.data.given.heldout import heldout_example, heldout_inputs
from ldm_jax.data.given.make import Load, make_given
from ldm_jax.data.source import Example, Source, Split
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place, is_local, to_place

Spec: TypeAlias = tuple[str, ...]
"""What one picture is given: NAME=FILE for each part, or heldout=INDEX."""

_HELDOUT = "heldout"


class GivenShelf:
    """What a model can be given; the data set is opened when something is taken from it."""

    def __init__(self, experiment: Experiment, object_names: tuple[str, ...] = (), *, load: Load | None = None) -> None:
        """For the model of an experiment; `load` opens its data."""
        self.experiment, self.object_names = experiment, object_names
        self._load: Load = functools.partial(load_source, experiment.data) if load is None else load
        self._examples: dict[int, Example] = {}

    @functools.cached_property
    def given(self) -> Given:
        """What makes the inputs.

        Raises:
            UserError: the model is given nothing, or the data set cannot be opened.
        """
        found = make_given(self.experiment, self.object_names, self._load)
        if found is None:
            kind = type(self.experiment.conditioning).__name__
            raise UserError(f"this model ({kind}) is given nothing beside it; leave --given and --heldout out")
        return found

    @functools.cached_property
    def heldout(self) -> Source:
        """The held-out split."""
        return self._load("test")

    def source(self, split: Split) -> Source:
        """A split with the pictures of which the model is given something."""
        return self.heldout if split == "test" else self._load(split)

    @property
    def is_empty(self) -> bool:
        """Whether the model is given nothing."""
        return self.experiment.given is None

    def ask(
        self, files: Sequence[str], heldout: Sequence[int], default: int, size: tuple[int, int] | None = None
    ) -> tuple[Spec, ...]:
        """What each picture is given, from `[NAME=]FILE` and indices; `default` held-out ones where neither is told.

        `size` are height and width of what is drawn, where they are not those of training.

        Raises:
            UserError: a file has another name than the model's parts, a part has none, or an index is out of range.
        """
        if self.is_empty and not files and not heldout:
            return ()
        specs = self._of_files(self._at(size).parts, files) if files else ()
        if files and not heldout:
            return specs
        indices = heldout or self.spread(default)
        for index in indices:
            if not 0 <= index < len(self.heldout):
                raise UserError(f"--heldout={index}: there are {len(self.heldout)} held-out examples, from 0")
        return (*specs, *((f"{_HELDOUT}={index}",) for index in indices))

    def spread(self, count: int) -> tuple[int, ...]:
        """Indices of so many held-out examples, evenly spaced."""
        places = np.linspace(0, len(self.heldout) - 1, min(count, len(self.heldout)))
        return tuple(int(i) for i in places.round())

    def read(self, spec: Spec, size: tuple[int, int] | None = None) -> Arrays:
        """The inputs that a picture of a size is given.

        Raises:
            UserError: a file is not what it has to be, or a map of a held-out example is of another size.
        """
        parts = dict(entry.split("=", 1) for entry in spec)
        given = self._at(size)
        if _HELDOUT not in parts:
            return given.of_files({name: to_place(path) for name, path in parts.items()})
        if given.is_map and given is not self.given:
            listing = _listing(given.parts)
            raise UserError(f"what held-out examples give is of the size of training; give {listing}")
        return self.of_heldout(int(parts[_HELDOUT]))

    def of_heldout(self, index: int) -> Arrays:
        """The inputs that a held-out example gives."""
        return heldout_inputs(self.given, self._example(index), index)

    def picture(self, index: int) -> Float32[np.ndarray, "h w c"]:
        """The picture of a held-out example, in [-1, 1]."""
        return self._example(index)["image"]

    def caption(self, spec: Spec) -> str | None:
        """The caption of a held-out example; files have none."""
        name, _, index = spec[0].partition("=")
        return self.heldout.annotation(int(index))["caption"] if name == _HELDOUT else None

    def shown(self, spec: Spec, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """How what a picture of a size is given looks."""
        return self._at(size).shown(self.read(spec, size))

    def _at(self, size: tuple[int, int] | None) -> Given:
        return self.given if size is None or size == self._own_size else self.given.at(size)

    @property
    def _own_size(self) -> tuple[int, int]:
        side = self.experiment.data.image_size
        return side, side

    def _example(self, index: int) -> Example:
        if index not in self._examples:
            self._examples[index] = heldout_example(self.heldout, self.experiment.data, index)
        return self._examples[index]

    def _of_files(self, parts: Sequence[Part], files: Sequence[str]) -> tuple[Spec, ...]:
        found: dict[str, list[str]] = {part.name: [] for part in parts}
        for text in files:
            name, equals, path = text.partition("=")
            if not (equals and name in found):
                if len(parts) > 1:
                    raise UserError(f"--given {text} does not say which part it is; this model takes {_listing(parts)}")
                name, path = parts[0].name, text
            found[name].append(_absolute(path))
        count = max(map(len, found.values()))
        for name, paths in found.items():
            if len(paths) not in (1, count):
                raise UserError(f"--given has {len(paths)} of {name} for {count}; this model takes {_listing(parts)}")
        rows = [paths * (count if len(paths) == 1 else 1) for paths in found.values()]
        named = ([f"{name}={path}" for path in row] for name, row in zip(found, rows, strict=True))
        return tuple(zip(*named, strict=True))


def inputs_checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of inputs."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def spec_label(spec: Spec) -> str:
    """A few words for what is given: the names of its files, or which held-out example."""
    parts = [entry.split("=", 1) for entry in spec]
    return ", ".join(f"held-out {value}" if name == _HELDOUT else to_place(value).name for name, value in parts)


def _listing(parts: Sequence[Part]) -> str:
    return " and ".join(f"--given {part.name}=FILE, {part.what}" for part in parts)


def _absolute(path: str) -> str:
    place: Place = to_place(path)
    return str(Path(place).absolute()) if is_local(place) else path
