"""The forward process, and what the denoiser learns of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ldm_jax.config.checks import require, require_fraction, require_positive

PredictionType: TypeAlias = Literal["epsilon", "v", "x0", "flow"]
ScheduleKind: TypeAlias = Literal["linear", "scaled_linear", "cosine", "sqrt", "sigmoid", "exponential", "flow"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The forward process as arrays over the training timesteps."""

    kind: ScheduleKind = "scaled_linear"
    """`scaled_linear` is linear in the square root of beta (LDM, SD); `linear` is DDPM's; `cosine` is improved DDPM's;
    `sqrt` takes the square root of a line between beta_start and beta_end (the `sqrt` of the original code); `sigmoid`
    is a logistic curve between them; `exponential` lets the signal decay evenly; `flow` is the straight path of flow
    matching, alpha = 1 - sigma, with sigma = (t + 1) / T before `shift`."""
    num_train_timesteps: int = 1000
    """Number of timesteps T."""
    beta_start: float = 0.00085
    """First beta (ignored by cosine, exponential and flow)."""
    beta_end: float = 0.012
    """Last beta (ignored by cosine, exponential and flow)."""
    zero_terminal_snr: bool = False
    """Rescale so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)."""
    shift: float = 1.0
    """Time shift of `flow` towards noise, for large pictures (Esser et al. 2024: 3 at 1024 pixels); 1 is none."""

    def __post_init__(self) -> None:
        require_positive(self, "num_train_timesteps")
        require(
            2 <= self.num_train_timesteps <= 10**6,
            f"ScheduleConfig.num_train_timesteps={self.num_train_timesteps} must lie between 2 and 1000000",
        )
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"ScheduleConfig.beta_start={self.beta_start} and beta_end={self.beta_end} must satisfy "
            "0 < beta_start <= beta_end < 1",
        )
        require_positive(self, "shift")
        require(
            self.kind == "flow" or self.shift == 1.0,
            f"ScheduleConfig.shift={self.shift} is for kind=flow, not for kind={self.kind}; use 1",
        )
        require(
            not (self.kind == "flow" and self.zero_terminal_snr),
            "ScheduleConfig.zero_terminal_snr=True is not for kind=flow, whose last timestep is pure noise already; "
            "use False",
        )


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What the denoiser learns to predict, and how its errors are counted."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    prediction_type: PredictionType = "epsilon"
    """epsilon: the noise; v: alpha * epsilon - sigma * z0; x0: the clean latent; flow: epsilon - z0."""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """Distance between prediction and target."""
    huber_delta: float = 1.0
    """Where the Huber loss turns from quadratic to linear."""
    weighting: Literal["uniform", "min_snr"] = "uniform"
    """Weight of a timestep: 1, or min-SNR (Hang et al. 2023) for the prediction type in use."""
    min_snr_gamma: float = 5.0
    """Where min-SNR weighting cuts the signal-to-noise ratio."""
    variance: Literal["fixed", "learned"] = "fixed"
    """Whether the denoiser also learns the variance of each step backwards (Nichol and Dhariwal 2021), from which the
    sampler ddpm and the likelihood gain; others leave it aside."""
    vlb_weight: float = 0.001
    """Weight of the variational bound, summed over the timesteps, by which the variance learns."""
    timesteps: Literal["uniform", "importance"] = "uniform"
    """Timesteps trained: all alike, or those more often whose losses are large, weighted so that the expected gradient
    is the same (Nichol and Dhariwal 2021)."""
    cond_drop_prob: float = 0.1
    """Share of training samples whose condition is replaced by the empty one, for classifier-free guidance."""

    def __post_init__(self) -> None:
        require_fraction(self, "cond_drop_prob")
        require_positive(self, "min_snr_gamma", "huber_delta", "vlb_weight")
        require(
            not (self.schedule.zero_terminal_snr and self.prediction_type == "epsilon"),
            "DiffusionConfig.prediction_type=epsilon cannot be used with schedule.zero_terminal_snr=True: at the last "
            "timestep z_t is the noise itself; use v or x0",
        )
        require(
            not (self.schedule.kind == "flow" and self.prediction_type in ("epsilon", "v")),
            f"DiffusionConfig.prediction_type={self.prediction_type} cannot be used with schedule.kind=flow, whose "
            "last timestep is pure noise and whose alpha^2 + sigma^2 is not 1; use flow or x0",
        )
