"""The work of ``kvcompress bench throughput``."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer

from kvcompress.commands.failures import CommandError
from kvcompress.commands.loading import Place, choose_place, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputRequest:
    """The command's options as they were given; see there."""

    model: str | None
    shape: str | None
    policies: str
    cache_sizes: str
    contexts: str
    batches: str
    new_tokens: int
    rounds: int
    device: str
    dtype: str
    cpu_time: bool
    cuda_graph: bool
    out: Path | None


def run_throughput(request: ThroughputRequest, *, as_json: bool) -> None:
    """Measures what was asked for, prints each row when it is there, and writes them.

    Args:
        request: what to measure.
        as_json: print the file's content instead of lines.

    Raises:
        CommandError: options that do not go together, or a list that holds something else than numbers.
        ValueError: an unknown policy or shape, a size out of range, or a model that does not fit.
    """
    # Read at the first use of torch's profiler, which counts memory and would write lines of its own.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from kvcompress.bench.results_file import environment, results, write_results
    from kvcompress.bench.throughput import SCHEMA, Plan, describe, measure_throughput

    plan = Plan(
        policies=tuple(name.strip() for name in request.policies.split(",") if name.strip()),
        cache_sizes=numbers("--cache-sizes", request.cache_sizes),
        contexts=numbers("--contexts", request.contexts),
        batches=numbers("--batches", request.batches),
        new_tokens=request.new_tokens,
        rounds=request.rounds,
        cuda_graph=request.cuda_graph,
    )
    place = choose_place(request.device, request.dtype)
    if request.cuda_graph and place.device.type != "cuda":
        raise CommandError(f"--cuda-graph needs a GPU; the run is on {place.device}. Leave it out.")
    if request.cpu_time and place.device.type != "cpu":
        raise CommandError(f"--cpu-time is for the CPU; the run is on {place.device}. Leave it out.")
    name, model = _model(request, place)
    if request.cpu_time:
        torch.set_num_threads(1)
    made_in = environment()
    rows: list[dict[str, Any]] = []
    for row in measure_throughput(
        model, name, plan, clock=time.process_time if request.cpu_time else time.perf_counter
    ):
        rows.append(row)
        if not as_json:
            typer.echo(describe(row))
    notes = {"clock": "processor time" if request.cpu_time else "wall time", "new_tokens": plan.new_tokens}
    content = results(rows, made_in=made_in, schema=SCHEMA, notes=notes)
    if request.out is not None:
        write_results(content, request.out)
        typer.echo(f"written: {request.out}", err=as_json)
    if as_json:
        sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")


def numbers(option: str, given: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    Args:
        option: its name, for the error.
        given: what the user gave.

    Raises:
        CommandError: anything else.
    """
    try:
        return tuple(int(part) for part in given.split(","))
    except ValueError:
        raise CommandError(
            f"{option} must be whole numbers with commas between, such as 512,1024; got {given!r}"
        ) from None


def _model(request: ThroughputRequest, place: Place) -> tuple[str, PreTrainedModel]:
    """The model to measure, and what it is called."""
    from kvcompress.bench.named_shapes import random_model

    if request.model is not None and request.shape is not None:
        raise CommandError(
            "--model and --shape exclude each other: give the model, or the shape of one. Leave one out."
        )
    if request.shape is None:
        loaded = load_model(request.model, place)
        return loaded.name, loaded.model
    dtype = place.dtype or torch.bfloat16  # None is a GPU without --dtype
    return request.shape, random_model(request.shape, place.device, dtype)
