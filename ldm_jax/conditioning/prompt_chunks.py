"""Prompts of any length with weighted words: chunks of the encoder's own length, encoded one by one and joined.

(1) a prompt of more tokens than fit becomes k chunks, each with its own begin and end mark; their contexts follow each
    other along the token axis, and what the denoiser gets as one vector is that of the first chunk
(2) context' = w * context, scaled by mean(context) / mean(w * context)     of each chunk, over tokens and channels

Both as in AUTOMATIC1111's web interface, except that the mean (2) is that of each sample and not of its batch, on which
no picture may depend, that a chunk is filled to the last token rather than to the last comma, and that a prompt is
split into tokens as a whole, so that brackets do not change the tokens. Weights of 1 change nothing, to the bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from ldm_jax.conditioning.build import Conditioner
from ldm_jax.conditioning.clip_text import ClipTextTransformer, SdxlConditioner
from ldm_jax.conditioning.conditions import Conditions, Inputs
from ldm_jax.conditioning.prompt_syntax import WeightedText
from ldm_jax.conditioning.text import TextTransformer
from ldm_jax.conditioning.tokenizer import CaptionEncoder, PromptEncoder

Condition: TypeAlias = Callable[[Inputs], Conditions]

_WEIGHTS = "{}_weights"


class Chunks(NamedTuple):
    """The tokens of a prompt in chunks, and the weight of each."""

    tokens: Int32[np.ndarray, "k l"]
    weights: Float32[np.ndarray, "k l"]

    def padded(self, count: int, empty: Int32[np.ndarray, " l"]) -> "Chunks":
        """`count` chunks: these and then as many of the empty prompt as are missing."""
        missing = count - len(self.tokens)
        tokens = np.concatenate([self.tokens, np.tile(empty, (missing, 1))])
        return Chunks(tokens, np.concatenate([self.weights, np.ones((missing, len(empty)), np.float32)]))


def token_chunks(encoder: CaptionEncoder, prompt: WeightedText, *, cut: bool = False) -> Chunks:
    """A prompt as chunks (1), or as the first of them alone, with a warning; marks and padding weigh 1.

    A token has the weight of its last character: some tokenizers count the space before a word to its first token.

    Raises:
        UserError: the prompt is not text.
    """
    first = encoder.encode(prompt.text)
    parts = [first] if cut else [first, *first.overflowing]
    if cut and first.overflowing and encoder.warn:
        encoder.warn_of_cut(prompt.text, first)
    tokens = np.asarray([part.ids for part in parts], np.int32)
    weights = np.ones(tokens.shape, np.float32)
    for chunk, part in enumerate(parts):
        for i, ((_, end), is_mark) in enumerate(zip(part.offsets, part.special_tokens_mask, strict=True)):
            if not is_mark and end > 0:
                weights[chunk, i] = prompt.weights[end - 1]
    return Chunks(tokens, weights)


def prompt_chunks(encoder: PromptEncoder, prompt: WeightedText, *, cut: bool = False) -> dict[str, Chunks]:
    """The chunks of each tokenizer of a model, as many of one as of the other."""
    found = {name: token_chunks(one, prompt, cut=cut) for name, one in encoder.encoders.items()}
    count = max(len(chunks.tokens) for chunks in found.values())
    empty = {name: np.asarray(one.encode("").ids, np.int32) for name, one in encoder.encoders.items()}
    return {name: chunks.padded(count, empty[name]) for name, chunks in found.items()}


def chunk_inputs(rows: Sequence[Mapping[str, Chunks]]) -> dict[str, np.ndarray]:
    """The conditioner's inputs for prompts of equally many chunks: tokens and weights [b, k, l]."""
    inputs: dict[str, np.ndarray] = {}
    for name in rows[0]:
        inputs[name] = np.stack([row[name].tokens for row in rows])
        inputs[_WEIGHTS.format(name)] = np.stack([row[name].weights for row in rows])
    return inputs


def condition_on_chunks(condition: Condition, conditioner: Conditioner, inputs: Inputs) -> Conditions:
    """What `condition` makes of the chunks of `chunk_inputs`, joined (1) and weighted (2); of other inputs, as it is.

    Args:
        condition: the model's conditioner, for tokens [b, l].
        conditioner: the module, for the widths of its contexts.
        inputs: all inputs; those that are no tokens are given to every chunk.
    """
    widths = context_widths(conditioner)
    if not widths or inputs["tokens"].ndim < 3:
        return condition(inputs)
    batch, count, _ = inputs["tokens"].shape
    weights = [inputs[_WEIGHTS.format(name)].reshape(batch * count, -1) for name in widths]
    others = {name: x for name, x in inputs.items() if name not in widths and name not in map(_WEIGHTS.format, widths)}
    flat = {name: jnp.repeat(x, count, axis=0) for name, x in others.items()}
    flat |= {name: inputs[name].reshape(batch * count, -1) for name in widths}
    conditions = condition(flat)
    assert conditions.context is not None  # every encoder of tokens makes one
    parts = jnp.split(conditions.context, np.cumsum(list(widths.values()))[:-1], axis=-1)
    context = jnp.concatenate([weigh(x, w) for x, w in zip(parts, weights, strict=True)], axis=-1)
    first = {name: None if x is None else x[::count] for name, x in conditions._asdict().items()}
    return Conditions(**first)._replace(context=context.reshape(batch, -1, context.shape[-1]))


def weigh(context: Float[Array, "b l d"], weights: Float[Array, "b l"]) -> Float[Array, "b l d"]:
    """Scale the tokens of a context by their weights and restore its mean (2)."""
    x = context.astype(jnp.float32)
    scaled = x * weights[..., None]
    before, after = (jnp.mean(v, axis=(1, 2), keepdims=True) for v in (x, scaled))
    scaled *= jnp.where(after == 0, 1.0, before / jnp.where(after == 0, 1.0, after))
    untouched = jnp.all(weights == 1, axis=1)[:, None, None]
    return jnp.where(untouched, context, scaled.astype(context.dtype))


def context_widths(conditioner: Conditioner) -> dict[str, int]:
    """Channels of the context that each input of tokens makes, in their order; empty where there are none."""
    match conditioner:
        case TextTransformer() | ClipTextTransformer():
            return {"tokens": conditioner.config.context_dim}
        case SdxlConditioner():
            return {"tokens": conditioner.config.first.context_dim, "tokens_2": conditioner.config.second.context_dim}
        case _:
            return {}
