"""What the engine is compared with: the same work in plain torch, matrices materialised and memory copied."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

_LOG_OFFSET = 1e-10


class EagerScores(NamedTuple):
    """Token scores ``[batch, kv_heads, scored]`` and per batch row the entropy and the variance."""

    scores: torch.Tensor
    entropy: torch.Tensor
    variance: torch.Tensor


def eager_scores(query: torch.Tensor, key: torch.Tensor, gamma: float, *, exact: bool = False) -> EagerScores:
    """CAKE's scores as its authors compute them: the window's whole attention matrix, keys repeated per query head.

    Args:
        query: ``[batch, query_heads, window, head_dim]``, the window's queries.
        key: ``[batch, kv_heads, tokens, head_dim]``; the last ``window`` are the queries' own.
        gamma: weight of the variance.
        exact: the entropy without the authors' offset in the logarithm, for a float64 reference.

    Source:
        The official code of CAKE, arXiv 2503.12491.
    """
    batch, query_heads, window, head_dim = query.shape
    kv_heads = key.shape[1]
    repeated = repeat_kv(key, query_heads // kv_heads)
    logits = torch.matmul(query, repeated.transpose(2, 3)) / head_dim**0.5
    least = torch.finfo(logits.dtype).min
    mask = torch.full((window, window), least, dtype=logits.dtype, device=logits.device).triu(1)
    logits[..., -window:] += mask
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    attention = torch.softmax(logits, dim=-1, dtype=compute).to(query.dtype)
    before = attention[..., :-window]
    if exact:
        entropy = -torch.special.xlogy(before, before).sum((1, 2, 3))
    else:
        entropy = -(before * torch.log(before + _LOG_OFFSET)).sum((1, 2, 3))
    variance = before.var(2).sum((1, 2))
    scores = (attention.mean(2) + gamma * attention.var(2))[..., :-window]
    pooled = F.avg_pool1d(scores, 5, stride=1, padding=2)
    return EagerScores(pooled.view(batch, kv_heads, -1, pooled.shape[-1]).mean(2), entropy, variance)


def gather_kept(
    key: torch.Tensor, value: torch.Tensor, scores: torch.Tensor, budget: int, window: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keeps the ``budget`` best tokens and the window, by top-k and copies.

    Returns:
        ``(keys [batch, kv_heads, budget + window, head_dim], values, indices of the best [batch, kv_heads, budget])``.
    """
    best = torch.topk(scores, budget, dim=-1).indices
    index = best[..., None].expand(-1, -1, -1, key.shape[-1])
    keys = torch.cat([key[:, :, :-window].gather(2, index), key[:, :, -window:]], dim=2)
    values = torch.cat([value[:, :, :-window].gather(2, index), value[:, :, -window:]], dim=2)
    return keys, values, best


class GatheringCache:
    """CAKE's decode step as its authors do it: every step copies all keys and values that stay.

    Args:
        module: attention module, for transformers' attention function.
        key: ``[batch, kv_heads, budget + window, head_dim]``.
        value: likewise.
        window: tokens at the end that always stay.

    Source:
        The official code of CAKE, arXiv 2503.12491.
    """

    def __init__(self, module: torch.nn.Module, key: torch.Tensor, value: torch.Tensor, window: int) -> None:
        self.module, self.key, self.value, self.window = module, key, value, window
        self.budget = key.shape[2] - window

    def step(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Decodes one token; returns the attention output ``[batch, 1, query_heads, head_dim]``."""
        keys = torch.cat([self.key, key], dim=2)
        values = torch.cat([self.value, value], dim=2)
        scaling = query.shape[-1] ** -0.5
        output: torch.Tensor = sdpa_attention_forward(self.module, query, keys, values, None, scaling=scaling)[0]
        groups = query.shape[1] // keys.shape[1]
        logits = torch.matmul(query, repeat_kv(keys, groups).transpose(2, 3)) * scaling
        attention = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
        candidates = attention[..., 0, : -self.window]
        pooled = F.avg_pool1d(candidates, 5, stride=1, padding=2)
        scores = pooled.view(keys.shape[0], keys.shape[1], groups, -1).mean(2)
        self.key, self.value, _ = gather_kept(keys, values, scores, self.budget, self.window)
        return output


class SlotsWithoutEviction:
    """The same slots and nothing else: writes the token into one slot and attends.

    Args:
        key: ``[rows, slots, head_dim]``.
        value: likewise.
    """

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.key, self.value = key, value
        self.slot = torch.tensor([key.shape[1] - 1])

    def step(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Decodes one token; returns ``[batch, 1, query_heads, head_dim]``."""
        rows, _, head_dim = self.key.shape
        self.key.index_copy_(1, self.slot, key.view(rows, 1, head_dim))
        self.value.index_copy_(1, self.slot, value.view(rows, 1, head_dim))
        grouped = query.view(rows, -1, head_dim) * head_dim**-0.5
        p = torch.softmax(torch.bmm(grouped, self.key.transpose(1, 2)), dim=-1)
        return torch.bmm(p, self.value).view(query.shape[0], 1, query.shape[1], head_dim)


def exact_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of one query per sequence over all tokens given, in float64: ``[batch, 1, query_heads, head_dim]``."""
    groups = query.shape[1] // keys.shape[1]
    k, v = repeat_kv(keys.double(), groups), repeat_kv(values.double(), groups)
    p = torch.softmax(torch.matmul(query.double(), k.transpose(2, 3)) * query.shape[-1] ** -0.5, dim=-1)
    return torch.matmul(p, v).transpose(1, 2)
