"""What all configurations of transformers have in common: the class they name and their bookkeeping."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.interop.foreign_options import Options, refusal

# What every configuration may carry, and what only matters to training from scratch, to generation of text and to
# classification. Old files list all of them.
_BOOKKEEPING = (
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "name_or_path"),
    *("initializer_range", "initializer_factor", "return_dict", "output_hidden_states", "output_attentions"),
    *("chunk_size_feed_forward", "use_cache", "torchscript", "problem_type", "id2label", "label2id", "num_labels"),
    *("finetuning_task", "task_specific_params", "tokenizer_class", "prefix", "tie_word_embeddings"),
    *("tie_encoder_decoder", "decoder_start_token_id", "sep_token_id", "max_length", "min_length", "do_sample"),
    *("early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p"),
    *("typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id"),
    *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "use_bfloat16", "tf_legacy_loss"),
)


def class_of(values: Mapping[str, Any], where: str, known: tuple[str, ...], given: str | None = None) -> str:
    """The class of a model: `given`, or else the one that its config.json names.

    Raises:
        UserError: it is none or several, or not `known`.
    """
    named = values.get("architectures") or [] if given is None else [given]
    if len(named) != 1 or named[0] not in known:
        raise refusal(where, "architectures", named, f"use one of {', '.join(known)}")
    return named[0]


def skip_bookkeeping(options: Options) -> None:
    """Accept what changes nothing, at any value or, where it would make another model, at the value that does not.

    Raises:
        UserError: an option would make another model.
    """
    options.ignore(*_BOOKKEEPING, *(name for name in options.left if name.startswith("_")))
    for name in ("is_decoder", "is_encoder_decoder", "add_cross_attention"):
        options.only(name, False)
    options.only("cross_attention_hidden_size", None)
    options.only("pruned_heads", {}, None)
