"""How a stage is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ldm_jax.config.checks import (
    HOW,
    nearest_divisor,
    require,
    require_fraction,
    require_not_negative,
    require_positive,
)
from ldm_jax.config.compute import Remat


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up and decay. The learning rate is used as it is written: no scaling by batch or devices."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly, to the peak at the last of them."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls after the warm-up, until the last step."""
    final_learning_rate_ratio: float = 0.0
    """Learning rate towards which the last step falls, as a share of the peak (cosine and linear)."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on every parameter."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient to this global norm; None does not clip."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which both moments are kept; they are computed in float32."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "epsilon")
        require_fraction(self, "beta1", "beta2", "final_learning_rate_ratio")
        for name in ("beta1", "beta2"):
            require(getattr(self, name) < 1, f"OptimizerConfig.{name}=1 never learns; use less, such as 0.9 or 0.999")
        require_not_negative(self, "warmup_steps", "weight_decay")
        if self.max_grad_norm is not None:
            require_positive(self, "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batch and rhythm of one training stage."""

    batch_size: int = 32
    """Global batch size: pictures in one optimizer step, over all devices, micro-batches included."""
    num_steps: int = 1000
    """Optimizer steps."""
    gradient_accumulation: int = 1
    """Micro-batches in one optimizer step; divides batch_size. In a first stage the discriminator's batch statistics,
    the adaptive weight, perplexity and usage are those of a micro-batch."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the parameters."""
    ema_warmup: bool = True
    """Let the decay rise as (1 + n) / (10 + n) at step n until it reaches ema_decay, as LDM does."""
    ema_profiles: tuple[float, ...] = ()
    """Relative widths of averages that grow with training and are kept besides, such as 0.05 0.1; from their snapshots
    one of any width is rebuilt later (Karras et al. 2024). Each takes the memory of the parameters."""
    snapshot_every: int = field(default=1000, metadata=HOW)
    """Steps between two snapshots of ema_profiles, which are all kept."""
    remat: Remat = field(default="none", metadata=HOW)
    """What is computed again for the gradient instead of being kept in memory: nothing, attention layers, residual
    blocks with their attention, or these within whole levels (full)."""
    log_every: int = field(default=20, metadata=HOW)
    """Steps between two lines of metrics."""
    eval_every: int = field(default=200, metadata=HOW)
    """Steps between two held-out losses."""
    sample_every: int = field(default=1000, metadata=HOW)
    """Steps between two picture grids."""
    checkpoint_every: int = field(default=500, metadata=HOW)
    """Steps between two checkpoints; one is also saved at the end."""
    keep_checkpoints: int = field(default=2, metadata=HOW)
    """Newest checkpoints kept."""
    keep_best: int = field(default=0, metadata=HOW)
    """Checkpoints kept besides for being the best by best_metric; each checkpoint is then measured when it is saved."""
    best_metric: str = field(default="heldout_loss", metadata=HOW)
    """Held-out metric that keep_best goes by."""
    best_mode: Literal["min", "max"] = field(default="min", metadata=HOW)
    """Whether the smallest or the largest best_metric is the best."""
    keep_every: int = field(default=0, metadata=HOW)
    """Steps between two checkpoints that are kept for good, a multiple of checkpoint_every; 0 keeps none so."""
    profile_steps: tuple[int, int] | None = field(default=None, metadata=HOW)
    """First and last step, counted from where the command begins, whose trace for jax's profiler is left in profile/ of
    the run; None leaves none."""

    def __post_init__(self) -> None:
        require_positive(
            self,
            *("batch_size", "num_steps", "gradient_accumulation", "log_every", "eval_every", "sample_every"),
            *("checkpoint_every", "keep_checkpoints", "snapshot_every"),
        )
        require_not_negative(self, "keep_best", "keep_every")
        require_fraction(self, "ema_decay")
        above = -(-self.keep_every // self.checkpoint_every) * self.checkpoint_every
        require(
            self.keep_every == above,
            f"TrainingConfig.keep_every={self.keep_every} is no multiple of checkpoint_every={self.checkpoint_every}; "
            f"nearest that is: {above}",
        )
        require(
            self.batch_size % self.gradient_accumulation == 0,
            f"TrainingConfig.gradient_accumulation={self.gradient_accumulation} does not divide batch_size="
            f"{self.batch_size}; nearest that does: {nearest_divisor(self.batch_size, self.gradient_accumulation)}",
        )
        for width in self.ema_profiles:
            require(
                0.01 <= width <= 0.28, f"TrainingConfig.ema_profiles={width} must lie between 0.01 and 0.28, as shares"
            )
        require(
            len(set(self.ema_profiles)) == len(self.ema_profiles),
            f"TrainingConfig.ema_profiles={self.ema_profiles} names a width twice; leave it out",
        )
        first, last = self.profile_steps or (1, 1)
        require(
            1 <= first <= last,
            f"TrainingConfig.profile_steps={self.profile_steps} must be the first and the last of some steps, from 1",
        )
