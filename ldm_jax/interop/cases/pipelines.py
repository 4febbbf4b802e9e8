"""Parity cases of whole pipelines: from prompts and the initial noise to pictures.

`io.json` holds `prompts`, `negative_prompts`, `steps` and `guidance_scale` (and where they apply `eta`, `batch_size`);
`io.npz` holds `latents`, the noise as the pipeline was given it, `image` as [b, h, w, c] in [0, 1], and what the
tokenizers made of the prompts. Maps that are concatenated to the latent are given as the U-Net sees them.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.diffusion.guidance import Guidance
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import read_json
from ldm_jax.interop.cases.arrays import Arrays
from ldm_jax.interop.cases.comparison import Comparison
from ldm_jax.interop.cases.components import Outputs, last, outputs_of
from ldm_jax.interop.diffusers.pipeline import read_pipeline
from ldm_jax.model import Params
from ldm_jax.sampling.generate import Method, Request, denoiser_for, draw_from
from ldm_jax.sampling.session import Session

_ASKED = {"prompts", "negative_prompts", "steps", "guidance_scale", "eta", "height", "width"}
_TOKENS = {"input_ids": "tokens", "input_ids_2": "tokens_2"}


def run_pipeline_case(path: Path, arrays: Arrays, tolerance: float) -> list[Comparison]:
    """Draw a case's pictures from its noise.

    Raises:
        UserError: the pipeline is not supported, or the case asks for something that is not.
    """
    session, asked = read_pipeline(path), read_json(path / "io.json")
    if unknown := sorted(set(asked) - _ASKED):
        raise UserError(
            f"{path / 'io.json'}: {', '.join(unknown)} is not supported; known: {', '.join(sorted(_ASKED))}"
        )
    noise = last(arrays["latents"])
    for name in ("prompts", "negative_prompts"):
        if asked.get(name) is not None and len(asked[name]) != len(noise):
            raise UserError(f"{path / 'io.json'} has {len(asked[name])} {name} for {len(noise)} latents in io.npz")
    if "steps" not in asked:
        raise UserError(f"{path / 'io.json'} does not say how many steps to take; give `steps`")
    inputs = _inputs(session, asked.get("prompts"), arrays, noise)
    negative = session.model.conditioner.null_inputs(len(noise))
    if asked.get("negative_prompts") is not None:
        negative = session.prompt_inputs(asked["negative_prompts"])
    negative = _with_sizes(session, negative, noise)

    def found() -> Outputs:
        tokens = {name: np.asarray(inputs[ours]) for name, ours in _TOKENS.items() if ours in inputs}
        return {**tokens, "image": _draw(session, asked, noise, inputs, negative)}

    return outputs_of(arrays, {"latents", "concat"}, found, tolerance)


def _inputs(session: Session, prompts: Any, arrays: Arrays, noise: np.ndarray) -> Inputs:
    inputs = session.null_inputs(len(noise)) if prompts is None else session.prompt_inputs(prompts)
    if not inputs.keys().isdisjoint(("concat", "masked")):
        if "concat" not in arrays:
            raise UserError("the U-Net takes maps beside the latent, but io.npz has no `concat`")
        inputs = {name: x for name, x in inputs.items() if name not in ("masked", "mask")}
        inputs["concat"] = jnp.asarray(last(arrays["concat"]))
    return _with_sizes(session, inputs, noise)


def _with_sizes(session: Session, inputs: Inputs, noise: np.ndarray) -> Inputs:
    """The sizes of a picture that has those of the noise."""
    if "sizes" not in inputs:
        return inputs
    factor = session.experiment.first_stage.autoencoder.downsample_factor
    height, width = (factor * side for side in noise.shape[1:3])
    sizes = np.tile(np.array([height, width, 0, 0, height, width], np.int32), (len(noise), 1))
    return {**inputs, "sizes": jnp.asarray(sizes)}


def _draw(session: Session, asked: dict[str, Any], noise: np.ndarray, inputs: Inputs, negative: Inputs) -> np.ndarray:
    sampling = dataclasses.replace(
        session.experiment.sampling, num_sample_steps=asked["steps"], eta=asked.get("eta") or 0.0
    )
    sampler = session.sampler(sampling)
    guidance = asked.get("guidance_scale") or 1.0
    guided = guidance > 1.0 and bool(session.tokenizers)  # as the pipelines decide it
    request = Request(inputs, negative, Guidance(jnp.full(len(noise), guidance, jnp.float32)))
    key, index = jax.random.key(0), jnp.arange(len(noise))

    @jax.jit
    def draw(params: Params, sampler: Sampler, noise: jax.Array, request: Request) -> jax.Array:
        denoise_fn = denoiser_for(session.model, params, request, Method(guided=guided))
        return draw_from(session.model, params, sampler, noise, denoise_fn, key, index)

    image = draw(session.params, sampler, jnp.asarray(noise), request)
    return np.clip(np.asarray(image) / 2 + 0.5, 0, 1)
