"""``kvcompress bench sweep``, ``plot`` and ``report``: policies on tasks, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.commands import options

_GRID, _RUN = "Cells", "Run"

_Policies = Annotated[
    str,
    typer.Option(
        help="With commas; a parameter of one follows it: cake,snapkv:window_size=8,adakv:base=cake. The full cache "
        "always runs too.",
        show_default=False,
        rich_help_panel=_GRID,
    ),
]
_With = Annotated[
    str | None,
    typer.Option(
        "--with",
        help="Parameters for every policy that has them, as window_size=8:decode=accumulate.",
        show_default=False,
        rich_help_panel=_GRID,
    ),
]
_CacheSizes = Annotated[
    str | None,
    typer.Option(help="Tokens kept per layer on average, with commas.", show_default=False, rich_help_panel=_GRID),
]
_Ratios = Annotated[
    str | None,
    typer.Option(
        help="Fractions of the prompt that are REMOVED, with commas, instead of --cache-sizes or beside them.",
        show_default=False,
        rich_help_panel=_GRID,
    ),
]
_Tasks = Annotated[str, typer.Option(help="With commas: needle_8,variables_2, ...", rich_help_panel=_GRID)]
_Lengths = Annotated[str, typer.Option(help="Tokens of context and question, with commas.", rich_help_panel=_GRID)]
_Modes = Annotated[
    str,
    typer.Option(
        help="query_aware (the question is in the prompt), query_agnostic (it comes after the compression), or both "
        "with a comma.",
        rich_help_panel=_GRID,
    ),
]
_Samples = Annotated[int, typer.Option(min=1, help="Samples of each cell.", rich_help_panel=_GRID)]
_FidelitySamples = Annotated[
    int, typer.Option(min=1, help="Of them, how many KL and top-1 are measured on.", rich_help_panel=_GRID)
]
_Seed = Annotated[int, typer.Option(min=0, help="Which samples; also of policies that draw.", rich_help_panel=_GRID)]
_Out = Annotated[
    Path,
    typer.Option(help="The .jsonl file; cells that it holds already are not run again.", rich_help_panel=_RUN),
]
_BatchSize = Annotated[int, typer.Option(min=1, help="Samples at a time.", rich_help_panel=_RUN)]
_Processes = Annotated[
    int, typer.Option(min=1, help="Processes of one thread each, every one with a model.", rich_help_panel=_RUN)
]
_PromptMemory = Annotated[
    int,
    typer.Option(
        min=0,
        help="MiB in each process for prompts that further cells need not run again (on a CPU); 0: all run anew.",
        rich_help_panel=_RUN,
    ),
]
_Ray = Annotated[
    bool,
    typer.Option("--ray", help="Run on a Ray cluster: RAY_ADDRESS's, or one started here.", rich_help_panel=_RUN),
]
_RayActors = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Models on the cluster. Default: one for each GPU, or processor.",
        show_default=False,
        rich_help_panel=_RUN,
    ),
]
_Rows = Annotated[Path, typer.Argument(help="The .jsonl file of a sweep.", show_default=False)]
_Folder = Annotated[Path, typer.Option("--out", help="Folder to write into.")]


def sweep(
    policies: _Policies,
    cache_sizes: _CacheSizes = None,
    ratios: _Ratios = None,
    with_: _With = None,
    tasks: _Tasks = "needle_8,variables_2,key_value",
    lengths: _Lengths = "512",
    modes: _Modes = "query_aware,query_agnostic",
    samples: _Samples = 50,
    fidelity_samples: _FidelitySamples = 16,
    seed: _Seed = 0,
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    out: _Out = Path("rows.jsonl"),
    batch_size: _BatchSize = 16,
    processes: _Processes = 1,
    prompt_memory: _PromptMemory = 2048,
    ray: _Ray = False,
    ray_actors: _RayActors = None,
) -> None:
    """Measure policies at budgets on tasks: quality, fidelity, bytes, speed; a row per cell.

    Run the same command again after an interruption: finished cells are kept.
    """
    from kvcompress.commands.sweep_run import Request, run_sweep

    request = Request(
        policies=policies,
        shared=with_,
        cache_sizes=cache_sizes,
        ratios=ratios,
        tasks=tasks,
        lengths=lengths,
        modes=modes,
        samples=samples,
        fidelity_samples=fidelity_samples,
        seed=seed,
        model=model,
        device=device,
        dtype=dtype,
        out=out,
        batch_size=batch_size,
        processes=processes,
        prompt_bytes=prompt_memory << 20,
        ray=ray,
        ray_actors=ray_actors,
    )
    run_sweep(request)


def plot(rows: _Rows, out: _Folder = Path("plots")) -> None:
    """Draw a sweep: quality over bytes and over speed, policies by task, tokens by layer."""
    from kvcompress.commands.sweep_pages import write_plots

    write_plots(rows, out)


def report(rows: _Rows, out: _Folder = Path("report")) -> None:
    """Write a sweep up: one Markdown and one HTML page, which needs no network."""
    from kvcompress.commands.sweep_pages import write_pages

    write_pages(rows, out)
