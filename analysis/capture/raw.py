"""Raw attention and keys and values: only on request, and bounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvcompress.analysis.capture.observation import Observation, probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRequest:
    """Which raw attention is stored.

    Attributes:
        layers: indices of the model's layers; None: all.
        heads: query heads; None: all.
        max_tokens: events of more tokens are left out; the sample's JSON names them in ``raw_left_out``.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        for name, chosen in (("layers", self.layers), ("heads", self.heads)):
            if chosen is not None and (not chosen or min(chosen) < 0 or len(set(chosen)) != len(chosen)):
                raise ValueError(f"{name} must be different indices from 0 on, at least one, got {chosen}; None is all")

    def wants(self, layer_idx: int) -> bool:
        """Whether a layer is stored."""
        return self.layers is None or layer_idx in self.layers

    def num_bytes(self, *, layers: int, query_heads: int, prompt_tokens: int, new_tokens: int) -> int:
        """Bytes that a sample's raw attention takes at most: what to tell a user before it is written.

        Args:
            layers: layers of the model.
            query_heads: query heads of a layer.
            prompt_tokens: tokens of the prompt, all of one block.
            new_tokens: tokens decoded after it.
        """
        maps = (len(self.layers) if self.layers else layers) * (len(self.heads) if self.heads else query_heads)
        block = prompt_tokens**2 if prompt_tokens <= self.max_tokens else 0
        last = min(prompt_tokens + new_tokens, self.max_tokens)
        steps = sum(range(prompt_tokens + 1, last + 1))
        return 4 * maps * (block + steps)


def raw_attention(observation: Observation, tokens: int, heads: tuple[int, ...] | None) -> torch.Tensor:
    """Probabilities by position.

    Args:
        observation: whose queries are all observed.
        tokens: tokens seen.
        heads: query heads; None: all.

    Returns:
        float32 ``[heads, queries, tokens]``, 0 on positions that are not held.
    """
    kv_heads, group = observation.kv_heads, observation.query_heads // observation.kv_heads
    device = observation.query.device
    found = torch.zeros(kv_heads, group, observation.observed, tokens + 1, device=device)
    for chunk in probabilities(observation):
        place = torch.where(chunk.positions >= 0, chunk.positions, tokens)[:, None, None].expand(chunk.p.shape)
        rows = slice(chunk.first, chunk.first + chunk.p.shape[2])
        found[:, :, rows].scatter_(-1, place, chunk.p.float())
    flat = found[..., :tokens].flatten(0, 1)
    return flat if heads is None else flat[list(heads)]
