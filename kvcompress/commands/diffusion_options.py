"""The options of ``kvcompress diffusion``, declared once; this module imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL, _SAMPLER, _CACHE, _OUTPUT = "Model", "Sampler", "Cache", "Output"

Model = Annotated[
    str | None,
    typer.Option(
        help="Folder of a masked language model, or its id on the Hugging Face hub. Without it the small embedded one "
        "runs, which can only add. Weights must be safetensors; code of a model is never run.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
GenLength = Annotated[
    int,
    typer.Option(min=1, help="Tokens to generate, a multiple of --block-length.", rich_help_panel=_SAMPLER),
]
Steps = Annotated[
    int,
    typer.Option(
        min=1,
        help="Passes of the model, a multiple of the number of blocks, at most --gen-length.",
        rich_help_panel=_SAMPLER,
    ),
]
BlockLength = Annotated[
    int, typer.Option(min=1, help="Tokens of a block; blocks are filled from left to right.", rich_help_panel=_SAMPLER)
]
Temperature = Annotated[
    float,
    typer.Option(min=0.0, help="Temperature of the noise; 0: the likeliest token.", rich_help_panel=_SAMPLER),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the noise and of the built-in sum.", rich_help_panel=_SAMPLER)]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        help="Cache keys and values of all but the block in hand, or compute everything in every step.",
        rich_help_panel=_CACHE,
    ),
]
Keep = Annotated[
    float,
    typer.Option(help="With --cache: share of other tokens that each head keeps, in (0, 1].", rich_help_panel=_CACHE),
]
RefreshEvery = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --cache: steps from one refresh to the next within a block. Default: once a block.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
VisualizeAttention = Annotated[
    bool,
    typer.Option(
        "--visualize-attention",
        help="Record every step's attention into --output-dir, and draw it. Not with --cache, whose steps do not "
        "compute it.",
        rich_help_panel=_OUTPUT,
    ),
]
SaveHistory = Annotated[
    bool,
    typer.Option(
        "--save-history",
        help="Keep each step's text and attention maps (mean over heads), for `kvcompress diffusion analyze`. Not with "
        "--cache.",
        rich_help_panel=_OUTPUT,
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option("--output-dir", help="Folder to write into.", show_default=False, rich_help_panel=_OUTPUT),
]
MaxLayers = Annotated[
    int | None,
    typer.Option(min=1, help="Most layers, evenly spaced. Default: all.", show_default=False),
]
HistoryFolder = Annotated[
    Path,
    typer.Argument(help="Folder that `kvcompress diffusion generate --save-history` wrote.", show_default=False),
]
PromptLength = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of the prompt. Default: as recorded.", show_default=False),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=2, help="Most tokens, those around the prompt's end. Default: all.", show_default=False),
]
