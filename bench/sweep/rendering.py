"""A page as Markdown, or as HTML that needs no other file and no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from kvcompress.bench.table_format import markdown

Mark = Literal["", "best", "level"]

_CSS: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #1b1b1b; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; } h3 { font-size: 1.05em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; margin: .8em 0; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #888; } .text { text-align: left; }
.best { font-weight: 700; background: #dcecf7; } .level { background: #eef6fb; }
img { max-width: 100%; height: auto; } code { font-size: .92em; }
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #e4e4e4; } th, td { border-color: #444; }
  .best { background: #1d4766; } .level { background: #1a2c3a; } img { background: #fff; border-radius: 4px; }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A heading of level 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A table's cell; the best ones are marked, as are those that cannot be told from the best."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table whose first ``texts`` columns hold words."""

    header: Sequence[str]
    rows: Sequence[Sequence[Value]]
    texts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG file, and what it shows."""

    path: Path
    alt: str


Block = Heading | Paragraph | Table | Picture


def as_markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures are named relative to it and must lie beside it."""
    return "\n".join(_markdown_block(block) for block in blocks)


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The page as HTML, pictures inside it."""
    body = "\n".join(_html_block(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}\n"
    if isinstance(block, Paragraph):
        return f"{_plain(block.text)}\n"
    if isinstance(block, Picture):
        return f"![{_plain(block.alt)}]({block.path.name})\n"
    rows = [[_marked(value) for value in row] for row in block.rows]
    return markdown([_plain(text) for text in block.header], rows, texts=block.texts)


def _marked(value: Value) -> str:
    text = _plain(value.text)
    return f"**{text}**" if value.mark == "best" else f"{text} ≈" if value.mark == "level" else text


def _plain(text: str) -> str:
    """A text that Markdown shows as it is: names come from files and may hold anything."""
    text = " ".join(html.escape(text, quote=False).split())
    for special in "\\`*_|":
        text = text.replace(special, f"\\{special}")
    return text


def _html_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.path.read_bytes()).decode()
        return f'<p><img src="data:image/png;base64,{data}" alt="{html.escape(block.alt)}"></p>'
    head = _html_row("th", [Value(text=text) for text in block.header], block.texts)
    rows = "\n".join(_html_row("td", row, block.texts) for row in block.rows)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _html_row(tag: str, values: Sequence[Value], texts: int) -> str:
    cells = []
    for place, value in enumerate(values):
        classes = " ".join(filter(None, ("text" if place < texts else "", value.mark)))
        attribute = f' class="{classes}"' if classes else ""
        cells.append(f"<{tag}{attribute}>{html.escape(value.text)}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>"
