"""The same text through a full and a compressed cache, token by token or block by block.

The first part of each window of text is the prompt, which the policy compresses; the second part is forced. The
prediction that the prompt itself ends with is left out: prefill attends to the whole prompt whatever the cache keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from kvcompress.analysis.fidelity.conversation import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Forced:
    """What two caches predict, position by position. All are float64 ``[windows, steps]`` on the CPU.

    Attributes:
        divergence: KL(full || compressed) of the next token's distribution, in nats, at least 0.
        agreement: 1 where both have the same likeliest token, else 0.
        full_loss: negative log-likelihood of the text's next token with the full cache, in nats.
        compressed_loss: the same with the compressed cache.
        kv_bytes: bytes that the compressed cache held in the end, per window.
        full_bytes: bytes that the full cache held.
    """

    divergence: torch.Tensor
    agreement: torch.Tensor
    full_loss: torch.Tensor
    compressed_loss: torch.Tensor
    kv_bytes: int
    full_bytes: int


def text_windows(tokenizer: Any, text: str, *, context: int, steps: int, most: int) -> torch.Tensor:
    """Cuts a text into windows that do not overlap; what is left at its end is dropped.

    Args:
        tokenizer: a tokenizer of transformers. Every window begins with its beginning-of-text token, if it has one.
        text: the text.
        context: tokens of each prompt, at least 2.
        steps: predictions compared in each window, at least 1.
        most: most windows.

    Returns:
        int64 ``[windows, context + steps + 1]``: the last token is only predicted.

    Raises:
        ValueError: a number below its least, or a text too short for one window.
    """
    if context < 2 or steps < 1 or most < 1:
        raise ValueError(
            f"context must be at least 2, steps and most at least 1; got context={context}, steps={steps}, most={most}"
        )
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    size = context + steps + 1 - len(start)
    windows = [[*start, *ids[begin : begin + size]] for begin in range(0, len(ids) - size + 1, size)][:most]
    if not windows:
        raise ValueError(
            f"the text must have at least {size} tokens for context={context} and steps={steps}; it has {len(ids)}. "
            "Give a longer text or smaller numbers."
        )
    return torch.tensor(windows)


@torch.inference_mode()
def force(
    model: PreTrainedModel,
    make_cache: Callable[[], Cache],
    windows: torch.Tensor,
    *,
    context: int,
    chunk: int = 1,
    batch_size: int = 8,
) -> Forced:
    """Forces windows of text through a full cache and another one, side by side.

    Args:
        model: a decoder, in evaluation mode.
        make_cache: makes the other cache, empty, for each batch.
        windows: int64 ``[windows, context + steps + 1]``.
        context: tokens of each prompt, at least 1.
        chunk: tokens forced at a time. 1 decodes as generation does, with its evictions; more attends whole blocks to
            what was kept of the prompt, which is faster and judges the compression of the prompt alone if
            ``chunk >= steps``.
        batch_size: windows at a time.

    Raises:
        ValueError: no room for a prediction, or a number below 1.
    """
    steps = windows.shape[1] - context - 1
    if min(context, steps, chunk, batch_size) < 1:
        raise ValueError(
            "context, chunk, batch_size and the steps after the context must be at least 1; got "
            f"context={context}, chunk={chunk}, batch_size={batch_size}, steps={steps}"
        )
    parts = [
        _force_batch(model, make_cache(), batch, context, chunk) for batch in windows.to(model.device).split(batch_size)
    ]
    measures = [torch.cat([part[0][kind] for part in parts]) for kind in range(4)]
    return Forced(
        divergence=measures[0],
        agreement=measures[1],
        full_loss=measures[2],
        compressed_loss=measures[3],
        kv_bytes=sum(part[1] for part in parts) // len(windows),
        full_bytes=sum(part[2] for part in parts) // len(windows),
    )


def _force_batch(
    model: PreTrainedModel, cache: Cache, windows: torch.Tensor, context: int, chunk: int
) -> tuple[list[torch.Tensor], int, int]:
    """Four measures ``[windows, steps]``, bytes of the compressed and of the full cache."""
    full, other = Conversation(model, DynamicCache(config=model.config)), Conversation(model, cache)
    for talk in (full, other):
        talk.feed(windows[:, :context].tolist())
    columns: list[tuple[torch.Tensor, ...]] = []
    for begin in range(context, windows.shape[1] - 1, chunk):
        end = min(begin + chunk, windows.shape[1] - 1)
        rows, following = windows[:, begin:end].tolist(), windows[:, begin + 1 : end + 1]
        columns.append(_measure(full.feed(rows, all_logits=True), other.feed(rows, all_logits=True), following))
    measures = [torch.cat([column[kind] for column in columns], dim=1).cpu() for kind in range(4)]
    return measures, other.num_bytes, full.num_bytes


def _measure(full: torch.Tensor, other: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Divergence, agreement and both losses ``[windows, tokens]`` of logits ``[windows, tokens, vocabulary]``."""
    wanted, got = torch.log_softmax(full.double(), dim=-1), torch.log_softmax(other.double(), dim=-1)
    # KL is never negative; rounding may end below zero. Impossible tokens (-inf in both) add nothing.
    terms = torch.where(wanted == -torch.inf, 0.0, wanted.exp() * (wanted - got))
    same = (full.argmax(-1) == other.argmax(-1)).double()
    losses = [-table.gather(-1, following[..., None])[..., 0] for table in (wanted, got)]
    return terms.sum(-1).clamp(min=0), same, *losses
