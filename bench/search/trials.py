"""Trials: a contender at one budget on one batch of samples. One line of JSON each, so that a run can go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from kvcompress.bench.finished_lines import append_finished, read_finished
from kvcompress.bench.search.replayed import Batch
from kvcompress.bench.tasks.registry import make_task
from kvcompress.policies.base import Policy

FULL: Final = "full"
MakePolicy = Callable[[int], Policy]  # from a cache size


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A batch of samples, and the budgets at which it is answered.

    Attributes:
        task: a key of :data:`~kvcompress.bench.tasks.registry.TASKS`.
        length: tokens of context and first question.
        mode: ``"query_aware"`` or ``"query_agnostic"``.
        first: the first sample's seed; the others follow.
        count: samples.
        keeps: parts of the cache that are kept, in (0, 1).
    """

    task: str
    length: int
    mode: str
    first: int
    count: int
    keeps: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came of a contender at one budget on one part.

    Attributes:
        contender: its name.
        task: see :class:`Part`; likewise ``length``, ``mode``, ``first``.
        length: tokens.
        mode: how the question comes.
        first: the first sample's seed.
        keep: part of the cache that is kept; 1 for the full cache.
        scores: of each sample, in [0, 1].
        num_bytes: bytes held in the end, per sample.
    """

    contender: str
    task: str
    length: int
    mode: str
    first: int
    keep: float
    scores: tuple[float, ...]
    num_bytes: int

    @property
    def key(self) -> tuple[object, ...]:
        """What the trial was of."""
        return (self.contender, self.task, self.length, self.mode, self.first, self.keep, len(self.scores))


class Bench:
    """Runs trials and remembers them.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        path: file of finished trials, one a line; its folder is made if it is not there.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, path: Path) -> None:
        self.model, self.tokenizer, self.path = model, tokenizer, path
        self.done = {trial.key: trial for trial in read_trials(path)}

    def run(self, part: Part, contenders: Mapping[str, MakePolicy]) -> list[Trial]:
        """Runs what is not finished yet of a part; returns all of it, the full cache's trial first."""
        wanted = [(FULL, 1.0), *((name, keep) for name in contenders for keep in part.keeps)]
        batch: Batch | None = None
        for name, keep in wanted:
            if self._key(part, name, keep) in self.done:
                continue
            batch = batch or self._batch(part)
            make = contenders.get(name)
            answer = batch.answer_in_full() if make is None else batch.answer(make(round(keep * part.length)))
            self._add(part, name, keep, *answer)
        return [self.done[self._key(part, name, keep)] for name, keep in wanted]

    def _batch(self, part: Part) -> Batch:
        task = make_task(part.task)
        samples = [task.sample(self.tokenizer, part.length, part.first + n) for n in range(part.count)]
        return Batch(self.model, self.tokenizer, samples, part.mode)

    def _key(self, part: Part, contender: str, keep: float) -> tuple[object, ...]:
        return (contender, part.task, part.length, part.mode, part.first, keep, part.count)

    def _add(self, part: Part, name: str, keep: float, scores: list[float], num_bytes: int) -> None:
        trial = Trial(
            contender=name,
            task=part.task,
            length=part.length,
            mode=part.mode,
            first=part.first,
            keep=keep,
            scores=tuple(scores),
            num_bytes=num_bytes,
        )
        append_finished(self.path, asdict(trial))
        self.done[trial.key] = trial


def read_trials(path: Path) -> Iterator[Trial]:
    """Reads finished trials; see :func:`~kvcompress.bench.finished_lines.read_finished`."""
    return read_finished(path, lambda row: Trial(**{**row, "scores": tuple(row["scores"])}))


def relative_score(trials: Iterable[Trial]) -> dict[str, float]:
    """Each contender's score relative to the full cache's: the mean over cells, each weighing the same.

    A cell is a task, length, mode and budget. Cells that the full cache fails altogether are left out.
    """
    sums: dict[tuple[object, ...], list[float]] = {}
    for trial in trials:
        cell = (trial.contender, trial.task, trial.length, trial.mode, trial.keep)
        sums.setdefault(cell, []).extend(trial.scores)
    means = {cell: sum(scores) / len(scores) for cell, scores in sums.items()}
    relative: dict[str, list[float]] = {}
    for (contender, task, length, mode, _), mean in means.items():
        full = means[FULL, task, length, mode, 1.0]
        if full > 0:
            relative.setdefault(str(contender), []).append(mean / full)
    return {contender: sum(found) / len(found) for contender, found in relative.items()}


def one_thread() -> None:
    """One thread: what a shared machine allows, and what makes runs equal."""
    torch.set_num_threads(1)
