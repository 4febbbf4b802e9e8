"""Parity cases of samplers: what diffusers computed step by step, and what we compute from the same start.

A case is an .npz file with `config` (JSON: the scheduler's class as `scheduler`, `steps`, its options), `x_init`,
`timesteps`, `iterates`, and where the scheduler has them `sigmas` and `noises`. The denoiser is no network but

(1) denoise(x, t) = 0.4 x cos(t / 700) + 0.1 sin(t / 90 + x)

so that a case needs no weights. The case `posterior` has the mean and variance of q(x_{t-1} | x_t, x_0) instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ldm_jax.config import ScheduleConfig
from ldm_jax.diffusion.process import posterior_weights
from ldm_jax.diffusion.samplers.linear import LinearRows
from ldm_jax.diffusion.samplers.sampler import Sampler, sample_trajectory
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.interop.cases.arrays import read_arrays
from ldm_jax.interop.diffusers.scheduler_grids import alphas_cumprod
from ldm_jax.interop.diffusers.schedulers import read_scheduler

Outputs: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name of each output -> ours and the reference."""

REQUEST = ("timesteps", "sigmas", "eta", "mu", "order")
"""Keys of a case's `config` that diffusers takes when sampling, not when the scheduler is made."""


def is_sampler_case(path: Path) -> bool:
    """Whether a file is a case of this kind; raises UserError for an .npz that is damaged."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    case = read_arrays(path)
    return "config" in case and ("iterates" in case or "alphas_cumprod" in case)


def run_sampler_case(path: Path) -> Outputs:
    """Our outputs of a case beside the reference's, in float64.

    Raises:
        UserError: the file is no such case, or its scheduler, an option of it, or fresh noise without `noises` is not
            supported.
    """
    if not is_sampler_case(path):
        raise UserError(f"{path} is not a sampler case: an .npz file with `config` and `iterates`, or a posterior")
    case = read_arrays(path)
    try:
        config = parse_json(str(case["config"]))
    except ValueError as error:
        raise UserError(f"{path}: `config` is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: `config` is {config!r}; give an object with the scheduler, its steps and options")
    with jax.enable_x64(True):
        return _posterior_outputs(config, case) if "alphas_cumprod" in case else _trajectory_outputs(config, case)


def denoise(x: Float[Array, "b *spatial"], t: Num[Array, " b"]) -> Float[Array, "b *spatial"]:
    """The denoiser of every case (1)."""
    t = t.reshape(-1, *(1,) * (x.ndim - 1))
    return 0.4 * x * jnp.cos(t / 700.0) + 0.1 * jnp.sin(t / 90.0 + x)


def _trajectory_outputs(config: Mapping[str, Any], case: Mapping[str, np.ndarray]) -> Outputs:
    options = dict(config)
    name = options.pop("scheduler", None) or options.pop("_class_name", None)
    for array in ("timesteps", "x_init", "iterates"):
        found = case[array]
        if found.ndim == 0 or not np.issubdtype(found.dtype, np.number):
            raise UserError(f"{name}: `{array}` of the case is {found.dtype}{list(found.shape)}, not a row of numbers")
    steps = options.pop("steps", options.pop("num_inference_steps", len(case["timesteps"])))
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"{name}: steps={steps!r} of the case must be a whole number above 0")
    request = {key: options.pop(key) for key in REQUEST if options.get(key) is not None}
    sampler = read_scheduler({"_class_name": name, **options}).make_sampler(steps, **request)
    noises = _noises(name, sampler, case)
    x_init = jnp.asarray(case["x_init"], jnp.float64)
    key, index = jax.random.key(0), jnp.arange(len(x_init))
    iterates = sample_trajectory(sampler, denoise, x_init, key, index, noises)
    outputs = {"timesteps": (np.asarray(sampler.timesteps), case["timesteps"])}
    return outputs | {"iterates": (np.asarray(iterates), case["iterates"])}


def _noises(name: str, sampler: Sampler, case: Mapping[str, np.ndarray]) -> Float[Array, "n b *spatial"] | None:
    """The noise of each row, where the sampler takes any: given for all rows, or for those that use it."""
    if not sampler.stochastic:
        return None
    given = case.get("noises", case.get("noise"))
    if given is None:
        raise UserError(f"{name} draws fresh noise, which no two programs draw alike; the case needs an array `noises`")
    n, takes = sampler.num_steps, _takes_noise(sampler)
    if len(given) == n:
        return jnp.asarray(given)
    if len(given) != takes.sum():
        raise UserError(f"{name}: `noises` has {len(given)} entries for {n} steps, of which {takes.sum()} take noise")
    every = np.zeros((n, *given.shape[1:]))
    every[takes] = given
    return jnp.asarray(every)


def _takes_noise(sampler: Sampler) -> np.ndarray:
    rows = sampler.rows
    if isinstance(rows, LinearRows):
        return np.asarray(rows.weights[:, 0, -1] != 0.0) | np.asarray(rows.churn != 0.0)
    return np.asarray(rows.std != 0.0)


def _posterior_outputs(config: Mapping[str, Any], case: Mapping[str, np.ndarray]) -> Outputs:
    kind = config.get("beta_schedule", "linear")
    scheduler = read_scheduler({"_class_name": "DDPMScheduler", **config, "beta_schedule": kind})
    assert isinstance(scheduler.schedule, ScheduleConfig)  # every DDPM scheduler has one
    alpha_bar = alphas_cumprod(scheduler.schedule).astype(np.float64)
    t = case["timesteps"].astype(np.int64)
    now, before = alpha_bar[t], np.where(t > 0, alpha_bar[t - 1], 1.0)
    weights = posterior_weights(np.sqrt(now), np.sqrt(1.0 - now), np.sqrt(before), np.sqrt(1.0 - before))
    z0, zt, variance = weights
    shape = (-1, *(1,) * case["x0"].ndim)
    mean = z0.reshape(shape) * case["x0"] + zt.reshape(shape) * case["xt"]
    return {
        "alphas_cumprod": (alpha_bar, case["alphas_cumprod"]),
        "mean": (mean, case["mean"]),
        "variance": (variance, case["variance"]),
    }
