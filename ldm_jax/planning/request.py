"""What a plan is asked for, and the fields of an experiment that it varies."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ldm_jax.config import Experiment, MeshConfig, TrainingConfig, field_types
from ldm_jax.errors import UserError
from ldm_jax.planning.meshes import mesh_name
from ldm_jax.planning.topology import Topology

StageName: TypeAlias = Literal["diffusion", "autoencoder", "sampling"]

_REMAT = {"diffusion": "training.remat", "autoencoder": "first_stage.training.remat"}


def choices_of(stage: StageName) -> dict[str, Any]:
    """Paths of the fields that decide how a stage is computed, which the search tries, where an experiment has them.

    Of each the value with which nothing is computed twice or by a kernel: operations of the model are counted with it.
    """
    remat = {_REMAT[stage]: "none"} if stage in _REMAT else {}
    return {**remat, "attention_kernel": "reference"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be compiled."""

    experiment: Experiment
    stage: StageName
    topology: Topology
    mesh: MeshConfig
    """Without an axis of -1."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options of the compiler."""


def training_of(experiment: Experiment, stage: StageName) -> TrainingConfig:
    """How a stage is trained; sampling is given the batch of the second stage."""
    return experiment.first_stage.training if stage == "autoencoder" else experiment.training


def with_batch_size(experiment: Experiment, stage: StageName, batch_size: int) -> Experiment:
    """The experiment with another global batch in a stage."""
    training = dataclasses.replace(training_of(experiment, stage), batch_size=batch_size)
    if stage == "autoencoder":
        return dataclasses.replace(
            experiment, first_stage=dataclasses.replace(experiment.first_stage, training=training)
        )
    return dataclasses.replace(experiment, training=training)


def check_batch(request: Request) -> None:
    """Refuse a batch that cannot be split, before anything heavy is imported.

    Raises:
        UserError: with the batches per chip that can be.
    """
    training, mesh = training_of(request.experiment, request.stage), request.mesh
    parts = mesh.data * mesh.fsdp * (1 if request.stage == "sampling" else training.gradient_accumulation)
    if training.batch_size % parts:
        below = max(training.batch_size // parts, 1) * parts
        raise UserError(
            f"a batch of {training.batch_size} pictures cannot be split over --mesh {mesh_name(mesh)}"
            + (f" and {training.gradient_accumulation} micro-batches" if parts > mesh.data * mesh.fsdp else "")
            + f"; nearest that can: {below} and {below + parts} (--batch-per-chip, or training.batch_size)"
        )


def field_value(experiment: Experiment, path: str) -> Any:
    """The value of a field by its path, `training.remat`; None if there is no such field."""
    value: Any = experiment
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def with_field(config: Any, path: str, value: Any) -> Any:
    """A configuration with another value in the field at a path."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: with_field(getattr(config, name), rest, value) if rest else value})


def values_of(experiment: Experiment, path: str) -> tuple[Any, ...]:
    """All values of a field of a closed set; empty if there is no such field."""
    *owners, name = path.split(".")
    owner = field_value(experiment, ".".join(owners)) if owners else experiment
    kinds = {} if owner is None else field_types(type(owner))
    return get_args(kinds[name]) if name in kinds else ()


def plain(experiment: Experiment, stage: StageName) -> Experiment:
    """The experiment with nothing computed twice or by a kernel in a stage."""
    for path, value in choices_of(stage).items():
        if value in values_of(experiment, path):
            experiment = with_field(experiment, path, value)
    return experiment
