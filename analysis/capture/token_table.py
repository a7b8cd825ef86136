"""A value per token, for sequences that grow."""

from __future__ import annotations

import torch


class TokenTable:
    """Values ``[*shape, tokens]`` on the CPU, filled as tokens come; capacity doubles.

    Args:
        shape: axes before the tokens.
        empty: what stands where nothing was written.
        dtype: of the values.
    """

    def __init__(self, shape: tuple[int, ...], empty: float, dtype: torch.dtype = torch.float32) -> None:
        self._empty = empty
        self._values = torch.full((*shape, 64), empty, dtype=dtype)

    def write(self, first: int, values: torch.Tensor) -> None:
        """Writes values ``[*shape, n]`` of the tokens from ``first`` on."""
        self.upto(first + values.shape[-1])[..., first:] = values.to("cpu", self._values.dtype)

    def add(self, values: torch.Tensor) -> None:
        """Adds values ``[*shape, n]`` to those of the first tokens."""
        self.upto(values.shape[-1]).add_(values.to("cpu", self._values.dtype))

    def upto(self, tokens: int) -> torch.Tensor:
        """The first tokens' values ``[*shape, tokens]``: a view, which may be written into."""
        have = self._values.shape[-1]
        if tokens > have:
            more = max(2 * have, tokens) - have
            rest = self._values.new_full((*self._values.shape[:-1], more), self._empty)
            self._values = torch.cat([self._values, rest], dim=-1)
        return self._values[..., :tokens]
