"""Pictures in a folder: each written when it is drawn, so that the same request goes on where it was stopped.

manifest.json    what was asked for, and of which model: another request is refused
NAME_0000.png    picture by picture, by its position in the request; a file is there as a whole or not at all
grid.png         all of them, or the first
"""

import json
import logging
import re
from collections.abc import Sequence
from itertools import count, groupby, islice
from typing import Any

from tqdm import tqdm

from ldm_jax.data.given.shelf import spec_label
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place
from ldm_jax.pictures import draw_grid, read_picture, save_picture
from ldm_jax.sampling.description import Origins, describe
from ldm_jax.sampling.draw import Easel
from ldm_jax.sampling.request import DrawRequest, PictureRequest
from ldm_jax.training.seals import write_atomically

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
GRID = "grid.png"
_GRID_COLUMNS, _GRID_ROWS = 32, 64


def draw_to_files(easel: Easel, origins: Origins, *, out: Place, batch_size: int, credit: str = "") -> list[Place]:
    """Draw what is missing of a request in `out`, and return its files in their order, the grid last.

    Raises:
        UserError: the folder holds another request or a file in the way, or cannot be written.
    """
    request = easel.request
    paths = [out / name for name in picture_names(request)]
    _check_folder(out, paths, _manifest(request, origins))
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / MANIFEST, json.dumps(_manifest(request, origins), indent=1) + "\n")
        done = {position for position, path in enumerate(paths) if path.exists()}
        if len(done) < len(paths):
            _draw_missing(easel, origins, paths, done, batch_size, credit)
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
    manifest = _manifest(request, origins)
    candidates = (base / (name if n == 1 else f"{name}-{n}") for n in count(1))
    return next(path for path in candidates if not path.exists() or _read(path / MANIFEST) == manifest)


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


def _manifest(request: DrawRequest, origins: Origins) -> dict[str, Any]:
    asked = {**request.summary(), **{f"{name}_sha256": value for name, value in origins.checksums().items()}}
    return json.loads(json.dumps(asked))  # as it is read


def _check_folder(out: Place, paths: Sequence[Place], wanted: dict[str, Any]) -> None:
    """Refuse a folder that holds another request, or other files of these names."""
    found = _read(out / MANIFEST)
    if found is None:
        if (out / MANIFEST).exists():
            raise UserError(f"{out / MANIFEST} is damaged; choose another folder: --out DIR")
        if taken := next((path for path in (*paths, out / GRID) if path.exists()), None):
            raise UserError(f"{taken} is there already and is not overwritten; choose another folder: --out DIR")
    elif found != wanted:
        names = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name) and name != "request"]
        changed = [f"{name}: {found.get(name)!r} -> {wanted.get(name)!r}" for name in names]
        listing = "\n  ".join(changed or ["the order of the pictures, or more of them than a manifest shows"])
        raise UserError(
            f"{out} holds pictures of another request:\n  {listing}\nnothing was changed; ask for the same to go on "
            "with them, or choose another folder: --out DIR"
        )


def _read(path: Place) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _draw_missing(
    easel: Easel, origins: Origins, paths: Sequence[Place], done: set[int], batch_size: int, credit: str
) -> None:
    with tqdm(total=len(paths), initial=len(done), desc="drawing", unit="picture") as bar:
        try:
            for drawn in easel.draw(batch_size, done):
                description = describe(easel.request, drawn, origins, credit)
                save_picture(drawn.image, paths[drawn.position], description)
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
    footer = f"first column: what is given. {credit}" if any(map(len, given)) else credit
    together = [[*one, *row] for one, row in zip(given, rows, strict=True)]
    draw_grid(together, [label for label, _ in shown], grid, footer=footer)
    return sum(map(len, rows))


def _row(picture: PictureRequest) -> tuple[str, int | None, tuple[str, ...]]:
    """Label of a picture's row, the noise of a strip of frames, which is a row of its own, and what it is given."""
    if picture.prompt_to is not None:
        return f"{picture.prompt} → {picture.prompt_to}", picture.index, picture.given
    return picture.prompt or picture.class_label or spec_label(picture.given), None, picture.given
