"""One generation with a cache, timed token by token."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer

from kvcompress import CakeCache, CompressedCache, detach
from kvcompress.bench.end_to_end_model import ModelShape
from kvcompress.engine.cache_argument import cache_argument

MakeCache = Callable[[], Cache]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a generation gave.

    Attributes:
        ids: the new tokens of each sequence.
        first_seconds: from the start to the first token.
        step_seconds: of each further token.
        peak_bytes: most memory held on the GPU at any moment, weights included; None on a CPU.
        cache_bytes: what the cache held in the end.
    """

    ids: list[list[int]]
    first_seconds: float
    step_seconds: list[float]
    peak_bytes: int | None
    cache_bytes: int


class _Ticks(BaseStreamer):
    """Notes when the tokens of a step have reached the host; the prompt comes first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.times: list[float] = []
        self.clock = clock

    def put(self, value: torch.Tensor) -> None:
        self.times.append(self.clock())

    def end(self) -> None:
        pass


def contenders(model: PreTrainedModel, shape: ModelShape) -> list[tuple[str, MakeCache | str]]:
    """Names of the caches, and what makes each; a reason where it cannot run here."""
    cake = partial(CakeCache, model, shape.cache_size, window_size=shape.window)
    graphs: MakeCache | str = partial(cake, cuda_graph=True)
    if model.device.type != "cuda":
        graphs = "CUDA graphs need a GPU"

    def full() -> Cache:
        detach(model)  # a cache of ours, made earlier, has put the engine's attention into the model
        return DynamicCache(config=model.config)

    return [
        ("dynamic_cache", full),
        ("cake", cake),
        ("cake_cuda_graph", graphs),
    ]


def prompt_of(shape: ModelShape, tokens: int, batch: int, device: torch.device) -> torch.Tensor:
    """Random tokens, int64 ``[batch, tokens]``; the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(shape.vocabulary, (batch, tokens), generator=generator).to(device)


def generate(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    cache: Cache,
    new_tokens: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Generation:
    """Generates greedily.

    Args:
        model: a decoder.
        prompt: int64 ``[batch, tokens]``, on the model's device.
        cache: an empty cache.
        new_tokens: how many; no sequence ends earlier.
        clock: seconds.
    """
    gpu = prompt.is_cuda
    if gpu:
        torch.cuda.reset_peak_memory_stats(prompt.device)
        torch.cuda.synchronize(prompt.device)
    ticks = _Ticks(clock)
    start = clock()
    with torch.inference_mode():
        generator: Any = model
        output = generator.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            **cache_argument(cache),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=ticks,
        )
    arrived = ticks.times[1:]
    return Generation(
        ids=output[:, prompt.shape[1] :].tolist(),
        first_seconds=arrived[0] - start,
        step_seconds=[after - before for before, after in pairwise(arrived)],
        peak_bytes=int(torch.cuda.max_memory_allocated(prompt.device)) if gpu else None,
        cache_bytes=held_bytes(cache),
    )


def held_bytes(cache: Cache) -> int:
    """Bytes of the keys and values that a cache holds."""
    if isinstance(cache, CompressedCache):
        return int(cache.num_bytes)
    tensors = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors if isinstance(tensor, torch.Tensor))


def release(device: torch.device) -> None:
    """Gives the memory of caches that are gone back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
