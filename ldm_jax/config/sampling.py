"""How pictures are drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ldm_jax.config.checks import require, require_fraction, require_not_negative, require_number, require_positive

SamplerName: TypeAlias = Literal[
    "ddim",
    "ddpm",
    "plms",
    "pndm",
    "euler",
    "euler_ancestral",
    "heun",
    "kdpm2",
    "kdpm2_ancestral",
    "lms",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3s",
    "unipc",
    "unipc_1",
    "unipc_3",
    "deis",
    "rk4",
    "adaptive",
    "imported",
]
Spacing: TypeAlias = Literal["trailing", "leading", "linspace"]
SigmaSpacing: TypeAlias = Literal["schedule", "karras", "exponential", "beta"]
ClippingKind: TypeAlias = Literal["none", "static", "dynamic"]
GuidanceCalls: TypeAlias = Literal["one", "two"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How pictures are drawn, for the grids during training and as the default of `sample.py`."""

    sampler: SamplerName = "ddim"
    """Which solver runs the denoiser backwards: `unipc`, `dpmpp_2m`, `dpmpp_3m` need the fewest steps; `ddpm`,
    `euler_ancestral`, `kdpm2_ancestral`, `dpmpp_2m_sde` add fresh noise on the way; `imported` is the scheduler that
    came with a model of another system."""
    num_sample_steps: int = 50
    """Steps from noise to latent, each one denoiser call; heun and kdpm2 make two a step, rk4 four, pndm and plms a few
    more in all, and adaptive as many as its tolerance needs."""
    spacing: Spacing = "trailing"
    """Timesteps visited: from the last one (trailing), down to the first one (leading), or both (linspace)."""
    sigmas: SigmaSpacing = "schedule"
    """Noise levels between the first and the last call: the schedule's own at the timesteps, or spaced as in Karras et
    al. 2022, evenly in their logarithm (exponential), or by quantiles of a beta distribution."""
    eta: float = 0.0
    """Share of fresh noise in each DDIM step: 0 deterministic, 1 as DDPM."""
    churn: float = 0.0
    """Noise put back before each step of heun (S_churn of Karras et al. 2022, 40 there for 256 steps); 0 is none."""
    tolerance: float = 1e-3
    """Relative and absolute error that a step of adaptive may make."""
    clipping: ClippingKind = "none"
    """Bounds of the estimated clean latent: none, [-clip_range, clip_range], or a percentile of each sample."""
    clip_range: float = 1.0
    """Bound of static clipping, and the largest one of dynamic clipping."""
    clip_percentile: float = 0.995
    """Share of a sample's values that dynamic clipping leaves as they are."""
    guidance_scale: float = 5.0
    """Strength of classifier-free guidance; 1 is none."""
    guidance_interval: tuple[float, float] | None = None
    """Noise levels sigma / alpha between which is guided (Kynkaanniemi et al. 2024); None guides at all of them."""
    guidance_rescale: float = 0.0
    """Share by which a guided prediction is brought back to the spread of the conditional one (Lin et al. 2023, who
    take 0.7); 0 leaves it."""
    guidance_calls: GuidanceCalls = "one"
    """Calls of the denoiser for a guided step: one of twice the batch, or two, which need less memory."""
    prompts: tuple[str, ...] = ()
    """Prompts of the grid (text conditioning); each is drawn `samples_per_prompt` times."""
    samples_per_prompt: int = 4
    """Pictures for each prompt or class of the grid."""

    def __post_init__(self) -> None:
        require_positive(self, "num_sample_steps", "samples_per_prompt", "tolerance", "clip_range", "clip_percentile")
        require_fraction(self, "eta", "clip_percentile", "guidance_rescale")
        require_not_negative(self, "guidance_scale", "churn")
        if self.guidance_interval is not None:
            name = "SamplingConfig.guidance_interval"
            low, high = self.guidance_interval
            require_number(name, low)
            require_number(name, high)
            require(0 <= low < high, f"{name}={low} {high} must be two noise levels, the lower one first")

    def for_inversion(self) -> SamplingConfig:
        """The same steps by the solver of inversions: DDIM, without noise and clipping."""
        return replace(self, sampler="ddim", eta=0.0, clipping="none")

    def require_used(self, names: Iterable[str]) -> None:
        """Refuse to be told, by these fields, what the sampler does not look at: whoever tells it expects another
        picture.

        Raises:
            UserError: naming the flag and what would look at it.
        """
        for name in names:
            samplers, value = _LOOKED_AT.get(name), getattr(self, name)
            flag = f"--{name.replace('_', '-')} {value}"
            require(
                samplers is None or self.sampler in samplers,
                f"{flag} does nothing with --sampler {self.sampler}; it is of {' and '.join(samplers or ())}",
            )
            require(
                self.sampler != "imported" or name not in _OF_OUR_GRIDS,
                f"{flag} does nothing with the scheduler that came with the model; choose one with --sampler",
            )
            require(
                self.sampler != "adaptive" or name != "sigmas",
                f"{flag} does nothing with --sampler adaptive, which chooses its noise levels itself",
            )
            clippings = _CLIPPED_BY.get(name)
            require(
                clippings is None or self.clipping in clippings,
                f"{flag} does nothing with --clipping {self.clipping}; it is of {' and '.join(clippings or ())}",
            )


_LOOKED_AT: dict[str, tuple[SamplerName, ...]] = {
    "eta": ("ddim", "imported"),
    "churn": ("heun",),
    "tolerance": ("adaptive",),
}
_OF_OUR_GRIDS = frozenset({"spacing", "sigmas", "clipping", "clip_range", "clip_percentile"})
_CLIPPED_BY: dict[str, tuple[ClippingKind, ...]] = {
    "clip_range": ("static", "dynamic"),
    "clip_percentile": ("dynamic",),
}
