"""Decode rules on the testbed at equal bytes: `python -m kvcompress.bench.decode_rules --trials FILE`.

Long documents (:mod:`kvcompress.bench.decode_scripts`) are forced through the cache one token at a time, so that it
evicts at each step. Each prompt runs once for all policies, rules and sizes. An interrupted run goes on from its file
of trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import numpy as np
import typer

from kvcompress import Policy, make_policy
from kvcompress.analysis.intervals import bootstrap_interval, wilson_interval
from kvcompress.bench.decode_scripts import QUESTIONS, ROOM, TASKS, Script, judge, make_script
from kvcompress.bench.finished_lines import append_finished, read_finished
from kvcompress.bench.replay import Prefill, record_prefill, replay
from kvcompress.bench.results_file import RESULTS, environment, results, write_results
from kvcompress.bench.search.replayed import Memory, Remembering
from kvcompress.bench.search.trials import one_thread
from kvcompress.bench.testbed.location import load_testbed

SCHEMA: Final = "kvcompress.decode_rules/2"
RULES: Final = ("last_query", "ema", "accumulate", "keep_prompt", "position", "off")
YARDSTICK: Final = "accumulate"
CACHE_SIZES: Final = (128, 256)
WINDOW: Final = 8
_BATCH: Final = 50

Contender = tuple[str, str]  # policy, decode rule
CONTENDERS: Final[tuple[Contender, ...]] = (
    *product(("cake", "kvc"), RULES),
    ("keydiff", "stored"),  # the published policies with a rule of their own
    ("tova", "last_query"),
    ("streaming_llm", "position"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came of a policy and rule on a batch of documents.

    Attributes:
        policy: its name.
        rule: its decode rule.
        task: a key of :data:`~kvcompress.bench.decode_scripts.TASKS`.
        cache_size: tokens kept per layer and head on average.
        first: number of the first document.
        hits: of each document, of each answer, whether it was right.
        arrived: likewise, whether the fact asked for came while decoding.
        repeated: of the answers, how many at the end are to questions that were asked before.
        num_bytes: bytes held in the end, per document.
    """

    policy: str
    rule: str
    task: str
    cache_size: int
    first: int
    hits: list[list[bool]]
    arrived: list[list[bool]]
    repeated: int
    num_bytes: int

    @property
    def key(self) -> tuple[object, ...]:
        """What the trial was of."""
        return (self.policy, self.rule, self.task, self.cache_size, self.first, len(self.hits))


def policy_of(name: str, rule: str, cache_size: int) -> Policy:
    """A policy with a decode rule.

    ``keep_prompt`` has a window of slots more per row, so it is given a window less. A rule that is a policy's own is
    not named, and such a policy keeps its own window.
    """
    if name not in ("cake", "kvc"):
        return make_policy(name, cache_size=cache_size)
    size = cache_size - WINDOW if rule == "keep_prompt" else cache_size
    return make_policy(name, cache_size=size, window_size=WINDOW, decode=rule)


class Bench:
    """Runs trials and remembers them.

    Args:
        model: the testbed model.
        path: file of finished trials.
    """

    def __init__(self, model: Any, path: Path) -> None:
        self.model, self.path = model, path
        self.done = {trial.key: trial for trial in read_finished(path, lambda content: Trial(**content))}

    def run(self, task: str, documents: range, sizes: tuple[int, ...]) -> Iterator[Trial]:
        """All contenders at all sizes on a batch of documents; what is finished is not run again."""
        script: Script | None = None
        prefill: Prefill | None = None
        memory: Memory = {}
        for size, (name, rule) in product(sizes, CONTENDERS):
            key = (name, rule, task, size, documents.start, len(documents))
            if key not in self.done:
                script = script or make_script(task, documents)
                prefill = prefill or record_prefill(self.model, script.prompts)
                policy = Remembering(base=policy_of(name, rule, size), memory=memory)
                cache = replay(self.model, prefill, policy)
                trial = Trial(
                    policy=name,
                    rule=rule,
                    task=task,
                    cache_size=size,
                    first=documents.start,
                    hits=judge(self.model, cache, script).tolist(),
                    arrived=script.arrived.tolist(),
                    repeated=script.repeated,
                    num_bytes=cache.num_bytes // len(documents),
                )
                append_finished(self.path, asdict(trial))
                self.done[trial.key] = trial
            yield self.done[key]


def summarise(trials: list[Trial]) -> list[dict[str, Any]]:
    """A row per task, size, policy and rule, with the paired difference to the same policy's yardstick rule."""
    groups: dict[tuple[str, int, str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.task, trial.cache_size, trial.policy, trial.rule), []).append(trial)
    return [_row(key, found, groups.get((*key[:3], YARDSTICK))) for key, found in groups.items()]


def _row(
    key: tuple[str, int, str, str], found: list[Trial], yardstick: list[Trial] | None
) -> dict[str, Any]:  # fmt: skip
    task, size, policy, rule = key
    hits, arrived = _table(found, lambda trial: trial.hits), _table(found, lambda trial: trial.arrived)
    again = np.arange(hits.shape[1]) >= hits.shape[1] - found[0].repeated
    low, high = wilson_interval(int(hits.sum()), hits.size)
    row = {
        "task": task,
        "cache_size": size,
        "policy": policy,
        "rule": rule,
        "documents": len(hits),
        "answers": hits.size,
        "correct": int(hits.sum()),
        "accuracy": float(hits.mean()),
        "interval_95": [round(low, 4), round(high, 4)],
        "first_time": _share(hits[:, ~again]),
        "asked_again": _share(hits[:, again]),
        "of_prompt": _share(hits[~arrived]),
        "of_arrived": _share(hits[arrived]),
        "bytes_per_document": round(sum(trial.num_bytes for trial in found) / len(found)),
    }
    if yardstick is not None:
        gaps = hits.mean(1) - _table(yardstick, lambda trial: trial.hits).mean(1)
        low, high = bootstrap_interval(gaps.tolist())
        row |= {"difference": float(gaps.mean()), "difference_interval_95": [round(low, 4), round(high, 4)]}
    return row


def _table(trials: list[Trial], what: Callable[[Trial], list[list[bool]]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Bool ``[documents, answers]`` of all batches."""
    return np.array([row for trial in trials for row in what(trial)], dtype=bool)


def _share(hits: np.ndarray[Any, np.dtype[np.bool_]]) -> float | None:
    return float(hits.mean()) if hits.size else None


def main(
    trials: Annotated[Path, typer.Option(help="File of finished trials; an interrupted run goes on from it.")],
    documents: Annotated[int, typer.Option(help="Documents per task, size and rule.", min=2)] = 100,
    sizes: Annotated[str, typer.Option(help="Cache sizes, with commas.")] = ",".join(map(str, CACHE_SIZES)),
    tasks: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join(TASKS),
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "decode_rules.json",
) -> None:
    """Measure which decode rule loses least over a long decode."""
    one_thread()
    made_in = environment()
    chosen = tasks.split(",")
    if not set(chosen) <= set(TASKS):
        typer.echo(f"decode_rules: --tasks must be among {', '.join(TASKS)}; got {tasks!r}", err=True)
        raise typer.Exit(2)
    bench = Bench(load_testbed()[0], trials)
    wanted = tuple(int(size) for size in sizes.split(","))
    found: list[Trial] = []
    for start, task in product(range(0, documents, _BATCH), chosen):
        found += bench.run(task, range(start, min(start + _BATCH, documents)), wanted)
        typer.echo(f"{task}, documents from {start}")
    write_results(results(summarise(found), made_in=made_in, schema=SCHEMA, notes=_NOTES), out)


_NOTES: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "mode": f"{QUESTIONS} questions, asked twice (arriving: once), forced token by token, scored by argmax",
        "context": ROOM,
        "threads": 1,
        "window_size": WINDOW,
        "intervals": "interval_95: Wilson, over answers (those of one document are not independent); "
        f"difference: paired, to the same policy with {YARDSTICK}, bootstrap over documents",
        "unequal_bytes": "off grows while decoding and shows what eviction while decoding costs at all",
    }
)


if __name__ == "__main__":
    typer.run(main)
