"""LDM's text transformer as diffusers' LDMTextToImagePipeline stores it: LDMBertModel."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning.text import TextTransformer
from ldm_jax.config import TextConditioning
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.mapping import Slot, TensorSource, read_params, torch_layout, write_tensors
from ldm_jax.interop.transformers.options import class_of, skip_bookkeeping
from ldm_jax.model import Params

BERT_MARKS = {"begin_token": 101, "end_token": 102, "pad_token": 0}
"""[CLS], [SEP] and [PAD] of the tokenizer of bert-base-uncased, which LDM's text models use."""

_OUTSIDE = {"token": "embed_tokens", "norm_out": "layer_norm"}
_LAYER = {
    "norm_0": "self_attn_layer_norm",
    "norm_1": "final_layer_norm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "feed_forward/dense_0": "fc1",
    "feed_forward/dense_1": "fc2",
}


def marks_within(vocab_size: int) -> dict[str, int]:
    """BERT's marks, or none of them (the defaults) where a vocabulary is too small to hold them."""
    return BERT_MARKS if max(BERT_MARKS.values()) < vocab_size else {}


def read_ldm_bert_config(values: Mapping[str, Any], where: str) -> TextConditioning:
    """Our configuration from a config.json.

    Raises:
        UserError: an option is unknown or asks for what the text transformer here does not have.
    """
    class_of(values, where, ("LDMBertModel",))
    options = Options(values, where)
    vocab_size = options.positive("vocab_size", 30522)
    num_layers = options.positive("encoder_layers", 32)
    fields = {
        "vocab_size": vocab_size,
        "context_length": options.positive("max_position_embeddings", 77),
        "context_dim": options.positive("d_model", 1280),
        "num_layers": num_layers,
        "num_heads": options.positive("encoder_attention_heads", 8),
        "num_head_channels": options.positive("head_dim", 64),
        "mlp_dim": options.positive("encoder_ffn_dim", 5120),
        "dropout": options.number("dropout", 0.1),
        **marks_within(vocab_size),
    }
    options.only("activation_function", "gelu")
    options.only("num_hidden_layers", num_layers)
    for name in ("attention_dropout", "activation_dropout", "encoder_layerdrop", "classifier_dropout"):
        options.only(name, 0.0)
    options.only("scale_embedding", False)
    options.ignore("init_std", "pad_token_id")  # the tokenizer pads, and no token is masked
    skip_bookkeeping(options)
    return options.build(TextConditioning, **fields)


def write_ldm_bert_config(config: TextConditioning) -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "d_model": config.context_dim,
        "encoder_layers": config.num_layers,
        "encoder_attention_heads": config.num_heads,
        "head_dim": config.num_head_channels or config.context_dim // config.num_heads,
        "encoder_ffn_dim": config.mlp_dim or 4 * config.context_dim,
        "activation_function": "gelu",
        "dropout": config.dropout,
        "pad_token_id": config.pad_token,
    }


def ldm_bert_slot(path: str) -> Slot:
    """The format of the weights."""
    module, _, leaf = path.rpartition("/")
    weight, layout = torch_layout(path)
    if leaf == "position":
        return Slot("model.embed_positions.weight", layout)
    if module in _OUTSIDE:
        return Slot(f"model.{_OUTSIDE[module]}.{weight}", layout)
    layer, _, rest = module.removeprefix("layer_").partition("/")
    return Slot(f"model.layers.{layer}.{_LAYER[rest]}.{weight}", layout)


def is_no_text_weight(name: str) -> bool:
    """Whether a tensor belongs to the layer of logits, which nothing uses."""
    return name in ("to_logits.weight", "to_logits.bias")


def read_ldm_bert(source: TensorSource, config: TextConditioning, where: str) -> Params:
    """The parameters of the text transformer.

    Raises:
        UserError: the file does not hold exactly the weights of `config`.
    """
    return read_params(source, ldm_bert_slot, abstract_text(config), where=where, ignore=is_no_text_weight)


def write_ldm_bert(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of LDMBertModel, without its unused layer of logits."""
    return write_tensors(params, ldm_bert_slot)


@functools.cache
def abstract_text(config: TextConditioning) -> Params:
    """Shapes of the parameters."""
    tokens = jax.ShapeDtypeStruct((1, config.context_length), jnp.int32)
    return jax.eval_shape(TextTransformer(config).init, jax.random.key(0), {"tokens": tokens})["params"]
