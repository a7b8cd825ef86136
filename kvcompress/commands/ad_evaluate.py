"""The work of ``kvcompress ad evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvcompress.commands.ad_strategies import load_agent, one_thread, parse_strategies, table
from kvcompress.commands.counting import counting
from kvcompress.commands.failures import CommandError
from kvcompress.commands.result_files import print_json

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    model: Path | None
    episodes: int
    sets: int
    strategies: str
    ratios: str
    interval: int
    seed: int
    out: Path | None
    as_json: bool


def run_evaluate(request: Request) -> None:
    """Plays, prints the table and writes the file.

    Raises:
        CommandError: something that was given cannot be used.
        ValueError: likewise.
    """
    strategies = parse_strategies(request.strategies, request.ratios, request.interval)
    model = load_agent(request.model)
    _check_length(model, request.episodes)
    if request.out is not None and not request.out.parent.is_dir():
        raise CommandError(f"--out must be a file in a folder that is there; got {request.out}")
    with one_thread():
        content = measured(model, strategies, request.episodes, request.sets, request.seed)
    if request.out is not None:
        from kvcompress.bench.results_file import write_results

        try:
            write_results(content, request.out)
        except OSError as error:
            raise CommandError(f"--out must be a file that can be written; got {request.out} ({error})") from error
    if request.as_json:
        print_json(content)
        return
    for line in table(content["cases"]):
        typer.echo(line)
    typer.echo(content["note"])
    if request.out is not None:
        typer.echo(f"written: {request.out}")


def measured(
    model: LlamaForCausalLM, strategies: Sequence[Strategy], episodes: int, sets: int, seed: int
) -> dict[str, Any]:
    """Plays all sets, with a bar on the terminal; see ``measure_compression`` of the workload."""
    from kvcompress.bench.workloads.algorithm_distillation.darkroom import EPISODE_STEPS
    from kvcompress.bench.workloads.algorithm_distillation.measure import measure_compression

    with counting("steps", sets * episodes * EPISODE_STEPS) as advance:
        return measure_compression(model, strategies, episodes, sets, seed=seed, advance=advance)


def _check_length(model: LlamaForCausalLM, episodes: int) -> None:
    from kvcompress.bench.workloads.algorithm_distillation.history_length import check_length
    from kvcompress.bench.workloads.algorithm_distillation.vocabulary import EPISODE_TOKENS

    check_length(model, episodes * EPISODE_TOKENS)
