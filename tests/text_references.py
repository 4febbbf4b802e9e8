"""Forward passes of the original text encoders in numpy, from their own tensor names; nothing of ours is used.

`open_clip_text` follows OpenCLIP's text transformer as SD 2 and SDXL call it, `x_transformer` the TransformerWrapper of
latent-diffusion (ldm/modules/x_transformer.py). Both are checked against those sources by hand, as neither is a
package that tests can install.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]
Array = np.ndarray


def open_clip_text(
    w: Tensors, tokens: Array, num_heads: int, act: Callable[[Array], Array]
) -> tuple[list[Array], Array]:
    """Hidden states (embedding, then each block's output) and projected text at the largest id, in float64."""
    x = w["token_embedding.weight"][tokens].astype(np.float64) + w["positional_embedding"]
    mask = np.triu(np.full((tokens.shape[1],) * 2, -np.inf), 1)
    hidden, i = [x], 0
    while f"transformer.resblocks.{i}.ln_1.weight" in w:
        block = f"transformer.resblocks.{i}."
        h = _norm(w, f"{block}ln_1", x)
        q, k, v = np.split(h @ w[f"{block}attn.in_proj_weight"].T + w[f"{block}attn.in_proj_bias"], 3, axis=-1)
        x = x + _linear(w, f"{block}attn.out_proj", _attend(q, k, v, num_heads, mask))
        h = act(_linear(w, f"{block}mlp.c_fc", _norm(w, f"{block}ln_2", x)))
        x = x + _linear(w, f"{block}mlp.c_proj", h)
        hidden.append(x)
        i += 1
    last = _norm(w, "ln_final", x)
    return hidden, last[np.arange(len(tokens)), tokens.argmax(-1)] @ w["text_projection"]


def open_clip_norm(w: Tensors, x: Array) -> Array:
    """The final normalisation."""
    return _norm(w, "ln_final", x)


def x_transformer(w: Tensors, tokens: Array) -> Array:
    """Embeddings that the wrapper returns, with the encoder's eight heads of 64 channels, in float64."""
    x = w["token_emb.weight"][tokens].astype(np.float64) + w["pos_emb.emb.weight"][: tokens.shape[1]]
    i = 0
    while f"attn_layers.layers.{i}.0.weight" in w:
        layer = f"attn_layers.layers.{i}."
        h = _norm(w, f"{layer}0", x)
        if f"{layer}1.to_q.weight" in w:
            q, k, v = (h @ w[f"{layer}1.to_{name}.weight"].T for name in "qkv")
            h = _linear(w, f"{layer}1.to_out", _attend(q, k, v, 8, 0.0))
        else:
            h = _linear(w, f"{layer}1.net.2", gelu(_linear(w, f"{layer}1.net.0.0", h)))
        x = x + h
        i += 1
    return _norm(w, "norm", x)


def gelu(x: Array) -> Array:
    """GELU by the error function."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def quick_gelu(x: Array) -> Array:
    """GELU of OpenAI's models."""
    return x / (1 + np.exp(-1.702 * x))


def _linear(w: Tensors, name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(w: Tensors, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def _attend(q: Array, k: Array, v: Array, num_heads: int, mask: Array | float) -> Array:
    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)

    q, k, v = split(q), split(k), split(v)
    logits = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1]) + mask
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return out.transpose(0, 2, 1, 3).reshape(out.shape[0], out.shape[2], -1)
