"""How far a compressed cache is from the full one: equal tokens, and divergence of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from transformers.cache_utils import Cache

from kvcompress.commands.loading import LoadedModel
from kvcompress.engine.cache_argument import cache_argument


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Tokens that two runs have in common.

    Attributes:
        tokens: positions compared: the tokens of the longer run.
        leading: equal tokens before the first difference.
        equal: positions with equal tokens.
    """

    tokens: int
    leading: int
    equal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Next-token predictions of both caches, fed the full run's tokens.

    Attributes:
        steps: predictions compared.
        mean_kl: mean of KL(full || compressed), in nats.
        max_kl: the largest of them.
        top1: share of steps with the same likeliest token.
    """

    steps: int
    mean_kl: float
    max_kl: float
    top1: float


def agreement(full: Sequence[int], compressed: Sequence[int]) -> Agreement:
    """Counts equal tokens.

    Args:
        full: tokens of the run with the full cache.
        compressed: tokens of the other run.
    """
    pairs = [a == b for a, b in zip(full, compressed, strict=False)]
    leading = next((place for place, equal in enumerate(pairs) if not equal), len(pairs))
    return Agreement(tokens=max(len(full), len(compressed)), leading=leading, equal=sum(pairs))


@torch.inference_mode()
def divergence(
    loaded: LoadedModel, prompt_ids: torch.Tensor, forced: Sequence[int], full: Cache, compressed: Cache
) -> Divergence | None:
    """Feeds the same tokens through both caches and compares what they predict.

    The prediction after the prompt is left out: prefill attends to the whole prompt whatever the cache keeps.

    Args:
        loaded: the model.
        prompt_ids: int64 ``[1, tokens]``.
        forced: the full run's tokens.
        full: an empty full cache.
        compressed: an empty compressed cache.

    Returns:
        The comparison; None where ``forced`` has one token, so that no prediction is left.
    """
    for cache in (full, compressed):
        _predict(loaded, prompt_ids, cache)
    kl: list[float] = []
    same: list[bool] = []
    for token in forced[:-1]:
        ids = torch.tensor([[token]], device=prompt_ids.device)
        wanted, got = (_predict(loaded, ids, cache) for cache in (full, compressed))
        kl.append(max(0.0, float((wanted.exp() * (wanted - got)).sum())))  # rounding may end below zero
        same.append(bool(wanted.argmax() == got.argmax()))
    if not kl:
        return None
    steps = len(kl)
    return Divergence(steps=steps, mean_kl=sum(kl) / steps, max_kl=max(kl), top1=sum(same) / steps)


def _predict(loaded: LoadedModel, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Log-probabilities of the next token, float64 ``[vocabulary]``."""
    model: Any = loaded.model
    # The prompt's other logits are not needed, and large where the vocabulary is; not every model can skip them.
    can_skip = "logits_to_keep" in signature(model.forward).parameters
    options = {"logits_to_keep": 1} if can_skip else {}
    output = model(input_ids=ids, **cache_argument(cache), use_cache=True, **options)
    return torch.log_softmax(output.logits[0, -1].double(), dim=-1)
