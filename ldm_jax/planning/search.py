"""The best way to run a step on a number of chips: meshes, batches and choices, tried and ranked; and other numbers of
chips, one after the other.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence

from ldm_jax.errors import UserError
from ldm_jax.planning.meshes import candidate_meshes, fit_mesh, mesh_name
from ldm_jax.planning.plan import Plan, make_plan
from ldm_jax.planning.request import (
    Request,
    check_batch,
    choices_of,
    training_of,
    values_of,
    with_batch_size,
    with_field,
)
from ldm_jax.planning.topology import of_size

logger = logging.getLogger(__name__)

KERNELS = {"tpu": ("reference", "blocked", "flash"), "gpu": ("reference", "blocked", "cudnn")}
"""Formulations of attention that a platform has."""


def candidates(request: Request, batches_per_chip: Sequence[int]) -> Iterator[Request]:
    """Requests with every mesh, batch and choice, most promising first.

    First come all meshes with the choices of the experiment, then all choices with the first mesh, then the rest:
    whoever stops early has seen each axis of the search once.
    """
    meshes = list(candidate_meshes(request.topology.num_chips))
    choices = list(_choices(request))
    batches = [size * request.topology.num_chips for size in batches_per_chip]
    every = itertools.product(range(len(meshes)), range(len(choices)), batches)
    for mesh, choice, batch in sorted(every, key=lambda place: (min(place[0], 1) * min(place[1], 1), sum(place[:2]))):
        experiment = with_batch_size(choices[choice].experiment, request.stage, batch)
        candidate = dataclasses.replace(request, experiment=experiment, mesh=meshes[mesh])
        try:
            check_batch(candidate)
        except UserError:
            continue
        yield candidate


def _choices(request: Request) -> Iterator[Request]:
    """The request with every combination of the choices that there are for it; its own first."""
    yield request
    paths = {path: values_of(request.experiment, path) for path in choices_of(request.stage)}
    if "attention_kernel" in paths:
        known = KERNELS[request.topology.chip.platform]
        paths["attention_kernel"] = tuple(value for value in paths["attention_kernel"] if value in known)
    named = {path: values for path, values in paths.items() if values}
    for combination in itertools.product(*named.values()):
        experiment = request.experiment
        for path, value in zip(named, combination, strict=True):
            experiment = with_field(experiment, path, value)
        if named and experiment != request.experiment:
            yield dataclasses.replace(request, experiment=experiment)


def search(
    requests: Iterable[Request], limit: int, *, calibration: float = 1.0, price: float | None = None
) -> list[Plan]:
    """Plans of the first `limit` requests, best first: by predicted time of a picture, those that do not fit last."""
    plans = []
    for number, request in enumerate(itertools.islice(requests, limit), 1):
        training = training_of(request.experiment, request.stage)
        logger.info("%d: mesh %s, batch %d", number, mesh_name(request.mesh), training.batch_size)
        plans.append(make_plan(request, calibration=calibration, price=price))
    return sorted(plans, key=_rank)


def _rank(plan: Plan) -> tuple[bool, float]:
    if plan.prediction is None:
        return True, float(plan.compiled.memory.peak or 0)
    return False, plan.prediction.step_seconds / plan.batch_size


def scale(
    request: Request, chips: Sequence[int], *, calibration: float = 1.0, price: float | None = None
) -> list[Plan]:
    """Plans for other numbers of chips with the same batch on each, and the mesh that grows along `data`.

    Raises:
        UserError: there is no group of such a size, or the mesh does not divide it.
    """
    training = training_of(request.experiment, request.stage)
    per_chip, rest = divmod(training.batch_size, request.topology.num_chips)
    if rest:
        raise UserError(
            f"--scale keeps the batch of a chip, but {training.batch_size} pictures are not a whole number for each of "
            f"{request.topology.num_chips} chips; give --batch-per-chip"
        )
    requests = []
    for count in chips:
        topology = of_size(request.topology.chip, count)
        mesh = dataclasses.replace(request.mesh, data=-1, fsdp=min(request.mesh.fsdp, count))
        experiment = with_batch_size(request.experiment, request.stage, per_chip * count)
        mesh = fit_mesh(mesh, count)
        requests.append(dataclasses.replace(request, topology=topology, mesh=mesh, experiment=experiment))
    for each in requests:
        check_batch(each)  # all of them before the first is compiled
    return [make_plan(each, calibration=calibration, price=price) for each in requests]
