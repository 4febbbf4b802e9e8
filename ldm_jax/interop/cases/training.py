"""Parity cases of training: the steps that PyTorch took, taken by this project's own step.

A case is a folder with `recipe.json`, the batches, noise and timesteps in `io.npz`, and `final_params.safetensors`; it
begins with the U-Net in the folder that the recipe names, beside the case or one level up.

A recipe does not say how a warm-up counts its steps, nor whether a moving average is warmed up: the plain reading is
tried first, (s + 1) / warmup_steps at step s from 0 and a constant decay, then those of transformers (s / warmup_steps)
and of LDM (a decay that rises as (1 + n) / (10 + n)); what fits is told.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from ldm_jax.config import DiffusionConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from ldm_jax.denoiser.unet import UNet
from ldm_jax.diffusion.loss import diffusion_loss
from ldm_jax.diffusion.schedule import NoiseSchedule, make_schedule
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import read_json
from ldm_jax.files.weight_files import find_weights, open_tensors
from ldm_jax.interop.cases.arrays import Arrays, read_arrays
from ldm_jax.interop.cases.comparison import RUN, Comparison, compare
from ldm_jax.interop.diffusers.unet import read_unet_config, read_unet_params
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.model import Params
from ldm_jax.nn.apply import apply
from ldm_jax.training.optimizers import make_optimizer
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import Batch, LossFn, Metrics, make_step

_DEFAULTS: Mapping[str, Any] = {
    "initial_params": None,
    "schedule": {},
    "prediction_type": "epsilon",
    "optimizer": "adamw",
    "learning_rate": None,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.01,
    "max_grad_norm": None,
    "ema_decay": None,
    "min_snr_gamma": None,
    "gradient_accumulation": 1,
    "linear_warmup_steps": 0,
    "steps": None,
    "final_params": "params",
}
_PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v", "v": "v", "sample": "x0", "x0": "x0"}
_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "cosine": "cosine"}


class Convention(NamedTuple):
    """What a recipe leaves open."""

    warmup_from_zero: bool = False
    ema_warmup: bool = False

    def __str__(self) -> str:
        parts = ["warm-up s / steps"] * self.warmup_from_zero + ["EMA warmed up as LDM's"] * self.ema_warmup
        return ", ".join(parts)


class Case(NamedTuple):
    """A case as it was read."""

    recipe: Mapping[str, Any]
    arrays: Arrays
    unet: DiffusersUNet
    initial: Params
    final: Params


def is_training_case(path: Path) -> bool:
    """Whether a folder is a case of this kind."""
    return (path / "recipe.json").is_file()


def run_training_case(path: Path, tolerance: float = RUN) -> list[Comparison]:
    """Losses, gradient norms and final parameters beside PyTorch's.

    Raises:
        UserError: the recipe asks for something that is not supported, or a file is missing or damaged.
    """
    case = _read(path)
    tried = []
    for convention in _conventions(case.recipe):
        tried.append(_compare(case, convention, tolerance))
        if all(row.passed for row in tried[-1]):
            return tried[-1]
    return tried[0]


def _conventions(recipe: Mapping[str, Any]) -> Iterator[Convention]:
    warmup = (False, True) if recipe["linear_warmup_steps"] else (False,)
    average = (False, True) if recipe["ema_decay"] is not None else (False,)
    return itertools.starmap(Convention, itertools.product(warmup, average))


def _read(path: Path) -> Case:
    recipe = _read_recipe(path / "recipe.json")
    folder = _initial_folder(path, recipe["initial_params"])
    unet = read_unet_config(read_json(folder / "config.json"), str(folder / "config.json"))
    weights = find_weights(folder, "diffusion_pytorch_model")
    with open_tensors(weights) as first, open_tensors(path / "final_params.safetensors") as last:
        initial = read_unet_params(first, unet, str(weights))
        final = read_unet_params(last, unet, str(path / "final_params.safetensors"))
    return Case(recipe, read_arrays(path / "io.npz"), unet, initial, final)


def _read_recipe(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if unknown := sorted(set(values) - set(_DEFAULTS)):
        raise UserError(f"{path}: {', '.join(unknown)} is not supported; known: {', '.join(_DEFAULTS)}")
    recipe = {**_DEFAULTS, **values}
    choices = {
        "optimizer": ("adamw", "adam"),
        "prediction_type": tuple(_PREDICTION_TYPES),
        "final_params": ("params", "ema"),
    }
    for name, known in choices.items():
        if recipe[name] not in known:
            raise UserError(f"{path}: {name}={recipe[name]!r} is not supported; use one of {', '.join(known)}")
    for name in ("initial_params", "learning_rate", "steps"):
        if recipe[name] is None:
            raise UserError(f"{path}: {name} is missing")
    if recipe["optimizer"] == "adam" and values.get("weight_decay"):
        raise UserError(f"{path}: weight_decay={values['weight_decay']} of adam is not supported; use adamw, or 0")
    if recipe["final_params"] == "ema" and recipe["ema_decay"] is None:
        raise UserError(f"{path}: final_params=ema needs an ema_decay")
    return recipe


def _initial_folder(path: Path, name: str) -> Path:
    places = [path / name, path.parent / name, path.parent.parent / name]
    found = [place for place in places if (place / "config.json").is_file()]
    if not found:
        raise UserError(f"initial_params={name} of {path} is not there; looked at {', '.join(map(str, places))}")
    return found[0]


def _compare(case: Case, convention: Convention, tolerance: float) -> list[Comparison]:
    state, losses, norms = _train(case, convention)
    params = state.ema_params if case.recipe["final_params"] == "ema" else state.params
    note = str(convention)
    rows = [
        compare("losses", losses, case.arrays["losses"], tolerance, note),
        compare("grad_norms", norms, case.arrays["grad_norms"], tolerance, note),
    ]
    pairs = zip(jax.tree.leaves(params["denoiser"]), jax.tree.leaves(case.final), strict=True)
    leaves = [compare("", np.asarray(ours), theirs, tolerance) for ours, theirs in pairs]
    worst = max(leaves, key=lambda row: row.relative)
    return [*rows, worst._replace(name="final_params", note=note)]


def _train(case: Case, convention: Convention) -> tuple[TrainState, np.ndarray, np.ndarray]:
    recipe, arrays = case.recipe, case.arrays
    steps, accumulation = int(recipe["steps"]), int(recipe["gradient_accumulation"])
    names = ("z0", "noise", "timesteps", *(("context",) if "context" in arrays else ()))
    batches = {name: _by_step(name, arrays[name], steps) for name in names}
    size = batches["z0"].shape[1]
    config = TrainingConfig(
        batch_size=size,
        num_steps=steps,
        gradient_accumulation=accumulation,
        ema_decay=recipe["ema_decay"] or 0.0,
        ema_warmup=convention.ema_warmup,
    )
    optimizer = _optimizer(recipe, convention)
    step = jax.jit(make_step(_loss(case), optimizer, config), donate_argnums=0)
    state = TrainState.create(jax.tree.map(jnp.asarray, {"denoiser": case.initial}), {}, optimizer)
    losses, norms, key = [], [], jax.random.key(0)
    for i in range(steps):
        state, metrics = step(state, {name: values[i] for name, values in batches.items()}, key)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    return state, np.array(losses), np.array(norms)


def _by_step(name: str, values: np.ndarray, steps: int) -> np.ndarray:
    """`[steps, samples, ...]` of what may also be `[steps, parts, samples, ...]` or `[steps * parts, samples, ...]`."""
    if len(values) % steps:
        raise UserError(f"{name} holds {len(values)} batches for {steps} steps")
    values = np.moveaxis(values, -3, -1) if name in ("z0", "noise") else values
    sample_dims = {"z0": 3, "noise": 3, "timesteps": 0, "context": 2}[name]
    return values.reshape(steps, -1, *values.shape[values.ndim - sample_dims :])


def _loss(case: Case) -> LossFn:
    recipe, module = case.recipe, UNet(case.unet.config, case.unet.out_channels)
    gamma = recipe["min_snr_gamma"]
    config = DiffusionConfig(
        prediction_type=_PREDICTION_TYPES[recipe["prediction_type"]],  # pyright: ignore[reportArgumentType]
        schedule=_schedule(recipe["schedule"]),
        weighting="uniform" if gamma is None else "min_snr",
        min_snr_gamma=gamma or 5.0,
    )
    schedule: NoiseSchedule = make_schedule(config.schedule)

    def loss_fn(
        params: Params, frozen: Params, batch: Batch, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del frozen, root, step  # everything that is drawn is given

        def denoise(zt: Float[Array, "b *spatial c"], t: Int[Array, " b"]) -> Float[Array, "b *spatial c"]:
            return apply(module, params["denoiser"], zt, t, batch.get("context"))

        loss = diffusion_loss(denoise, schedule, config, batch["z0"], batch["noise"], batch["timesteps"])
        return jnp.mean(loss), {}

    return loss_fn


def _schedule(options: Mapping[str, Any]) -> ScheduleConfig:
    known = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr"}
    if unknown := sorted(set(options) - known):
        raise UserError(f"schedule: {', '.join(unknown)} is not supported; known: {', '.join(sorted(known))}")
    kind = options.get("beta_schedule", "linear")
    if kind not in _KINDS:
        raise UserError(f"schedule: beta_schedule={kind!r} is not supported; use one of {', '.join(_KINDS)}")
    return ScheduleConfig(
        kind=_KINDS[kind],  # pyright: ignore[reportArgumentType]
        num_train_timesteps=options.get("num_train_timesteps", 1000),
        beta_start=options.get("beta_start", 1e-4),
        beta_end=options.get("beta_end", 0.02),
        zero_terminal_snr=options.get("rescale_betas_zero_snr", False),
    )


def _optimizer(recipe: Mapping[str, Any], convention: Convention) -> optax.GradientTransformation:
    config = OptimizerConfig(
        learning_rate=recipe["learning_rate"],
        warmup_steps=0 if convention.warmup_from_zero else int(recipe["linear_warmup_steps"]),
        beta1=recipe["betas"][0],
        beta2=recipe["betas"][1],
        epsilon=recipe["eps"],
        weight_decay=0.0 if recipe["optimizer"] == "adam" else recipe["weight_decay"],
        max_grad_norm=recipe["max_grad_norm"],
    )
    optimizer = make_optimizer(config, int(recipe["steps"]))
    if not convention.warmup_from_zero:
        return optimizer
    ramp = optax.linear_schedule(0.0, 1.0, int(recipe["linear_warmup_steps"]))
    return optax.chain(optimizer, optax.scale_by_schedule(ramp))
