"""Pictures for a command line: draw what was asked for, and write each picture and one grid as PNG."""

import itertools
import logging
import re
from collections.abc import Sequence

from tqdm import tqdm

from ldm_jax.config import SamplingConfig
from ldm_jax.config.places import Place
from ldm_jax.errors import UserError
from ldm_jax.pictures import draw_grid, save_picture
from ldm_jax.sampling.session import Session

logger = logging.getLogger(__name__)

MAX_PICTURES = 100_000
"""Pictures of one call: they are all kept until the grid is drawn."""
_GRID_COLUMNS, _GRID_ROWS = 32, 64


def draw_to_files(
    session: Session,
    *,
    prompts: Sequence[str],
    class_labels: Sequence[str],
    num_samples: int,
    seed: int,
    config: SamplingConfig,
    batch_size: int,
    out: Place,
) -> list[Place]:
    """Draw `num_samples` pictures for each prompt or class (or of anything), and return the files, the grid last.

    Raises:
        UserError: prompts and classes together, a model that takes neither, a first stage alone, or a folder that
            cannot be written.
    """
    session.require_denoiser()
    if prompts and class_labels:
        raise UserError("give --prompt or --class-label, not both")
    labels = list(prompts or class_labels) or [""]
    count = num_samples * len(labels)
    if count > MAX_PICTURES:
        raise UserError(f"{count} pictures are too many for one call; draw at most {MAX_PICTURES}, with several --seed")
    asked = [label for label in labels for _ in range(num_samples)]
    if prompts:
        inputs = session.prompt_inputs(asked)
    elif class_labels:
        inputs = session.class_inputs(asked)
    else:
        inputs = session.null_inputs(num_samples)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files, pictures = [], []
        drawn = session.draw(inputs, len(asked), config, seed, batch_size)
        for i, picture in enumerate(tqdm(drawn, total=len(asked), desc="drawing", unit="picture")):
            path = _free(out / f"{_slug(asked[i])}seed{seed}_{i:04d}.png")
            description = {"prompt": asked[i], "seed": str(seed), "index": str(i), "credit": session.credit}
            save_picture(picture, path, description)
            files.append(path)
            pictures.append(picture)
        shown = min(num_samples, _GRID_COLUMNS)
        rows = [pictures[i : i + shown] for i in range(0, len(asked), num_samples)][:_GRID_ROWS]
        grid = _free(out / f"{_slug(labels[0])}seed{seed}_grid.png")
        draw_grid(rows, labels[:_GRID_ROWS], grid, footer=session.credit)
    except OSError as error:
        raise UserError(f"cannot write pictures to {out} ({error}); choose another folder: --out DIR") from error
    together = sum(map(len, rows))
    logger.info("%d pictures in %s, %s of them in %s", count, out, "all" if together == count else together, grid)
    return [*files, grid]


def _slug(text: str) -> str:
    """The words of a prompt as the beginning of a file name."""
    words = re.findall(r"\w+", text.lower())
    return "-".join(words)[:40] + "_" if words else ""


def _free(path: Place) -> Place:
    """`path`, or the same with the lowest number that makes it new: no picture is overwritten."""
    numbered = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if not p.exists())
