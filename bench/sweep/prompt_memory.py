"""Prompts that the cells of a sweep share: each runs through the model once, as long as there is room to keep it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.bench.replay import Prefill, RecordableCache
from kvcompress.bench.sweep.grid import make_cache
from kvcompress.bench.sweep.policy_text import FULL
from kvcompress.policies.base import Policy

PROMPT_BYTES: Final = 2 << 30  # unless told otherwise

_Rows = tuple[tuple[int, ...], ...]


class PromptMemory:
    """Records the first block of conversations and replays it into the caches of other policies.

    Scores are the same with and without it, bit for bit; where a prompt is not kept, it runs again.

    Args:
        model: the model.
        most_bytes: room for what is kept; 0 keeps nothing, as does a model that is not on the CPU.
    """

    def __init__(self, model: PreTrainedModel, most_bytes: int) -> None:
        self.model = model
        self.most_bytes = most_bytes if model.device.type == "cpu" else 0
        self.num_bytes = 0
        self._group: object = None
        self._prompts: dict[_Rows, Prefill] = {}

    def enter(self, group: object) -> None:
        """Says which prompts are about to come; those of another group are dropped."""
        if group != self._group:
            self._group, self.num_bytes = group, 0
            self._prompts.clear()

    def make_cache(self, policy: Policy) -> Cache:
        """An empty cache whose first block may be recorded, or replayed."""
        # The plain attention formula of the authors' code gives other keys in the last digits.
        if policy.name == FULL or policy.decode_rule.storage_order or not self.most_bytes:
            return make_cache(self.model, policy)
        return RecordableCache(self.model, policy)

    def converse(self, model: PreTrainedModel, cache: Cache) -> Conversation:
        """A conversation over a cache of :meth:`make_cache`."""
        if isinstance(cache, RecordableCache):
            return _Remembered(model, cache, self)
        return Conversation(model, cache)

    def find(self, rows: _Rows) -> Prefill | None:
        """What was recorded of a batch of prompts."""
        return self._prompts.get(rows)

    def keep(self, rows: _Rows, prompt: Prefill) -> None:
        """Keeps what was recorded of a batch, if there is room."""
        if self.num_bytes + prompt.num_bytes <= self.most_bytes:
            self.num_bytes += prompt.num_bytes
            self._prompts[rows] = prompt


class _Remembered(Conversation):
    """A conversation whose first block is looked up before it runs."""

    def __init__(self, model: PreTrainedModel, cache: RecordableCache, memory: PromptMemory) -> None:
        super().__init__(model, cache)
        self._memory = memory

    @torch.inference_mode()
    def feed(self, rows: Sequence[Sequence[int]], *, all_logits: bool = False) -> torch.Tensor:
        """As the base's."""
        if self._seen or all_logits:
            return super().feed(rows, all_logits=all_logits)
        key = tuple(map(tuple, rows))
        found = self._memory.find(key)
        if found is None:
            return self._record(key)
        self._masked([len(row) for row in rows], max(map(len, rows)))
        found.fill(cast("RecordableCache", self.cache))
        return found.logits

    def _record(self, rows: _Rows) -> torch.Tensor:
        with cast("RecordableCache", self.cache).recording() as blocks:
            logits = super().feed(rows)
        if [block.layer_idx for block in blocks] == list(range(len(self.cache.layers))):
            self._memory.keep(rows, Prefill(blocks=tuple(blocks), logits=logits))
        return logits
