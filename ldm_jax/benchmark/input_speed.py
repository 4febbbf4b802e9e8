"""How fast one core reads what a run learns from, and what that means for an accelerator that is not here.

Without training: the source as it is read from disk and from memory, each transform, and whole batches of both stages,
of pictures and of latents, in one thread. For a v5p-64, 64 chips with a host for every 4, it follows

(1) pictures a second of a host = those of one core * its cores, if reading in as many processes adds up (not measured)
(2) hosts = steps a second * batch / (1), rounded up
"""

import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax import rng
from ldm_jax.benchmark.circumstances import circumstances
from ldm_jax.benchmark.statistics import Spread, spread_of
from ldm_jax.conditioning.tokenizer import PromptEncoder, token_inputs
from ldm_jax.config import Experiment, load_experiment, restore_experiment
from ldm_jax.data.latent_manifest import Recipe, data_of
from ldm_jax.data.latent_records import ArrayField, Layout
from ldm_jax.data.latent_shards import write_latents
from ldm_jax.data.latent_source import LatentSource, open_latents
from ldm_jax.data.memory import MemorySource
from ldm_jax.data.pipeline import batches
from ldm_jax.data.source import Source
from ldm_jax.data.sources import load_source
from ldm_jax.data.transforms import training_transforms, transform_in_words
from ldm_jax.model import make_model
from ldm_jax.training.run_folder import RunFolder

TOPOLOGY, HOSTS, CORES = "v5p-64", 16, 208
"""The slice that is asked about: 64 chips, as `ldm plan` counts them, and a host for 4 of them has 208 virtual CPUs
(machine type ct5p-hightpu-4t of Google Cloud)."""
ROUNDS, SECONDS = 5, 0.5
_BATCH_ROWS = ("batches of pictures", "batches of latents")


class Row(NamedTuple):
    """How fast one part is."""

    name: str
    rate: Spread
    """Pictures a second."""


class Report(NamedTuple):
    """What was measured and what follows."""

    experiment: Experiment
    rows: list[Row]
    steps_per_second: float | None


_REMEMBERED = 512
"""Examples that are read from memory."""


def report_input(given: str, steps_per_second: float | None, *, as_json: bool, seconds: float = SECONDS) -> str:
    """Measure the input of a run or an experiment, in this thread.

    Args:
        given: folder of a run, or what `load_experiment` takes.
        steps_per_second: of training on the accelerators, as predicted; None says how many could be fed.
        as_json: for programs.
        seconds: that each of the rounds lasts.

    Raises:
        UserError: there is no such run or experiment, or its data are missing.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing here needs an accelerator
    run = Path(given)
    is_run = (run / "config.json").exists()
    experiment = restore_experiment(run / "config.json") if is_run else load_experiment(given)
    encode = _encoder(experiment, run) if is_run else None
    with tempfile.TemporaryDirectory(prefix="ldm-input-") as folder:
        rows = [Row(name, _rate(make, seconds)) for name, make in _parts(experiment, encode, Path(folder))]
    report = Report(experiment, rows, steps_per_second)
    known = {**circumstances(), "read with": f"one core, one thread, {'with' if encode else 'without'} tokens"}
    return _as_json(report, known) if as_json else _as_markdown(report, known)


def _encoder(experiment: Experiment, run: Path) -> PromptEncoder | None:
    if not token_inputs(experiment.conditioning):
        return None
    return PromptEncoder(RunFolder(run).load_tokenizers(experiment.conditioning))


def _parts(
    experiment: Experiment, encode: PromptEncoder | None, folder: Path
) -> Iterator[tuple[str, Callable[[], Iterator[int]]]]:
    """Every part by name: a function that starts it anew, and yields the number of pictures that it has done."""
    source = load_source(experiment.data, "train")
    disk = source.source if isinstance(source, MemorySource) else source
    yield "source, from disk", lambda: (1 for i in _indices(source) if disk[i])
    yield "source, from memory", lambda: _from_memory(source)
    example = source[0]
    for transform in training_transforms(experiment.data, source.info, experiment.seed):
        current = example
        yield type(transform).__name__, lambda t=transform, e=current: (1 for n in itertools.count() if t(e, n))
        example = transform(example, 0)
    latents = latents_like(experiment, source, folder / "latents")
    yield "latents, from disk", lambda: (1 for i in _indices(latents) if latents[i])
    first, second = experiment.first_stage.training.batch_size, experiment.training.batch_size
    for name, read, size in zip(_BATCH_ROWS, (source, MemorySource(latents)), (first, second), strict=True):
        yield name, lambda read=read, size=size: _batches(experiment, read, size, encode)


def _from_memory(source: Source) -> Iterator[int]:
    """Some examples again and again, behind their first reading."""
    few = range(min(len(source), _REMEMBERED))
    for i in few:
        source[i]
    yield from (1 for i in itertools.cycle(few) if source[i])


def _indices(source: Source) -> Iterator[int]:
    return itertools.cycle(range(len(source)))


def _batches(experiment: Experiment, source: Source, size: int, encode: PromptEncoder | None) -> Iterator[int]:
    """The sizes of training batches, as a run reads them, in the calling thread."""
    transforms = training_transforms(experiment.data, source.info, experiment.seed)
    size = min(size, len(source))
    made = batches(source, transforms=transforms, batch_size=size, seed=0, num_threads=0, encode_caption=encode)
    return (size for _ in made)


def latents_like(experiment: Experiment, source: Source, folder: Path) -> LatentSource:
    """Latents of the right shapes for some pictures, in shards: reading zeros takes as long as reading others."""
    model = make_model(experiment)
    image = jax.ShapeDtypeStruct((1, *model.image_shape), np.float32)
    shape = jax.eval_shape(lambda x: model.encode(model.init_autoencoder(rng.root_key(0)), x).moments, image).shape
    moments = np.zeros((1 + experiment.data.horizontal_flip, *shape[1:]), np.float32)
    count = min(len(source), 1024)
    recipe = Recipe(
        info=source.info,
        num_pictures=count,
        data=data_of(experiment.data),
        transform=transform_in_words(experiment.data),
        autoencoder="zeros",
        autoencoder_config=experiment.first_stage.autoencoder,
        compute_dtype=experiment.compute_dtype,
        shard_size=count,
    )
    layout = Layout(arrays={"moments": ArrayField(dtype="float32", shape=moments.shape)}, is_point=False)
    write_latents(folder, recipe, layout, lambda rows: ({"moments": moments, **source.annotation(i)} for i in rows))
    return open_latents(folder)


def _rate(make: Callable[[], Iterator[int]], seconds: float) -> Spread:
    """Pictures a second over some rounds, of what goes on from round to round; the first pictures are not counted."""
    work = make()
    next(work)
    return spread_of([_round(work, seconds) for _ in range(ROUNDS)])


def _round(work: Iterator[int], seconds: float) -> float:
    began, done, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < seconds:
        done += next(work)
        elapsed = time.perf_counter() - began
    return done / elapsed


def hosts_needed(rate: float, batch_size: int, steps_per_second: float) -> int:
    """Hosts (2) for the pictures a second that one core reads."""
    return math.ceil(steps_per_second * batch_size / (rate * CORES))


def _needs(report: Report) -> list[dict[str, Any]]:
    """For the batches of each stage: what a v5p-64 could be fed with, and the hosts that the expected rate needs."""
    rates = {row.name: row.rate.median for row in report.rows}
    experiment = report.experiment
    sizes = (experiment.first_stage.training.batch_size, experiment.training.batch_size)
    needs = []
    for name, size in zip(_BATCH_ROWS, sizes, strict=True):
        expected = report.steps_per_second
        hosts = None if expected is None else hosts_needed(rates[name], size, expected)
        most = rates[name] * CORES * HOSTS / size
        needs.append({"of": name, "batch_size": size, "most_steps_per_second": most, "hosts_needed": hosts})
    return needs


def _as_markdown(report: Report, known: dict[str, Any]) -> str:
    lines = [f"# Input of {report.experiment.name}", "", *(f"- {name}: {value}" for name, value in known.items()), ""]
    lines += ["| on one core | pictures/s (quartiles) |", "| --- | --- |"]
    lines += [f"| {name} | {r.median:.0f} ({r.lower:.0f} to {r.upper:.0f}) |" for name, r in report.rows]
    lines += ["", f"A {TOPOLOGY} has 64 chips and {HOSTS} hosts of {CORES} virtual CPUs; assumed is that as many cores"]
    lines += ["read as many times as fast as the one measured here, which was not tried.", ""]
    return "\n".join([*lines, *map(_sentence, _needs(report))])


def _sentence(need: dict[str, Any]) -> str:
    fed = f"its hosts can feed {need['most_steps_per_second']:.3g} steps/s"
    hosts = "" if need["hosts_needed"] is None else f"; the expected rate needs {need['hosts_needed']} of them"
    return f"- {need['of']}, batch {need['batch_size']}: {fed}{hosts}"


def _as_json(report: Report, known: dict[str, Any]) -> str:
    rows = {row.name: row.rate._asdict() for row in report.rows}
    told = {"experiment": report.experiment.name, "circumstances": known, "pictures_per_second": rows}
    return json.dumps({**told, "topology": TOPOLOGY, "hosts": HOSTS, "cores_per_host": CORES, "needs": _needs(report)})
