"""Pooling: groups of neighbouring tokens merged into their attention-weighted mean, measured as an edited cache."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from transformers import PreTrainedModel

from kvcompress.analysis.pruning.edited_cache import Edited, EditedCache, PromptStates


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """Merges the tokens of a prompt between the sinks and the latest ones, a group at a time.

    The merged key and value are means weighted by the attention of the latest tokens (evenly where it is 0), and take
    the slot of the group's last token. Keys are averaged as cached, rotary embedding applied. Generated tokens are
    not merged.

    Args:
        group_size: tokens of a group, at least 2; the last group of a prompt may have fewer.
        sink_tokens: first tokens, kept as they are.
        recent_tokens: last tokens, kept as they are; their attention gives the weights. At least 1.
    """

    group_size: int
    sink_tokens: int = 4
    recent_tokens: int = 32

    def __post_init__(self) -> None:
        """Checks the sizes."""
        if self.group_size < 2 or self.sink_tokens < 0 or self.recent_tokens < 1:
            raise ValueError(
                "group_size must be at least 2, sink_tokens at least 0 and recent_tokens at least 1; got "
                f"group_size={self.group_size}, sink_tokens={self.sink_tokens}, recent_tokens={self.recent_tokens}"
            )

    def cache(self, model: PreTrainedModel) -> EditedCache:
        """An empty cache that pools its prompt.

        Raises:
            UnsupportedModelError: the model has layers that cannot be compressed.
        """
        return EditedCache(model, self, observers=self.recent_tokens)

    def __call__(self, states: PromptStates) -> Edited:
        """Merges a layer's tokens.

        Raises:
            ValueError: scores are missing, or rows are padded.
        """
        if states.scores is None or bool((states.positions < 0).any()):
            raise ValueError("pooling needs scored prompts without padding. Make the cache with Pooling.cache(model).")
        tokens = states.keys.shape[2]
        first, last = self.sink_tokens, tokens - self.recent_tokens
        if last <= first:
            return Edited(keys=states.keys, values=states.values)
        weights = self._weights(states.scores[..., first:last])
        keys, values = states.keys.clone(), states.values.clone()
        keep = torch.ones_like(states.positions, dtype=torch.bool)
        keep[..., first:last] = False
        ends = torch.arange(first + self.group_size, last + self.group_size, self.group_size).clamp(max=last) - 1
        ends = ends.to(keys.device)
        keys[:, :, ends] = self._merged(states.keys[:, :, first:last], weights)
        values[:, :, ends] = self._merged(states.values[:, :, first:last], weights)
        keep[..., ends] = True
        return Edited(keys=keys, values=values, keep=keep)

    def _weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Weights that add up to 1 in each group: float64 ``[batch, kv_heads, groups, group_size]``."""
        grouped = self._grouped(scores.double())
        real = self._grouped(torch.ones_like(scores, dtype=torch.float64))
        total = grouped.sum(-1, keepdim=True)
        grouped = torch.where(total > 0, grouped, real)
        return grouped / grouped.sum(-1, keepdim=True)

    def _merged(self, states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Weighted means ``[batch, kv_heads, groups, dim]`` in the states' dtype."""
        grouped = self._grouped(states.transpose(-1, -2))  # [B, K, D, groups, group]
        compute = torch.float64 if states.dtype == torch.float64 else torch.float32
        merged = (grouped.to(compute) * weights[:, :, None].to(compute)).sum(-1)
        return merged.transpose(-1, -2).to(states.dtype)

    def _grouped(self, values: torch.Tensor) -> torch.Tensor:
        """The last axis cut into groups, zeros at the end."""
        missing = -values.shape[-1] % self.group_size
        padded: torch.Tensor = torch.nn.functional.pad(values, (0, missing))
        groups = padded.shape[-1] // self.group_size
        return padded.reshape(*padded.shape[:-1], groups, self.group_size)


def pooling_for(prompt_tokens: int, cache_size: int, *, sink_tokens: int = 4, most_recent: int = 32) -> Pooling | None:
    """The smallest groups that bring a prompt down to a cache size; None where there is no room for any.

    Args:
        prompt_tokens: tokens of the prompt.
        cache_size: tokens kept per layer and head, sinks and latest ones included.
        sink_tokens: first tokens kept as they are.
        most_recent: last tokens kept as they are, at most a quarter of the cache.
    """
    recent = min(most_recent, cache_size // 4)
    room, middle = cache_size - sink_tokens - recent, prompt_tokens - sink_tokens - recent
    if recent < 1 or room < 1 or middle <= room:
        return None
    return Pooling(group_size=ceil(middle / room), sink_tokens=sink_tokens, recent_tokens=recent)
