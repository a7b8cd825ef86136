"""Answers prompts with one library's compressed cache, and tells what it took: the part that both sides share.

Runs in the environment of either side, so it needs torch and nothing of the engine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TextIO

import torch

Clock = Callable[[], float]
Kept = list[list[list[list[int]]]]  # [layers][batch][kv_heads][kept], positions, ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a side.

    Attributes:
        prompts: tokens of each prompt, all of one length; it is compressed.
        new_tokens: how many are generated greedily, at least 1; no sequence ends earlier.
        setup: how the side makes its cache, one entry of a :class:`kvcompress.bench.peers.methods.Method`; None: the
            full cache of transformers.
        wants_kept: whether the positions kept are asked for.
        questions: tokens that follow each prompt after the compression, all of one length; None: nothing does.
    """

    prompts: list[list[int]]
    new_tokens: int
    setup: Mapping[str, Any] | None
    wants_kept: bool = False
    questions: list[list[int]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a side did.

    Attributes:
        ids: new tokens of each sequence.
        prefill_seconds: time of the prompt, compression included, up to the first new token or the question.
        decode_seconds: time of all further tokens.
        num_bytes: bytes that the cache held after prefill.
        final_bytes: and after the last token.
        kept: positions kept by prefill, where they were asked for.
        tied: positions whose score is that of the worst token kept; None where the side does not tell its scores.
    """

    ids: list[list[int]]
    prefill_seconds: float
    decode_seconds: float
    num_bytes: int
    final_bytes: int
    kept: Kept | None
    tied: Kept | None


class Side(Protocol):
    """A library under comparison, with the model loaded.

    Attributes:
        model: takes a cache under the name ``cache_argument``.
        cache_argument: see there.
    """

    model: Any
    cache_argument: str

    def begin(self, setup: Mapping[str, Any] | None, *, wants_kept: bool) -> tuple[Any, AbstractContextManager[object]]:
        """An empty cache, and what must be open while the prompt runs."""

    def num_bytes(self, cache: Any) -> int:
        """Bytes that a cache really holds."""

    def kept_positions(self, cache: Any, prompts: torch.Tensor) -> Kept:
        """Positions that a cache holds after the prompts (int64 ``[batch, tokens]``)."""

    def tied_positions(self, kept: Kept) -> Kept | None:
        """Positions that might as well have been the last ones kept."""


@torch.inference_mode()
def answer(side: Side, request: Request, clock: Clock = time.process_time) -> Answer:
    """Answers a request.

    Args:
        side: the library.
        request: what is asked.
        clock: seconds; the processor's, so that a busy machine does not count.
    """
    prompts = torch.tensor(request.prompts)
    cache, compressing = side.begin(request.setup, wants_kept=request.wants_kept)
    start = clock()
    with compressing:
        ids = [_next(side, cache, prompts, 0)]
    prefilled = clock()
    num_bytes = side.num_bytes(cache)
    kept = side.kept_positions(cache, prompts) if request.wants_kept else None
    tied = None if kept is None else side.tied_positions(kept)
    seen = prompts.shape[1]
    if request.questions is not None:
        questions = torch.tensor(request.questions)
        ids = [_next(side, cache, questions, seen)]
        seen += questions.shape[1]
    resumed = clock()
    for place in range(request.new_tokens - 1):
        ids.append(_next(side, cache, ids[-1], seen + place))
    ended = clock()
    return Answer(
        ids=torch.cat(ids, dim=1).tolist(),
        prefill_seconds=prefilled - start,
        decode_seconds=ended - resumed,
        num_bytes=num_bytes,
        final_bytes=side.num_bytes(cache),
        kept=kept,
        tied=tied,
    )


def _next(side: Side, cache: Any, ids: torch.Tensor, start: int) -> torch.Tensor:
    """The likeliest next token of each sequence, int64 ``[batch, 1]``.

    Positions are given: kvpress's cache counts what it holds, not what it has seen.
    """
    positions = torch.arange(start, start + ids.shape[1])[None]
    named = {side.cache_argument: cache}
    output = side.model(input_ids=ids, **named, use_cache=True, position_ids=positions, logits_to_keep=1)
    chosen: torch.Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
    return chosen


def serve(make_side: Callable[[], Side]) -> None:
    """Answers requests from stdin on stdout, one JSON object a line, until stdin ends.

    The first line tells the versions; an error is a line ``{"error": ...}`` and ends nothing.

    Args:
        make_side: loads library and model.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not get between the replies
    torch.set_num_threads(1)
    side = make_side()
    _reply(replies, versions())
    for line in sys.stdin:
        try:
            _reply(replies, asdict(answer(side, Request(**json.loads(line)))))
        except Exception as error:  # whatever a library raises is this request's outcome
            _reply(replies, {"error": f"{type(error).__name__}: {error}"})


def versions() -> dict[str, Any]:
    """Versions of what runs in this process."""
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}


def _reply(stream: TextIO, content: Mapping[str, Any]) -> None:
    stream.write(json.dumps(content) + "\n")
    stream.flush()
