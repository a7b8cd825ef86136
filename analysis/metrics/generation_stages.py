"""The stages of a generation: the prompt, then the generated part in thirds, and what changes between them."""

from __future__ import annotations

from typing import Final

import torch

from kvcompress.analysis.summary.schema import PREFILL, STEP

_BLOCK_ELEMENTS = 1 << 21  # values in float64 at a time: 16 MiB, whatever the number of events
STAGES: Final = ("prompt", "early", "middle", "late")


def stages(kinds: torch.Tensor) -> torch.Tensor:
    """Stage of each event: 0 for the prompt, else the third of the generation it lies in.

    The ``i``-th of ``n`` generated events is in stage ``1 + floor(3 i / n)``.

    Args:
        kinds: int64 ``[events]``: 0 prefill, 1 decode, 2 step of a model that is not autoregressive.

    Returns:
        int64 ``[events]``: 0 prompt, 1 early, 2 middle, 3 late.

    Raises:
        ValueError: an unknown kind.
    """
    if kinds.numel() and not (int(kinds.min()) >= PREFILL and int(kinds.max()) <= STEP):
        raise ValueError(f"kinds must be 0, 1 or 2; got values from {int(kinds.min())} to {int(kinds.max())}")
    generated = kinds != PREFILL
    number = generated.long().cumsum(0) - 1
    thirds = 1 + 3 * number // max(int(generated.sum()), 1)
    return torch.where(generated, thirds, torch.zeros_like(thirds))


def stage_means(values: torch.Tensor, stage: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of a metric in each stage, weighted: ``Σ w v / Σ w`` over the stage's events.

    Args:
        values: ``[events, ...]``; NaN counts as not there.
        stage: int64 ``[events]``, of :func:`stages`.
        weights: ``[events]``, at least 0, e.g. the queries of each event; None: all alike.

    Returns:
        float64 ``[4, ...]``; NaN for a stage without events.
    """
    return torch.stack([weighted_mean(values, weights, stage == number) for number in range(len(STAGES))])


def stage_changes(means: torch.Tensor) -> torch.Tensor:
    """Change from each stage to the next: ``[4, ...]`` to ``[3, ...]``."""
    return means[1:] - means[:-1]


def weighted_mean(
    values: torch.Tensor, weights: torch.Tensor | None = None, which: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the first axis: ``Σ w v / Σ w``; NaN counts as not there.

    Args:
        values: ``[events, ...]``.
        weights: ``[events]``, at least 0; None: all alike.
        which: bool ``[events]``; None: all.

    Returns:
        float64 ``[...]``; NaN where there is nothing to average.
    """
    factors = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    if which is not None:
        factors = factors * which
    total = torch.zeros(values.shape[1:], dtype=torch.float64)
    weight = torch.zeros_like(total)
    size = max(1, _BLOCK_ELEMENTS // max(total.numel(), 1))
    for block, share in zip(values.split(size), factors.split(size), strict=True):
        if not bool(share.any()):
            continue
        column = share.reshape(-1, *[1] * (values.ndim - 1))
        there = ~torch.isnan(block)
        total += (block.double().nan_to_num() * column).sum(0)
        weight += (there * column).sum(0)
    return total / weight
