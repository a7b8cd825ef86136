"""The attention of one event, layer and head, as exact as the sample stores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from kvcompress.analysis.plots.bins import Floats, Whole, bin_edges, per_token
from kvcompress.analysis.plots.problems import checked_head, checked_step, layer_place
from kvcompress.analysis.plots.stored import event_tokens, floats, head_name, mean_over, whole
from kvcompress.analysis.plots.text import counted
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import RAW_ATTENTION

MOST_TOKENS: Final = 2048  # that a map of a single query shows one by one
Source = Literal["raw", "bins", "tokens", "position bins"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMap:
    """Mean probability per key token of ranges of queries and keys.

    Attributes:
        values: float64 ``[rows, columns]``, in [0, 1]; NaN for queries that were not observed.
        query_edges: ``[rows + 1]``, positions where the ranges of queries begin, and the end.
        key_edges: ``[columns + 1]``, the same of the keys.
        source: ``raw`` (every query and key), ``bins`` (of ``heatmap.mass``), ``tokens`` (one row with every key, of
            ``token.mass``) or ``position bins`` (one row, of ``attention.position_mass``).
        heads: what the map is of: ``head 3``, ``mean over 8 heads``.
    """

    values: Floats
    query_edges: Whole
    key_edges: Whole
    source: Source
    heads: str

    @property
    def single(self) -> bool:
        """Whether there is one row of queries only."""
        return len(self.values) == 1

    @property
    def origin(self) -> str:
        """Where the values come from, for a title."""
        rows, columns = self.values.shape
        if self.source == "raw":
            return "raw attention"
        if self.source == "bins":
            return f"{rows} × {columns} bins"
        return "every token" if self.source == "tokens" else counted(columns, "position bin")


def attention_map(sample: Sample, layer: int, step: int, head: int | None = None) -> AttentionMap:
    """The attention of one event, layer and head: raw where it is stored, else binned.

    Args:
        sample: what was captured.
        layer: number of the layer in the model.
        step: number of the event.
        head: number of the query head; None: mean over heads (over the stored ones, where attention is raw).

    Raises:
        ValueError: there is no such layer, step or head.
    """
    place, step, head = layer_place(sample, layer), checked_step(sample, step), checked_head(sample, head)
    raw_name = f"{RAW_ATTENTION}.{step}.{layer}"
    raw_heads = _raw_heads(sample)
    if sample.has(raw_name) and (head is None or head in raw_heads):
        return _raw(sample, layer, step, head, raw_heads)
    binned = np.flatnonzero(whole(sample, "heatmap.event") == step)
    if len(binned):
        return _binned(sample, int(binned[0]), place, step, head)
    if head is None and step in sample.token_mass_events and int(event_tokens(sample)[step]) <= MOST_TOKENS:
        return _by_token(sample, place, step)
    mass = floats(sample, "attention.position_mass", step, place)
    values, edges = per_token(mean_over(mass, 0) if head is None else mass[head], int(event_tokens(sample)[step]))
    return AttentionMap(
        values=values[None],
        query_edges=_query_range(sample, step),
        key_edges=edges,
        source="position bins",
        heads=head_name(sample, head),
    )


def _raw_heads(sample: Sample) -> list[int]:
    stored = sample.summary.raw_heads
    return list(range(sample.summary.model.query_heads)) if stored is None else list(stored)


def _raw(sample: Sample, layer: int, step: int, head: int | None, stored: list[int]) -> AttentionMap:
    attention: Floats = sample.raw_attention(step, layer).double().numpy()
    queries, keys = attention.shape[1:]
    first = int(whole(sample, "event.first_query")[step])
    heads = head_name(sample, head)
    if head is None and len(stored) < sample.summary.model.query_heads:
        heads = "mean over heads " + ", ".join(map(str, stored))
    return AttentionMap(
        values=mean_over(attention, 0) if head is None else attention[stored.index(head)],
        query_edges=np.arange(first, first + queries + 1),
        key_edges=np.arange(keys + 1),
        source="raw",
        heads=heads,
    )


def _binned(sample: Sample, entry: int, place: int, step: int, head: int | None) -> AttentionMap:
    tokens = int(event_tokens(sample)[step])
    stored = floats(sample, "heatmap.mass", entry, place)  # [H, 64, 64]
    values, key_edges = per_token(mean_over(stored, 0) if head is None else stored[head], tokens)
    rows, query_edges = bin_edges(tokens, stored.shape[-2])
    first = int(whole(sample, "event.first_query")[step])
    shown = query_edges[1:] > first  # a later block of a prompt has no queries before its first
    return AttentionMap(
        values=values[rows][shown],
        query_edges=np.append(np.maximum(query_edges[:-1][shown], first), tokens),
        key_edges=key_edges,
        source="bins",
        heads=head_name(sample, head),
    )


def _by_token(sample: Sample, place: int, step: int) -> AttentionMap:
    """The mean over heads of a step with a single query."""
    mass: Floats = sample.token_mass(step)[place].double().numpy()
    return AttentionMap(
        values=mass[None],
        query_edges=_query_range(sample, step),
        key_edges=np.arange(len(mass) + 1),
        source="tokens",
        heads=head_name(sample, None),
    )


def _query_range(sample: Sample, step: int) -> Whole:
    first = int(whole(sample, "event.first_query")[step])
    return np.array([first, first + int(whole(sample, "event.queries")[step])], dtype=np.int64)
