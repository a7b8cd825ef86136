"""One decode step on the slot store: write the new token, attend, update running scores, choose the next victim."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from kvcompress.kernels.compact.reference import Slots
from kvcompress.kernels.window_scores.reference import AttentionSpec

EvictionOrder = Literal["none", "probability", "running", "stored", "position"]


class Run(NamedTuple):
    """Consecutive rows of equal length; a view ``[rows, length, ...]`` of them costs nothing.

    Attributes:
        first_row: index of the first row.
        rows: how many rows.
        offset: first slot.
        length: slots per row.
    """

    first_row: int
    rows: int
    offset: int
    length: int


class Eviction(NamedTuple):
    """How a decode step chooses the slot that the NEXT token will overwrite.

    Attributes:
        order: what is compared, least first. ``"probability"``: the mean over the query group of the current query's
            attention; ``"running"``: ``score = decay * score + probability``; ``"stored"``: the stored score;
            ``"position"``: the oldest token; ``"none"``: nothing is evicted, only free slots are taken.
        decay: factor of ``"running"``, in (0, 1]; 1 accumulates.
        window_size: the last ``window_size`` tokens are never victims.
        sink_tokens: nor are the first ``sink_tokens`` tokens of a row.
        keep_prompt: nor are the tokens of the prompt.
    """

    order: EvictionOrder
    decay: float = 1.0
    window_size: int = 1
    sink_tokens: int = 0
    keep_prompt: bool = False


def decode_attend_reference(
    query: torch.Tensor,
    new_key: torch.Tensor,
    new_value: torch.Tensor,
    slots: Slots,
    next_slot: torch.Tensor,
    row_offsets: torch.Tensor,
    runs: tuple[Run, ...],
    position: int | torch.Tensor,
    *,
    spec: AttentionSpec,
    eviction: Eviction,
    new_score: torch.Tensor | None = None,
    row_start: torch.Tensor | None = None,
    prompt_end: int = 0,
    full: bool = False,
    arrivals: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs one decode step in place.

    Args:
        query: ``[rows, group, head_dim]``, one row per (batch, kv head).
        new_key: ``[rows, head_dim]``, rotary embedding applied.
        new_value: ``[rows, value_dim]``.
        slots: the store; all four arrays are modified.
        next_slot: int64 ``[rows]``, the free slot of each row; replaced by the next one.
        row_offsets: int64 ``[rows + 1]``, first slot of each row (CSR).
        runs: the rows in order, grouped by equal length.
        position: absolute position of the new token (int, or int64 scalar on the device).
        spec: scaling, softcap, sinks, sliding window.
        eviction: how the next victim is chosen. Equal scores: the lower slot.
        new_score: float32 ``[rows]``, stored score of the new token; None: zero.
        row_start: int64 ``[rows]``, position of each row's first token; None: zeros. Needed for sinks.
        prompt_end: tokens at positions below are the prompt (for ``keep_prompt``).
        full: the caller knows that each row has no free slot but the next one; then nothing needs a mask.
        arrivals: int32 ``[rows]`` zeros, scratch of the kernel's one-launch variant, which is used where it is given.

    Returns:
        ``(output [rows, group, value_dim], probability [slots])``: the attention output in the query's dtype, and the
        float32 mean over the group of each slot's probability.

    Source:
        CAKE, arXiv 2503.12491; TOVA, arXiv 2401.06104 (``"probability"``); H2O, arXiv 2306.14048 (``"running"``).
    """
    write_new_token(slots, next_slot, new_key, new_value, position, new_score)
    outputs, probabilities = [], []
    for run in runs:
        hidden = None if full and spec.sliding_window is None else _hidden(slots, run, position, spec)
        output, p = attend_run(query, slots, run, hidden, spec)
        probability = p.mean(1).float()
        outputs.append(output)
        probabilities.append(probability)
        score = _victim_score(slots, run, probability, eviction)
        protected = _protected(slots, run, position, eviction, row_start, prompt_end)
        score = score.masked_fill(protected, float("inf"))
        if hidden is not None:  # a free slot, or one that left the sliding window, goes before anything is evicted
            score = score.masked_fill_(hidden, float("-inf"))
        rows = slice(run.first_row, run.first_row + run.rows)
        next_slot[rows] = row_offsets[rows] + score.argmin(-1)
    slots.positions.index_fill_(0, next_slot, -1)
    flat = [probability.view(-1) for probability in probabilities]
    if len(runs) == 1:
        return outputs[0], flat[0]
    return torch.cat(outputs), torch.cat(flat)


def write_new_token(
    slots: Slots,
    next_slot: torch.Tensor,
    new_key: torch.Tensor,
    new_value: torch.Tensor,
    position: int | torch.Tensor,
    new_score: torch.Tensor | None,
) -> None:
    """Writes the new token of each row into its next slot."""
    slots.keys.index_copy_(0, next_slot, new_key)
    slots.values.index_copy_(0, next_slot, new_value)
    if isinstance(position, torch.Tensor):  # filling with a tensor's value would ask a GPU for it
        slots.positions.index_copy_(0, next_slot, position.expand_as(next_slot))
    else:
        slots.positions.index_fill_(0, next_slot, position)
    if new_score is None:
        slots.scores.index_fill_(0, next_slot, 0.0)
    else:
        slots.scores.index_copy_(0, next_slot, new_score)


def slot_view(array: torch.Tensor, run: Run) -> torch.Tensor:
    """A slot array's part of one run: ``[rows, length, ...]``, a view."""
    part = array.narrow(0, run.offset, run.rows * run.length)
    return part.view(run.rows, run.length, *array.shape[1:])


def attend_run(
    query: torch.Tensor, slots: Slots, run: Run, hidden: torch.Tensor | None, spec: AttentionSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one run: output ``[rows, group, value_dim]`` and probabilities ``[rows, group, length]``.

    ``hidden`` bool ``[rows, length]`` marks slots that the query must not see; None: it sees all.
    """
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    q = query[run.first_row : run.first_row + run.rows].to(compute) * spec.scaling
    logits = torch.bmm(q, slot_view(slots.keys, run).to(compute).transpose(1, 2))
    if spec.softcap is not None:
        logits = logits.div_(spec.softcap).tanh_().mul_(spec.softcap)
    if hidden is not None:
        logits = logits.masked_fill_(hidden[:, None], float("-inf"))
    if spec.sinks is None:
        p = torch.softmax(logits, dim=-1)
    else:
        sinks = _sink_rows(spec.sinks, query.shape[1], run).to(compute)
        p = torch.softmax(torch.cat([logits, sinks[..., None]], dim=-1), dim=-1)[..., :-1]
    return torch.bmm(p, slot_view(slots.values, run).to(compute)).to(query.dtype), p


def _sink_rows(sinks: torch.Tensor, group: int, run: Run) -> torch.Tensor:
    """Sink logits ``[run.rows, group]``: rows repeat the kv heads for each batch entry."""
    grouped = sinks.view(-1, group)
    rows = torch.arange(run.first_row, run.first_row + run.rows, device=sinks.device)
    return grouped[rows % grouped.shape[0]]


def _hidden(slots: Slots, run: Run, position: int | torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Slots that the query must not see: free ones, and those outside the sliding window. Bool ``[rows, length]``."""
    positions = slot_view(slots.positions, run)
    if spec.sliding_window is None:
        return positions < 0
    # Free slots (-1) also fall below the bound once the window has moved past the start.
    bound = position - spec.sliding_window + 1
    return positions < (bound.clamp(min=0) if isinstance(bound, torch.Tensor) else max(bound, 0))


def _victim_score(slots: Slots, run: Run, probability: torch.Tensor, eviction: Eviction) -> torch.Tensor:
    """What is compared, ``[rows, length]``; updates running scores."""
    if eviction.order == "running":
        scores = slot_view(slots.scores, run)
        return (scores if eviction.decay == 1 else scores.mul_(eviction.decay)).add_(probability)
    if eviction.order == "stored":
        return slot_view(slots.scores, run)
    if eviction.order == "position":
        return slot_view(slots.positions, run).to(torch.float64)
    return probability


def _protected(
    slots: Slots,
    run: Run,
    position: int | torch.Tensor,
    eviction: Eviction,
    row_start: torch.Tensor | None,
    prompt_end: int,
) -> torch.Tensor:
    """Slots that must not be evicted (free ones may be among them). Bool ``[rows, length]``."""
    positions = slot_view(slots.positions, run)
    if eviction.order == "none":
        return torch.ones_like(positions, dtype=torch.bool)
    protected = positions > position - eviction.window_size
    if eviction.sink_tokens:
        start = 0 if row_start is None else row_start[run.first_row : run.first_row + run.rows, None]
        protected |= positions < start + eviction.sink_tokens
    if eviction.keep_prompt:
        protected |= positions < prompt_end
    return protected
