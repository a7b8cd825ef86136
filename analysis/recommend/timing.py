"""Prefill and decode times of several caches, side by side and in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from kvcompress.analysis.fidelity.conversation import Conversation, wait_for
from kvcompress.engine.attach import detach

Clock = Callable[[], float]
_UNREAD_STEPS = 2  # first decode steps of a round, which set things up


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Times beside the full cache's: medians over rounds of ratios within a round; above 1 the full one is slower.

    Attributes:
        prefill_ratio: time of the full cache's prefill over this one's.
        decode_ratio: time of the full cache's median decode step over this one's.
        prefill_seconds: median of the prefill, compression included.
        decode_seconds: median of a decode step.
        rounds: rounds measured.
        decode_steps: decode steps of a round that count.
    """

    prefill_ratio: float
    decode_ratio: float
    prefill_seconds: float
    decode_seconds: float
    rounds: int
    decode_steps: int

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def compare_speed(
    model: PreTrainedModel,
    makers: Sequence[Callable[[PreTrainedModel], Cache]],
    ids: torch.Tensor,
    *,
    context: int,
    rounds: int = 5,
    decode_steps: int = 16,
    clock: Clock = time.perf_counter,
) -> list[Speed]:
    """Times caches against the full cache of transformers, in turns; each round starts with another one.

    Args:
        model: a decoder, in evaluation mode.
        makers: make the empty caches.
        ids: int64 ``[tokens]``; the first ``context`` are the prompt, the others are decoded one by one, over and over.
        context: tokens of the prompt, at least 1 and fewer than all.
        rounds: timed runs of each cache, after an untimed one; at least 1.
        decode_steps: decode steps that count in each, at least 1.
        clock: seconds.

    Returns:
        One entry per maker.

    Raises:
        ValueError: a number out of range.
    """
    if min(rounds, decode_steps, context) < 1 or context >= len(ids):
        raise ValueError(
            "rounds, decode_steps and context must be at least 1, and context below the number of tokens; got "
            f"rounds={rounds}, decode_steps={decode_steps}, context={context}, tokens={len(ids)}"
        )
    contenders = [_full_cache, *makers]
    times: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for turn in range(rounds + 1):
        for step in range(len(contenders)):
            place = (turn + step) % len(contenders)
            taken = _run(model, contenders[place](model), ids, context, decode_steps, clock)
            if turn:  # the first round warms up
                times[place].append(taken)
    return [_speed(times[0], own, decode_steps) for own in times[1:]]


def _full_cache(model: PreTrainedModel) -> Cache:
    detach(model)  # a cache of the engine, made before, has put its attention into the model
    return DynamicCache(config=model.config)


def _run(
    model: PreTrainedModel, cache: Cache, ids: torch.Tensor, context: int, decode_steps: int, clock: Clock
) -> tuple[float, float]:
    """Seconds of the prefill and of the median decode step."""
    talk = Conversation(model, cache)
    rest = ids[context:].to(model.device)
    wait_for(model)
    start = clock()
    talk.feed([ids[:context].tolist()])
    wait_for(model)
    prefill = clock() - start
    steps = []
    for step in range(_UNREAD_STEPS + decode_steps):
        begin = clock()
        talk.step(rest[step % len(rest)][None])
        wait_for(model)
        steps.append(clock() - begin)
    return prefill, median(steps[_UNREAD_STEPS:])


def _speed(full: list[tuple[float, float]], own: list[tuple[float, float]], decode_steps: int) -> Speed:
    pairs = list(zip(full, own, strict=True))
    return Speed(
        prefill_ratio=median(theirs[0] / ours[0] for theirs, ours in pairs),
        decode_ratio=median(theirs[1] / ours[1] for theirs, ours in pairs),
        prefill_seconds=median(prefill for prefill, _ in own),
        decode_seconds=median(decode for _, decode in own),
        rounds=len(own),
        decode_steps=decode_steps,
    )
