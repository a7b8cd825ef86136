"""Runs samples through a model and a cache: prefill, compression, answers, scores.

Query-aware: context and first question are one prompt, and the policy compresses when it has seen both. The first
token of the first answer then comes from the prefill, which attends to everything: it says nothing about compression.
Whole answers are scored, so a task must have answers of several tokens, as all of `TASKS` have.

Query-agnostic: the context is compressed alone, and the question comes after it through the same cache, as one block.
A compressed cache compresses again after that block, so that it holds no more than its size.

Later turns go through the same cache in both modes, after the model's own answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.analysis.fidelity.conversation import Conversation, wait_for
from kvcompress.bench.tasks.sample import MODES, QUERY_AWARE, Sample

Converse = Callable[[PreTrainedModel, Cache], Conversation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a sample.

    Attributes:
        score: mean over the turns, in [0, 1].
        turn_scores: score of each turn.
        predictions: text of each answer.
        prompt_tokens: tokens of context and first question.
        kv_bytes: bytes that the cache held after the last answer, this sample's share of its batch.
        prefill_seconds: time of the first prompt (query-agnostic: of the context alone), compression included; of the
            whole batch.
        first_token_seconds: from the start to the first token of the first answer; of the whole batch.
        tokens_per_second: tokens decoded after the first of each answer, all rows together; None where there was none.
        batch: samples that ran together.
    """

    score: float
    turn_scores: tuple[float, ...]
    predictions: tuple[str, ...]
    prompt_tokens: int
    kv_bytes: int
    prefill_seconds: float
    first_token_seconds: float
    tokens_per_second: float | None
    batch: int


def run_sample(
    model: PreTrainedModel, tokenizer: Any, make_cache: Callable[[], Cache], sample: Sample, mode: str
) -> Outcome:
    """Runs one sample; see :func:`run_samples`."""
    return run_samples(model, tokenizer, make_cache, [sample], mode)[0]


def run_samples(
    model: PreTrainedModel,
    tokenizer: Any,
    make_cache: Callable[[], Cache],
    samples: Sequence[Sample],
    mode: str,
    *,
    batch_size: int = 16,
    converse: Converse = Conversation,
) -> list[Outcome]:
    """Answers samples greedily, in batches: neighbours of one task, shorter ones padded on the left.

    Args:
        model: a decoder, in evaluation mode.
        tokenizer: its tokenizer, the one that the samples were made with.
        make_cache: makes an empty cache for each batch, e.g. ``lambda: CompressedCache(model, policy)``.
        samples: what to run.
        mode: ``"query_aware"`` or ``"query_agnostic"``.
        batch_size: most samples in a batch, at least 1.
        converse: begins a conversation of a batch over its empty cache.

    Returns:
        An outcome per sample, in their order.

    Raises:
        ValueError: an unknown mode, or a batch size below 1.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; 1 runs every sample alone")
    outcomes: list[Outcome] = []
    for batch in _batches(samples, batch_size):
        run = _BatchRun(model, tokenizer, converse(model, make_cache()), batch)
        outcomes += run.answer(mode)
    return outcomes


def _batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Neighbours that can run together: answers end at the same step, or nothing comes after them."""
    batch: list[Sample] = []
    for sample in samples:
        if batch and (len(batch) == size or _shape(sample) != _shape(batch[0]) or not _joins(sample)):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def _shape(sample: Sample) -> tuple[object, ...]:
    return sample.fixed_length, tuple(turn.max_new_tokens for turn in sample.turns)


def _joins(sample: Sample) -> bool:
    return sample.fixed_length or len(sample.turns) == 1


class _BatchRun:
    """A batch on its way through its turns."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, talk: Conversation, samples: Sequence[Sample]) -> None:
        self.model, self.tokenizer, self.samples = model, tokenizer, samples
        self.talk = talk
        self.ends = torch.tensor(sorted(_ends(model, tokenizer)), dtype=torch.int64, device=model.device)
        self.started = self.prefilled = self.first_token = 0.0
        self.decode_seconds, self.decoded = 0.0, 0

    def answer(self, mode: str) -> list[Outcome]:
        """Asks all turns."""
        pending = self._prefill(mode)
        answers: list[list[list[int]]] = []  # [turns][samples][tokens]
        for turn in range(len(self.samples[0].turns)):
            rows = [list(sample.turns[turn].question_ids) for sample in self.samples]
            asked = [[*before, *row] for before, row in zip(pending, rows, strict=True)]
            answers.append(self._decode(self.talk.feed(asked), self.samples[0].turns[turn].max_new_tokens))
            pending = [self._unfed(row) for row in answers[-1]]
        return [self._outcome(place, [turn[place] for turn in answers]) for place in range(len(self.samples))]

    def _prefill(self, mode: str) -> list[list[int]]:
        """Runs the context where it comes alone; returns what must be fed before the question."""
        contexts = [list(sample.context_ids) for sample in self.samples]
        wait_for(self.model)
        self.started = time.perf_counter()
        if mode == QUERY_AWARE:
            return contexts
        self.talk.feed(contexts)
        wait_for(self.model)
        self.prefilled = time.perf_counter()
        return [[] for _ in contexts]

    def _decode(self, logits: torch.Tensor, most: int) -> list[list[int]]:
        """The likeliest tokens, until all rows have ended; each row without what follows its end."""
        ids = [logits.argmax(-1)]
        wait_for(self.model)
        begin = time.perf_counter()
        self.prefilled = self.prefilled or begin
        self.first_token = self.first_token or begin
        fixed = self.samples[0].fixed_length
        ended = torch.isin(ids[0], self.ends)
        while len(ids) < most and (fixed or not bool(ended.all())):
            ids.append(self.talk.step(ids[-1]).argmax(-1))
            ended |= torch.isin(ids[-1], self.ends)
        rows: list[list[int]] = torch.stack(ids, dim=1).tolist()
        self.decode_seconds += time.perf_counter() - begin
        self.decoded += len(rows) * (len(ids) - 1)
        return rows if fixed else [self._until_end(row) for row in rows]

    def _until_end(self, row: list[int]) -> list[int]:
        """A row up to and with the token that ends it."""
        ends = set(self.ends.tolist())
        return row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))]

    def _unfed(self, row: list[int]) -> list[int]:
        """The last token, which the cache has not seen; one that ends a text does not belong into a conversation."""
        return [] if not self.samples[0].fixed_length and row[-1] in self.ends.tolist() else row[-1:]

    def _outcome(self, place: int, answers: list[list[int]]) -> Outcome:
        sample = self.samples[place]
        texts = tuple(self.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers)
        scores = tuple(sample.judge(turn, text) for turn, text in enumerate(texts))
        return Outcome(
            score=sum(scores) / len(scores),
            turn_scores=scores,
            predictions=texts,
            prompt_tokens=sample.prompt_tokens,
            kv_bytes=self.talk.num_bytes // len(self.samples),
            prefill_seconds=self.prefilled - self.started,
            first_token_seconds=self.first_token - self.started,
            tokens_per_second=self.decoded / self.decode_seconds if self.decoded else None,
            batch=len(self.samples),
        )


def _ends(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    """Tokens that end a text, by the model's generation config and the tokenizer."""
    config: Any = model.generation_config
    named = [] if config is None or config.eos_token_id is None else config.eos_token_id
    ends = set(named if isinstance(named, list | tuple) else [named])
    return ends | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())
