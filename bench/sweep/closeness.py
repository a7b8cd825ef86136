"""How close a cache's predictions are to the full cache's, along the full cache's own answers to a task.

:mod:`kvcompress.analysis.fidelity.fidelity` asks the same of any text. Here the prompts are the samples of a cell, in
its mode: what the model is about to say, under the question that it was asked. Of a query-aware prompt the first
prediction is left out, since prefill attends to everything whatever the cache keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.analysis.intervals import bootstrap_interval
from kvcompress.bench.sweep.row import Interval
from kvcompress.bench.tasks.run import Converse
from kvcompress.bench.tasks.sample import QUERY_AWARE, Sample

MOST_STEPS: Final = 16  # of a long answer; the first tokens say what the rest will be about


@dataclass(frozen=True, slots=True, kw_only=True)
class FullAnswers:
    """What a batch of samples gets from the full cache.

    Attributes:
        samples: the batch.
        ids: its answers, int64 ``[batch, steps]``.
        logits: predictions that are compared, float32 ``[batch, predictions, vocabulary]`` on the CPU.
    """

    samples: Sequence[Sample]
    ids: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """Mean KL in nats and share of equal likeliest tokens, with bootstrap intervals over samples (None of one)."""

    kl: float
    kl_ci95: Interval | None
    top1: float
    top1_ci95: Interval | None


def full_answers(
    model: PreTrainedModel, make_cache: Callable[[], Cache], samples: Sequence[Sample], mode: str, batch_size: int
) -> list[FullAnswers]:
    """Answers the first question of each sample with the full cache.

    Args:
        model: a decoder, in evaluation mode.
        make_cache: makes a full cache, empty.
        samples: what to answer, at least one.
        mode: query-aware or query-agnostic.
        batch_size: most samples at a time.
    """
    answers = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        talk = Conversation(model, make_cache())
        logits = [_ask(talk, batch, mode)]
        most = min(MOST_STEPS, *(sample.turns[0].max_new_tokens for sample in batch))
        ids = []
        for _ in range(max(1, most - 1)):
            ids.append(logits[-1].argmax(-1))
            logits.append(talk.step(ids[-1]))
        compared = logits[1:] if mode == QUERY_AWARE else logits
        stacked = torch.stack(compared, dim=1).float().cpu()
        answers.append(FullAnswers(samples=batch, ids=torch.stack(ids, dim=1), logits=stacked))
    return answers


def closeness(
    model: PreTrainedModel,
    make_cache: Callable[[], Cache],
    answers: Sequence[FullAnswers],
    mode: str,
    converse: Converse = Conversation,
) -> Closeness:
    """Forces the full cache's answers through another cache.

    Args:
        model: the same model.
        make_cache: makes the other cache, empty, for each batch.
        answers: what :func:`full_answers` returned for the same mode.
        mode: query-aware or query-agnostic.
        converse: begins a conversation over an empty cache.
    """
    divergence: list[float] = []
    agreement: list[float] = []
    for part in answers:
        talk = converse(model, make_cache())
        logits = [_ask(talk, part.samples, mode), *(talk.step(ids) for ids in part.ids.unbind(1))]
        got = torch.stack(logits[1:] if mode == QUERY_AWARE else logits, dim=1).float().cpu()
        divergence += _divergence(part.logits, got).mean(1).tolist()
        agreement += (part.logits.argmax(-1) == got.argmax(-1)).double().mean(1).tolist()
    several = len(divergence) > 1
    return Closeness(
        kl=sum(divergence) / len(divergence),
        kl_ci95=bootstrap_interval(divergence) if several else None,
        top1=sum(agreement) / len(agreement),
        top1_ci95=bootstrap_interval(agreement) if several else None,
    )


def _ask(talk: Conversation, samples: Sequence[Sample], mode: str) -> torch.Tensor:
    """Logits ``[batch, vocabulary]`` after the first question."""
    contexts = [list(sample.context_ids) for sample in samples]
    questions = [list(sample.turns[0].question_ids) for sample in samples]
    if mode == QUERY_AWARE:
        return talk.feed([context + question for context, question in zip(contexts, questions, strict=True)])
    talk.feed(contexts)
    return talk.feed(questions)


def _divergence(full: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(full || other) of logits ``[..., vocabulary]``, in nats, at least 0."""
    wanted, got = torch.log_softmax(full.double(), dim=-1), torch.log_softmax(other.double(), dim=-1)
    # Impossible tokens (-inf in both) add nothing; rounding may end below zero.
    return torch.where(wanted == -torch.inf, 0.0, wanted.exp() * (wanted - got)).sum(-1).clamp(min=0)
