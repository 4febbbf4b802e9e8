"""The tensors of the original code that are no parameters: its noise schedule, in many forms.

With alpha, sigma and beta of a timestep, and alpha', sigma' of the one before (1 and 0 before the first), the posterior
q(z_{t-1} | z_t, z_0) has, after Ho et al. 2020, arXiv:2006.11239, eq. 7,

(1) variance beta sigma'^2 / sigma^2
(2) mean coef1 z_0 + coef2 z_t, coef1 = alpha' beta / sigma^2, coef2 = sqrt(1 - beta) sigma'^2 / sigma^2
"""

from collections.abc import Iterator

import numpy as np

from ldm_jax.config import ScheduleConfig
from ldm_jax.diffusion.schedule import make_schedule

SIGMAS = "denoiser.sigmas"  # of sgm
KNOWN = (
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("lvlb_weights", "logvar", "scale_factor", "model_ema.decay", "model_ema.num_updates", SIGMAS),
)
"""Names that a file may have besides its parameters."""


def schedule_buffers(config: ScheduleConfig) -> Iterator[tuple[str, np.ndarray]]:
    """What `DDPM` keeps of its schedule, in float32."""
    schedule = make_schedule(config)
    beta, alpha_bar, alpha, sigma = (np.asarray(values, np.float64) for values in schedule)
    alpha_before, variance = np.append(1.0, alpha[:-1]), np.square(sigma)
    variance_before = np.append(0.0, variance[:-1])
    posterior = beta * variance_before / variance  # (1)
    buffers = {
        "betas": beta,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": np.append(1.0, alpha_bar[:-1]),
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "log_one_minus_alphas_cumprod": np.log(variance),
        "sqrt_recip_alphas_cumprod": 1.0 / alpha,
        "sqrt_recipm1_alphas_cumprod": sigma / alpha,
        "posterior_variance": posterior,
        "posterior_log_variance_clipped": np.log(np.maximum(posterior, 1e-20)),
        "posterior_mean_coef1": alpha_before * beta / variance,  # (2)
        "posterior_mean_coef2": np.sqrt(1.0 - beta) * variance_before / variance,
    }
    yield from ((name, values.astype(np.float32)) for name, values in buffers.items())


def engine_buffers(config: ScheduleConfig) -> Iterator[tuple[str, np.ndarray]]:
    """What sgm's `DiscreteDenoiser` keeps of its schedule: noise over signal."""
    schedule = make_schedule(config)
    yield SIGMAS, (np.asarray(schedule.sigma, np.float64) / np.asarray(schedule.alpha)).astype(np.float32)
