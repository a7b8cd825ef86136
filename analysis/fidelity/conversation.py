"""Feeds blocks of tokens to a model through one cache, whatever the rows' lengths."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.engine.cache_argument import cache_argument
from kvcompress.engine.report import layer_bytes


class Conversation:
    """A batch of conversations over one cache.

    Shorter rows of a block are padded on the left, which the attention mask and the positions make good; blocks
    without padding carry neither, so that the fast paths of attention stay open. A block of one token is a decode step;
    a row of one token in a longer block is not, and a compressed cache treats the two differently.

    Args:
        model: a decoder, in evaluation mode.
        cache: an empty cache.
        padding_id: the token in places without one; any will do.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, padding_id: int = 0) -> None:
        self.model: Any = model
        self.cache = cache
        self.padding_id = padding_id
        self._mask: torch.Tensor | None = None  # int64 [batch, seen], from the first padding on
        self._seen = 0
        # Logits of all tokens are large where the vocabulary is, and not every model can skip them.
        self._skips_logits = "logits_to_keep" in signature(self.model.forward).parameters

    @torch.inference_mode()
    def feed(self, rows: Sequence[Sequence[int]], *, all_logits: bool = False) -> torch.Tensor:
        """Runs the next block.

        Args:
            rows: tokens of each sequence, at least one each.
            all_logits: whether the logits of every token are wanted; the rows must then be of equal length.

        Returns:
            Logits ``[batch, vocabulary]`` after the block, or ``[batch, tokens, vocabulary]``.

        Raises:
            ValueError: an empty row.
        """
        if not all(rows):
            raise ValueError("rows must have at least one token each; got an empty one. Leave that sequence out.")
        longest = max(map(len, rows))
        filled = [[self.padding_id] * (longest - len(row)) + list(row) for row in rows]
        ids = torch.tensor(filled, device=self.model.device)
        options = self._masked([len(row) for row in rows], longest)
        if self._skips_logits and not all_logits:
            options["logits_to_keep"] = 1
        output = self.model(input_ids=ids, **cache_argument(self.cache), use_cache=True, **options)
        logits: torch.Tensor = output.logits
        return logits if all_logits else logits[:, -1]

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Runs one token a sequence (int64 ``[batch]``): logits ``[batch, vocabulary]``, with no copy to the host."""
        with torch.inference_mode():
            options = self._masked([1] * len(ids), 1)
            output = self.model(input_ids=ids[:, None], **cache_argument(self.cache), use_cache=True, **options)
            logits: torch.Tensor = output.logits[:, -1]
            return logits

    def _masked(self, lengths: Sequence[int], block: int) -> dict[str, Any]:
        """Notes a block; returns its mask and positions, where there is padding in it or was before."""
        device = self.model.device
        if self._mask is None and min(lengths) < block:
            self._mask = torch.ones(len(lengths), self._seen, dtype=torch.int64, device=device)
        self._seen += block
        if self._mask is None:
            return {}
        if min(lengths) == block:
            new = self._mask.new_ones(len(lengths), block)
        else:
            padding = block - torch.tensor(lengths, device=device)
            new = (torch.arange(block, device=device) >= padding[:, None]).long()
        self._mask = torch.cat([self._mask, new], dim=1)
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -block:]
        return {"attention_mask": self._mask, "position_ids": positions}

    @property
    def num_bytes(self) -> int:
        """Bytes that the cache holds."""
        return sum(layer_bytes(layer) for layer in self.cache.layers)


def wait_for(model: PreTrainedModel) -> None:
    """Waits until the device has done what it was told, so that a clock tells the truth."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
