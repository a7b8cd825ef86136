"""``kvcompress ad``: Algorithm Distillation, an agent that learns in its context, and what compressing that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.commands import options

_PLAY, _OUTPUT = "What is played", "Output"

_Model = Annotated[
    Path | None,
    typer.Option(
        help="Folder of an agent, as `kvcompress ad train` writes it (DIR/model). Default: the shipped one.",
        show_default=False,
        rich_help_panel="Model",
    ),
]
_Adapter = Annotated[
    str | None,
    typer.Option(
        help="Instead of --model: your own PyTorch model, as module:function. The function is imported from PYTHONPATH "
        "and called; it returns a ForeignModel (docs/algorithm-distillation.md).",
        show_default=False,
        rich_help_panel="Model",
    ),
]
_Episodes = Annotated[
    int,
    typer.Option(min=2, help="Episodes of 20 steps; 17 and more make over 1,000 tokens.", rich_help_panel=_PLAY),
]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of the actions drawn.", rich_help_panel=_PLAY)]
_Sets = Annotated[int, typer.Option(min=1, help="How often all 12 held-out goals are played.", rich_help_panel=_PLAY)]
_Strategies = Annotated[
    str,
    typer.Option(
        help="With commas: fixed_window (the last steps are read again), topk, pooling, or policies of the engine that "
        "evict while decoding (streaming_llm, h2o, tova, kvc, ...).",
        rich_help_panel=_PLAY,
    ),
]
_Ratios = Annotated[
    str,
    typer.Option(help="Shares of the context's 1,201 tokens that are KEPT, with commas.", rich_help_panel=_PLAY),
]
_Interval = Annotated[
    int, typer.Option(min=1, help="Steps between two compressions by topk and pooling.", rich_help_panel=_PLAY)
]
_OutputDir = Annotated[Path, typer.Option(help="Folder to write into.", show_default=False, rich_help_panel=_OUTPUT)]
_Force = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.", rich_help_panel=_OUTPUT)]

ad = typer.Typer(help="In-context reinforcement learning: an agent whose history grows, and what compressing it costs.")


@ad.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """In-context reinforcement learning: an agent whose history grows, and what compressing it costs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@ad.command()
def demo(seed: _Seed = 0, as_json: options.AsJson = False) -> None:
    """See an agent learn in its context, what it attends to, and what a compressed history costs. Under a minute."""
    from kvcompress.commands.ad_demo import run_demo

    run_demo(seed=seed, as_json=as_json)


@ad.command()
def train(
    output_dir: _OutputDir,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps. Default: the shipped model's.")] = None,
    minutes: Annotated[float, typer.Option(min=0.0, help="Stop at a checkpoint after this wall time.")] = 55.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
) -> None:
    """Train the agent on learning histories; one thread, resumable. Ends with exit code 3 where time was over."""
    from kvcompress.commands.ad_train import run_train

    run_train(output_dir, seed=seed, steps=steps, minutes=minutes, resume=resume)


@ad.command()
def evaluate(
    model: _Model = None,
    episodes: _Episodes = 20,
    sets: _Sets = 2,
    strategies: _Strategies = "fixed_window,topk,pooling,streaming_llm,h2o,kvc",
    ratios: _Ratios = "0.7,0.5,0.3,0.2",
    interval: _Interval = 10,
    seed: _Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="The JSON file to write.", show_default=False, rich_help_panel=_OUTPUT),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Play held-out goals with compressed histories, side by side with whole ones: return, time, length.

    Times are processor times of one thread. Reading the whole history again takes most of the minutes that this lasts.
    """
    from kvcompress.commands.ad_evaluate import Request, run_evaluate

    run_evaluate(
        Request(
            model=model,
            episodes=episodes,
            sets=sets,
            strategies=strategies,
            ratios=ratios,
            interval=interval,
            seed=seed,
            out=out,
            as_json=as_json,
        )
    )


@ad.command()
def analyze(
    output_dir: _OutputDir,
    model: _Model = None,
    adapter: _Adapter = None,
    goal: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=48,
            help="The goal's cell, row by row from the top left. Default: the farthest held-out one.",
            show_default=False,
            rich_help_panel=_PLAY,
        ),
    ] = None,
    episodes: _Episodes = 17,
    strategies: _Strategies = "fixed_window,topk,pooling,streaming_llm,h2o",
    ratios: _Ratios = "0.5,0.3,0.2",
    interval: _Interval = 10,
    seed: _Seed = 0,
    force: _Force = False,
) -> None:
    """Capture what an agent attends to, draw it, animate an episode, and measure what can be left out.

    Writes attention_analysis_comprehensive.png, attention_heatmap_step*.png, layer_head_analysis.png,
    learning_curve.png, episode.gif, compression_recommendations.txt and the capture itself.
    """
    from kvcompress.commands.ad_analyze import Request, run_analyze

    run_analyze(
        Request(
            model=model,
            adapter=adapter,
            goal=goal,
            episodes=episodes,
            strategies=strategies,
            ratios=ratios,
            interval=interval,
            seed=seed,
            output_dir=output_dir,
            force=force,
        )
    )
