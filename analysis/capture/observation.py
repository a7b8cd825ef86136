"""What one layer's attention looked like in one pass, for one sequence: where every reduction begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kvcompress.kernels.window_scores.reference import AttentionSpec

_CHUNK_ELEMENTS = 1 << 19  # probabilities of one chunk of queries over all heads: 2 MiB in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One layer's attention in one pass, for one sequence. Positions count the sequence's own tokens, padding excluded.

    Attributes:
        query: ``[query_heads, observed, head_dim]``, the observed queries alone.
        query_positions: int64 ``[observed]``, ascending.
        keys: ``[kv_heads, keys, head_dim]``, by ascending position.
        positions: int64 ``[kv_heads or 1, keys]``, ascending, below 0 for a place without a token.
        spec: what the attention does to its logits.
        causal: whether a query sees no later key.
        visible: bool ``[observed, keys]``, what a mask allows beside the above; None: all.
        bias: ``[query_heads or 1, observed, keys]``, added to the logits; None: nothing.
        queries: queries that the pass had, observed or not.
    """

    query: torch.Tensor
    query_positions: torch.Tensor
    keys: torch.Tensor
    positions: torch.Tensor
    spec: AttentionSpec
    causal: bool
    queries: int
    visible: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def query_heads(self) -> int:
        """Number of query heads."""
        return self.query.shape[0]

    @property
    def kv_heads(self) -> int:
        """Number of kv heads."""
        return self.keys.shape[0]

    @property
    def observed(self) -> int:
        """Number of observed queries."""
        return self.query.shape[1]


# What a mask says of queries, by their places in the block (int64 ``[n]``): an Observation's ``visible`` and ``bias``.
MaskRows = Callable[[torch.Tensor], tuple[torch.Tensor | None, torch.Tensor | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """All of one layer's attention in one pass, for one sequence; nothing of it is copied.

    Attributes:
        query: ``[query_heads, queries, head_dim]``.
        first_query: position of the first query.
        keys: ``[kv_heads, keys, head_dim]``, by ascending position.
        positions: int64 ``[kv_heads or 1, keys]``, ascending, below 0 for a place without a token.
        new_keys: ``[kv_heads, queries, head_dim]``, the block's own.
        new_values: ``[kv_heads, queries, value_dim]``.
        spec: what the attention does to its logits.
        causal: whether a query sees no later key.
        mask: what a mask says beside that; None: nothing.
    """

    query: torch.Tensor
    first_query: int
    keys: torch.Tensor
    positions: torch.Tensor
    new_keys: torch.Tensor
    new_values: torch.Tensor
    spec: AttentionSpec
    causal: bool
    mask: MaskRows | None = None

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.query.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens seen after the pass."""
        return self.first_query + self.queries

    def observe(self, places: torch.Tensor) -> Observation:
        """What some queries see.

        Args:
            places: int64 ``[n]``, ascending, places in the block.
        """
        visible, bias = (None, None) if self.mask is None else self.mask(places)
        positions = self.first_query + places
        causal = self.causal or (visible is not None and not _looks_ahead(visible, positions, self.positions))
        return Observation(
            query=self.query[:, places],
            query_positions=positions,
            keys=self.keys,
            positions=self.positions,
            spec=self.spec,
            causal=causal,
            queries=self.queries,
            visible=visible,
            bias=bias,
        )


def _looks_ahead(visible: torch.Tensor, query_positions: torch.Tensor, positions: torch.Tensor) -> bool:
    """Whether a mask lets some query see a later key."""
    return bool((visible & (positions[0] > query_positions[:, None])).any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Probabilities of some observed queries over the keys.

    Attributes:
        first: index of the first of these queries among the observed ones.
        query_positions: int64 ``[queries]``.
        positions: int64 ``[kv_heads, keys]``, ascending; keys that no query of the chunk can see may be cut off.
        visible: bool ``[kv_heads or 1, queries, keys]``.
        p: ``[kv_heads, group, queries, keys]``, 0 where a key is not seen.
        sink: ``[kv_heads, group, queries]``, mass on the learned sink.
    """

    first: int
    query_positions: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    p: torch.Tensor
    sink: torch.Tensor


def observed_places(queries: int, most: int, device: torch.device) -> torch.Tensor:
    """Which queries of a block are observed: all, or ``most`` evenly spaced ones, the last included.

    Args:
        queries: queries of the block, at least 1.
        most: most that are observed, at least 1.
        device: where to put the result.

    Returns:
        int64 ``[min(queries, most)]``, ascending.
    """
    count = min(queries, most)
    return (torch.arange(1, count + 1, device=device) * queries) // count - 1


def probabilities(observation: Observation) -> Iterator[Chunk]:
    """Softmax probabilities, some queries at a time; the matrix of all queries times all keys is never held.

    Yields:
        Chunks of at most about half a million probabilities. Float64 queries give float64 ones, others float32.
    """
    compute = torch.float64 if observation.query.dtype == torch.float64 else torch.float32
    heads, group = observation.kv_heads, observation.query_heads // observation.kv_heads
    positions = observation.positions.expand(heads, -1)
    size = max(1, _CHUNK_ELEMENTS // (observation.query_heads * max(positions.shape[1], 1)))
    sinks = _sink_logits(observation, compute)
    for first in range(0, observation.observed, size):
        rows = slice(first, min(first + size, observation.observed))
        query_positions = observation.query_positions[rows]
        stop = _seen_keys(observation, query_positions)
        visible = _visible(observation, rows, stop)
        query = observation.query[:, rows].reshape(heads, group * query_positions.numel(), -1).to(compute)
        logits = torch.matmul(query * observation.spec.scaling, observation.keys[:, :stop].to(compute).transpose(1, 2))
        logits = _shaped(observation, logits.view(heads, group, -1, stop), rows)
        p, sink = _softmax(logits, visible, sinks)
        yield Chunk(
            first=first,
            query_positions=query_positions,
            positions=positions[:, :stop],
            visible=visible,
            p=p,
            sink=sink,
        )


def _seen_keys(observation: Observation, query_positions: torch.Tensor) -> int:
    """How many keys, from the first, a chunk's queries can see at most."""
    if not observation.causal:
        return observation.positions.shape[1]
    last = query_positions[-1].expand(observation.positions.shape[0], 1).contiguous()
    return int(torch.searchsorted(observation.positions.contiguous(), last, right=True).max())


def _visible(observation: Observation, rows: slice, stop: int) -> torch.Tensor:
    """Bool ``[kv_heads or 1, queries, stop]``."""
    positions = observation.positions[:, None, :stop]
    distance = observation.query_positions[rows, None] - positions
    visible = positions >= 0
    if observation.causal:
        visible = visible & (distance >= 0)
    if observation.spec.sliding_window is not None:
        visible = visible & (distance < observation.spec.sliding_window)
    if observation.visible is not None:
        visible = visible & observation.visible[rows, :stop]
    return visible.expand(-1, distance.shape[1], -1)


def _sink_logits(observation: Observation, compute: torch.dtype) -> torch.Tensor | None:
    """Learned sink logits, ``[kv_heads, group, 1, 1]``."""
    sinks = observation.spec.sinks
    return None if sinks is None else sinks.detach().to(compute).reshape(observation.kv_heads, -1, 1, 1)


def _shaped(observation: Observation, logits: torch.Tensor, rows: slice) -> torch.Tensor:
    """Softcap and bias."""
    softcap, bias = observation.spec.softcap, observation.bias
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    if bias is None:
        return logits
    part = bias[:, rows, : logits.shape[-1]].to(logits.dtype)
    return logits + (part[None] if bias.shape[0] == 1 else part.view(*logits.shape))


def _softmax(
    logits: torch.Tensor, visible: torch.Tensor, sinks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities over what is visible, and the learned sink's; a query that sees nothing has zeros."""
    logits = logits.masked_fill_(~visible[:, None], float("-inf"))
    largest = logits.amax(-1, keepdim=True) if logits.shape[-1] else logits.new_zeros(*logits.shape[:-1], 1)
    if sinks is not None:
        largest = torch.maximum(largest, sinks)
    largest = largest.masked_fill(largest == float("-inf"), 0.0)
    p = logits.sub_(largest).exp_()
    total = p.sum(-1, keepdim=True)
    sink = torch.zeros_like(total) if sinks is None else (sinks - largest).exp()
    total = total + sink
    total = total.masked_fill(total == 0, 1.0)
    return p.div_(total), (sink / total).squeeze(-1)
