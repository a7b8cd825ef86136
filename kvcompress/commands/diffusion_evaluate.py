"""The work of ``kvcompress diffusion evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from transformers.utils import logging as transformers_logging

from kvcompress.commands.failures import CommandError
from kvcompress.commands.result_files import claim, print_json
from kvcompress.commands.throughput import numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """The command's options as they were given; see there."""

    model: Path | None
    sums: int
    steps: str
    rounds: int
    output_dir: Path | None
    force: bool


def run_evaluate(request: EvaluateRequest, *, as_json: bool) -> None:
    """Measures, tells each row as it is there, and writes both files where a folder is given.

    Raises:
        CommandError: files are in the way, or there is no model.
        ValueError: a number out of range.
    """
    from kvcompress.bench.results_file import write_results
    from kvcompress.bench.workloads.diffusion_lm import evaluate, location

    transformers_logging.disable_progress_bar()
    plan = evaluate.Plan(sums=request.sums, steps=numbers("--steps", request.steps), rounds=request.rounds)
    folder = request.model or location.MODEL_DIR
    log = location.TRAINING_LOG_FILE if request.model is None else folder.parent / location.TRAINING_LOG_FILE.name
    if not (folder / "model.safetensors").is_file():
        raise CommandError(
            f"--model must be a folder that `kvcompress diffusion train` wrote; {folder} has no model.safetensors. "
            "Give its folder `model`."
        )
    paths: list[Path] = []
    if request.output_dir is not None:
        if not log.is_file():
            raise CommandError(f"--output-dir needs the training's log beside the model; there is no {log}.")
        paths = claim(request.output_dir, [evaluate.TRAINING_FILE, evaluate.CACHING_FILE], force=request.force)
    caching = evaluate.measure_caching(plan, folder, told=lambda row: None if as_json else typer.echo(_line(row)))
    if paths:
        write_results(evaluate.training_results(log, folder), paths[0])
        write_results(caching, paths[1])
    if as_json:
        print_json(caching)
    for path in paths:
        typer.echo(f"written: {path}", err=as_json)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['steps']:3d} steps, {row['cache']:18s} {100 * row['exact_match']:5.1f} % of sums right, "
        f"{100 * row['tokens_as_uncached']:5.1f} % of digits as uncached, {row['median'] / 1e3:6.2f} s, "
        f"{1 / row['ratio']:4.1f} times as fast"
    )
