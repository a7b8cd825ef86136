"""One prefill, compressed many times: what a prompt's attention computes does not depend on the policy.

A block attends before anything of it is evicted, so queries, keys and values of a prompt are the same under every
policy. They are recorded once and handed to each policy's cache, which is then, bit for bit, as a prefill of its own
would have left it. On the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AttentionInterface, PreTrainedModel

from kvcompress import CompressedCache, Full, Policy
from kvcompress.engine.attention import AttentionCall, attention_forward
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.log_sum_exp import overhear_log_sum_exp

_RECORDED: Final = "kvcompress_bench_recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attended:
    """What a compressed layer's attention was called with, and the log-sum-exp that it computed along the way."""

    module: torch.nn.Module
    query: torch.Tensor
    mask: Any
    options: Mapping[str, Any]
    log_sum_exp: torch.Tensor | None


@dataclass(slots=True)
class LayerBlock:
    """One layer's keys and values ``[batch, kv_heads, tokens, head_dim]``.

    Attributes:
        layer_idx: index of the layer in the model.
        key: with rotary embedding.
        value: the values.
        attended: what its attention was called with; stays None for a layer that is not compressed.
    """

    layer_idx: int
    key: torch.Tensor
    value: torch.Tensor
    attended: _Attended | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """What a model computed of a batch of prompts.

    Attributes:
        blocks: what each layer was given, in the order of the layers.
        logits: of the last token, ``[batch, vocabulary]``.
    """

    blocks: tuple[LayerBlock, ...]
    logits: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors held."""
        tensors = {id(self.logits): self.logits}
        for block in self.blocks:
            held: list[Any] = [block.key, block.value]
            if block.attended is not None:
                held += [block.attended.query, block.attended.mask, block.attended.log_sum_exp]
            tensors |= {id(tensor): tensor for tensor in held if isinstance(tensor, torch.Tensor)}
        return sum(tensor.nbytes for tensor in tensors.values())

    @property
    def full_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(block.key.nbytes + block.value.nbytes for block in self.blocks)

    @torch.inference_mode()
    def fill(self, cache: CompressedCache) -> None:
        """Brings an empty cache of the same model to where these prompts leave it."""
        AttentionInterface.register(_RECORDED, _recorded_attention)
        for block in self.blocks:
            keys, values = cache.update(block.key, block.value, block.layer_idx)
            call = block.attended
            if call is not None:
                options = {**call.options, "recorded_log_sum_exp": call.log_sum_exp}
                attention_forward(_RECORDED, call.module, call.query, keys, values, call.mask, **options)


class RecordableCache(CompressedCache):
    """A compressed cache that can write down what its layers are given."""

    _blocks: list[LayerBlock] | None = None

    @contextmanager
    def recording(self) -> Iterator[list[LayerBlock]]:
        """Writes down what comes while it is open."""
        self._blocks = []
        try:
            yield self._blocks
        finally:
            self._blocks = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the base's."""
        if self._blocks is not None:
            self._blocks.append(LayerBlock(layer_idx, key_states, value_states))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def attend(self, layer: CompressedLayer, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the base's."""
        if self._blocks is None:
            return super().attend(layer, call)
        attend = super().attend
        output, log_sum_exp = overhear_log_sum_exp(lambda: attend(layer, call), call.query.shape[:3])
        self._blocks[-1].attended = _Attended(
            module=call.module, query=call.query, mask=call.mask, options=call.options, log_sum_exp=log_sum_exp
        )
        return output


@torch.inference_mode()
def record_prefill(model: PreTrainedModel, prompts: torch.Tensor) -> Prefill:
    """Runs prompts through the model once.

    Args:
        model: the model, on the CPU.
        prompts: int64 ``[batch, tokens]``, no padding.
    """
    cache = RecordableCache(model, Full())
    with cache.recording() as blocks:
        output = model(input_ids=prompts, **cache_argument(cache), use_cache=True, logits_to_keep=1)
    return Prefill(blocks=tuple(blocks), logits=output.logits[:, -1].clone())


def replay(model: PreTrainedModel, prefill: Prefill, policy: Policy) -> CompressedCache:
    """Returns a cache of the policy in the state that the recorded prompts leave it in.

    Args:
        model: the model that was recorded.
        prefill: the record.
        policy: any policy.
    """
    cache = CompressedCache(model, policy)
    prefill.fill(cache)
    return cache


@torch.inference_mode()
def next_logits(model: PreTrainedModel, cache: CompressedCache, ids: torch.Tensor) -> torch.Tensor:
    """Logits ``[batch, vocabulary]`` after one more token per sequence (int64 ``[batch]``)."""
    output = model(input_ids=ids[:, None], **cache_argument(cache), use_cache=True)
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _recorded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    *,
    recorded_log_sum_exp: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Stands for an attention whose output nobody reads; lets the recorded log-sum-exp be overheard once more.

    The log-sum-exp of an attention to a single key is the logit itself. Whoever listens hears, bit for bit, what was
    heard when the prompts ran.
    """
    if recorded_log_sum_exp is not None:
        one = recorded_log_sum_exp.new_ones(*recorded_log_sum_exp.shape[:2], 1, 1)
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(recorded_log_sum_exp[..., None], one, one, scale=1.0)
    return query.transpose(1, 2), None
