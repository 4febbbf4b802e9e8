"""`ldm report`: its flags, and the one file that it writes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ldm_jax.errors import UserError
from ldm_jax.files.places import to_place

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Put runs side by side on one page: curves, scores with intervals, pictures, and a comparison of configurations.

    A .html holds everything and fetches nothing; a .md has its pictures in a folder beside it.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs, finished or not; gs:// and s3:// too."""
    out: str = "report.html"
    """File to write, .html or .md; what is there is replaced."""
    title: str | None = None
    """Heading; default: the names of the runs."""


def report(arguments: Sequence[str]) -> None:
    """`ldm report RUN [RUN ...] [flags]`.

    Raises:
        UserError: there is no run, one is none, or the file cannot be written.
    """
    command = tyro.cli(ReportCommand, prog="ldm report", args=list(arguments))
    out = Path(command.out)
    if not command.runs:
        raise UserError("name at least one run: ldm report RUN")
    if out.suffix not in (".html", ".md"):
        raise UserError(f"--out {out} must end in .html or .md")
    from ldm_jax.report.document import write_document
    from ldm_jax.report.gather import gather_runs
    from ldm_jax.report.sections import report_blocks

    runs = gather_runs([to_place(run) for run in command.runs])
    write_document(command.title or ", ".join(run.name for run in runs), report_blocks(runs), out)
    logger.info("%d %s in %s", len(runs), "run" if len(runs) == 1 else "runs", out)
