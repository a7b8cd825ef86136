"""The options of the analysis commands, declared once; this module imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TEXT, _OUTPUT = "Prompt", "Output"  # the panels of kvcompress.commands.options

CaptureFolder = Annotated[
    Path, typer.Argument(help="Folder of a capture, as `kvcompress capture` writes it.", show_default=False)
]
SampleChoice = Annotated[str, typer.Option("--sample", help="Which sample: a number, or all.")]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        help="Folder to write into. Default: the capture's own.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.", rich_help_panel=_OUTPUT)]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="The text. Without one a built-in text in the model's language is used.",
        show_default=False,
        rich_help_panel=_TEXT,
    ),
]
UseWikitext = Annotated[
    bool,
    typer.Option(
        "--use-wikitext",
        help="Use an article of WikiText-2: from --prompt-file (in WikiText's form), else from the hub.",
        rich_help_panel=_TEXT,
    ),
]
WikitextIndex = Annotated[int, typer.Option(min=0, help="Which article is the first.", rich_help_panel=_TEXT)]
MaxSamples = Annotated[int, typer.Option(min=1, help="Most texts, each a sample.", rich_help_panel=_TEXT)]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Most tokens of a prompt; a longer one is cut at its end, which is said. Default: what the model's "
        "positions allow, less the new tokens.",
        show_default=False,
        rich_help_panel=_TEXT,
    ),
]
