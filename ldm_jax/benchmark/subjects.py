"""What is measured: the network of a preset or of a folder, its weights where PyTorch finds them, and its inputs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax.benchmark.presets import PRESETS, TOKENS, Network, Setting
from ldm_jax.benchmark.task import AUTOENCODER_TASKS, TRAINING_TASKS, UNET_TASKS, TaskName
from ldm_jax.config import AutoencoderKLConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers.autoencoder import (
    DiffusersAutoencoder,
    abstract_autoencoder_params,
    autoencoder_slot,
    picture_size,
    read_autoencoder_config,
    write_autoencoder_config,
)
from ldm_jax.interop.diffusers.component import read_config, write_component
from ldm_jax.interop.diffusers.unet import abstract_unet_params, read_unet_config, unet_slot, write_unet_config
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.interop.layer_components import unet_inputs
from ldm_jax.interop.mapping import write_tensors
from ldm_jax.model import Params

_UNET_FOLDERS, _AUTOENCODER_FOLDERS = ("unet",), ("vae", "vqvae")
_DEFAULT_SIDE = 64  # of a U-Net that does not say at which size it was trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A network for a task, and the folder where its weights are or will be."""

    setting: Setting
    folder: Path | None = None
    """The user's; None for a preset, whose weights are random."""

    @property
    def is_unet(self) -> bool:
        """Whether it is a U-Net and no autoencoder."""
        return isinstance(self.setting.network, DiffusersUNet)


def find_subjects(model: str, tasks: Sequence[TaskName] | None) -> dict[TaskName, Subject]:
    """The network of each task; `tasks` are those that are wanted, None takes all that the model has.

    Args:
        model: name of a preset, a component of diffusers (U-Net or autoencoder), or a pipeline with both.
        tasks: names, or None.

    Raises:
        UserError: there is no such preset or folder, or it has no network for a task.
    """
    found = _of_preset(PRESETS[model]) if model in PRESETS else _of_folder(Path(model))
    if tasks is None:
        return found
    if missing := [name for name in tasks if name not in found]:
        raise UserError(f"--only {' '.join(missing)}: {model} has no network for it; usable: {', '.join(found)}")
    return {name: found[name] for name in tasks}


def _of_preset(settings: Mapping[TaskName, Setting]) -> dict[TaskName, Subject]:
    return {name: Subject(setting=setting) for name, setting in settings.items()}


def _of_folder(folder: Path) -> dict[TaskName, Subject]:
    if not folder.is_dir():
        raise UserError(f"--model {folder}: no such folder, and no preset; presets: {', '.join(PRESETS)}")
    if (folder / "config.json").exists():
        return _of_component(folder)
    parts = [folder / name for name in (*_UNET_FOLDERS, *_AUTOENCODER_FOLDERS) if (folder / name).is_dir()]
    if not parts:
        raise UserError(f"--model {folder}: neither a component of diffusers (config.json) nor a pipeline (unet, vae)")
    return {name: subject for part in parts for name, subject in _of_component(part).items()}


def _of_component(folder: Path) -> dict[TaskName, Subject]:
    options, where = read_config(folder)
    network: Network
    if str(options.get("_class_name")).startswith("UNet"):
        network, tasks = read_unet_config(options, where), UNET_TASKS
        size = network.sample_size or _DEFAULT_SIDE
        side = max(size) if isinstance(size, tuple) else size
    else:
        network, tasks = read_autoencoder_config(options, where), AUTOENCODER_TASKS
        if not isinstance(network.config, AutoencoderKLConfig):
            raise UserError(f"{where}: VQModel is not measured; use an AutoencoderKL")
        side = picture_size(network.sample_size, network)
    setting = Setting(network=network, side=side, batch_size=1)
    return {name: Subject(setting=setting, folder=folder) for name in tasks}


def resize(name: TaskName, subject: Subject, batch_size: int | None, side: int | None) -> Subject:
    """The subject at another batch size or side; None keeps what there is.

    Raises:
        UserError: the network cannot halve the side as often as it must.
    """
    setting = subject.setting
    factor = _reduction(setting.network)
    side = setting.side if side is None else side
    if side % factor != 0:
        below = max(side // factor, 1) * factor
        raise UserError(
            f"the side {side} of {name} is not a multiple of {factor}, by which the network reduces it; nearest "
            f"usable: {below} and {below + factor}"
        )
    batch_size = setting.batch_size if batch_size is None else batch_size
    return dataclasses.replace(subject, setting=Setting(network=setting.network, side=side, batch_size=batch_size))


def _reduction(network: Network) -> int:
    if isinstance(network, DiffusersUNet):
        return 2 ** (len(network.config.channel_mult) - 1)
    return network.config.downsample_factor


def torch_class(network: Network) -> str:
    """PyTorch's class of the network."""
    if isinstance(network, DiffusersUNet):
        return write_unet_config(network)["_class_name"]
    return write_autoencoder_config(network)["_class_name"]


def write_network(network: Network, folder: Path) -> None:
    """Write a network with random weights as diffusers writes it."""
    if isinstance(network, DiffusersUNet):
        config, abstract, slot = write_unet_config(network), abstract_unet_params(network), unet_slot(network)
    else:
        config, slot = write_autoencoder_config(network), autoencoder_slot(network)
        abstract = abstract_autoencoder_params(network)
    write_component(folder, config, write_tensors(random_params(abstract), slot))


def random_params(abstract: Params) -> Params:
    """Random parameters, none at its initial zero or one, so that every path through the network counts."""
    draw = np.random.default_rng(0)

    def values(leaf: Any) -> np.ndarray:
        normal = draw.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) > 1:
            return normal / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        return np.float32(0.1) * normal

    def of_leaf(path: Any, leaf: Any) -> np.ndarray:
        return values(leaf) + np.float32(path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(of_leaf, abstract)


def make_inputs(name: TaskName, setting: Setting) -> dict[str, np.ndarray]:
    """Random inputs of a task in PyTorch's layouts; noise is given, so that both sides draw the same."""
    draw, batch, side = np.random.default_rng(1), setting.batch_size, setting.side

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal((batch, *shape), np.float32)

    if isinstance(setting.network, DiffusersUNet):
        inputs = unet_inputs(setting.network, side, batch=batch, tokens=TOKENS)
        noise = {"noise": normal(setting.network.out_channels, side, side)} if name in TRAINING_TASKS else {}
        return {**inputs, **noise}
    latent = (setting.network.config.latent_channels, *(side // _reduction(setting.network),) * 2)
    if name == "decode":
        return {"latents": normal(*latent)}
    picture = {"sample": np.clip(normal(setting.network.in_channels, side, side), -1.0, 1.0)}
    return {**picture, "noise": normal(*latent)} if name in TRAINING_TASKS else picture


def describe(setting: Setting, num_sample_steps: int | None) -> str:
    """The size of a task in words."""
    network, side, batch = setting.network, setting.side, setting.batch_size
    if isinstance(network, DiffusersAutoencoder):
        return f"{side}x{side} pixels, batch {batch}"
    context = "" if network.context_dim is None else f", context {TOKENS}x{network.context_dim}"
    steps = "" if num_sample_steps is None else f", {num_sample_steps} DDIM steps"
    return f"{side}x{side}x{network.in_channels} latents, batch {batch}{context}{steps}"
