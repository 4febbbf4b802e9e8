"""Plans as Markdown, for a terminal and for a file."""

from collections.abc import Iterable, Sequence

from ldm_jax.planning.collectives import Collective, collective_seconds
from ldm_jax.planning.plan import SAMPLED_PICTURES, Plan
from ldm_jax.planning.roofline import Prediction

_GIB = 2**30


def report(plan: Plan) -> str:
    """One plan in full."""
    chips = plan.topology
    what = {"diffusion": "training step, second stage", "autoencoder": "training step, first stage"}
    lines = [
        f"# Plan: {plan.experiment} on {chips.name} ({chips.layout})",
        "",
        f"{what.get(plan.stage, 'sampling, one batch')}; mesh {plan.mesh}; batch {plan.batch_size} "
        f"({plan.batch_per_chip:g} a chip); {plan.compute_dtype}"
        + "".join(f"; {path}={value}" for path, value in plan.choices.items()),
        f"{plan.num_parameters / 1e6:.1f} M parameters; compiled, not run, on {plan.compiled.date} with "
        + ", ".join(f"{name} {version}" for name, version in plan.versions.items()),
        "",
        *_memory(plan),
        "",
        *_work(plan),
        "",
        *_collectives(plan),
        "",
        *_prediction(plan),
        "",
        f"Compiled in {plan.compiled.compile_seconds:.0f} s ({plan.compiled.compile_cpu_seconds:.0f} s of CPU), traced "
        f"in {plan.compiled.lower_seconds:.0f} s.",
    ]
    return "\n".join(lines) + "\n"


def _memory(plan: Plan) -> list[str]:
    memory = plan.compiled.memory
    rows = [
        ("arguments (state, batch)", memory.arguments),
        ("temporaries", memory.temporaries),
        ("outputs", memory.outputs),
        ("of them in place of arguments", memory.aliased),
        ("**peak**", memory.peak),
        ("usable", plan.usable_memory),
    ]
    return [f"## Memory of a chip: {verdict(plan)}", "", *_table(("", "GiB"), [(name, _gib(v)) for name, v in rows])]


def verdict(plan: Plan) -> str:
    """Whether a step fits, and by how much it does or does not."""
    peak = plan.compiled.memory.peak
    if peak is None:
        return "does not fit"
    spare = plan.usable_memory - peak
    return f"fits, {_gib(spare)} GiB to spare" if plan.fits else f"does not fit: {_gib(-spare)} GiB too little"


def _work(plan: Plan) -> list[str]:
    again = plan.flops / plan.model_flops - 1 if plan.model_flops else 0.0
    accessed = plan.compiled.bytes_accessed
    return [
        "## Work of a chip in a step",
        "",
        f"- model: {plan.model_flops / plan.topology.num_chips / 1e12:.3f} TFLOP; computed again: {again:.1%} of that",
        "- memory traffic: "
        + (f"{accessed / 1e9:.1f} GB ({plan.compiled.bytes_source})" if accessed is not None else "not available"),
    ]


def _collectives(plan: Plan) -> list[str]:
    if plan.prediction is None and not plan.compiled.collectives:
        return ["## Collectives", "", "Not known: the step was not compiled to its end."]
    if not plan.compiled.collectives:
        return ["## Collectives", "", "None."]
    rows = [_collective_row(plan, collective) for collective in plan.compiled.collectives]
    return ["## Collectives of a step", "", *_table(("kind", "axes", "chips", "count", "MB", "ms", "overlap"), rows)]


def _collective_row(plan: Plan, collective: Collective) -> tuple[str, ...]:
    return (
        collective.kind,
        " ".join(collective.axes) or "other",
        str(collective.group_size),
        str(collective.count),
        f"{collective.num_bytes / 1e6:.1f}",
        f"{collective_seconds(collective, plan.topology) * 1e3:.2f}",
        "yes" if collective.asynchronous else "no",
    )


def _prediction(plan: Plan) -> list[str]:
    lines = ["## Predicted, not measured", ""]
    if plan.prediction is None:
        return [*lines, "Nothing: it does not fit."]
    return [
        *lines,
        *_table(("", ""), _predicted_rows(plan, plan.prediction)),
        "",
        "Assumed:",
        "",
        *(f"- {each}" for each in plan.assumptions),
    ]


def _predicted_rows(plan: Plan, prediction: Prediction) -> list[tuple[str, str]]:
    paid = f"{SAMPLED_PICTURES} pictures" if plan.stage == "sampling" else f"{plan.num_steps:,} steps"
    rows = [
        ("arithmetic", f"{prediction.compute_seconds * 1e3:.2f} ms"),
        ("memory bandwidth", f"{prediction.memory_seconds * 1e3:.2f} ms"),
        (
            "collectives",
            f"{prediction.exposed_seconds * 1e3:.2f} ms exposed, {prediction.hidden_seconds * 1e3:.2f} hidden",
        ),
        ("**step**", f"{prediction.step_seconds * 1e3:.2f} ms, bound by {prediction.bound_by}"),
        ("pictures a second", f"{prediction.images_per_second:.1f}"),
        ("MFU", f"{prediction.mfu:.1%}"),
        (f"chip-hours for {paid}", f"{prediction.chip_hours:,.1f}"),
    ]
    return rows if prediction.cost is None else [*rows, ("cost", f"{prediction.cost:,.2f}")]


def comparison(plans: Sequence[Plan], title: str) -> str:
    """Several plans in the order they are given, a row each."""
    names = ("chips", "mesh", "batch a chip", "choices", "peak GiB", "fits", "collectives GB", "step ms")
    header = (*names, "pictures/s", "MFU", "bound by")
    note = "Times are predicted by a roofline, not measured; `ldm plan` of one row tells what is assumed."
    return "\n".join([f"# {title}", "", *_table(header, map(_row, plans)), "", note]) + "\n"


def best(plans: Sequence[Plan]) -> str:
    """The first plan of a ranking in words."""
    if not plans or plans[0].prediction is None:
        return "Nothing that was tried fits."
    plan = plans[0]
    choices = "".join(f", {path}={value}" for path, value in plan.choices.items())
    return f"Best that fits: --mesh {plan.mesh} with {plan.batch_per_chip:g} pictures a chip{choices}."


def _row(plan: Plan) -> tuple[str, ...]:
    sent = sum(collective.num_bytes for collective in plan.compiled.collectives)
    prediction = plan.prediction
    times = ("", "", "", "")
    if prediction is not None:
        times = (
            f"{prediction.step_seconds * 1e3:.1f}",
            f"{prediction.images_per_second:.0f}",
            f"{prediction.mfu:.1%}",
            prediction.bound_by,
        )
    return (
        str(plan.topology.num_chips),
        plan.mesh,
        f"{plan.batch_per_chip:g}",
        " ".join(f"{path.rpartition('.')[2]}={value}" for path, value in plan.choices.items()) or "-",
        _gib(plan.compiled.memory.peak),
        "yes" if plan.fits else "no",
        f"{sent / 1e9:.2f}",
        *times,
    )


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / _GIB:.3f}" if abs(size) < _GIB / 10 else f"{size / _GIB:.2f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table with columns of one width."""
    cells = [tuple(header), *map(tuple, rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
