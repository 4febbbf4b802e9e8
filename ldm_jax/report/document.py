"""A document of headings, paragraphs, tables and pictures, written as one HTML file or as Markdown with its pictures.

HTML holds everything: pictures are part of it, and nothing is fetched. Markdown has its pictures in a folder beside it,
for what shows Markdown shows no pictures that are part of it.
"""

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ldm_jax.errors import UserError


@dataclass(frozen=True)
class Heading:
    """A heading of a level from 1 on."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A line of text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells below a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A picture in the bytes of its file."""

    name: str
    """Of its file, with its suffix: .png or .svg."""
    content: bytes
    caption: str


@dataclass(frozen=True)
class Folded:
    """Text as it is, shown when it is asked for."""

    title: str
    text: str


Block: TypeAlias = Heading | Paragraph | Table | Picture | Folded

_MIME = {".png": "image/png", ".svg": "image/svg+xml"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1200px }
body { margin: 2em auto; padding: 0 1em }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em } h2 { border-bottom: 1px solid #ddd; padding-bottom: .2em }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .5em 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .25em .8em .25em 0; text-align: left; vertical-align: top }
th { background: #f6f6f6 } figure { display: inline-block; margin: .5em 1em .5em 0; vertical-align: top }
figure img { max-width: 100%; height: auto } figcaption { color: #666; font-size: 13px }
pre { overflow-x: auto; font-size: 12px }
""".strip()
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_document(title: str, blocks: Sequence[Block], file: Path) -> None:
    """Write a document whole or not at all, as HTML or Markdown by its suffix.

    Raises:
        UserError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = as_html(title, blocks) if file.suffix == ".html" else as_markdown(title, blocks, _keeper(file))
        temporary = file.with_name(f"{file.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error}); choose another file: --out FILE") from error


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """One page with everything in it."""
    body = "\n".join(_html(block) for block in (Heading(title, 1), *blocks))
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body)


def as_markdown(title: str, blocks: Sequence[Block], keep: Callable[[Picture], str]) -> str:
    """The text; `keep` is given each picture and tells the path that leads to it."""
    return "\n\n".join(_markdown(block, keep) for block in (Heading(title, 1), *blocks)) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Table(head, rows):
            top = _row("th", head)
            return (
                f'<div class="wide"><table>\n{top}\n' + "\n".join(_row("td", row) for row in rows) + "\n</table></div>"
            )
        case Picture(name, content, caption):
            data, caption = base64.b64encode(content).decode(), html.escape(caption)
            source = f"data:{_MIME[Path(name).suffix]};base64,{data}"
            return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        case Folded(title, text):
            return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _markdown(block: Block, keep: Callable[[Picture], str]) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Table(head, rows):
            lines = [head, ["---"] * len(head), *rows]
            return "\n".join(
                "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in row) + " |" for row in lines
            )
        case Picture(_, _, caption):
            return f"![{_plain(caption)}]({keep(block)})\n\n*{_plain(caption)}*"
        case Folded(title, text):
            return f"<details><summary>{html.escape(title)}</summary>\n\n```\n{text}\n```\n\n</details>"


def _plain(text: str) -> str:
    """One line, in which nothing is markup."""
    return " ".join(html.escape(text, quote=False).replace("*", "\\*").replace("_", "\\_").split())


def _keeper(file: Path) -> Callable[[Picture], str]:
    folder = file.with_name(f"{file.stem}_files")

    def keep(picture: Picture) -> str:
        folder.mkdir(exist_ok=True)
        (folder / picture.name).write_bytes(picture.content)
        return f"{folder.name}/{picture.name}".replace(" ", "%20")

    return keep
