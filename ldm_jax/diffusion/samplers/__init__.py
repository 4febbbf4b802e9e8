"""Samplers: one file each, one interface (`sampler.py`), one table of names.

`make_sampler` is the door; the factories `ddim`, `ddpm` give access to every option.
"""

from collections.abc import Callable

from ldm_jax.config import PredictionType, SamplingConfig
from ldm_jax.diffusion.samplers.ddim import ddim
from ldm_jax.diffusion.samplers.ddpm import ddpm
from ldm_jax.diffusion.samplers.sampler import Sampler, initial_noise, sample, sample_trajectory
from ldm_jax.diffusion.samplers.times import Times, spaced_times
from ldm_jax.diffusion.schedule import NoiseSchedule

__all__ = [
    "SAMPLERS",
    "Sampler",
    "Times",
    "ddim",
    "ddpm",
    "initial_noise",
    "make_sampler",
    "sample",
    "sample_trajectory",
    "spaced_times",
]


def _ddim(config: SamplingConfig, schedule: NoiseSchedule, prediction_type: PredictionType, times: Times) -> Sampler:
    return ddim(schedule, prediction_type, times, eta=config.eta)


def _ddpm(config: SamplingConfig, schedule: NoiseSchedule, prediction_type: PredictionType, times: Times) -> Sampler:
    return ddpm(schedule, prediction_type, times)


SAMPLERS: dict[str, Callable[[SamplingConfig, NoiseSchedule, PredictionType, Times], Sampler]] = {
    "ddim": _ddim,
    "ddpm": _ddpm,
}
"""Every sampler by its name in `SamplingConfig.sampler`."""


def make_sampler(config: SamplingConfig, schedule: NoiseSchedule, prediction_type: PredictionType) -> Sampler:
    """The sampler that a configuration names, over trailing timesteps that end at clean data.

    Call it on the host, not under `jax.jit`: it computes its coefficients in NumPy.

    Raises:
        UserError: more steps than training timesteps, or a choice the sampler refuses.
    """
    times = spaced_times(schedule.num_train_timesteps, config.num_sample_steps)
    return SAMPLERS[config.sampler](config, schedule, prediction_type, times)
