"""Models of this project as pipelines of diffusers: the way back from `pipeline`."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from ldm_jax.conditioning.conditions import Conditions
from ldm_jax.config import ClipTextConditioning, SdxlConditioning, TextConditioning, Unconditional
from ldm_jax.errors import UserError
from ldm_jax.files.folders import require_empty
from ldm_jax.files.json_files import write_json
from ldm_jax.files.write_safetensors import FloatType
from ldm_jax.interop.diffusers.autoencoder import autoencoder_slot, describe_autoencoder, write_autoencoder_config
from ldm_jax.interop.diffusers.component import TRANSFORMERS, write_component
from ldm_jax.interop.diffusers.options import VERSION
from ldm_jax.interop.diffusers.scheduler_export import write_scheduler
from ldm_jax.interop.diffusers.unet import unet_slot, write_unet_config
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.interop.mapping import write_tensors
from ldm_jax.interop.transformers.ldm_bert import write_ldm_bert, write_ldm_bert_config
from ldm_jax.interop.transformers.text import end_at_context, write_clip_text, write_clip_text_config
from ldm_jax.interop.transformers.tokenizer_files import is_clip, write_tokenizer
from ldm_jax.model import Params
from ldm_jax.sampling.session import Session

_INDEX = "model_index.json"


def write_pipeline(session: Session, folder: Path, dtype: FloatType | None = None) -> None:
    """Write a model as the folder of a pipeline, `model_index.json` last: without it nothing looks whole.

    Args:
        session: the model.
        folder: is made; what is there already is not overwritten.
        dtype: in which numbers are stored; None keeps float32.

    Raises:
        UserError: diffusers has no such model, or the folder cannot be written.
    """
    writer = _Writer(session, folder, dtype)
    components = writer.plan()  # whatever diffusers cannot express is found before anything is written
    try:
        for name, component in components.items():
            component.write(folder / name)
        index = {"_class_name": writer.class_name(), "_diffusers_version": VERSION, **writer.settings()}
        index |= {name: list(component.kind) for name, component in components.items()}
        write_json(folder / _INDEX, index)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error}); choose another folder") from error


@dataclasses.dataclass(frozen=True)
class _Component:
    """A folder of a pipeline: library and class, and what writes it."""

    kind: tuple[str, str]
    write: Callable[[Path], None]


@dataclasses.dataclass(frozen=True)
class _Writer:
    session: Session
    folder: Path
    dtype: FloatType | None

    def plan(self) -> dict[str, _Component]:
        """Every component, with its configuration computed and nothing written."""
        require_empty(self.folder)
        autoencoder = describe_autoencoder(self.session.experiment, self.session.params["latent"])
        unet = self._unet()
        scheduler = self._scheduler()
        name = scheduler["_class_name"]
        parts = {
            "vae" if self._has_clip() else "vqvae": self._module(
                write_autoencoder_config(autoencoder), "autoencoder", autoencoder_slot(autoencoder)
            ),
            "unet": self._module(write_unet_config(unet), "denoiser", unet_slot(unet)),
            "scheduler": _Component(("diffusers", name), lambda p: write_json(p / "scheduler_config.json", scheduler)),
        }
        return parts | self._text()

    def class_name(self) -> str:
        """The pipeline's class."""
        experiment = self.session.experiment
        concat = experiment.denoiser.concat_channels
        latent = experiment.first_stage.autoencoder.latent_channels
        match experiment.conditioning:
            case ClipTextConditioning():
                if experiment.denoiser.num_classes is not None:
                    return "StableDiffusionUpscalePipeline"
                return "StableDiffusionInpaintPipeline" if concat == latent + 1 else "StableDiffusionPipeline"
            case SdxlConditioning():
                return "StableDiffusionXLInpaintPipeline" if concat == latent + 1 else "StableDiffusionXLPipeline"
            case TextConditioning():
                return "LDMTextToImagePipeline"
            case Unconditional():
                return "LDMSuperResolutionPipeline" if concat else "LDMPipeline"
            case other:
                raise UserError(
                    f"conditioning={type(other).__name__} has no pipeline in diffusers; text and unconditional have"
                )

    def settings(self) -> dict[str, Any]:
        """Entries of the index that are no components."""
        config = self.session.experiment.conditioning
        if isinstance(config, SdxlConditioning):
            return {"force_zeros_for_empty_prompt": config.no_prompt == "zeros"}
        if isinstance(config, ClipTextConditioning) and self.class_name() != "StableDiffusionUpscalePipeline":
            return {"requires_safety_checker": False, "safety_checker": [None, None], "feature_extractor": [None, None]}
        return {}

    def _has_clip(self) -> bool:
        return isinstance(self.session.experiment.conditioning, ClipTextConditioning | SdxlConditioning)

    def _module(self, config: dict[str, Any], name: str, slot_of: Any) -> _Component:
        def write(path: Path) -> None:
            write_component(path, config, write_tensors(self.session.params[name], slot_of), dtype=self.dtype)

        return _Component(("diffusers", config["_class_name"]), write)

    def _unet(self) -> DiffusersUNet:
        experiment, model = self.session.experiment, self.session.model
        config = experiment.denoiser
        latent = experiment.first_stage.autoencoder.latent_channels
        conditions: Conditions = jax.eval_shape(model.condition, self.session.params, model.null_inputs(1))
        size_dim = getattr(experiment.conditioning, "size_dim", None)
        return DiffusersUNet(
            config=dataclasses.replace(config, concat_channels=0),
            in_channels=latent + config.concat_channels,
            out_channels=latent,
            sample_size=model.latent_shape[0],
            context_dim=None if conditions.context is None else conditions.context.shape[-1],
            vector=None if size_dim is None else "text_time",
            size_dim=size_dim,
        )

    def _scheduler(self) -> dict[str, Any]:
        experiment, imported = self.session.experiment, self.session.imported_sampler
        if experiment.sampling.sampler == "imported" and imported is not None:
            return {"_diffusers_version": VERSION, **imported.options}
        return {"_diffusers_version": VERSION, **write_scheduler(experiment.diffusion, experiment.sampling)}

    def _text(self) -> dict[str, _Component]:
        config, params, tokenizers = self.session.experiment.conditioning, self.session.params, self.session.tokenizers
        match config:
            case ClipTextConditioning():
                encoder = self._clip(config, params["conditioner"])
                return {"text_encoder": encoder, "tokenizer": _tokenizer(tokenizers["tokens"])}
            case SdxlConditioning():
                return {
                    "text_encoder": self._clip(config.first, params["conditioner"]["first"]),
                    "text_encoder_2": self._clip(config.second, params["conditioner"]["second"]),
                    "tokenizer": _tokenizer(tokenizers["tokens"]),
                    "tokenizer_2": _tokenizer(tokenizers["tokens_2"]),
                }
            case TextConditioning():
                kind = ("latent_diffusion", "LDMBertModel")
                values = write_ldm_bert_config(config)
                bert = self._encoder(kind, values, lambda: write_ldm_bert(params["conditioner"]))
                return {"bert": bert, "tokenizer": _tokenizer(tokenizers["tokens"])}
            case _:
                return {}

    def _clip(self, config: ClipTextConditioning, params: Params) -> _Component:
        if config.context_layer == "penultimate" and config.context_norm:
            config, params = end_at_context(config, params)
        values = write_clip_text_config(config)
        return self._encoder(("transformers", values["architectures"][0]), values, lambda: write_clip_text(params))

    def _encoder(
        self, kind: tuple[str, str], values: dict[str, Any], tensors: Callable[[], Iterator[tuple[str, np.ndarray]]]
    ) -> _Component:
        def write(path: Path) -> None:
            write_component(path, values, tensors(), TRANSFORMERS, self.dtype)

        return _Component(kind, write)


def _tokenizer(tokenizer: Tokenizer) -> _Component:
    kind = "CLIPTokenizer" if is_clip(tokenizer) else "PreTrainedTokenizerFast"
    return _Component(("transformers", kind), lambda path: write_tokenizer(tokenizer, path))
