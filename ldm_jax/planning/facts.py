"""All that a plan knows before it predicts anything: the step of an experiment compiled for a topology, or its result
found in the cache.
"""

import dataclasses
import hashlib
import logging
import time
from dataclasses import dataclass
from typing import Any

from ldm_jax.config import to_dict
from ldm_jax.planning import cache
from ldm_jax.planning.request import Request, plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a compiled step."""

    num_parameters: int
    flops: float
    """Operations of a step on all chips, with what is computed again."""
    model_flops: float
    """The same without that."""
    compiled: dict[str, Any]
    """A `CompiledStep` as JSON values."""


def find_facts(request: Request) -> Facts:
    """The facts of a request, compiled or from the cache.

    Raises:
        UserError: the batch cannot be split over the mesh, or the model cannot be trained on pictures.
    """
    described = {
        "experiment": to_dict(request.experiment),
        "stage": request.stage,
        "topology": [request.topology.name, request.topology.layout],
        "mesh": to_dict(request.mesh),
        "options": dict(request.options),
        "versions": cache.versions(),
    }
    key = cache.key_of(source=cache.source_digest(), **described)
    if (known := cache.read(key)) is not None:
        return Facts(**known)
    facts = _compile(request, described)
    cache.write(key, dataclasses.asdict(facts))
    return facts


def _compile(request: Request, described: dict[str, Any]) -> Facts:
    """Trace the step, count its operations, and compile it unless the same program was compiled before."""
    from ldm_jax import sharding
    from ldm_jax.flops import count_jaxpr
    from ldm_jax.planning.compiler import argument_bytes, compile_step
    from ldm_jax.planning.steps import abstract_step
    from ldm_jax.planning.targets import topology_devices

    mesh = sharding.make_mesh(request.mesh, topology_devices(request.topology))
    began = time.perf_counter()
    step = abstract_step(request.experiment, request.stage, mesh)
    traced = step.function.trace(*step.arguments)
    lowered = traced.lower()
    spent = time.perf_counter() - began
    flops = count_jaxpr(traced.jaxpr.jaxpr)
    program = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    kept = {name: described[name] for name in ("topology", "options", "versions")}
    key = cache.key_of(program=program, source=cache.source_digest("planning"), **kept)
    compiled = cache.read(key)
    if compiled is None:
        logger.info("compiling for %s; a large model takes minutes", request.topology.name)
        options, arguments = dict(request.options), argument_bytes(step.arguments)
        result = compile_step(lowered, arguments, mesh, request.topology, options, spent)
        compiled = dataclasses.asdict(result)
        cache.write(key, compiled)
    return Facts(
        num_parameters=step.num_parameters,
        flops=flops,
        model_flops=_model_flops(request, mesh, flops),
        compiled=compiled,
    )


def _model_flops(request: Request, mesh: Any, flops: float) -> float:
    """Operations of a step with nothing computed twice."""
    from ldm_jax.flops import count_jaxpr
    from ldm_jax.planning.steps import abstract_step

    experiment = plain(request.experiment, request.stage)
    if experiment == request.experiment:
        return flops
    step = abstract_step(experiment, request.stage, mesh)
    return count_jaxpr(step.function.trace(*step.arguments).jaxpr.jaxpr)
