"""One prefill, compressed many times: what a prompt's attention computes does not depend on the policy.

A block attends before anything of it is evicted, so queries, keys and values of a prompt are the same under every
policy. They are recorded once and handed to each policy's cache, which is then as a prefill of its own would leave it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kvcompress import CompressedCache, Full, Observer, Policy, PrefillEvent
from kvcompress.bench.one_layer import LayerDriver

_QUERIES = 64  # last queries that are kept unless more are wanted: no window is longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """What a model computed of a batch of prompts of equal length.

    Attributes:
        blocks: for each layer ``(query [batch, query_heads, last, head_dim], key [batch, kv_heads, tokens, head_dim],
            value)``.
        logits: of the last token, ``[batch, vocabulary]``.
        full_bytes: bytes of all keys and values.
    """

    blocks: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...]
    logits: torch.Tensor
    full_bytes: int


class _Recorder(Observer):
    """Keeps the blocks that it hears of, with their last queries."""

    def __init__(self, queries: int) -> None:
        self.queries = queries
        self.blocks: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def on_prefill(self, event: PrefillEvent) -> None:
        """Keeps a layer's block."""
        self.blocks.append((event.query[:, :, -self.queries :].clone(), event.keys, event.values))


@torch.inference_mode()
def record_prefill(model: PreTrainedModel, prompts: torch.Tensor, *, all_queries: bool = False) -> Prefill:
    """Runs prompts through the model once.

    Args:
        model: the model; every layer of it must be compressed.
        prompts: int64 ``[batch, tokens]``, no padding.
        all_queries: keep every query, for policies that look at more than a window (H2O, ExpectedAttention).
    """
    recorder = _Recorder(prompts.shape[1] if all_queries else _QUERIES)
    cache = CompressedCache(model, Full())
    cache.add_observer(recorder)
    output = model(input_ids=prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
    full_bytes = sum(key.nbytes + value.nbytes for _, key, value in recorder.blocks)
    return Prefill(blocks=tuple(recorder.blocks), logits=output.logits[:, -1].clone(), full_bytes=full_bytes)


@torch.inference_mode()
def replay(model: PreTrainedModel, prefill: Prefill, policy: Policy) -> CompressedCache:
    """Returns a cache of the policy in the state that the recorded prompts leave it in.

    Args:
        model: the model that was recorded.
        prefill: the record.
        policy: its window must not be longer than the queries recorded.

    Raises:
        ValueError: the window is longer than what was recorded.
    """
    recorded, tokens = prefill.blocks[0][0].shape[2], prefill.blocks[0][1].shape[2]
    if min(policy.window_size, tokens) > recorded:
        raise ValueError(
            f"window_size must be at most {recorded}, the queries recorded, got {policy.window_size}; make it smaller"
        )
    driver = LayerDriver(model, policy)
    for layer_idx, (query, key, value) in enumerate(prefill.blocks):
        driver.block(query, key, value, layer_idx)
    return driver.cache


@torch.inference_mode()
def next_logits(model: PreTrainedModel, cache: CompressedCache, ids: torch.Tensor) -> torch.Tensor:
    """Logits ``[batch, vocabulary]`` after one more token per sequence (int64 ``[batch]``)."""
    output = model(input_ids=ids[:, None], past_key_values=cache, use_cache=True)
    logits: torch.Tensor = output.logits[:, -1]
    return logits
