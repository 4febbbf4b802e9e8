"""Tokenizers of text models of the original code: its files hold none, so they come from a folder of transformers.

OpenCLIP has the vocabulary of OpenAI's CLIP and fills up with another token of it, 0 (`!`); a folder of either serves.
"""

import dataclasses
from pathlib import Path

from tokenizers import Tokenizer

from ldm_jax.conditioning.tokenizer import fix_length
from ldm_jax.config import ClipTextConditioning, Conditioning, SdxlConditioning, TextConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.transformers.tokenizer_files import read_tokenizer, with_marks, write_tokenizer


def read_tokenizers(folder: Path, conditioning: Conditioning) -> tuple[Conditioning, dict[str, Tokenizer]]:
    """A conditioner with the marks that its tokenizer writes, and the tokenizer of each of its inputs.

    Args:
        folder: a tokenizer's folder of transformers.
        conditioning: what the project file says.

    Raises:
        UserError: it takes no prompts, or the vocabulary is not that of the text encoder.
    """
    match conditioning:
        case TextConditioning():
            captions = dataclasses.replace(conditioning, tokens="captions")
            tokenizer = _read(folder, captions)
            return with_marks(captions, tokenizer), {"tokens": tokenizer}
        case ClipTextConditioning():
            tokenizer = _read(folder, conditioning)
            return with_marks(conditioning, tokenizer), {"tokens": tokenizer}
        case SdxlConditioning():
            first, second = _read(folder, conditioning.first), _read(folder, conditioning.second)
            marked = dataclasses.replace(
                conditioning,
                first=with_marks(conditioning.first, first),
                second=with_marks(conditioning.second, second),
            )
            return marked, {"tokens": first, "tokens_2": second}
    kind = type(conditioning).__name__
    raise UserError(f"--tokenizer {folder} is for a model that takes prompts; this one has {kind}")


def write_tokenizers(tokenizers: dict[str, Tokenizer], folder: Path) -> None:
    """Write the one folder of which `read_tokenizers` makes all of them again.

    Raises:
        UserError: they have different vocabularies.
    """
    first, *others = tokenizers.values()
    if any(other.get_vocab() != first.get_vocab() for other in others):
        raise UserError(
            "the tokenizers of the two text encoders differ; in the original code both have CLIP's vocabulary"
        )
    write_tokenizer(first, folder)


def _read(folder: Path, config: TextConditioning | ClipTextConditioning) -> Tokenizer:
    tokenizer = read_tokenizer(folder, config.context_length)
    entries, wanted = tokenizer.get_vocab_size(), config.vocab_size
    # a tokenizer that was trained may have found fewer than it was asked for; CLIP's was not trained here
    if entries > wanted or (entries < wanted and isinstance(config, ClipTextConditioning)):
        raise UserError(
            f"{folder} has a vocabulary of {entries} entries, the text encoder one of {wanted}; give the tokenizer "
            "that the model was trained with"
        )
    if isinstance(config, ClipTextConditioning) and config.projection_dim is not None:  # OpenCLIP's
        fix_length(tokenizer, config.context_length, pad=str(tokenizer.id_to_token(config.pad_token)))
    return tokenizer
