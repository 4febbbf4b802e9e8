"""A plan: what the compiler says of a step on a topology, and how long it is predicted to take."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ldm_jax.planning import cache
from ldm_jax.planning.compiled import CompiledStep, restore_compiled
from ldm_jax.planning.facts import Facts, find_facts
from ldm_jax.planning.meshes import mesh_name
from ldm_jax.planning.request import Request, check_batch, choices_of, field_value, training_of
from ldm_jax.planning.roofline import Prediction, assumptions, predict
from ldm_jax.planning.topology import Topology

SAMPLED_PICTURES = 1000
"""Pictures for which the chip-hours of sampling are told."""
USABLE_GPU_MEMORY = 0.9
"""Share of a GPU's memory that a program can have, beside CUDA and NCCL."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is reported of one step."""

    experiment: str
    stage: str
    topology: Topology
    mesh: str
    batch_size: int
    compute_dtype: str
    choices: dict[str, str]
    """Values of the fields that decide how the step is computed."""
    num_parameters: int
    num_steps: int
    flops: float
    model_flops: float
    compiled: CompiledStep
    prediction: Prediction | None
    """None if the step does not fit."""
    assumptions: tuple[str, ...]
    versions: dict[str, str]

    @property
    def batch_per_chip(self) -> float:
        """Pictures of a step for each chip."""
        return self.batch_size / self.topology.num_chips

    @property
    def usable_memory(self) -> int:
        """Bytes of a chip that the step may take."""
        available = self.compiled.memory.available
        share = USABLE_GPU_MEMORY if self.topology.chip.platform == "gpu" else 1.0
        return available or int(self.topology.chip.memory * share)

    @property
    def fits(self) -> bool:
        """Whether the step fits; for TPUs the compiler has decided."""
        memory = self.compiled.memory
        if memory.temporaries is None or memory.peak is None:
            return False
        return self.topology.chip.platform == "tpu" or memory.peak <= self.usable_memory

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, with what follows from them."""
        values = dataclasses.asdict(self)
        values["topology"] = {"name": self.topology.name, "layout": self.topology.layout}
        values["topology"] |= {"chips": self.topology.num_chips, "chip": dataclasses.asdict(self.topology.chip)}
        values["compiled"]["memory"] |= {"peak": self.compiled.memory.peak, "usable": self.usable_memory}
        bound_by = None if self.prediction is None else self.prediction.bound_by
        return {**values, "fits": self.fits, "bound_by": bound_by, "is_measured": False}


def make_plan(request: Request, *, calibration: float = 1.0, price: float | None = None) -> Plan:
    """Compile and predict a step.

    Raises:
        UserError: the batch cannot be split over the mesh, or the model does not make pictures.
    """
    check_batch(request)
    facts = find_facts(request)
    compiled = restore_compiled(facts.compiled)
    experiment, topology = request.experiment, request.topology
    training = training_of(experiment, request.stage)
    batch = training.batch_size
    steps = math.ceil(SAMPLED_PICTURES / batch) if request.stage == "sampling" else training.num_steps
    taken = assumptions(
        topology,
        compute_dtype=experiment.compute_dtype,
        calibration=calibration,
        bytes_source=compiled.bytes_source,
    )
    choices = {path: field_value(experiment, path) for path in choices_of(request.stage)}
    plan = Plan(
        experiment=experiment.name,
        stage=request.stage,
        topology=topology,
        mesh=mesh_name(request.mesh),
        batch_size=batch,
        compute_dtype=experiment.compute_dtype,
        choices={path: str(value) for path, value in choices.items() if value is not None},
        num_parameters=facts.num_parameters,
        num_steps=steps,
        flops=facts.flops,
        model_flops=facts.model_flops,
        compiled=compiled,
        prediction=None,
        assumptions=tuple(taken),
        versions=cache.versions(),
    )
    return dataclasses.replace(plan, prediction=_predict(plan, facts, calibration, price)) if plan.fits else plan


def _predict(plan: Plan, facts: Facts, calibration: float, price: float | None) -> Prediction:
    return predict(
        plan.topology,
        flops=facts.flops,
        model_flops=facts.model_flops,
        bytes_accessed=plan.compiled.bytes_accessed,
        collectives=plan.compiled.collectives,
        batch_size=plan.batch_size,
        num_steps=plan.num_steps,
        calibration=calibration,
        price=price,
    )
