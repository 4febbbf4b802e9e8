"""CLIP of transformers and of OpenCLIP in the YAML files of Stable Diffusion and SDXL: the options of their classes.

A FrozenCLIPEmbedder names its model (`version`): a published one, whose sizes are known here, or a folder with the
config.json of transformers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ldm_jax.config import ClipTextConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.open_clip import OPEN_CLIP_TOWERS, OPENAI_TOWERS, TextTower, split_architecture
from ldm_jax.interop.transformers.text import read_clip_text_config

FindModel: TypeAlias = Callable[[str], Mapping[str, Any] | None]
"""From the name of a CLIP that is not published to its config.json, or to None where there is none."""

NEITHER_HERE_NOR_THERE = ("device", "freeze")
_OPENAI = "openai/clip-vit-large-patch14"


def find_none(name: str) -> None:
    """Find no CLIP but the published ones."""
    del name


def published(tower: TextTower) -> ClipTextConditioning:
    """A CLIP of OpenAI as transformers has it."""
    return ClipTextConditioning(**tower._asdict())


def read_clip(options: Options, find_model: FindModel) -> ClipTextConditioning:
    """The text encoder that the options of a FrozenCLIPEmbedder describe.

    Raises:
        UserError: an option has a value that is not supported.
    """
    config = _named_clip(options, find_model)
    layer, index = options.choose("layer", ("last", "hidden"), "last"), options.whole_or_none("layer_idx")
    context: dict[str, Any] = {}
    if layer == "hidden":
        # hidden states are the embedded tokens and the output of each layer
        names = {config.num_layers: "last", -1: "last", config.num_layers - 1: "penultimate", -2: "penultimate"}
        if index not in names:
            raise options.refused("layer_idx", index, f"use {' or '.join(map(str, names))}")
        context = {"context_layer": names[index], "context_norm": False}
    length = options.whole("max_length", 77)
    if length != config.context_length:
        raise options.refused("max_length", length, f"only {config.context_length} can be imported")
    options.only("always_return_pooled", False)
    options.ignore(*NEITHER_HERE_NOR_THERE)
    options.finish()
    return dataclasses.replace(config, **context)


def _named_clip(options: Options, find_model: FindModel) -> ClipTextConditioning:
    """The CLIP that `version` names, as transformers has it."""
    version = options.text("version", _OPENAI)
    if version in OPENAI_TOWERS:
        return published(OPENAI_TOWERS[version])
    values = find_model(version)
    if values is None:
        known = " or ".join(map(repr, OPENAI_TOWERS))
        raise options.refused("version", version, f"use {known}, or a folder with the config.json of a CLIPTextModel")
    return read_clip_text_config(values, f"{version}/config.json", architecture="CLIPTextModel")


def write_clip(config: ClipTextConditioning, folder: str | None) -> dict[str, Any]:
    """The options of a FrozenCLIPEmbedder, of a published model where `folder` names no other.

    Raises:
        UserError: no published model has these sizes.
    """
    params: dict[str, Any] = {"version": folder, "max_length": config.context_length}
    if folder is None:
        params = {"version": _name_of(config, OPENAI_TOWERS)}
    if config.context_norm and config.context_layer == "last":
        return {**params, "layer": "last"}
    index = config.num_layers - (1 if config.context_layer == "penultimate" else 0)
    return {**params, "layer": "hidden", "layer_idx": index}


def read_open_clip(options: Options, *, norm: bool) -> ClipTextConditioning:
    """The text encoder that the options of a FrozenOpenCLIPEmbedder describe; `norm` is whether it ends with one.

    Raises:
        UserError: an option has a value that is not supported.
    """
    given = options.text("arch", "ViT-H-14")
    name, quick = split_architecture(given)
    if name not in OPEN_CLIP_TOWERS:
        raise options.refused("arch", given, f"use {', '.join(OPEN_CLIP_TOWERS)}, with -quickgelu or without")
    tower = OPEN_CLIP_TOWERS[name]
    quick = options.text("version", "laion2b_s32b_b79k") == "openai" or quick
    layer = options.choose("layer", ("last", "penultimate"), "last")
    options.only("max_length", 77)
    options.ignore(*NEITHER_HERE_NOR_THERE)
    return options.build(
        ClipTextConditioning,
        **tower._asdict(),
        activation="quick_gelu" if quick else "gelu",
        context_layer=layer,
        context_norm=norm,
        projection_dim=tower.context_dim,
        pooled_at="largest",
        pad_token=0,
    )


def write_open_clip(config: ClipTextConditioning) -> dict[str, Any]:
    """The options of a FrozenOpenCLIPEmbedder.

    Raises:
        UserError: no architecture has these sizes.
    """
    suffix = "-quickgelu" if config.activation == "quick_gelu" else ""
    return {"arch": _name_of(config, OPEN_CLIP_TOWERS) + suffix, "layer": config.context_layer}


def _name_of(config: ClipTextConditioning, towers: Mapping[str, TextTower]) -> str:
    """Name of the architecture with these sizes."""
    for name, tower in towers.items():
        if all(getattr(config, field) == value for field, value in tower._asdict().items()):
            return name
    raise UserError(
        f"no architecture is called by name that has context_dim={config.context_dim}, num_layers={config.num_layers} "
        f"and num_heads={config.num_heads}; known: {', '.join(towers)}"
    )
