"""What the engine's tests share: prompts, teacher-forced runs, comparisons."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from kvcompress import CompressedCache
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.kernels.dispatch import interpreting
from tests.kvcompress.engine.architectures import VOCABULARY

# |Δlogit| in float32 of two runs that do the same sums in another order; logits are of order one, see `tolerance`.
NO_EVICTION = 2e-5
PADDED_ROWS = 5e-5  # two runs that also differ in the width of the padding, hence in every kernel's blocking

LONG, MEDIUM, SHORT = 90, 30, 5  # beyond the cache, below the cache, below the window
STEPS = 4 if interpreting() else 12  # a step of four layers takes up to half a second in the interpreter


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids ``[1, length]``, special ones left out."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(3, VOCABULARY - 10, (1, length), generator=generator)


def left_padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacks rows ``[1, n]``: ``(input_ids [batch, longest], attention_mask)``, padding on the left."""
    longest = max(row.shape[1] for row in rows)
    ids = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in rows])
    mask = torch.cat([_ones_after(longest, row.shape[1]) for row in rows])
    return ids, mask


def _ones_after(longest: int, length: int) -> torch.Tensor:
    return (torch.arange(longest) >= longest - length).long()[None]


@torch.no_grad()
def forward(model: PreTrainedModel, cache: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits ``[batch, tokens, vocabulary]`` of the next block; ``mask`` covers all tokens so far."""
    extra = {}
    if mask is not None:
        extra["attention_mask"] = mask
        extra["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    logits: torch.Tensor = model(input_ids=ids, **cache_argument(cache), use_cache=True, **extra).logits
    return logits


def teacher_forced(
    model: PreTrainedModel, cache: Any, ids: torch.Tensor, forced: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Prefills ``ids`` and decodes ``forced [batch, steps]``; logits ``[batch, steps + 1, vocabulary]``."""
    mask = torch.ones_like(ids) if mask is None else mask
    logits = [forward(model, cache, ids, mask)[:, -1:]]
    for step in range(forced.shape[1]):
        token = forced[:, step : step + 1]
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        logits.append(forward(model, cache, token, mask))
    return torch.cat(logits, dim=1)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest |Δ|, relative to the reference ``b`` where its values exceed one; NaN anywhere gives NaN."""
    return float(((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1.0)).item())


def full_cache(model: PreTrainedModel) -> DynamicCache:
    """Transformers' own cache for a model."""
    return DynamicCache(config=model.config)


def kept(cache: CompressedCache, layer_idx: int, batch: int = 0, offset: int = 0) -> list[list[int]]:
    """Positions of one batch row's tokens in a layer, per kv head, counted from ``offset``."""
    rows = cache.kept_positions(layer_idx)[batch]
    return [[int(p) - offset for p in row if p >= 0] for row in rows]


def greedy(
    model: PreTrainedModel,
    cache: Any,
    ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    steps: int = STEPS,
    **more: Any,
) -> torch.Tensor:
    """What ``generate`` returns without sampling: prompt and ``steps`` new tokens."""
    mask = torch.ones_like(ids) if mask is None else mask
    options: dict[str, Any] = {"max_new_tokens": steps, "do_sample": False, "pad_token_id": 0} | more
    tokens: torch.Tensor = model.generate(ids, attention_mask=mask, **cache_argument(cache), **options)
    return tokens


def stored_dtypes(cache: CompressedCache) -> set[torch.dtype]:
    """Dtypes of the keys and values that a cache holds."""
    stores = [layer.store for layer in cache.compressed_layers if layer.store]
    return {array.dtype for store in stores for array in (store.slots.keys, store.slots.values)}
