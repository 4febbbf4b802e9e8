"""This project's side of each task: the compiled function, its arguments on the devices, and how its result is read.

The training step is `make_step` with `make_optimizer`, the sampler `make_sampler`'s, the networks are those of `ldm
train` and `ldm sample`: what is measured is what a user runs, with the noise given so that both sides see the same.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from ldm_jax import rng, sharding
from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.autoencoder.kl import AutoencoderKL
from ldm_jax.autoencoder.likelihood import mean_error
from ldm_jax.autoencoder.posterior import DiagonalGaussian
from ldm_jax.benchmark.task import Task
from ldm_jax.config import DiffusionConfig, OptimizerConfig, SamplingConfig, ScheduleConfig, TrainingConfig
from ldm_jax.denoiser.unet import UNet
from ldm_jax.diffusion.loss import diffusion_loss
from ldm_jax.diffusion.samplers import make_sampler, sample
from ldm_jax.diffusion.schedule import NoiseSchedule, make_schedule
from ldm_jax.flops import count_jaxpr
from ldm_jax.interop.cases.components import unet_arguments
from ldm_jax.interop.diffusers.autoencoder import read_autoencoder_config, read_autoencoder_params
from ldm_jax.interop.diffusers.component import read_config, read_weights
from ldm_jax.interop.diffusers.unet import read_unet_config, read_unet_params
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.model import Params, num_parameters
from ldm_jax.nn.apply import apply
from ldm_jax.nn.dot_product_attention import AttentionKernel
from ldm_jax.training.optimizers import make_optimizer
from ldm_jax.training.program import jit_step
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import Batch, LossFn, Metrics, make_step

NUM_STEPS = 1_000_000  # of the optimizer's constant learning rate: more than are ever measured
_CONDITIONS = ("context", "class_labels", "vector")


@dataclass(frozen=True)
class Work:
    """A task made ready."""

    check: Callable[[], dict[str, np.ndarray]]
    """The results to compare, in PyTorch's layouts; for training the first steps, so it comes before `run`."""
    run: Callable[[], Any]
    """The work once; returns arrays to wait for."""
    compile_seconds: float
    """Tracing and compiling."""
    flops: float
    """Floating-point operations of the work."""
    num_parameters: int


def prepare(task: Task, mesh: Mesh) -> Work:
    """Read weights and inputs, compile, and place everything on the mesh.

    Raises:
        UserError: the component or its weights are not supported or damaged.
    """
    with np.load(task.inputs) as file:
        inputs = dict(file)
    return _TASKS[task.name](task, mesh, inputs)


def _compile(jitted: Any, *arguments: Any) -> tuple[Callable[..., Any], float, float]:
    """The compiled function for these arguments, its operations, and the seconds that took."""
    began = time.perf_counter()
    traced = jitted.trace(*arguments)
    compiled = traced.lower().compile()
    return compiled, count_jaxpr(traced.jaxpr.jaxpr), time.perf_counter() - began


def _train(task: Task, mesh: Mesh, inputs: Mapping[str, np.ndarray]) -> Work:
    unet, module = _read_unet(task, mesh)
    params = {"denoiser": read_weights(Path(task.folder), read_unet_params, unet)}
    given = {name: x for name, x in unet_arguments(unet, inputs).items() if x is not None}
    batch = {"z0": given.pop("zt"), "noise": _last(inputs["noise"]), **given}
    return _training(task, mesh, params, unet_loss(task, module), batch)


def unet_loss(task: Task, module: UNet) -> LossFn:
    """Mean squared error of the noise, which the batch holds with the times."""
    config = DiffusionConfig(schedule=_schedule_config(task))
    schedule: NoiseSchedule = make_schedule(config.schedule)

    def loss_fn(
        params: Params, frozen: Params, batch: Batch, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del frozen, root, step  # everything that is drawn is given

        def denoise(zt: Float[Array, "b *spatial c"], t: Int[Array, " b"]) -> Float[Array, "b *spatial c"]:
            return apply(module, params["denoiser"], zt, t, **_conditions(batch))

        loss = diffusion_loss(denoise, schedule, config, batch["z0"], batch["noise"], batch["t"])
        return jnp.mean(loss), {}

    return loss_fn


def _train_autoencoder(task: Task, mesh: Mesh, inputs: Mapping[str, np.ndarray]) -> Work:
    module, params = _read_autoencoder(task, mesh)
    batch = {"image": _last(inputs["sample"]), "noise": _last(inputs["noise"])}
    return _training(task, mesh, {"autoencoder": params}, autoencoder_loss(task, module), batch)


def autoencoder_loss(task: Task, module: AutoencoderKL) -> LossFn:
    """The loss of the first stage, with the posterior's noise in the batch."""

    def loss_fn(
        params: Params, frozen: Params, batch: Batch, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del frozen, root, step
        call = partial(apply, module, params["autoencoder"])
        posterior: DiagonalGaussian = call(batch["image"], method="encode")
        z = posterior.mean + jnp.exp(0.5 * posterior.logvar) * batch["noise"]
        distance = mean_error("l1", batch["image"], call(z, method="decode"))
        regulariser = task.training.kl_weight * posterior.kl() / batch["image"][0].size
        return jnp.mean(distance + regulariser), {}

    return loss_fn


@dataclass
class _Training:
    """A step, compiled, and the state that it goes on from."""

    step: Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]
    state: TrainState
    batch: Batch
    root: Key[Array, ""]

    def __call__(self) -> Metrics:
        self.state, metrics = self.step(self.state, self.batch, self.root)
        return metrics

    def first(self, steps: int) -> dict[str, np.ndarray]:
        metrics = [self() for _ in range(steps)]
        return {name: np.array([float(m[name]) for m in metrics]) for name in ("loss", "grad_norm")}


def _training(task: Task, mesh: Mesh, params: Params, loss_fn: LossFn, batch: Mapping[str, Any]) -> Work:
    how = task.training
    config = TrainingConfig(batch_size=task.batch_size, num_steps=NUM_STEPS, ema_decay=how.ema_decay, ema_warmup=False)
    names = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "max_grad_norm")
    optimizer = make_optimizer(OptimizerConfig(**{name: getattr(how, name) for name in names}), NUM_STEPS)
    create = partial(TrainState.create, frozen={}, optimizer=optimizer)
    shardings = sharding.state_shardings(mesh, jax.eval_shape(create, params))
    state = jax.jit(create, out_shardings=shardings)(params)
    step = make_step(loss_fn, optimizer, config, gather=sharding.make_gather(mesh, task.dtype))
    placed, root = _put(mesh, batch), rng.root_key(0)
    compiled, flops, seconds = _compile(jit_step(step, shardings, mesh), state, placed, root)
    run = _Training(compiled, state, placed, root)
    return Work(lambda: run.first(how.check_steps), run, seconds, flops, num_parameters(params))


def _sample(task: Task, mesh: Mesh, inputs: Mapping[str, np.ndarray]) -> Work:
    unet, module = _read_unet(task, mesh)
    params = read_weights(Path(task.folder), read_unet_params, unet)
    config = SamplingConfig(sampler="ddim", num_sample_steps=task.num_sample_steps, guidance_scale=1.0)
    sampler = make_sampler(config, make_schedule(_schedule_config(task)), "epsilon")

    def draw(params: Params, batch: Batch) -> Float[Array, "b *spatial c"]:
        def denoise(z: Float[Array, "b *spatial c"], t: Int[Array, " b"]) -> Float[Array, "b *spatial c"]:
            return apply(module, params, z, t, **_conditions(batch))

        index = jnp.arange(task.batch_size, dtype=jnp.int32)
        return sample(sampler, denoise, batch["zt"], rng.root_key(0), index)

    return _calling(mesh, draw, params, {k: x for k, x in unet_arguments(unet, inputs).items() if x is not None})


def _encode(task: Task, mesh: Mesh, inputs: Mapping[str, np.ndarray]) -> Work:
    module, params = _read_autoencoder(task, mesh)

    def encode(params: Params, batch: Batch) -> Float[Array, "b *latent c"]:
        return apply(module, params, batch["image"], method="encode").mean

    return _calling(mesh, encode, params, {"image": _last(inputs["sample"])})


def _decode(task: Task, mesh: Mesh, inputs: Mapping[str, np.ndarray]) -> Work:
    module, params = _read_autoencoder(task, mesh)

    def decode(params: Params, batch: Batch) -> Float[Array, "b *spatial c"]:
        return apply(module, params, batch["z"], method="decode")

    return _calling(mesh, decode, params, {"z": _last(inputs["latents"])})


def _calling(mesh: Mesh, function: Callable[..., Any], params: Params, batch: Mapping[str, Any]) -> Work:
    """The work of one call without a state, whose result is a map."""
    placed, batch = jax.device_put(params, sharding.replicated(mesh)), _put(mesh, batch)
    count = num_parameters(params)
    compiled, flops, seconds = _compile(jax.jit(function), placed, batch)
    run = partial(compiled, placed, batch)
    return Work(lambda: {"output": np.moveaxis(np.asarray(run(), np.float32), -1, 1)}, run, seconds, flops, count)


def _read_unet(task: Task, mesh: Mesh) -> tuple[DiffusersUNet, UNet]:
    unet = read_unet_config(*read_config(Path(task.folder)))
    return unet, UNet(unet.config, unet.out_channels, jnp.dtype(task.dtype), AttentionKernel.choose("auto", mesh))


def _read_autoencoder(task: Task, mesh: Mesh) -> tuple[AutoencoderKL, Params]:
    record = read_autoencoder_config(*read_config(Path(task.folder)))
    kernel = AttentionKernel.choose("auto", mesh)
    module = make_autoencoder(record.config, record.out_channels, task.dtype, kernel)
    assert isinstance(module, AutoencoderKL)  # `subjects` has refused the others
    return module, read_weights(Path(task.folder), read_autoencoder_params, record)


def _schedule_config(task: Task) -> ScheduleConfig:
    schedule = task.schedule
    return ScheduleConfig(
        kind="scaled_linear",
        num_train_timesteps=schedule.num_train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
    )


def _conditions(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in _CONDITIONS if name in batch}


def _put(mesh: Mesh, batch: Mapping[str, Any]) -> Batch:
    return sharding.put_batch(mesh, {name: np.asarray(x) for name, x in batch.items()})


def _last(x: np.ndarray) -> np.ndarray:
    """Channels last, as everything here has them."""
    return np.moveaxis(x, 1, -1)


_TASKS: dict[str, Callable[[Task, Mesh, Mapping[str, np.ndarray]], Work]] = {
    "train": _train,
    "sample": _sample,
    "train_autoencoder": _train_autoencoder,
    "encode": _encode,
    "decode": _decode,
}
