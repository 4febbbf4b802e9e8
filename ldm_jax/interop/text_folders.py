"""The weights and the tokenizer of a CLIP text transformer from folders of transformers, for training with them."""

import dataclasses
from pathlib import Path

from tokenizers import Tokenizer

from ldm_jax.config import ClipTextConditioning, differences
from ldm_jax.config.same_model import conditioning_form
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers.component import TRANSFORMERS, read_config, read_weights
from ldm_jax.interop.transformers.text import read_clip_text, read_clip_text_config
from ldm_jax.interop.transformers.tokenizer_files import read_tokenizer, with_marks
from ldm_jax.model import Params

_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json")


def read_text_folder(folder: Path, config: ClipTextConditioning, field: str) -> tuple[Params, Tokenizer]:
    """Parameters and tokenizer of the text transformer in `folder`, which has to be the one that `config` describes.

    Its tokenizer lies in the same folder, or beside it as in a pipeline: `tokenizer/` beside `text_encoder/`. Which
    layer is the context is up to `config`, and a projection that it does not have is left out.

    Args:
        folder: of a CLIPTextModel, a CLIPTextModelWithProjection or a CLIPModel.
        config: the text transformer wanted.
        field: where `config` stands in the experiment, for messages.

    Raises:
        UserError: something is missing or damaged, or it is another text transformer; every difference is listed.
    """
    found = read_clip_text_config(*read_config(folder))
    tokenizer = read_tokenizer(_tokenizer_folder(folder), found.context_length)
    found = dataclasses.replace(
        with_marks(found, tokenizer), context_layer=config.context_layer, context_norm=config.context_norm
    )
    projected = found if config.projection_dim is not None else dataclasses.replace(found, projection_dim=None)
    changed = list(differences(conditioning_form(projected), conditioning_form(config), field))
    if changed:
        listing = "\n  ".join(changed)
        raise UserError(f"{field}.folder={folder} is another text transformer:\n  {listing}\nset these fields to it")
    params = read_weights(folder, read_clip_text, found, TRANSFORMERS)
    return {name: value for name, value in params.items() if name != "projection" or config.projection_dim}, tokenizer


def _tokenizer_folder(folder: Path) -> Path:
    name = folder.absolute().name
    beside = folder.parent / (name.replace("text_encoder", "tokenizer") if "text_encoder" in name else "tokenizer")
    for place in (folder, beside):
        if any((place / file).is_file() for file in _TOKENIZER_FILES):
            return place
    raise UserError(
        f"there is no tokenizer in {folder} nor in {beside} (none of {', '.join(_TOKENIZER_FILES)}); copy it from "
        "where the model is from"
    )
