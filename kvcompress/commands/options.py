"""The options of the commands, declared once; this module imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL, _PROMPT, _POLICY, _OUTPUT = "Model", "Prompt", "Policy", "Output"

Model = Annotated[
    str | None,
    typer.Option(
        help="Folder of a model, or its id on the Hugging Face hub. Without it the small embedded model "
        "runs, which knows only the language of `kvcompress demo`. Weights must be safetensors; code of a "
        "model is never run.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...", rich_help_panel=_MODEL),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto (the model's own on a GPU, float32 on the CPU), float32, bfloat16, float16.",
        rich_help_panel=_MODEL,
    ),
]
Prompt = Annotated[str | None, typer.Option(help="The prompt.", show_default=False, rich_help_panel=_PROMPT)]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        help="A UTF-8 file with the prompt; - reads stdin. One line break at its end is dropped.",
        show_default=False,
        rich_help_panel=_PROMPT,
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Most tokens to generate.", rich_help_panel=_PROMPT)]
Temperature = Annotated[
    float,
    typer.Option(min=0.0, help="Temperature of sampling; 0: the likeliest token.", rich_help_panel=_PROMPT),
]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Seed of sampling and of the policy `random`.", rich_help_panel=_PROMPT),
]
ExampleSeed = Annotated[int, typer.Option("--seed", min=0, help="Which set of examples.")]
Examples = Annotated[int, typer.Option(min=1, help="Examples of each task.")]
PolicyName = Annotated[
    str,
    typer.Option("--policy", help="What is kept: see `kvcompress policies`.", rich_help_panel=_POLICY),
]
CacheSize = Annotated[
    int | None,
    typer.Option(
        help="Tokens kept per layer on average. Without this and --compression-ratio: half the prompt, at most 1024.",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
CompressionRatio = Annotated[
    float | None,
    typer.Option(
        help="Instead of --cache-size: fraction of the prompt that is REMOVED, in [0, 1).",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
WindowSize = Annotated[
    int | None,
    typer.Option(
        help="Last tokens, always kept; they score the others. Default: the policy's (32 for cake).",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
SinkTokens = Annotated[
    int | None,
    typer.Option(
        help="First tokens, always kept. Default: the policy's (0 for cake, 4 for streaming_llm).",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
Tau1 = Annotated[
    float | None,
    typer.Option(
        "--tau1",
        help="cake: temperature of the entropy in a layer's share, > 0. Default 1.",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
Tau2 = Annotated[
    float | None,
    typer.Option(
        "--tau2",
        help="cake: temperature of the variance in a layer's share, > 0. Default 1.",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
Gamma = Annotated[
    float | None,
    typer.Option(
        help="cake: weight of the variance in a token's score, >= 0. Default 200.",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="cake: published tau1 and tau2 of a model, e.g. llama3.1-8b-128k; --tau1 and --tau2 win.",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="adakv, criticalkv: the policy that they change, as cake; --window-size and the like are the base's. "
        "Default snapkv.",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
Floor = Annotated[
    float | None,
    typer.Option(
        help="adakv, kvc, defensivekv: part of its equal share that every head keeps, in [0, 1].",
        show_default=False,
        rich_help_panel=_POLICY,
    ),
]
CompareFull = Annotated[
    bool,
    typer.Option(
        "--compare-full",
        help="Run with the full cache too, and tell speed, bytes, equal tokens and KL(full || compressed).",
        rich_help_panel=_OUTPUT,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout and nothing else.", rich_help_panel=_OUTPUT),
]
