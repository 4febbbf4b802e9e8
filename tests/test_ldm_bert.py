"""LDM's text transformer of diffusers: both ways, every refusal, and its outputs against PyTorch."""

import dataclasses
import json

import numpy as np
import pytest
from foreign_tensors import Tensors, assert_close, assert_same_tensors, random_tensors
from module_trials import apply
from safetensors.numpy import load_file, save_file

from ldm_jax.conditioning.text import TextTransformer
from ldm_jax.config import TextConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.transformers.ldm_bert import (
    abstract_text,
    ldm_bert_slot,
    read_ldm_bert,
    read_ldm_bert_config,
    write_ldm_bert,
    write_ldm_bert_config,
)

CONFIG = TextConditioning(
    vocab_size=20, context_length=6, context_dim=8, num_layers=2, num_heads=3, num_head_channels=4, mlp_dim=12
)


def test_weights_come_out_as_they_went_in() -> None:
    tensors = random_tensors(abstract_text(CONFIG), ldm_bert_slot)
    assert tensors["model.layers.1.self_attn.q_proj.weight"].shape == (12, 8)
    with_logits = Tensors({**tensors, "to_logits.weight": np.zeros((20, 8)), "to_logits.bias": np.zeros(20)})
    assert_same_tensors(write_ldm_bert(read_ldm_bert(with_logits, CONFIG, "file")), tensors)
    with pytest.raises(UserError, match=r"unexpected: model\.layers\.0\.self_attn\.q_proj\.bias"):
        biased = Tensors({**tensors, "model.layers.0.self_attn.q_proj.bias": np.zeros(12)})
        read_ldm_bert(biased, CONFIG, "file")


def test_a_configuration_comes_back() -> None:
    for config in (CONFIG, dataclasses.replace(CONFIG, dropout=0.1)):
        assert read_ldm_bert_config(write_ldm_bert_config(config), "config.json") == config
    plain = dataclasses.replace(CONFIG, num_heads=2, num_head_channels=None, mlp_dim=None)
    same = dataclasses.replace(plain, num_head_channels=4, mlp_dim=32)
    assert read_ldm_bert_config(write_ldm_bert_config(plain), "config.json") == same


def test_defaults_are_those_of_the_text_to_image_model() -> None:
    config = read_ldm_bert_config({"architectures": ["LDMBertModel"]}, "x")
    assert config == TextConditioning(
        vocab_size=30522,
        context_length=77,
        context_dim=1280,
        num_layers=32,
        num_heads=8,
        num_head_channels=64,
        mlp_dim=5120,
        dropout=0.1,
        begin_token=101,
        end_token=102,
        pad_token=0,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertModel"]}, "architectures=['BertModel'] is not supported; use one of LDMBertModel"),
        ({"activation_function": "relu"}, "activation_function='relu' is not supported; only 'gelu' can be imported"),
        ({"scale_embedding": True}, "scale_embedding=True is not supported; only False can be imported"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported; only 0.0 can be imported"),
        ({"activation_dropout": 0.1}, "activation_dropout=0.1 is not supported; only 0.0 can be imported"),
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop=0.1 is not supported; only 0.0 can be imported"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3 is not supported; only 2 can be imported"),
        ({"decoder_layers": 3}, "decoder_layers=3 is not supported; no such option of this model is known"),
    ],
)
def test_an_option_that_asks_for_something_else_is_refused(changes, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_ldm_bert_config({**write_ldm_bert_config(CONFIG), **changes}, "config.json")
    assert str(error.value) == f"config.json: {message}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_outputs_are_those_of_diffusers_both_ways(seed: int, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    bert = pytest.importorskip("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
    numbers = np.random.default_rng(seed)
    options = {
        "vocab_size": int(numbers.integers(10, 200)),
        "max_position_embeddings": int(numbers.integers(3, 12)),
        "encoder_layers": int(numbers.integers(1, 4)),
        "encoder_ffn_dim": int(numbers.integers(3, 40)),
        "encoder_attention_heads": int(numbers.integers(1, 5)),
        "head_dim": int(numbers.integers(1, 9)),
        "d_model": int(numbers.integers(2, 30)),
    }
    torch.manual_seed(seed)
    model = bert.LDMBertModel(bert.LDMBertConfig(**options)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "theirs")
    tokens = numbers.integers(0, options["vocab_size"], (2, options["max_position_embeddings"]))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens))[0]

    config = read_ldm_bert_config(json.loads((tmp_path / "theirs/config.json").read_text()), "config.json")
    params = read_ldm_bert(Tensors(load_file(tmp_path / "theirs/model.safetensors")), config, "model.safetensors")
    assert_close(apply(TextTransformer(config), params, {"tokens": tokens}).context, expected)

    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/config.json").write_text(json.dumps(write_ldm_bert_config(config)))
    save_file(dict(write_ldm_bert(params)), tmp_path / "ours/model.safetensors", {"format": "pt"})
    again, report = bert.LDMBertModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert set(report["missing_keys"]) == {"to_logits.weight", "to_logits.bias"}
    with torch.no_grad():
        assert_close(again.eval()(torch.from_numpy(tokens))[0], expected)
