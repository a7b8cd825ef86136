"""How fast one sequence runs through a cache, and how much memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.analysis.fidelity.conversation import Conversation, wait_for
from kvcompress.analysis.intervals import bootstrap_interval
from kvcompress.bench.peak_memory import peak_memory
from kvcompress.bench.sweep.row import Interval

RUNS: Final = 3
BLOCKS: Final = 2  # of each run; each is timed by itself
STEPS: Final = 8  # of each block


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Speed and memory of one sequence.

    Attributes:
        ttft: seconds from the start of the prompt to the first token, median of the runs.
        tokens_per_second: mean over the blocks of decode steps.
        tokens_per_second_ci95: bootstrap over the blocks.
        peak_bytes: most memory at any moment of a prompt and a step, on top of the weights.
    """

    ttft: float
    tokens_per_second: float
    tokens_per_second_ci95: Interval
    peak_bytes: int


def pace(model: PreTrainedModel, make_cache: Callable[[], Cache], prompt: Sequence[int]) -> Pace:
    """Measures; the run that memory is measured in also warms everything up and is not timed.

    Args:
        model: a decoder, in evaluation mode.
        make_cache: makes an empty cache for each run.
        prompt: token ids, at least one.
    """

    def first_steps() -> None:
        talk = Conversation(model, make_cache())
        talk.step(talk.feed([prompt]).argmax(-1))

    peak = peak_memory(first_steps)
    waits: list[float] = []
    rates: list[float] = []
    for _ in range(RUNS):
        talk = Conversation(model, make_cache())
        wait_for(model)
        begin = time.perf_counter()
        ids = talk.feed([prompt]).argmax(-1)
        wait_for(model)
        waits.append(time.perf_counter() - begin)
        for _ in range(BLOCKS):
            begin = time.perf_counter()
            for _ in range(STEPS):
                ids = talk.step(ids).argmax(-1)
            wait_for(model)
            rates.append(STEPS / (time.perf_counter() - begin))
    return Pace(
        ttft=median(waits),
        tokens_per_second=sum(rates) / len(rates),
        tokens_per_second_ci95=bootstrap_interval(rates),
        peak_bytes=peak,
    )
