"""From requests to the conditioner's inputs: each prompt is parsed and split into tokens once, before all else."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.conditioning.prompt_chunks import Chunks, chunk_inputs, context_widths, prompt_chunks
from ldm_jax.conditioning.prompt_syntax import WeightedText, parse_weights
from ldm_jax.conditioning.tokenizer import PromptEncoder
from ldm_jax.config import ClassConditioning
from ldm_jax.data.given.given import Arrays
from ldm_jax.data.given.shelf import Spec, inputs_checksum, spec_label
from ldm_jax.errors import UserError
from ldm_jax.sampling.request import DrawRequest, PictureRequest
from ldm_jax.sampling.session import Session
from ldm_jax.sampling.sizes import picture_size
from ldm_jax.sampling.tasks.task import PictureTask

logger = logging.getLogger(__name__)

_Source: TypeAlias = tuple[Spec, str, int | None, int | None] | PictureTask


class PictureInputs:
    """The inputs of the pictures of one request."""

    def __init__(
        self, session: Session, request: DrawRequest, told: Callable[[PictureTask], Arrays] | None = None
    ) -> None:
        """Encode everything that is asked for; `told` is what a task tells a model that is given what it tells.

        Raises:
            UserError: the model does not take it, or a weight is wrong.
        """
        self._session = session
        sources = [as_source(session, p) for p in request.pictures if p.task is not None]
        labels = dict.fromkeys(p.class_label for p in (*request.pictures, *sources) if p.class_label is not None)
        texts = dict.fromkeys(
            text
            for p in (*request.pictures, *sources)
            for text in (p.prompt, p.negative, p.prompt_to)
            if text is not None
        )
        if not all(text.strip() for text in dict.fromkeys(p.prompt for p in request.pictures) if text is not None):
            logger.warning("an empty prompt draws without a condition")
        given = {_source_of(p): p for p in request.pictures if p.given}
        self._given: dict[_Source, Arrays] = {source: _read_given(session, p) for source, p in given.items()}
        if told is not None:
            tasks = {p.task for p in request.pictures if p.task is not None and not p.given}
            self._given |= {task: arrays for task in tasks if (arrays := told(task))}
        is_told = session.classifier is None or isinstance(session.experiment.conditioning, ClassConditioning)
        self._labels = {label: session.class_number(label) for label in labels} if is_told else {}
        encoder = session.prompt_encoder() if texts else session.encode_caption
        self._chunks = {text: _encode(encoder, text, request) for text in texts} if encoder else {}
        self._empty = prompt_chunks(encoder, WeightedText("", np.empty(0))) if encoder else {}
        null = jax.tree.map(np.asarray, session.model.conditioner.null_inputs(1))
        names = context_widths(session.model.conditioner) if encoder else ()
        ones = {name: np.ones(null[name].shape, np.float32) for name in names}
        self._nothing = {name: Chunks(null[name].astype(np.int32), ones[name]) for name in names}

    def num_chunks(self, picture: PictureRequest) -> int:
        """Chunks of the longest of the picture's prompts: a property of its own, on which its context depends."""
        texts = (picture.prompt, picture.negative, picture.prompt_to)
        counts = [len(chunks.tokens) for text in texts if text is not None for chunks in self._chunks[text].values()]
        return max(counts, default=1)

    def __call__(self, pictures: Sequence[PictureRequest]) -> tuple[Inputs, Inputs, Inputs]:
        """Inputs, negative inputs, and those that an interpolation leads to, of pictures of equally many chunks."""
        count, batch = self.num_chunks(pictures[0]), len(pictures)
        null = jax.tree.map(np.asarray, self._session.null_inputs(batch))
        negative = jax.tree.map(np.asarray, self._session.model.conditioner.null_inputs(batch))
        if self._labels:
            numbers = [
                self._labels.get(p.class_label or "", n) for p, n in zip(pictures, null["class_labels"], strict=True)
            ]
            null["class_labels"] = np.asarray(numbers, np.int32)
        null |= self._given_rows(pictures)
        if "map" in negative:  # an empty one of the size of those that are given
            negative["map"] = np.zeros_like(null["map"])
        if "sizes" in null:
            shape = self._session.model.image_shape
            sides = [(p.height or shape[0], p.width or shape[1]) for p in pictures]
            null["sizes"] = negative["sizes"] = np.asarray([(h, w, 0, 0, h, w) for h, w in sides], np.int32)
        prompts, negatives, others = (
            self._rows([getattr(p, name) for p in pictures], count) for name in ("prompt", "negative", "prompt_to")
        )
        return _arrays(null | prompts), _arrays(negative | negatives), _arrays(null | others)

    def source(self, pictures: Sequence[PictureRequest]) -> Inputs:
        """Inputs under which the pictures of an inversion are led back to their noise."""
        return self([as_source(self._session, picture) for picture in pictures])[0]

    def _given_rows(self, pictures: Sequence[PictureRequest]) -> dict[str, np.ndarray]:
        """What the pictures are given; a model that is given something in one picture is in all."""
        if not self._given:
            return {}
        rows = [self._given[_source_of(picture)] for picture in pictures]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _rows(self, texts: Sequence[str | None], count: int) -> dict[str, np.ndarray]:
        """Tokens and weights of prompts; None is the empty condition, which a model may tell from an empty text."""
        if not self._nothing:
            return {}
        rows = []
        for text in texts:
            found, fill = (self._nothing,) * 2 if text is None else (self._chunks[text], self._empty)
            rows.append({name: chunks.padded(count, fill[name].tokens[0]) for name, chunks in found.items()})
        return chunk_inputs(rows)


def as_source(session: Session, picture: PictureRequest) -> PictureRequest:
    """The picture as it is inverted: under the words for what it shows."""
    words = None if picture.task is None else picture.task.source_prompt
    is_class = isinstance(session.experiment.conditioning, ClassConditioning)
    names = {"prompt": None if is_class else words, "class_label": words if is_class else None}
    return dataclasses.replace(picture, **names, negative=None, prompt_to=None)


def _encode(encoder: PromptEncoder, text: str, request: DrawRequest) -> dict[str, Chunks]:
    plain = WeightedText(text, np.ones(len(text), np.float64))
    weighted = parse_weights(text) if request.prompt_syntax == "weights" else plain
    return prompt_chunks(encoder, weighted, cut=request.long_prompts == "cut")


def _source_of(picture: PictureRequest) -> _Source:
    """What tells what a picture is given: its own words at its size, or its task."""
    if picture.given or picture.task is None:
        return picture.given, picture.given_sha256, picture.height, picture.width
    return picture.task


def _read_given(session: Session, picture: PictureRequest) -> dict[str, np.ndarray]:
    arrays = session.given.read(picture.given, picture_size(session, picture))
    if inputs_checksum(arrays) != picture.given_sha256:
        raise UserError(f"{spec_label(picture.given)} has changed since the picture was asked for; restore it")
    return arrays


def _arrays(inputs: dict[str, np.ndarray]) -> Inputs:
    return {name: jnp.asarray(x) for name, x in inputs.items()}
