"""Policies on the testbed at small budgets: `python -m kvcompress.bench.policies_at_small_budgets`.

Query-aware: the question ends the prompt. The first answer token then comes from the uncompressed prefill, so every
task here has answers of several tokens, and all must be right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import torch
import typer

from kvcompress import Cake, CompressedCache, Full, Policy, Random, SnapKV, StreamingLLM
from kvcompress.analysis.intervals import wilson_interval
from kvcompress.bench.replay import next_logits, record_prefill, replay
from kvcompress.bench.results_file import RESULTS, environment, results, write_results
from kvcompress.bench.testbed.location import MODEL_DIR, load_testbed
from kvcompress.bench.testbed.tasks import Example, is_correct, make_example

SCHEMA: Final = "kvcompress.policies_small_budgets/1"
TASKS: Final = ("needle_1", "needle_8", "variables_2", "variables_4", "key_value", "multi_value")
CACHE_SIZES: Final = (48, 96, 192)
LENGTH: Final = 1024
WINDOW: Final = 8  # a window longer than the question (3 to 6 ids here) scores by what nobody asked

# SnapKV as published grows while decoding; with "accumulate" it holds what the others hold.
POLICIES: Final[Mapping[str, Callable[[int], Policy]]] = MappingProxyType(
    {
        "cake": lambda size: Cake(cache_size=size, window_size=WINDOW),
        "snapkv": lambda size: SnapKV(cache_size=size, window_size=WINDOW, decode="accumulate"),
        "streaming_llm": lambda size: StreamingLLM(cache_size=size),
        "random": lambda size: Random(cache_size=size, window_size=WINDOW),
    }
)


def answer(model: Any, cache: CompressedCache, first: torch.Tensor, count: int) -> list[list[int]]:
    """Decodes greedily: ``count`` ids per sequence, the first of them given (int64 ``[batch]``)."""
    ids = [first]
    while len(ids) < count:
        ids.append(next_logits(model, cache, ids[-1]).argmax(-1))
    rows: list[list[int]] = torch.stack(ids, dim=1).tolist()
    return rows


def judge_batch(
    folder: Path, task: str, length: int, sizes: tuple[int, ...], first: int, last: int
) -> list[dict[str, Any]]:
    """Runs the examples ``first`` to ``last`` of a task under every policy; one row per policy and cache size."""
    torch.set_num_threads(1)
    model, _ = load_testbed(folder=folder)
    examples = [make_example(task, length, index=index) for index in range(first, last)]
    prefill = record_prefill(model, torch.tensor([example.prompt_ids for example in examples]))
    runs: list[tuple[str, int | None, Policy]] = [("full", None, Full())]
    runs += [(name, size, POLICIES[name](size)) for size, name in product(sizes, POLICIES)]
    rows = []
    for name, size, policy in runs:
        cache = replay(model, prefill, policy)
        ids = answer(model, cache, prefill.logits.argmax(-1), len(examples[0].answer_ids))
        rows.append(
            {
                "task": task,
                "length": length,
                "policy": name,
                "cache_size": size,
                "samples": len(examples),
                "correct": _count_correct(examples, ids),
                "num_bytes": prefill.full_bytes if size is None else cache.num_bytes,
                "full_bytes": prefill.full_bytes,
            }
        )
    return rows


def _count_correct(examples: list[Example], ids: list[list[int]]) -> int:
    return sum(is_correct(example, row) for example, row in zip(examples, ids, strict=True))


def merge(parts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Adds up the batches of each cell; bytes become bytes per sample."""
    cells: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in (row for part in parts for row in part):
        key = (row["task"], row["length"], row["policy"], row["cache_size"])
        if key not in cells:
            cells[key] = dict(row)
            continue
        for name in ("samples", "correct", "num_bytes", "full_bytes"):
            cells[key][name] += row[name]
    for cell in cells.values():
        low, high = wilson_interval(cell["correct"], cell["samples"])
        cell["exact_match"] = cell["correct"] / cell["samples"]
        cell["interval_95"] = [round(low, 4), round(high, 4)]
        for name in ("num_bytes", "full_bytes"):
            cell[name] = round(cell[name] / cell["samples"])
    return list(cells.values())


def compare_policies(
    folder: Path, *, samples: int, length: int = LENGTH, sizes: tuple[int, ...] = CACHE_SIZES, batch: int = 50
) -> list[dict[str, Any]]:
    """Measures every task, policy and cache size in two processes of one thread each.

    Args:
        folder: the testbed model's folder.
        samples: examples of each task.
        length: ids of each prompt.
        sizes: tokens kept per layer and head on average.
        batch: prompts at a time.
    """
    starts = range(0, samples, batch)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(judge_batch, folder, task, length, sizes, start, min(start + batch, samples))
            for task in TASKS
            for start in starts
        ]
        return merge([future.result() for future in futures])


def main(
    model: Annotated[Path, typer.Option(help="Folder of the testbed model.")] = MODEL_DIR,
    samples: Annotated[int, typer.Option(help="Examples per task.")] = 100,
    length: Annotated[int, typer.Option(help="Ids of each prompt.")] = LENGTH,
    sizes: Annotated[str, typer.Option(help="Cache sizes, with commas.")] = ",".join(map(str, CACHE_SIZES)),
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "policies_small_budgets.json",
) -> None:
    """Measure how much of the testbed's tasks each policy keeps at small budgets."""
    made_in = environment()
    wanted = tuple(int(size) for size in sizes.split(","))
    cells = compare_policies(model, samples=samples, length=length, sizes=wanted)
    notes = {
        "mode": "query-aware: the question ends the prompt; the first answer token comes from the uncompressed prefill",
        "window_size": WINDOW,
        "threads": 1,  # of each process
        "bytes": "bytes held per sample, bookkeeping included",
    }
    write_results(results(cells, made_in=made_in, schema=SCHEMA, notes=notes), out)
    for cell in cells:
        typer.echo(
            f"{cell['task']:12} {cell['policy']:14} {cell['cache_size'] or 'all':>5} "
            f"{100 * cell['exact_match']:5.1f} %  {cell['interval_95']}  {cell['num_bytes'] / 1024:.0f} KiB"
        )


if __name__ == "__main__":
    typer.run(main)
