"""The search for `kvc`, and its judgement: `python -m kvcompress.bench.policy_search search|judge`.

Both go on from their file of trials when they were interrupted, and give the same result as in one go.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from kvcompress.bench.results_file import RESULTS, environment, results, write_results
from kvcompress.bench.search.halving import STAGES, TASKS, Ranked, search
from kvcompress.bench.search.judging import CELLS, CONTENDERS, parts_of, summarise
from kvcompress.bench.search.trials import Bench, Trial, one_thread
from kvcompress.bench.testbed.location import load_testbed

SEARCH_SCHEMA: Final = "kvcompress.policy_search/1"
JUDGE_SCHEMA: Final = "kvcompress.policy_judgement/1"
_SHOWN = 8  # places of each stage that go into the result

app = typer.Typer(add_completion=False, no_args_is_help=True)
Trials = Annotated[Path, typer.Option(help="File of finished trials; an interrupted run goes on from it.")]


@app.command("search")
def search_command(
    trials: Trials,
    seed: Annotated[int, typer.Option(help="Of the places that are drawn at random.")] = 0,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "policy_search.json",
) -> None:
    """Search scorers, allocators and windows on the training tasks."""
    one_thread()
    made_in = environment()
    cases: list[dict[str, Any]] = []

    def report(number: int, ranked: list[Ranked]) -> None:
        stage = STAGES[number]
        typer.echo(f"stage {number + 1} of {len(STAGES)}: {len(ranked)} places, {stage.samples} samples a cell")
        for place, one in enumerate(ranked[:_SHOWN], start=1):
            typer.echo(f"  {one.score:.4f}  {one.point}")
            own = {"stage": number + 1, "places": len(ranked), "samples": stage.samples, "rank": place}
            cases.append({**own, "of_full": round(one.score, 4), **asdict(one.point)})

    search(Bench(*load_testbed(), trials), STAGES, seed, report)
    notes = {"seed": seed, "tasks": TASKS, "of_full": "mean over cells of score / score with the full cache"}
    write_results(results(cases, made_in=made_in, schema=SEARCH_SCHEMA, notes=notes), out)


@app.command("judge")
def judge_command(
    trials: Trials,
    samples: Annotated[int, typer.Option(help="Samples of each cell.", min=2)] = 100,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "policy_judgement.json",
) -> None:
    """Judge kvc against the published policies on other tasks, lengths and samples."""
    one_thread()
    made_in = environment()
    bench = Bench(*load_testbed(), trials)
    found: list[Trial] = []
    parts = list(parts_of(samples))
    for number, part in enumerate(parts, start=1):
        found += bench.run(part, CONTENDERS)
        typer.echo(f"{number} of {len(parts)}: {part.task}, {part.length}, {part.mode}, from {part.first}")
    cases = summarise(found)
    notes = {
        "cells": [f"{task}, {length}" for task, length in CELLS],
        "policies": {name: repr(make(64)).replace("cache_size=64, ", "") for name, make in CONTENDERS.items()},
    }
    write_results(results(cases, made_in=made_in, schema=JUDGE_SCHEMA, notes=notes), out)


if __name__ == "__main__":
    app()
