"""What became of each token of a compressed layer."""

from __future__ import annotations

from typing import Final

import torch

from kvcompress.analysis.capture.token_table import TokenTable

STAGES: Final = {"prefill": 1, "cascade": 2, "decode": 3}


class EvictionLog:
    """Scores and evictions of one layer, for one sequence. Positions count the sequence's own tokens.

    Args:
        heads: kv heads.
    """

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self._score = TokenTable((heads,), float("nan"))
        self._event = TokenTable((heads,), -1, torch.int32)
        self._stage = TokenTable((heads,), 0, torch.int8)
        self._evicted = torch.zeros(heads, dtype=torch.int64)

    def note_scores(self, positions: torch.Tensor, scores: torch.Tensor, tokens: int) -> None:
        """Notes a block's scores.

        Args:
            positions: int64 ``[heads, n]``, below 0 for none.
            scores: ``[heads, n]``.
            tokens: tokens seen.
        """
        table = torch.nn.functional.pad(self._score.upto(tokens), (0, 1))  # a last column for what has no place
        place = positions.cpu()
        place = torch.where(place >= 0, place, tokens)
        table.scatter_(1, place, scores.float().cpu())
        self._score.write(0, table[:, :tokens])

    def note_evicted(self, positions: torch.Tensor, event: int, stage: str, tokens: int) -> None:
        """Notes evictions.

        Args:
            positions: int64 ``[heads, n]``, below 0 for none.
            event: at which event.
            stage: ``"prefill"``, ``"cascade"`` or ``"decode"``.
            tokens: tokens seen.
        """
        head, place = (positions >= 0).nonzero(as_tuple=True)
        token = positions[head, place].cpu()
        head = head.cpu()
        self._event.upto(tokens)[head, token] = event
        self._stage.upto(tokens)[head, token] = STAGES[stage]
        self._evicted += torch.bincount(head, minlength=self.heads)

    def note_absent(self, present: torch.Tensor, first: int, event: int, tokens: int) -> None:
        """Notes new tokens that a layer never stored: they had left its sliding window within their own block.

        Args:
            present: int64 ``[heads, n]``, positions that are there, below 0 for none.
            first: position of the block's first token.
            event: the block's event.
            tokens: tokens seen.
        """
        there = torch.zeros(self.heads, tokens + 1, dtype=torch.bool)
        place = present.cpu()
        there.scatter_(1, torch.where(place >= 0, place, tokens), True)
        new = torch.arange(tokens).expand(self.heads, -1)
        absent = ~there[:, :tokens] & (new >= first)
        if absent.any():
            self.note_evicted(new.masked_fill(~absent, -1), event, "prefill", tokens)

    def held(self, tokens: int) -> torch.Tensor:
        """Tokens that each head holds now: int64 ``[heads]``."""
        return tokens - self._evicted

    def result(self, tokens: int) -> dict[str, torch.Tensor]:
        """``score``, ``evicted_event`` and ``evicted_stage`` of each token, ``[heads, tokens]``."""
        return {
            "score": self._score.upto(tokens),
            "evicted_event": self._event.upto(tokens).long(),
            "evicted_stage": self._stage.upto(tokens).long(),
        }
