"""Decode rules on the testbed at equal bytes: `python -m kvcompress.bench.decode_rules`.

Two kinds of documents, both forced through the cache one token at a time, so that it evicts at each step:

* asked again: a prompt holds many facts and one question; then come the answer, the next question, its answer and so
  on, and all questions a second time. The first answer, which the prefill was scored for, doesn't count;
* arriving: the prompt is the first part of a text with facts; the rest of it comes while decoding, then the questions.

An answer counts as right if the model's best guess is right for every one of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer

from kvcompress import Cake
from kvcompress.analysis.intervals import bootstrap_interval, wilson_interval
from kvcompress.bench.replay import next_logits, record_prefill, replay
from kvcompress.bench.results_file import RESULTS, environment, results, write_results
from kvcompress.bench.testbed.documents import Document, Question, needles, pairs, variables
from kvcompress.bench.testbed.location import MODEL_DIR, load_testbed
from kvcompress.bench.testbed.vocabulary import BOS_ID, EOS_ID

SCHEMA: Final = "kvcompress.decode_rules/1"
RULES: Final = ("last_query", "ema", "accumulate", "keep_prompt", "position", "off")
YARDSTICK: Final = "last_query"
QUESTIONS: Final = 8
ROOM: Final = 512  # ids of the context
CACHE_SIZES: Final = (128, 256)
WINDOW: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A kind of document.

    Attributes:
        build: makes one from (rng, room for the context in ids, number of questions).
        passes: how often each question is asked.
        arriving: ids at the context's end that come while decoding; with any, the prompt ends without a question.
    """

    build: Callable[[Random, int, int], Document]
    passes: int = 2
    arriving: int = 0


TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        "needles": Task(build=partial(needles, keys=QUESTIONS)),
        "variables": Task(build=partial(variables, hops=2, chains=QUESTIONS)),
        "key_value": Task(build=pairs),
        "needles_arriving": Task(build=partial(needles, keys=QUESTIONS), passes=1, arriving=192),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A batch of long decodes.

    Attributes:
        prompts: int64 ``[documents, tokens]``, context and first question.
        forced: int64 ``[documents, steps]``, what follows.
        spans: of each answer that counts, where it lies in ``forced``: (start, end).
        arrived: bool ``[documents, answers]``, whether the fact asked for came while decoding.
    """

    prompts: torch.Tensor
    forced: torch.Tensor
    spans: tuple[tuple[int, int], ...]
    arrived: torch.Tensor


def make_script(task: str, documents: range, *, room: int = ROOM, asked: int = QUESTIONS) -> Script:
    """The documents of a task, fixed by their numbers; all of one task have the same lengths."""
    spec = TASKS[task]
    prompts, forced, arrived = [], [], []
    spans: list[tuple[int, int]] = []
    for index in documents:
        document = spec.build(Random(f"decode_rules:{task}:{room}:{index}"), room, asked)
        questions = document.questions * spec.passes
        ids = [BOS_ID, *document.context]
        spans = []
        for question in questions:
            ids += question.ids
            spans.append((len(ids), len(ids) + len(question.answer)))
            ids += [*question.answer, EOS_ID]
        start = spans.pop(0)[0] if spec.arriving == 0 else 1 + room - spec.arriving
        spans = [(a - start, b - start) for a, b in spans]
        asked_for = questions[len(questions) - len(spans) :]
        arrived.append([spec.arriving > 0 and _end_of_fact(ids, question) > start for question in asked_for])
        prompts.append(ids[:start])
        forced.append(ids[start:])
    return Script(
        prompts=torch.tensor(prompts),
        forced=torch.tensor(forced),
        spans=tuple(spans),
        arrived=torch.tensor(arrived),
    )


def _end_of_fact(ids: list[int], question: Question) -> int:
    """Where the needle that answers a question ends; the question and its answer repeat it word for word."""
    fact = [*question.ids[1:], *question.answer]
    return next(n for n in range(len(fact), len(ids) + 1) if ids[n - len(fact) : n] == fact)


def policy_of(rule: str, cache_size: int) -> Cake:
    """Cake with a decode rule. ``keep_prompt`` has a window of slots more per row, so it is given a window less."""
    size = cache_size - WINDOW if rule == "keep_prompt" else cache_size
    return Cake(cache_size=size, window_size=WINDOW, decode=rule)


def judge(model: Any, cache: Any, script: Script) -> torch.Tensor:
    """Forces the script through a prefilled cache: bool ``[documents, answers]``."""
    steps = script.spans[-1][1] - 1
    guesses = [next_logits(model, cache, script.forced[:, step]).argmax(-1) for step in range(steps)]
    guessed = torch.stack(guesses, dim=1)  # the guess after step i is of token i + 1
    hits = [(guessed[:, a - 1 : b - 1] == script.forced[:, a:b]).all(1) for a, b in script.spans]
    return torch.stack(hits, dim=1)


def run_rule(folder: Path, task: str, size: int, rule: str, documents: int) -> dict[str, Any]:
    """One cell: a task under one rule at one cache size."""
    torch.set_num_threads(1)
    model, _ = load_testbed(folder=folder)
    script = make_script(task, range(documents))
    cache = replay(model, record_prefill(model, script.prompts), policy_of(rule, size))
    hits = judge(model, cache, script)
    repeated = QUESTIONS if TASKS[task].passes > 1 else 0
    low, high = wilson_interval(int(hits.sum()), hits.numel())
    return {
        "task": task,
        "cache_size": size,
        "rule": rule,
        "documents": documents,
        "answers": hits.numel(),
        "correct": int(hits.sum()),
        "accuracy": float(hits.double().mean()),
        "interval_95": [round(low, 4), round(high, 4)],
        "first_time": _share(hits[:, : len(script.spans) - repeated]),
        "asked_again": _share(hits[:, len(script.spans) - repeated :]),
        "of_prompt": _share(hits[~script.arrived]),
        "of_arrived": _share(hits[script.arrived]),
        "bytes_per_document": cache.num_bytes // documents,
        "by_document": hits.sum(1).tolist(),
    }


def _share(hits: torch.Tensor) -> float | None:
    return float(hits.double().mean()) if hits.numel() else None


def add_differences(cells: list[dict[str, Any]]) -> None:
    """Adds to each cell its paired difference to the yardstick rule, with a bootstrap interval over documents."""
    generator = np.random.default_rng(0)
    base = {(c["task"], c["cache_size"]): np.array(c["by_document"]) for c in cells if c["rule"] == YARDSTICK}
    for cell in cells:
        each = cell["answers"] / cell["documents"]
        gaps = (np.array(cell.pop("by_document")) - base[cell["task"], cell["cache_size"]]) / each
        low, high = bootstrap_interval(gaps, generator)
        cell["difference"] = float(gaps.mean())
        cell["difference_interval_95"] = [round(low, 4), round(high, 4)]


def compare_rules(folder: Path, *, documents: int, sizes: tuple[int, ...] = CACHE_SIZES) -> list[dict[str, Any]]:
    """Measures every task, size and rule, in two processes of one thread each.

    Args:
        folder: the testbed model's folder.
        documents: documents per cell; the same ones for every rule.
        sizes: tokens kept per layer and head on average.
    """
    jobs = list(product(TASKS, sizes, RULES))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_rule, folder, task, size, rule, documents) for task, size, rule in jobs]
        cells = [future.result() for future in futures]
    add_differences(cells)
    return cells


def main(
    model: Annotated[Path, typer.Option(help="Folder of the testbed model.")] = MODEL_DIR,
    documents: Annotated[int, typer.Option(help="Documents per task, size and rule.")] = 100,
    sizes: Annotated[str, typer.Option(help="Cache sizes, with commas.")] = ",".join(map(str, CACHE_SIZES)),
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "decode_rules.json",
) -> None:
    """Measure which decode rule loses least over a long decode."""
    made_in = environment()
    cells = compare_rules(model, documents=documents, sizes=tuple(int(size) for size in sizes.split(",")))
    notes = {
        "mode": f"{QUESTIONS} questions, asked twice (arriving: once), forced token by token, scored by argmax",
        "context": ROOM,
        "threads": 1,  # of each process
        "window_size": WINDOW,
        "intervals": "interval_95: Wilson, over answers (those of one document are not independent); "
        f"difference: paired, to {YARDSTICK}, bootstrap over documents",
        "unequal_bytes": "off grows while decoding and shows what eviction while decoding costs at all",
    }
    write_results(results(cells, made_in=made_in, schema=SCHEMA, notes=notes), out)
    for cell in cells:
        typer.echo(
            f"{cell['task']:16} {cell['cache_size']:4} {cell['rule']:12} {100 * cell['accuracy']:5.1f} % "
            f"(of arrived facts {'-' if cell['of_arrived'] is None else round(100 * cell['of_arrived'])})  difference "
            f"{100 * cell['difference']:+5.1f} {cell['difference_interval_95']}  "
            f"{cell['bytes_per_document'] / 1024:.0f} KiB"
        )


if __name__ == "__main__":
    typer.run(main)
