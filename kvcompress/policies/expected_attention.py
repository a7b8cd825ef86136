"""ExpectedAttention: the attention that queries to come are expected to pay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.errors import UnsupportedModelError
from kvcompress.policies.base import RuledPolicy
from kvcompress.policies.checks import check_number, check_whole
from kvcompress.policies.rotary import Rotary, rotary_of

_CHUNK = 1024  # queries that are turned back at once


@dataclass(frozen=True, slots=True, kw_only=True)
class FutureAttention:
    """Expected attention times the norm of the value.

    Queries without rotary embedding are taken as Gaussian with the block's mean and covariance; the mean rotation of
    the next ``future`` positions carries both to where queries will be. The expected weight of a key is then
    ``softmax(s k.mu + s^2 k.Sigma.k / 2)``, ``s`` the attention's scaling.

    Args:
        future: how many positions to come are averaged.
        sink_tokens: first tokens of each row that count neither as queries nor as keys.
        epsilon: added to the expected weight before it is multiplied with the value's norm.

    Source:
        Devoto et al., Expected Attention, arXiv 2510.00636, section 3.
    """

    future: int
    sink_tokens: int
    epsilon: float

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns expected weights (mean over the query group) times value norms."""
        if inputs.spec.softcap is not None:
            raise UnsupportedModelError("ExpectedAttention knows no softcap on attention logits. Use SnapKV or Cake.")
        mean, covariance = self._future_queries(inputs)  # [B, Hkv, G, D], [B, Hkv, G, D, D]
        keys = inputs.keys.float()[:, :, None]  # [B, Hkv, 1, N, D]
        scaling = inputs.spec.scaling
        logits = (keys @ mean[..., None]).squeeze(-1) * scaling
        for g in range(logits.shape[2]):
            logits[:, :, g] += ((keys[:, :, 0] @ covariance[:, :, g]) * keys[:, :, 0]).sum(-1) * (scaling**2 / 2)
        absent = self._absent(inputs, keys.shape[3])
        if absent is not None:
            logits = logits.masked_fill(absent[:, :, None], torch.finfo(logits.dtype).min)
        weights = logits.softmax(-1).mean(2)[..., : inputs.scored]
        norms = inputs.values[:, :, : inputs.scored].float().norm(dim=-1)
        return LayerScores(token_scores=(weights + self.epsilon) * norms)

    def _future_queries(self, inputs: ScoreInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of queries to come, per query head of each kv head."""
        batch, query_heads, _, head_dim = inputs.query.shape
        rotary = rotary_of(inputs.module)
        counted = _positions_in_row(inputs) >= self.sink_tokens
        if inputs.valid_queries is not None:
            counted = counted & inputs.valid_queries
        number = counted.sum(1).clamp(min=1).view(-1, 1, 1)
        mean = torch.zeros(batch, query_heads, head_dim, device=inputs.query.device)
        covariance = torch.zeros(batch, query_heads, head_dim, head_dim, device=inputs.query.device)
        for query, weight in _without_rotary(inputs, rotary, counted):
            mean += (query * weight).sum(2)
        mean = mean / number
        for query, weight in _without_rotary(inputs, rotary, counted):
            centred = (query - mean[:, :, None]) * weight
            covariance += centred.transpose(-1, -2) @ centred
        covariance = covariance / number[..., None]
        last = _positions_in_row(inputs)[:, -1:]
        ahead = last + torch.arange(1, self.future + 1, device=last.device)
        turn = rotary.average(ahead, head_dim)[:, None]  # [1 or B, 1, D, D]
        mean, covariance = (mean[:, :, None] @ turn).squeeze(2), turn.transpose(-1, -2) @ covariance @ turn
        heads = inputs.keys.shape[1]
        return mean.unflatten(1, (heads, -1)), covariance.unflatten(1, (heads, -1))

    def _absent(self, inputs: ScoreInputs, tokens: int) -> torch.Tensor | None:
        """Keys that take no part, bool ``[batch or 1, kv_heads or 1, tokens]``: sinks and places without a token."""
        if inputs.positions is None:
            return (torch.arange(tokens, device=inputs.keys.device) < self.sink_tokens)[None, None]
        start = 0 if inputs.row_start is None else inputs.row_start[:, None, None]
        return (inputs.positions < 0) | (inputs.positions < start + self.sink_tokens)


def _positions_in_row(inputs: ScoreInputs) -> torch.Tensor:
    """Positions of the block's queries counted from each row's first token, int64 ``[1 or batch, queries]``."""
    end = inputs.last_position + 1
    positions = torch.arange(end - inputs.query.shape[2], end, device=inputs.query.device)[None]
    return positions if inputs.row_start is None else (positions - inputs.row_start[:, None])


def _without_rotary(
    inputs: ScoreInputs, rotary: Rotary, counted: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields queries float32 ``[batch, query_heads, n, head_dim]`` turned back, and their weights, 0 or 1."""
    positions = _positions_in_row(inputs).clamp(min=0)
    for start in range(0, inputs.query.shape[2], _CHUNK):
        chunk = slice(start, start + _CHUNK)
        query = rotary.turn(inputs.query[:, :, chunk].float(), positions[:, chunk], back=True)
        yield query, counted[:, None, chunk, None].float()


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(RuledPolicy):
    """The highest attention expected from queries to come, times the value's norm. Grows while decoding.

    Args:
        future: how many positions to come are averaged, >= 1.
        epsilon: added to the expected weight before it is multiplied with the value's norm, >= 0.
        decode: name of the decode rule; ``"off"`` as published.

    Source:
        Devoto et al., Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
        Distribution, arXiv 2510.00636.
    """

    window_size: int = 1
    sink_tokens: int = 4
    future: int = 512
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_whole("future", self.future, at_least=1)
        check_number("epsilon", self.epsilon, at_least=0.0)

    @property
    def name(self) -> str:
        """``"expected_attention"``."""
        return "expected_attention"

    @property
    def scorer(self) -> FutureAttention:
        """Expected weights times value norms."""
        return FutureAttention(future=self.future, sink_tokens=self.sink_tokens, epsilon=self.epsilon)
