"""Throughput and memory of policies against the full cache, over budgets, contexts and batches.

Every contender of a cell generates from the same prompt, in turns with the full cache and all others, so that a machine
that slows down slows all of them; ratios are taken round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress import CompressedCache, detach, make_policy
from kvcompress.analysis.fidelity.conversation import wait_for
from kvcompress.bench.measure import Clock, Contender, interleave
from kvcompress.bench.named_shapes import free_bytes
from kvcompress.bench.peak_memory import peak_memory
from kvcompress.bench.timed_generation import Generation, generate, release
from kvcompress.engine.attach import text_config
from kvcompress.engine.head_shapes import head_shapes

SCHEMA: Final = "kvcompress.bench.throughput/1"
FULL: Final = "full"
_WARM_UP: Final = 3  # new tokens of the untimed run that finds the peak, and whether a contender fits at all
_UNREAD_STEPS: Final = 4  # first decode steps of a round, which set things up and capture graphs
_NO_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured: every policy and size, with every context and batch.

    Args:
        policies: names, keys of :data:`kvcompress.POLICIES`.
        cache_sizes: tokens kept per layer on average.
        contexts: tokens of the prompts.
        batches: sequences at a time.
        new_tokens: tokens generated, at least 6: the first comes from the prompt, the next four set things up.
        rounds: timed generations of each contender.
        cuda_graph: whether the policies decode by CUDA graphs.
    """

    policies: tuple[str, ...]
    cache_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    new_tokens: int = 32
    rounds: int = 3
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        """Checks the sizes, and that every policy can be made with each."""
        for name in ("cache_sizes", "contexts", "batches"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be numbers of at least 1, got {list(getattr(self, name))}; give one")
        least = _UNREAD_STEPS + 2
        if self.new_tokens < least or self.rounds < 1:
            raise ValueError(
                f"new_tokens must be at least {least} and rounds at least 1, got {self.new_tokens} and {self.rounds}; "
                "32 tokens and 5 rounds give useful medians"
            )
        for policy, size in product(self.policies, self.cache_sizes):
            make_policy(policy, cache_size=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A contender of a cell.

    Attributes:
        policy: its name, or ``"full"``.
        cache_size: tokens kept per layer on average; None for the full cache.
        make: makes its empty cache.
        rounds: what the rounds gave so far: seconds of prefill, and the generation.
    """

    policy: str
    cache_size: int | None
    make: Callable[[], Cache]
    rounds: list[tuple[float, Generation]] = field(default_factory=list)

    @property
    def provider(self) -> str:
        """Policy and size in one word or two."""
        return self.policy if self.cache_size is None else f"{self.policy} {self.cache_size}"


def measure_throughput(
    model: PreTrainedModel, name: str, plan: Plan, *, clock: Clock = time.perf_counter
) -> Iterator[Row]:
    """Measures every cell, the shortest context and smallest batch first.

    Args:
        model: a decoder, in evaluation mode.
        name: what the model is called.
        plan: what is measured.
        clock: seconds; the processor's for a busy machine.

    Yields:
        For each contender that fits three rows, ``prefill``, ``time_to_first_token`` and ``decode_step``; for another
        one row ``generate`` with the ``reason``.
    """
    settings: Any = model.generation_config
    ends, settings.eos_token_id = settings.eos_token_id, None  # each text shall have the length that was asked for
    try:
        for context, batch in product(sorted(plan.contexts), sorted(plan.batches)):
            yield from _cell(model, name, plan, context, batch, clock)
    finally:
        settings.eos_token_id = ends


def _cell(model: PreTrainedModel, name: str, plan: Plan, context: int, batch: int, clock: Clock) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    prompt = torch.randint(vocabulary, (batch, context), generator=generator).to(model.device)
    common = {
        "shape": f"{name}, B={batch}, {context} tokens",
        "dtype": str(model.dtype).removeprefix("torch."),
        "context": context,
        "batch": batch,
    }
    running: list[Entry] = []
    peaks: dict[str, int] = {}
    for entry in _entries(model, plan):
        found = _try(model, prompt, entry, plan)
        if isinstance(found, str):
            yield {"case": "generate", **common, **_who(entry), "reason": found}
        else:
            running.append(entry)
            peaks[entry.provider] = found
    if running:
        _time(model, prompt, running, plan, clock)
    yardstick = next((entry for entry in running if entry.policy == FULL), None)
    for entry in running:
        yield from _rows({**common, **_who(entry)}, entry, yardstick, batch, peaks[entry.provider])


def _entries(model: PreTrainedModel, plan: Plan) -> Iterator[Entry]:
    def full() -> Cache:
        detach(model)  # a cache of ours, made earlier, has put the engine's attention into the model
        return DynamicCache(config=model.config)

    def compressed(policy: str, size: int) -> Callable[[], Cache]:
        return lambda: CompressedCache(model, make_policy(policy, cache_size=size), cuda_graph=plan.cuda_graph)

    yield Entry(policy=FULL, cache_size=None, make=full)
    for size, policy in product(plan.cache_sizes, plan.policies):
        yield Entry(policy=policy, cache_size=size, make=compressed(policy, size))


def _who(entry: Entry) -> Row:
    return {"provider": entry.provider, "policy": entry.policy, "cache_size": entry.cache_size}


def _try(model: PreTrainedModel, prompt: torch.Tensor, entry: Entry, plan: Plan) -> int | str:
    """The peak of memory on top of the weights, in bytes, or why the contender cannot run."""
    if entry.cache_size is not None and entry.cache_size >= prompt.shape[1]:
        return "nothing to evict: the cache size is not below the context"
    if entry.policy == FULL:
        # Where memory is promised before it is there, a process that takes too much is ended instead of told.
        needed = full_cache_bytes(model, prompt.shape[0] * (prompt.shape[1] + plan.new_tokens))
        free = free_bytes(model.device)
        if free is not None and needed > free:
            return f"out of memory: the cache alone needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    try:
        return peak_memory(lambda: generate(model, prompt, entry.make(), _WARM_UP))
    except (RuntimeError, MemoryError) as error:  # torch's own error of a GPU is a RuntimeError
        if not is_out_of_memory(error):
            raise
        return "out of memory"
    finally:
        release(model.device)


def full_cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens, every layer keeping all of them."""
    shapes = head_shapes(text_config(model))
    return tokens * sum(shape.kv_heads * (shape.head_dim + shape.value_dim) for shape in shapes) * model.dtype.itemsize


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, on a GPU or in torch's allocator of the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        phrase in str(error).lower() for phrase in _NO_MEMORY
    )


def _time(model: PreTrainedModel, prompt: torch.Tensor, entries: list[Entry], plan: Plan, clock: Clock) -> None:
    """Lets the contenders generate in turns."""
    by_name = {entry.provider: entry for entry in entries}

    def sample(contender: Contender) -> float:
        entry = by_name[contender.provider]
        with _timed_prefill(model, clock) as prefill:
            done = generate(model, prompt, entry.make(), plan.new_tokens, clock=clock)
        entry.rounds.append((prefill[0], done))
        release(model.device)
        return 1e3 * (done.first_seconds + sum(done.step_seconds))

    interleave([Contender(provider=name, run=lambda: None) for name in by_name], plan.rounds, clock, sample)


@contextmanager
def _timed_prefill(model: PreTrainedModel, clock: Clock) -> Iterator[list[float]]:
    """Gives a list that holds, in the end, the seconds of the model's first call."""
    seconds: list[float] = []
    starts: list[float] = []

    def before(*_: Any) -> None:
        if not starts:
            starts.append(clock())

    def after(*_: Any) -> None:
        if not seconds:
            wait_for(model)
            seconds.append(clock() - starts[0])

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _rows(common: Row, entry: Entry, yardstick: Entry | None, batch: int, peak: int) -> Iterator[Row]:
    memory = {"peak_memory_bytes": peak, "held_bytes": max(done.cache_bytes for _, done in entry.rounds)}
    theirs = None if yardstick is None else _milliseconds(yardstick)
    for case, own in _milliseconds(entry).items():
        row: Row = {"case": case, **common, "unit": "ms", **_quantiles(own), "repeats": len(own), **memory}
        row["bytes_moved"] = None
        if theirs is not None:
            ratio = _quantiles(np.array(own) / np.array(theirs[case]))
            row |= {"ratio_to": FULL, "ratio": ratio["median"], "ratio_q20": ratio["q20"], "ratio_q80": ratio["q80"]}
        if case == "decode_step":
            row["tokens_per_second"] = 1e3 * batch / row["median"]
        yield row


def _milliseconds(entry: Entry) -> dict[str, list[float]]:
    """A figure per round: prefill, first token, and the median decode step."""
    return {
        "prefill": [1e3 * seconds for seconds, _ in entry.rounds],
        "time_to_first_token": [1e3 * done.first_seconds for _, done in entry.rounds],
        "decode_step": [1e3 * median(done.step_seconds[_UNREAD_STEPS:]) for _, done in entry.rounds],
    }


def _quantiles(values: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    q20, middle, q80 = (float(value) for value in np.quantile(values, (0.2, 0.5, 0.8)))
    return {"median": middle, "q20": q20, "q80": q80}


def describe(row: Row) -> str:
    """One line on a row, for the terminal."""
    head = f"{row['shape']:36} {row['provider']:24} {row['case']:20}"
    if "reason" in row:
        return f"{head} not measured: {row['reason']}"
    line = f"{head} {row['median']:10.2f} ms [{row['q20']:.2f}, {row['q80']:.2f}]"
    line += f"  x{row['ratio']:.3f} of full" if "ratio" in row else ""
    line += f"  {row['tokens_per_second']:.1f} tokens/s" if "tokens_per_second" in row else ""
    return f"{line}  held {row['held_bytes'] / 2**20:.1f} MiB, peak {row['peak_memory_bytes'] / 2**20:.1f} MiB"
