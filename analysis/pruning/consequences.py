"""What an edited cache does to the predictions of a text: divergence, agreement and perplexity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import torch
from transformers import PreTrainedModel

from kvcompress.analysis.fidelity.teacher_forcing import Forced, force
from kvcompress.analysis.pruning.edited_cache import Edit, EditedCache

_CHUNK = 32  # tokens forced at a time: nothing is evicted after the prompt, so the size changes rounding alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequences:
    """Predictions beside the full cache's.

    Attributes:
        kl: mean of KL(full || edited) of the next token, in nats, at least 0.
        top1: share of positions with the same likeliest token.
        perplexity: of the text's continuation with the edited cache; infinite where a token got probability 0.
        full_perplexity: the same with the full cache.
    """

    kl: float
    top1: float
    perplexity: float
    full_perplexity: float


def consequences(model: PreTrainedModel, windows: torch.Tensor, *, context: int, edits: Sequence[Edit]) -> Consequences:
    """Forces windows of text, one at a time, through the full cache and one that is edited after its prompt.

    Args:
        model: a decoder that the engine can compress, in evaluation mode.
        windows: int64 ``[windows, context + steps + 1]``, as ``text_windows`` of ``analysis.fidelity`` cuts them.
        context: tokens of each prompt.
        edits: one for each window.

    Raises:
        ValueError: another number of edits, or no room for a prediction.
    """
    if len(edits) != len(windows):
        raise ValueError(f"edits must be one for each of the {len(windows)} windows; got {len(edits)}")
    parts = [
        force(model, _maker(model, edit), window[None], context=context, chunk=_CHUNK)
        for window, edit in zip(windows, edits, strict=True)
    ]
    return sum_up(parts)


def sum_up(parts: Sequence[Forced]) -> Consequences:
    """Means over all positions of all windows."""

    def mean(name: str) -> float:
        return float(torch.cat([getattr(part, name).flatten() for part in parts]).mean())

    return Consequences(
        kl=mean("divergence"),
        top1=mean("agreement"),
        perplexity=_exp(mean("compressed_loss")),
        full_perplexity=_exp(mean("full_loss")),
    )


def _maker(model: PreTrainedModel, edit: Edit) -> Callable[[], EditedCache]:
    return lambda: EditedCache(model, edit)


def _exp(loss: float) -> float:
    try:
        return exp(loss)
    except OverflowError:
        return float("inf")
