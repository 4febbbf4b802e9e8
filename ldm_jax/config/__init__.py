"""Every configuration dataclass, and how an experiment is loaded by name, tuned by flags, saved and restored.

A configuration is a tree of frozen, keyword-only dataclasses. A field's docstring is its help text on the command
line, its type decides what is accepted, and `__post_init__` checks what types cannot: each message names the field,
its value and the nearest value that works. Nothing here imports jax, so `--help` is quick.
"""

from ldm_jax.config.adversarial import DiscriminatorConfig
from ldm_jax.config.autoencoder import AutoencoderConfig, AutoencoderKLConfig, AutoencoderVQConfig
from ldm_jax.config.checks import LARGEST, nearest_divisor
from ldm_jax.config.classifier import ClassifierConfig
from ldm_jax.config.compute import AttentionChoice, Remat
from ldm_jax.config.conditioning import (
    ClassConditioning,
    ClipTextConditioning,
    ClipVisionConfig,
    Conditioning,
    EmbeddingConditioning,
    SdxlConditioning,
    SpatialConditioning,
    TextConditioning,
    Unconditional,
)
from ldm_jax.config.data import (
    DataConfig,
    FashionMnist,
    ImageFolder,
    OpenMoji,
    OpenMojiScenes,
    PreparedTfds,
    Resize,
    Shapes,
    Source,
)
from ldm_jax.config.denoiser import Place, UNetConfig
from ldm_jax.config.diffusion import DiffusionConfig, PredictionType, ScheduleConfig, ScheduleKind
from ldm_jax.config.distributed import DistributedConfig
from ldm_jax.config.experiment import Experiment
from ldm_jax.config.first_stage import FirstStageConfig
from ldm_jax.config.given import (
    Given,
    LabelMap,
    Layout,
    LowResolution,
    MaskedOrder,
    MaskedPicture,
    MaskKind,
    Neighbours,
)
from ldm_jax.config.mesh import MeshConfig
from ldm_jax.config.perceptual import SMALLEST_PICTURE, PerceptualConfig, PerceptualNet
from ldm_jax.config.sampling import ClippingKind, GuidanceCalls, SamplerName, SamplingConfig, SigmaSpacing, Spacing
from ldm_jax.config.saved import (
    check_types,
    differences,
    field_types,
    from_dict,
    restore_experiment,
    save_experiment,
    to_dict,
)
from ldm_jax.config.scoring import InceptionProtocol, Metric, NetworkName, ScoringConfig
from ldm_jax.config.shipped import describe_experiment, experiment_names, load_experiment
from ldm_jax.config.training import OptimizerConfig, TrainingConfig

__all__ = [
    "LARGEST",
    "SMALLEST_PICTURE",
    "AttentionChoice",
    "AutoencoderConfig",
    "AutoencoderKLConfig",
    "AutoencoderVQConfig",
    "ClassConditioning",
    "ClassifierConfig",
    "ClipTextConditioning",
    "ClipVisionConfig",
    "ClippingKind",
    "Conditioning",
    "DataConfig",
    "DiffusionConfig",
    "DiscriminatorConfig",
    "DistributedConfig",
    "EmbeddingConditioning",
    "Experiment",
    "FashionMnist",
    "FirstStageConfig",
    "Given",
    "GuidanceCalls",
    "ImageFolder",
    "InceptionProtocol",
    "LabelMap",
    "Layout",
    "LowResolution",
    "MaskKind",
    "MaskedOrder",
    "MaskedPicture",
    "MeshConfig",
    "Metric",
    "Neighbours",
    "NetworkName",
    "OpenMoji",
    "OpenMojiScenes",
    "OptimizerConfig",
    "PerceptualConfig",
    "PerceptualNet",
    "Place",
    "PredictionType",
    "PreparedTfds",
    "Remat",
    "Resize",
    "SamplerName",
    "SamplingConfig",
    "ScheduleConfig",
    "ScheduleKind",
    "ScoringConfig",
    "SdxlConditioning",
    "Shapes",
    "SigmaSpacing",
    "Source",
    "Spacing",
    "SpatialConditioning",
    "TextConditioning",
    "TrainingConfig",
    "UNetConfig",
    "Unconditional",
    "check_types",
    "describe_experiment",
    "differences",
    "experiment_names",
    "field_types",
    "from_dict",
    "load_experiment",
    "nearest_divisor",
    "restore_experiment",
    "save_experiment",
    "to_dict",
]
