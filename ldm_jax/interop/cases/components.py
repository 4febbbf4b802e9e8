"""Parity cases of one network: a U-Net, an autoencoder or a text encoder in the format of diffusers or transformers.

Arrays of a case are in PyTorch's layouts, channels first; each function here takes the case's folder, its arrays and
the tolerance of one forward pass.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.autoencoder.kl import AutoencoderKL
from ldm_jax.conditioning.clip_text import ClipTextTransformer
from ldm_jax.conditioning.clip_vision import ClipVisionTransformer
from ldm_jax.conditioning.text import TextTransformer
from ldm_jax.denoiser.unet import UNet
from ldm_jax.errors import UserError
from ldm_jax.interop.cases.arrays import Arrays
from ldm_jax.interop.cases.comparison import Comparison, compare
from ldm_jax.interop.diffusers.autoencoder import read_autoencoder_config, read_autoencoder_params
from ldm_jax.interop.diffusers.component import TRANSFORMERS, read_config, read_weights
from ldm_jax.interop.diffusers.unet import read_unet_config, read_unet_params
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.interop.transformers.ldm_bert import read_ldm_bert, read_ldm_bert_config
from ldm_jax.interop.transformers.text import read_clip_text, read_clip_text_config
from ldm_jax.interop.transformers.vision import read_clip_vision, read_clip_vision_config
from ldm_jax.model import Params
from ldm_jax.nn.apply import apply
from ldm_jax.nn.embeddings import sinusoidal_embedding

Outputs = dict[str, np.ndarray]


def outputs_of(expected: Arrays, inputs: set[str], found: Callable[[], Outputs], tolerance: float) -> list[Comparison]:
    """Compare what a case expects with what was found, by name; refuses an array that is neither input nor output."""
    ours = found()
    wanted = {name: values for name, values in expected.items() if name not in inputs}
    if unknown := sorted(set(wanted) - set(ours)):
        raise UserError(
            f"io.npz holds {', '.join(unknown)}, which this kind of case does not have; inputs: "
            f"{', '.join(sorted(inputs))}; outputs: {', '.join(sorted(ours))}"
        )
    return [compare(name, ours[name], values, tolerance) for name, values in wanted.items()]


def last(x: np.ndarray) -> np.ndarray:
    """PyTorch's layout to ours: channels last."""
    return np.moveaxis(x, 1, -1)


def first(x: Any) -> np.ndarray:
    """Our layout to PyTorch's: channels first."""
    return np.moveaxis(np.asarray(x), -1, 1)


def run_unet_case(path: Path, arrays: Arrays, tolerance: float) -> list[Comparison]:
    """A U-Net of diffusers: sample, timestep and conditions -> out."""
    unet = read_unet_config(*read_config(path))
    params = read_weights(path, read_unet_params, unet)

    def found() -> Outputs:
        given = {name: arrays[name] for name in sorted({"sample", "timestep", *arrays} & _UNET_INPUTS)}
        out = jax.jit(partial(_unet, unet))(params, given)
        return {"out": first(out)}

    return outputs_of(arrays, _UNET_INPUTS, found, tolerance)


_UNET_INPUTS = {"sample", "timestep", "encoder_hidden_states", "class_labels", "text_embeds", "time_ids"}


def _unet(unet: DiffusersUNet, params: Params, arrays: dict[str, Any]) -> Any:
    return apply(UNet(unet.config, unet.out_channels), params, **unet_arguments(unet, arrays))


def unet_arguments(unet: DiffusersUNet, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our U-Net for those of diffusers', by its names and in its layouts."""
    x = jnp.moveaxis(arrays["sample"], 1, -1)
    t = jnp.broadcast_to(jnp.asarray(arrays["timestep"]), x.shape[:1])
    labels, vector = arrays.get("class_labels"), None
    sinusoid = partial(sinusoidal_embedding, frequencies=unet.config.time_frequencies, order=unet.config.time_order)
    if unet.vector == "text_time":
        sizes = sinusoid(arrays["time_ids"].reshape(-1), unet.size_dim or 0).reshape(len(x), -1)
        vector = jnp.concatenate([arrays["text_embeds"], sizes], axis=-1)
    elif unet.vector is not None:
        labels, vector = None, jnp.asarray(arrays["class_labels"])
        vector = sinusoid(vector, unet.config.base_channels) if unet.vector == "timestep" else vector
    context = arrays.get("encoder_hidden_states")
    return {"zt": x, "t": t, "context": context, "class_labels": labels, "vector": vector}


def run_autoencoder_case(path: Path, arrays: Arrays, tolerance: float) -> list[Comparison]:
    """An autoencoder of diffusers: sample -> moments, or latents and codes; what they decode to."""
    record = read_autoencoder_config(*read_config(path))
    params = read_weights(path, read_autoencoder_params, record)
    module = make_autoencoder(record.config, record.out_channels, "float32")
    return outputs_of(
        arrays, {"sample"}, lambda: autoencoder_outputs(module, params, arrays["sample"], arrays, flat=True), tolerance
    )


def autoencoder_outputs(module: Any, params: Params, image: np.ndarray, arrays: Arrays, *, flat: bool) -> Outputs:
    """All that a case may ask of an autoencoder; what is decoded are the case's own latents where it has them."""

    def call(method: str, x: np.ndarray) -> Any:
        return jax.jit(lambda params, x: apply(module, params, x, method=method))(params, last(x))

    posterior = call("encode", image)
    mean = first(posterior.mean)
    outputs = {"mean": mean, "latents": mean}
    if isinstance(module, AutoencoderKL):
        outputs["logvar"] = first(posterior.logvar)
    else:
        quantized, indices = call("quantize", arrays.get("latents", mean))
        outputs |= {
            "quantized": first(quantized),
            "indices": np.asarray(indices).reshape(-1 if flat else indices.shape),
        }
    outputs["reconstruction"] = first(call("decode", arrays.get("latents", arrays.get("mean", mean))))
    return outputs


def run_clip_text_case(path: Path, arrays: Arrays, tolerance: float) -> list[Comparison]:
    """A text transformer of transformers: input_ids -> its outputs."""
    config = read_clip_text_config(*read_config(path))
    params = read_weights(path, read_clip_text, config, TRANSFORMERS)
    module = ClipTextTransformer(config)

    def found() -> Outputs:
        tokens = arrays["input_ids"].astype(np.int32)
        text = jax.jit(lambda params, tokens: apply(module, params, tokens, method="encode"))(params, tokens)
        values = {"last_hidden_state": text.last, "penultimate": text.hidden[-2], "pooler_output": text.unprojected}
        if config.projection_dim is not None:
            values["text_embeds"] = text.pooled
        return jax.tree.map(np.asarray, values)

    return outputs_of(arrays, {"input_ids"}, found, tolerance)


def run_clip_vision_case(path: Path, arrays: Arrays, tolerance: float) -> list[Comparison]:
    """A vision transformer of transformers: pixel_values -> its outputs."""
    config = read_clip_vision_config(*read_config(path))
    params = read_weights(path, read_clip_vision, config, TRANSFORMERS)
    module = ClipVisionTransformer(config)

    def found() -> Outputs:
        image = jax.jit(partial(apply, module))(params, last(arrays["pixel_values"]))
        values = {"last_hidden_state": image.hidden[-1], "penultimate": image.hidden[-2]}
        values |= {"pooler_output": image.unprojected, "image_embeds": image.pooled}
        return jax.tree.map(np.asarray, values)

    return outputs_of(arrays, {"pixel_values"}, found, tolerance)


def run_bert_case(path: Path, arrays: Arrays, tolerance: float) -> list[Comparison]:
    """LDM's text transformer as diffusers stores it: input_ids -> last_hidden_state."""
    config = read_ldm_bert_config(*read_config(path))
    params = read_weights(path, read_ldm_bert, config, TRANSFORMERS)
    module = TextTransformer(config)

    def found() -> Outputs:
        conditions = jax.jit(partial(apply, module))(params, {"tokens": arrays["input_ids"].astype(np.int32)})
        return {"last_hidden_state": np.asarray(conditions.context)}

    return outputs_of(arrays, {"input_ids"}, found, tolerance)
