"""Layer by layer beside PyTorch: the same weights and inputs through both, and how far each layer and gradient differ.

Layers come in the order in which PyTorch ends them, gradients in the order in which they are computed, from the end,
so that the first one beyond the tolerance is where the two part. Both compute in float32, or both in bfloat16 from the
same weights and inputs rounded to it; ours then keeps statistics of norms and the softmax in float32.

(1) relative = max |ours - reference| / max(max |reference|, floor)
    floor = a share of the largest |reference| of all rows

Without the floor, what is zero but for rounding, such as the gradient of a bias before a softmax, would be compared
with nothing.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from ldm_jax.errors import UserError
from ldm_jax.files.json_files import read_json
from ldm_jax.interop.cases.comparison import Comparison, as_dict, as_table, compare
from ldm_jax.interop.diffusers.pipeline import is_pipeline
from ldm_jax.interop.layer_components import COMPONENTS, Component, read_component
from ldm_jax.interop.layer_names import module_pairs
from ldm_jax.interop.layer_trace import Trace, trace
from ldm_jax.interop.mapping import SlotOf, write_tensors
from ldm_jax.interop.torch_process import DType, Recording, read_recording, require_parity_extra, run_torch

Direction = Literal["forward", "gradient"]


class Limit(NamedTuple):
    """What a row is held to."""

    tolerance: float
    """Of the relative error (1)."""
    share: float
    """Of the largest row, as the floor in (1)."""


LIMITS: dict[tuple[DType, Direction], Limit] = {
    ("float32", "forward"): Limit(1e-4, 1e-3),
    ("float32", "gradient"): Limit(1e-3, 1e-2),
    ("bfloat16", "forward"): Limit(1e-1, 1e-3),
    ("bfloat16", "gradient"): Limit(1.7e-1, 1e-1),
}
"""By default. The largest relative errors over the golden models and random ones of Stable Diffusion's depth were 7e-6
and 1.5e-5 in float32, 6e-2 and 0.15 in bfloat16 (2026-11-24, torch 2.13.0, CPU; docs/parity.md). In bfloat16 each side
is about as far from the float32 result as from the other: eight bits through hundreds of layers. Gradients that are
exactly zero, of a bias before a norm of single channels, are there up to 0.5 % of the largest; hence the floor."""

logger = logging.getLogger(__name__)


class Section(NamedTuple):
    """One pass of one component."""

    component: str
    dtype: DType
    direction: Direction
    rows: list[Comparison]

    @property
    def first(self) -> Comparison | None:
        """The first row beyond its tolerance."""
        return next((row for row in self.rows if not row.passed), None)


def run_layers(
    folder: Path,
    *,
    dtypes: Sequence[DType] = ("float32", "bfloat16"),
    gradient: bool = True,
    size: int | None = None,
    tolerance: float | None = None,
) -> list[Section]:
    """Compare a component, or every known component of a pipeline, with its original in PyTorch.

    Args:
        folder: as diffusers or transformers write it.
        dtypes: types of numbers to compute in.
        gradient: whether to compare gradients too.
        size: side of the input: latents of a U-Net, pixels of an autoencoder; None is a small one.
        tolerance: of every row, relative (1); by default that of `LIMITS`.

    Raises:
        UserError: the parity extra is not installed, the model is not supported, or PyTorch has failed.
    """
    require_parity_extra()
    sections: list[Section] = []
    for part, torch_class in components_of(folder).items():
        component = read_component(part, torch_class, size)
        with TemporaryDirectory() as exchange:
            run_torch(part, torch_class, component.inputs, Path(exchange), dtypes=dtypes, gradient=gradient)
            for dtype in dtypes:
                sections += compare_component(component, read_recording(Path(exchange), dtype), dtype, tolerance)
    return sections


def components_of(folder: Path) -> dict[Path, str]:
    """Folders of components and PyTorch's classes of them: of a pipeline all that are known, else the folder itself.

    Raises:
        UserError: there is none.
    """
    if not is_pipeline(folder):
        config = read_json(folder / "config.json")
        name = config.get("_class_name") or (config.get("architectures") or [None])[0]
        if name not in COMPONENTS:
            raise UserError(f"{folder}: {name!r} cannot be compared by layers; known: {', '.join(COMPONENTS)}")
        return {folder: name}
    classes = {name: value[1] for name, value in read_json(folder / "model_index.json").items() if _is_part(value)}
    known = {folder / name: kind for name, kind in classes.items() if kind in COMPONENTS}
    if not known:
        raise UserError(f"{folder} has no component that can be compared by layers; known: {', '.join(COMPONENTS)}")
    if others := [name for name in classes if folder / name not in known]:
        logger.info("left aside: %s", ", ".join(others))
    return known


def _is_part(value: object) -> bool:
    """Whether an entry of a pipeline's index is a component that is there: library and class."""
    return isinstance(value, list) and len(value) == 2 and value[1] is not None


def compare_component(
    component: Component, recording: Recording, dtype: DType, tolerance: float | None = None
) -> list[Section]:
    """Run our side as PyTorch's was, and compare layers and outputs, and the gradients where it has recorded them.

    Outputs of other shapes than its own have no gradients to compare: the forward section names them.
    """
    cotangents = recording.of_kind("cotangent")
    ours = trace(component, dtype, cotangents or None)
    comparable = ours.parameters is not None
    slot_of = component.slot_of(recording.of_kind("layer"))
    name = f"{component.folder.name} ({component.torch_class})"

    def section(direction: Direction, pairs: Mapping[str, Pair]) -> Section:
        limit = LIMITS[dtype, direction]
        within = limit.tolerance if tolerance is None else tolerance
        return Section(name, dtype, direction, rows_of(pairs, within, limit.share))

    forward = section("forward", _forward_pairs(component, recording, ours, slot_of))
    return [forward, section("gradient", _gradient_pairs(recording, ours, slot_of))] if comparable else [forward]


Pair = tuple[np.ndarray | None, np.ndarray]
"""Ours, if there is one, and the reference."""


def rows_of(pairs: Mapping[str, Pair], tolerance: float, share: float) -> list[Comparison]:
    """Compare pairs by (1); what is not there on our side differs without bound."""
    floor = share * max((float(np.max(np.abs(reference), initial=0.0)) for _, reference in pairs.values()), default=0.0)
    return [
        Comparison(name, np.inf, np.inf, tolerance, "not there on our side")
        if ours is None
        else compare(name, ours, reference, tolerance, floor=floor or 1.0)
        for name, (ours, reference) in pairs.items()
    ]


def _forward_pairs(component: Component, recording: Recording, ours: Trace, slot_of: SlotOf) -> dict[str, Pair]:
    """Layers, and behind them outputs; modules of PyTorch that are made of others need not have a like of them here."""
    theirs = recording.of_kind("layer")
    modules = module_pairs(flatten_dict(component.params, sep="/"), slot_of, theirs, ours.layers)
    paths = {**modules.groups, **modules.layers}
    layers: dict[str, Pair] = {}
    for name, reference in theirs.items():
        found = ours.layers.get(paths.get(name, ""))
        if found is not None or name in modules.layers:
            layers[name] = found, reference
    outputs = {f"output {name}": (ours.outputs.get(name), x) for name, x in recording.of_kind("output").items()}
    return {**layers, **outputs}


def _gradient_pairs(recording: Recording, ours: Trace, slot_of: SlotOf) -> dict[str, Pair]:
    """Gradients with respect to parameters, and behind them inputs."""
    tensors = dict(write_tensors(ours.parameters or {}, slot_of))
    pairs: dict[str, Pair] = {name: (tensors.get(name), x) for name, x in recording.of_kind("parameter").items()}
    inputs = ours.inputs or {}
    return {**pairs, **{f"input {name}": (inputs.get(name), x) for name, x in recording.of_kind("input").items()}}


def as_report(sections: Sequence[Section]) -> str:
    """Tables for people, each with the first row beyond its tolerance below."""
    return "\n\n".join(
        f"{section.component}, {section.dtype}, {section.direction}\n"
        f"{as_table(section.rows, 'layer' if section.direction == 'forward' else 'gradient')}\n{_verdict(section)}"
        for section in sections
    )


def _verdict(section: Section) -> str:
    if section.first is None:
        return "no layer differs"
    return f"first layer beyond tolerance: {section.first.name} (relative {section.first.relative:.1e})"


def as_report_json(sections: Sequence[Section]) -> str:
    """The same for programs."""
    listed = [
        {
            "component": section.component,
            "dtype": section.dtype,
            "direction": section.direction,
            "first_beyond_tolerance": None if section.first is None else section.first.name,
            "layers": [as_dict(row) for row in section.rows],
        }
        for section in sections
    ]
    return json.dumps({"passed": all(section.first is None for section in sections), "sections": listed})
