"""Pictures in a folder: each written when it is drawn, so that the same request goes on where it was stopped.

manifest.json    how they are made, by which another request is refused, and when all are there their checksums
NAME_0000.png    picture by picture, by its position in the request; a file is there as a whole or not at all
grid.png         all of them, or the first
"""

import json
import logging
import re
from collections.abc import Sequence
from itertools import count, groupby, islice
from typing import Any

from ldm_jax.config import to_dict
from ldm_jax.data.given.shelf import spec_label
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place, to_place
from ldm_jax.files.whole_files import write_atomically
from ldm_jax.manifest import NAME, Manifest, as_text, circumstances, known_manifest, make_manifest, read_manifest
from ldm_jax.pictures import draw_grid, pixels_digest, read_picture, save_picture
from ldm_jax.progress import progress
from ldm_jax.sampling.animation import write_animations
from ldm_jax.sampling.description import Origins, describe, origins_of
from ldm_jax.sampling.draw import Easel
from ldm_jax.sampling.request import DrawRequest, PictureRequest

logger = logging.getLogger(__name__)

GRID = "grid.png"
_GRID_COLUMNS, _GRID_ROWS = 32, 64


def draw_to_files(easel: Easel, origins: Origins, *, out: Place, batch_size: int, credit: str = "") -> list[Place]:
    """Draw what is missing of a request in `out`, and return its files in their order, the grid last.

    Raises:
        UserError: the folder holds another request or a file in the way, or cannot be written.
    """
    request = easel.request
    paths = [out / name for name in picture_names(request)]
    manifest = _check_folder(out, paths, request, origins)
    done = {position for position, path in enumerate(paths) if path.exists()}
    try:
        if manifest is None or len(done) < len(paths) or not manifest["results"]:
            manifest = _begin(manifest, easel, origins, batch_size)
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / NAME, as_text(manifest))
            _draw_missing(easel, origins, paths, done, batch_size, credit)
            results = {path.name: pixels_digest(read_picture(path)[0]) for path in paths}
            write_atomically(out / NAME, as_text(manifest | {"results": results}))
        else:
            logger.info("all %d pictures are in %s already", len(paths), out)
        shown = _write_grid(easel, paths, out / GRID, credit)
    except OSError as error:
        raise UserError(f"cannot write pictures to {out} ({error}); choose another folder: --out DIR") from error
    together = "all" if shown == len(paths) else shown
    logger.info("%d pictures in %s, %s of them in %s", len(paths), out, together, out / GRID)
    return [*paths, out / GRID]


def folder_for(base: Place, request: DrawRequest, origins: Origins) -> Place:
    """A folder in `base` named after the request: the one in which it was begun, or a new one."""
    first = request.pictures[0]
    name = f"{slug(first.prompt or first.class_label or '')}seed{first.seed}"
    wanted = _decisive(request, origins)
    candidates = (base / (name if n == 1 else f"{name}-{n}") for n in count(1))
    return next(path for path in candidates if not path.exists() or _asked_of(path / NAME) == wanted)


def picture_names(request: DrawRequest) -> list[str]:
    """Name of the file of each picture."""
    return [
        f"{slug(picture.prompt or picture.class_label or '')}seed{picture.seed}_{position:04d}.png"
        for position, picture in enumerate(request.pictures)
    ]


def slug(text: str) -> str:
    """The words of a prompt as the beginning of a file name."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words)[:40] + "_" if words else ""


def animate(request: DrawRequest, out: Place) -> list[Place]:
    """Write each strip of frames of a drawn request as animations, named after its first; returns the files.

    Raises:
        UserError: they cannot be written.
    """
    strips: list[list[Place]] = []
    for picture, name in zip(request.pictures, picture_names(request), strict=True):
        if picture.fraction == 0.0:
            strips.append([])
        strips[-1].append(out / name)
    files: list[Place] = []
    try:
        for strip in strips:
            files += write_animations([read_picture(path)[0] for path in strip], out / strip[0].stem)
    except OSError as error:
        raise UserError(f"cannot write animations to {out} ({error}); choose another folder: --out DIR") from error
    return files


def _begin(found: Manifest | None, easel: Easel, origins: Origins, batch_size: int) -> Manifest:
    """The manifest of pictures that are now drawn, or drawn on."""
    if found is not None:
        return found | {"continued": [*found["continued"], circumstances() | {"batch_size": batch_size}]}
    asked = {"config": easel.request.to_json(), **origins.to_json(), "mesh": to_dict(easel.mesh)}
    seeds = list(dict.fromkeys(picture.seed for picture in easel.request.pictures))
    data = known_manifest(to_place(origins.model.path) / NAME).get("data", {})
    return make_manifest("samples", **asked, seed=seeds, batch_size=batch_size, data=data)


def _decisive(request: DrawRequest, origins: Origins) -> dict[str, Any]:
    """What decides the pictures, in words and as a checksum of it all, as it is read from a file."""
    asked = {**request.summary(), **{f"{name}_sha256": value for name, value in origins.checksums().items()}}
    return json.loads(json.dumps(asked))


def _asked_of(path: Place) -> dict[str, Any] | None:
    """What decides the pictures of a manifest; None where it cannot be read."""
    try:
        manifest = read_manifest(path)
        return _decisive(DrawRequest.from_json(manifest["config"]), origins_of(manifest))
    except (KeyError, TypeError, ValueError):
        return None


def _check_folder(out: Place, paths: Sequence[Place], request: DrawRequest, origins: Origins) -> Manifest | None:
    """The manifest of the same request; refuse a folder that holds another one, or other files of these names."""
    if not (out / NAME).exists():
        if taken := next((path for path in (*paths, out / GRID) if path.exists()), None):
            raise UserError(f"{taken} is there already and is not overwritten; choose another folder: --out DIR")
        return None
    wanted, found = _decisive(request, origins), _asked_of(out / NAME)
    if found is None:
        raise UserError(f"{out / NAME} is damaged, or of another version; choose another folder: --out DIR")
    if found != wanted:
        names = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name) and name != "request"]
        changed = [f"{name}: {found.get(name)!r} -> {wanted.get(name)!r}" for name in names]
        listing = "\n  ".join(changed or ["the order of the pictures, or more of them than this shows"])
        raise UserError(
            f"{out} holds pictures of another request:\n  {listing}\nnothing was changed; ask for the same to go on "
            "with them, or choose another folder: --out DIR"
        )
    return read_manifest(out / NAME)


def _draw_missing(
    easel: Easel, origins: Origins, paths: Sequence[Place], done: set[int], batch_size: int, credit: str
) -> None:
    with progress("drawing", len(paths), "picture", done=len(done)) as bar:
        try:
            for drawn in easel.draw(batch_size, done):
                description = describe(easel.request, drawn, origins, credit)
                save_picture(drawn.image, paths[drawn.position], description)
                if drawn.note:
                    logger.info("%s: %s", paths[drawn.position].name, drawn.note)
                bar.update()
        except KeyboardInterrupt:
            logger.warning(
                "%d of %d pictures are in %s; the same command goes on with the rest",
                *(bar.n, len(paths), paths[0].parent),
            )
            raise


def _write_grid(easel: Easel, paths: Sequence[Place], grid: Place, credit: str) -> int:
    """One row for each prompt, class or strip of frames, read back from the files; returns how many it shows."""
    numbered = enumerate(easel.request.pictures)
    groups = [(label, [i for i, _ in group]) for label, group in groupby(numbered, key=lambda entry: _row(entry[1]))]
    shown = [(label[0], positions[:_GRID_COLUMNS]) for label, positions in islice(groups, _GRID_ROWS)]
    rows = [[read_picture(paths[i])[0] for i in positions] for _, positions in shown]
    given = [easel.shown(positions[0]) for _, positions in shown]
    footer = f"first column: what is given or made from. {credit}" if any(map(len, given)) else credit
    together = [[*one, *row] for one, row in zip(given, rows, strict=True)]
    draw_grid(together, [label for label, _ in shown], grid, footer=footer)
    return sum(map(len, rows))


def _row(picture: PictureRequest) -> tuple[str, tuple[int, int] | None, tuple[str, ...]]:
    """Label of a picture's row, the noise of a strip of frames, which is a row of its own, and what it is given."""
    words = picture.prompt or picture.class_label or spec_label(picture.given)
    if not words and picture.task is not None:
        words = picture.task.words()
    if not picture.is_on_a_way:
        return words, None, picture.given
    ends = [words] if words else []
    ends += [] if picture.prompt_to is None else [picture.prompt_to]
    ends += [] if picture.seed_to is None else [f"seed {picture.seed} to {picture.seed_to}"]
    return " to ".join(ends), (picture.seed, picture.index), picture.given
