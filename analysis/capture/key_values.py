"""Statistics of a layer's keys or values, taken as tokens come in."""

from __future__ import annotations

import math

import torch

from kvcompress.analysis.capture.token_table import TokenTable
from kvcompress.analysis.summary.schema import SPARSITY_THRESHOLDS, TOKEN_SPARSITY_THRESHOLD

_BLOCK_ELEMENTS = 1 << 20  # entries that are looked at together


class KeyValueStatistics:
    """What docs/formats.md says of a layer's keys, or of its values, for one sequence.

    Args:
        heads: kv heads.
        head_dim: size of a head.
        device: where the tokens are.
    """

    def __init__(self, heads: int, head_dim: int, device: torch.device) -> None:
        self.heads, self.head_dim, self.count = heads, head_dim, 0
        self.scale: torch.Tensor | None = None  # [heads], from the first block
        self.norm = TokenTable((heads,), float("nan"))
        self.token_sparsity = TokenTable((heads,), float("nan"))
        self._thresholds = torch.tensor(SPARSITY_THRESHOLDS, device=device)

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(heads, *shape, dtype=torch.float64, device=device)

        self._squares, self._small = zeros(head_dim), zeros(head_dim)  # per dimension
        self._below = zeros(len(SPARSITY_THRESHOLDS))
        self._gram = zeros(head_dim, head_dim)

    def add(self, first: int, block: torch.Tensor) -> None:
        """Adds new tokens.

        Args:
            first: position of the first of them.
            block: ``[heads, tokens, head_dim]``.
        """
        if self.scale is None:
            self.scale = _root_mean_square(block)
        size = max(1, _BLOCK_ELEMENTS // (self.heads * self.head_dim))
        for start in range(0, block.shape[1], size):
            self._add(first + start, block[:, start : start + size].float(), self.scale)
        self.count += block.shape[1]

    def _add(self, first: int, block: torch.Tensor, scale: torch.Tensor) -> None:
        self.norm.write(first, torch.linalg.vector_norm(block, dim=-1))
        magnitude = block.abs()
        small = magnitude < TOKEN_SPARSITY_THRESHOLD * scale[:, None, None]
        self.token_sparsity.write(first, small.float().mean(-1))
        self._small += small.sum(1)
        for place, threshold in enumerate(self._thresholds):
            self._below[:, place] += (magnitude < threshold * scale[:, None, None]).sum((1, 2))
        self._squares += block.square().sum(1, dtype=torch.float64)
        self._gram += torch.matmul(block.transpose(1, 2), block)

    def result(self, tokens: int) -> dict[str, torch.Tensor]:
        """The statistics by the rest of their names, float32.

        Args:
            tokens: tokens of the sequence.
        """
        count = max(self.count, 1)
        scale = torch.zeros(self.heads) if self.scale is None else self.scale
        eigenvalues = torch.linalg.eigvalsh(self._gram).flip(-1).clamp(min=0)
        statistics = {
            "norm": self.norm.upto(tokens),
            "token_sparsity": self.token_sparsity.upto(tokens),
            "scale": scale,
            "sparsity": self._below / (count * self.head_dim),
            "dimension_sparsity": self._small / count,
            "energy": self._squares / count,
            "singular_values": eigenvalues.sqrt(),
        }
        return {name: values.float().cpu() for name, values in statistics.items()}


def _root_mean_square(block: torch.Tensor) -> torch.Tensor:
    """Root mean square of each head: ``[heads]``."""
    norms: torch.Tensor = torch.linalg.vector_norm(block, dim=(1, 2), dtype=torch.float32)
    return norms / math.sqrt(max(block.shape[1] * block.shape[2], 1))
