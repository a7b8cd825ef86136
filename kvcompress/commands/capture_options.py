"""The options of ``capture`` and ``run`` alone, declared once; this module imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

_MODEL, _POLICY, _STORED, _OUTPUT = "Model", "Policy", "What is stored", "Output"

DEFAULT_FOLDER: Final = Path("capture")

Model = Annotated[
    str | None,
    typer.Option(
        help="Folder of a model, its id on the Hugging Face hub, or one of the names llama2-7b-chat-4k, "
        "llama2-13b-chat-4k, llama3.1-8b-128k, mistral-0.3-7b-32k, qwen2.5-7b-instruct, which bring CAKE's published "
        "preset along. Without it the small embedded model runs, which knows only the language of `kvcompress demo`.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
Compress = Annotated[
    bool,
    typer.Option(
        "--compress/--no-compress",
        help="Whether the model runs with a compressed cache; without, it runs with the full one.",
        rich_help_panel=_POLICY,
    ),
]
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="What is kept: see `kvcompress policies`. Default: cake. Needs --compress, as all of this panel do.",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="cake: published tau1 and tau2 of a model; --tau1 and --tau2 win. Default: that of a --model given by its "
        "short name.",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
MaxQueries = Annotated[
    int,
    typer.Option(
        min=1,
        help="Most tokens of a block whose attention is reduced, evenly spaced; statistics are means over them.",
        rich_help_panel=_STORED,
    ),
]
SaveAttention = Annotated[
    bool,
    typer.Option(
        "--save-attention",
        help="Store raw attention too, which grows with the square of the length; its size is told first.",
        rich_help_panel=_STORED,
    ),
]
SaveLayers = Annotated[
    str | None,
    typer.Option(help="Of which layers, e.g. 0,2,8-11. Default: all.", show_default=False, rich_help_panel=_STORED),
]
SaveHeads = Annotated[
    str | None,
    typer.Option(help="Of which query heads, e.g. 0-3. Default: all.", show_default=False, rich_help_panel=_STORED),
]
SaveMaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Passes that see more tokens are left out. Default: 1024.",
        show_default=False,
        rich_help_panel=_STORED,
    ),
]
SaveKv = Annotated[
    bool,
    typer.Option("--save-kv", help="Store the keys and values of the first block too.", rich_help_panel=_STORED),
]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Folder to write into.", rich_help_panel=_OUTPUT)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite samples that are there.", rich_help_panel=_OUTPUT)]
