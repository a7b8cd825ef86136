"""Options of the commands that study a cache (tucker, similarity, prune); this module imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer

_STUDY = "Study"

SequenceLength = Annotated[
    int,
    typer.Option(
        min=8,
        help="Tokens of the text whose cache is studied; a shorter text is taken whole.",
        rich_help_panel=_STUDY,
    ),
]
Steps = Annotated[
    int,
    typer.Option(min=1, help="Tokens of the text after it whose predictions are compared.", rich_help_panel=_STUDY),
]
Layers = Annotated[
    str | None,
    typer.Option(help="Of which layers, e.g. 0,2,8-11. Default: all.", show_default=False, rich_help_panel=_STUDY),
]
NoPlots = Annotated[
    bool, typer.Option("--no-plots", help="Write the numbers alone, no pictures.", rich_help_panel="Output")
]
StudySeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of random orders.", rich_help_panel=_STUDY)]
